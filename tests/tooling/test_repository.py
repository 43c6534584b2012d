"""What no file of the repository may say, and what its locks must hold."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Built from pieces, so that this file does not name what it forbids.
REGISTRIES = [
    ("pypi", "org"),
    ("pythonhosted", "org"),
    ("npmjs", "org"),
    ("npmjs", "com"),
    ("npmmirror", "com"),
    ("crates", "io"),
    ("docker", "io"),
    ("ghcr", "io"),
    (r"(?:proxy|sum|index)\.golang", "org"),  # the bare name is part of Go modules' paths, which locks must hold
]
HOSTS = re.compile("|".join(rf"\b{name}\.{domain}\b" for name, domain in REGISTRIES), re.IGNORECASE)
# Absolute paths that exist on one machine only; a path inside a URL, or after a name, is another thing.
PATHS = re.compile(
    r"(?<![\w.:/}\])>*-])/(?:" + "|".join(["wo" + "rk", "ro" + "ot", r"home/\w+", r"Users/\w+"]) + r")(?![\w-])"
)


def get_text_files() -> list[tuple[str, str]]:
    """(path, text) of what git tracks, or would track: whatever is not ignored and decodes as UTF-8."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode().split("\0")
    texts = []
    for name in filter(None, listed):
        path = ROOT / name
        if not path.is_file() or path.is_symlink():
            continue
        try:
            texts.append((name, path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return texts


@pytest.mark.parametrize("pattern", [HOSTS, PATHS], ids=["registry hosts", "paths of one machine"])
def test_no_text_file_names(pattern: re.Pattern[str]) -> None:
    found = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match.group()}"
        for name, text in get_text_files()
        for match in pattern.finditer(text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("pattern", "text", "is_found"),
    [
        (HOSTS, "https://registry." + "npmjs." + "org/x", True),
        (HOSTS, "files." + "pythonhosted." + "org", True),
        (HOSTS, "an org and a pypi package", False),
        (HOSTS, "https://proxy." + "golang." + "org/x", True),
        (HOSTS, "golang.org/x/sys v0.16.0/go.mod h1:", False),
        (PATHS, "cd /wo" + "rk/main", True),
        (PATHS, '"/ro' + 'ot/.cache"', True),
        (PATHS, "leaf/ro" + "ot", False),
        (PATHS, "http://127.0.0.1/ro" + "ot", False),
        (PATHS, "/ro" + "ots", False),
    ],
)
def test_the_patterns_find_what_they_should(pattern: re.Pattern[str], text: str, is_found: bool) -> None:
    assert bool(pattern.search(text)) is is_found


def get_pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE))


def get_names(name: str) -> set[str]:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z0-9-]+)", text, re.MULTILINE))


@pytest.mark.parametrize("lock", ["run.txt", "node.txt", "installer.txt", "dev.txt", "servers.txt", "go.txt"])
def test_every_pin_of_a_lock_has_hashes(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text(encoding="utf-8")
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert entries
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []


def test_locks_hold_what_their_sources_ask_for() -> None:
    assert get_names("run.in") <= get_pins("run.txt").keys()
    assert get_names("node.in") <= get_pins("node.txt").keys()
    assert get_names("installer.in") <= get_pins("installer.txt").keys()
    assert get_names("servers.in") <= get_pins("servers.txt").keys()
    assert get_names("go.in") <= get_pins("go.txt").keys()
    assert get_names("run.in") | get_names("dev.in") | get_names("contracts.in") <= get_pins("dev.txt").keys()


def test_tests_run_the_versions_that_users_run() -> None:
    run, dev = get_pins("run.txt") | get_pins("installer.txt"), get_pins("dev.txt")
    assert {name: dev.get(name) for name in run} == run


def test_both_locks_of_one_environment_agree() -> None:
    servers, dev = get_pins("servers.txt"), get_pins("dev.txt")
    assert {name: dev[name] for name in servers if name in dev} == {n: servers[n] for n in servers if n in dev}


def test_the_package_asks_for_what_the_lock_holds() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.partition("dependencies = [")[2].partition("]")[0]
    assert set(re.findall(r'"([^"]+)"', block)) == get_names("run.in") - {"flit-core"}
