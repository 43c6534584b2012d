"""`ls` and `cp`: what is listed one level deep, and which file becomes which object."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from freehold.cli.files import format_entry, list_entries
from freehold.cli.transfers import plan_downloads, plan_uploads
from freehold.client.paths import parse_path
from freehold.protocol.errors import InvalidInput, NotFound
from freehold.services.storage.client_sources import BytesSource
from tests.client.world import world

KEYS = ("a", "dir", "dir/1", "dir/sub/2", "dir/sub/3", "dirx", "odd//name", "odd/../up")


def test_uploads_get_the_names_that_cp_gives(tmp_path: Path) -> None:
    (tmp_path / "tree" / "in").mkdir(parents=True)
    for name in ("tree/a", "tree/in/b"):
        (tmp_path / name).write_text("x")
    file, tree = tmp_path / "tree" / "a", tmp_path / "tree"

    def targets(source: Path, target: str, *, recursive: bool = False) -> list[str]:
        return [str(job.remote) for job in plan_uploads(source, target, recursive=recursive)]

    assert targets(file, "fh://demo") == targets(file, "fh://demo/") == ["fh://demo/a"]
    assert targets(file, "fh://demo/x") == ["fh://demo/x"]
    assert targets(file, "fh://demo/x/") == ["fh://demo/x/a"]
    assert targets(tree, "fh://demo", recursive=True) == ["fh://demo/a", "fh://demo/in/b"]
    assert targets(tree, "fh://demo/x", recursive=True) == ["fh://demo/x/a", "fh://demo/x/in/b"]
    assert targets(tree, "fh://demo/x/", recursive=True) == ["fh://demo/x/tree/a", "fh://demo/x/tree/in/b"]
    with pytest.raises(InvalidInput, match="directory"):
        targets(tree, "fh://demo")
    with pytest.raises(NotFound):
        targets(tmp_path / "none", "fh://demo")


def test_listing_is_one_level_deep_and_downloads_stay_in_their_folder(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=1) as net, net.client() as client:
            await client.mb("demo")
            for key in KEYS:
                await client.objects.put("demo", key, BytesSource(key.encode()))

            async def listed(path: str, *, recursive: bool = False) -> list[str]:
                rows = list_entries(client, parse_path(f"fh://demo{path}"), recursive=recursive)
                return [row["path"].removeprefix("fh://demo/") async for row in rows]

            assert await listed("") == ["a", "dir", "dir/", "dirx", "odd/"]
            assert await listed("/dir") == ["dir", "dir/1", "dir/sub/"]
            assert await listed("/dir/") == ["dir/1", "dir/sub/"]
            assert await listed("/dir", recursive=True) == ["dir", "dir/1", "dir/sub/2", "dir/sub/3"]
            assert await listed("", recursive=True) == sorted(KEYS)
            rows = [format_entry(row) async for row in list_entries(client, parse_path("fh://demo"), recursive=False)]
            assert rows[0].split()[0:2] == ["1", "B"]
            assert rows[2].split() == ["fh://demo/dir/"]

            async def planned(path: str) -> list[str]:
                jobs = await plan_downloads(client, path, tmp_path / "out", recursive=True)
                return [job.local.relative_to(tmp_path / "out").as_posix() for job in jobs]

            assert await planned("fh://demo/dir/sub") == ["2", "3"]
            for bad in ("fh://demo/odd", "fh://demo"):
                with pytest.raises(InvalidInput, match="cannot be written"):
                    await planned(bad)
            with pytest.raises(NotFound):
                await planned("fh://demo/none")
            (tmp_path / "one").mkdir()
            [job] = await plan_downloads(client, "fh://demo/dir/sub/2", tmp_path / "one", recursive=False)
            assert job.local == tmp_path / "one" / "2"
            assert await client.get(job.remote, job.local) == len("dir/sub/2")

    asyncio.run(scenario())
