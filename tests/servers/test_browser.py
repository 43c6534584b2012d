"""Shared links in a real browser: what a person sees, and that a shared page cannot act in the gateway's name."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SLOW
from tests.gateway.share_world import World

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 45.0 * SLOW
MARKED = "<h1>shared</h1><p id=p>untouched</p><script>document.getElementById('p').textContent = 'script ran'</script>"


@pytest.fixture(scope="session")
def browser() -> str:
    """The path of a browser."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"not run: there is none of {', '.join(NAMES)} (Debian: apt-get install chromium)")
    return found


async def dump(browser: str, profile: Path, url: str) -> str:
    """The document that the browser made of a URL, once it has loaded, as HTML."""
    process = await asyncio.create_subprocess_exec(
        browser,
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        f"--user-data-dir={profile}",
        "--dump-dom",
        url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    return out.decode()


def see(browser: str, profile: Path, build: Callable[[World], str]) -> str:
    """What the browser shows of the link, or path below it, that `build` gives."""

    async def run() -> str:
        world = World()
        async with world.serving():
            path = build(world)
            return await dump(browser, profile, world.url + path)

    return asyncio.run(run())


@pytest.mark.timeout(60)
def test_a_shared_text_file(browser: str, tmp_path: Path) -> None:
    def build(world: World) -> str:
        world.objects.add("b-1", "notes.txt", "Grüße from a shared file".encode())
        return world.issue("read", prefix="notes.txt", exact=True)  # the token alone leads on

    assert "Grüße from a shared file" in see(browser, tmp_path, build)


@pytest.mark.timeout(60)
def test_a_shared_folder(browser: str, tmp_path: Path) -> None:
    def build(world: World) -> str:
        for name in ("first.txt", "<b>second.txt", "deeper/third"):
            world.objects.add("b-1", f"photos/{name}", b"x" * 2_048)
        return world.issue(prefix="photos/")

    page = see(browser, tmp_path, build)
    for shown in ("<h1>photos</h1>", ">first.txt</a>", ">&lt;b&gt;second.txt</a>", ">deeper/</a>", "2.0 KiB"):
        assert shown in page
    assert "third" not in page


@pytest.mark.timeout(60)
def test_scripts_of_a_shared_page_do_not_run(browser: str, tmp_path: Path) -> None:
    def build(world: World) -> str:
        world.objects.add("b-1", "page.html", MARKED.encode(), "text/html")
        return world.issue("read") + "/b-1/page.html"

    page = see(browser, tmp_path, build)
    assert "<h1>shared</h1>" in page
    assert ">untouched<" in page


@pytest.mark.timeout(60)
def test_a_link_that_has_ended(browser: str, tmp_path: Path) -> None:
    def build(world: World) -> str:
        return world.issue("read", expires=int(world.now)) + "/b-1/x"

    page = see(browser, tmp_path, build)
    assert "This link has ended" in page
    assert "1970-01-12" in page
