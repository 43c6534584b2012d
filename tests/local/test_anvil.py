"""The lock names no host, what cannot be installed says why, and a half-made installation is never found."""

from __future__ import annotations

import asyncio
import json
import sys
from importlib import resources
from pathlib import Path

import pytest

from freehold.local import anvil
from freehold.local.anvil import AnvilMissing, ensure_anvil, find_npm, get_platform
from tests.local.chains import find_anvil

FAKE_NPM = """#!{python}
import os, pathlib, sys
assert "--ignore-scripts" in sys.argv and sys.argv[1] == "ci", sys.argv
assert pathlib.Path("package-lock.json").exists()
if "{manner}" == "fails":
    sys.exit("integrity checksum failed")
binary = pathlib.Path("node_modules/@foundry-rs/anvil-{platform}/bin/anvil")
if "{manner}" == "works":
    binary.parent.mkdir(parents=True)
    binary.write_text("")
"""


@pytest.fixture
def fake_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def install(manner: str) -> Path:
        path = tmp_path / "npm"
        path.write_text(FAKE_NPM.format(python=sys.executable, manner=manner, platform=get_platform()))
        path.chmod(0o755)
        monkeypatch.delenv("FREEHOLD_ANVIL", raising=False)
        monkeypatch.setattr(anvil, "find_npm", lambda: [str(path)])
        return tmp_path / "home"

    return install


def test_the_lock_pins_by_hash_and_names_no_host() -> None:
    folder = resources.files("freehold.local") / "npm"
    text = (folder / "package-lock.json").read_text()
    assert "http" not in text
    assert "resolved" not in text
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]
    for name, version in wanted.items():
        locked = json.loads(text)["packages"][f"node_modules/{name}"]
        assert locked["version"] == version
        assert locked["integrity"].startswith("sha512-")
        assert "hasInstallScript" not in locked


def test_the_binary_is_the_locked_version() -> None:
    async def main() -> str:
        process = await asyncio.create_subprocess_exec(find_anvil(), "--version", stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        return output.decode()

    assert "1.7.1" in asyncio.run(main())


def test_installs_once(fake_npm, monkeypatch: pytest.MonkeyPatch) -> None:
    home = fake_npm("works")
    binary = asyncio.run(ensure_anvil(home))
    assert binary.exists()
    monkeypatch.setattr(anvil, "find_npm", lambda: pytest.fail("asked npm again"))
    assert asyncio.run(ensure_anvil(home)) == binary
    assert [path.name for path in (home / "tools").iterdir()] == [binary.relative_to(home / "tools").parts[0]]


@pytest.mark.parametrize(
    ("manner", "words"),
    [("fails", "npm ended with code 1: integrity checksum failed"), ("empty", "holds no anvil for")],
)
def test_a_failed_installation_says_why_and_leaves_nothing(fake_npm, manner: str, words: str) -> None:
    home = fake_npm(manner)
    with pytest.raises(AnvilMissing, match=words):
        asyncio.run(ensure_anvil(home))
    assert list((home / "tools").iterdir()) == []


def test_two_at_once_end_with_one_installation(fake_npm) -> None:
    home = fake_npm("works")

    async def main() -> list[Path]:
        return await asyncio.gather(ensure_anvil(home), ensure_anvil(home))

    first, second = asyncio.run(main())
    assert first == second
    assert first.exists()


def test_a_binary_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "anvil"
    monkeypatch.setenv("FREEHOLD_ANVIL", str(own))
    with pytest.raises(AnvilMissing, match="which is not a program"):
        asyncio.run(ensure_anvil(tmp_path))
    own.touch(0o755)
    assert asyncio.run(ensure_anvil(tmp_path)) == own


def test_npm_comes_from_the_machine_or_from_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anvil.shutil, "which", lambda name: f"/bin/{name}")
    assert find_npm() == ["/bin/npm"]
    monkeypatch.setattr(anvil.shutil, "which", lambda name: None)
    monkeypatch.setattr(anvil.importlib.util, "find_spec", lambda name: object())
    assert find_npm()[0] == sys.executable
    monkeypatch.setattr(anvil.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AnvilMissing, match="no npm"):
        find_npm()


def test_other_platforms_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anvil.platform, "machine", lambda: "riscv64")
    with pytest.raises(AnvilMissing, match="riscv64") as caught:
        get_platform()
    assert "FREEHOLD_ANVIL" in caught.value.advice
