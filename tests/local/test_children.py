"""Children end with their parent, are found again after a crash, and nobody else is ever signalled."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from freehold.local.children import ChildFailed, read_json, reap_leftovers, spawn, start_time, write_json
from tests.local.chains import DEADLINE, until

SERVE = """
import json, os, signal, sys, time
from pathlib import Path
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
ready = Path(sys.argv[1])
ready.with_suffix(".new").write_text(json.dumps({"port": 4711, "pid": os.getpid()}))
ready.with_suffix(".new").replace(ready)
print("serving", flush=True)
signal.pause()
"""
PARENT = """
import asyncio, os, sys
from pathlib import Path
from freehold.local.children import spawn
async def main():
    directory = Path(sys.argv[1])
    child = await spawn("served", [sys.executable, "-c", sys.argv[2], str(directory / "ready.json"), "x"], directory,
                        ready=directory / "ready.json")
    await child.wait_ready(20)
    print(child.pid, flush=True)
    await child.wait()
asyncio.run(main())
"""


def program(directory: Path, manner: str = "meek") -> list[str]:
    return [sys.executable, "-c", SERVE, str(directory / "ready.json"), manner]


@pytest.mark.parametrize(("manner", "code"), [("meek", -signal.SIGTERM), ("stubborn", -signal.SIGKILL)])
def test_starts_reports_and_stops(tmp_path: Path, manner: str, code: int) -> None:
    async def main() -> None:
        ready = tmp_path / "ready.json"
        ready.write_text('{"port": 1}')  # of an earlier run: must not be taken for this one's
        child = await spawn("one", program(tmp_path, manner), tmp_path, ready=ready)
        assert await child.wait_ready(DEADLINE) == {"port": 4711, "pid": child.pid}
        assert os.getpgid(child.pid) == child.pid
        assert (read_json(tmp_path / "one.pid") or {})["pid"] == child.pid
        assert await child.stop(grace=0.2 if manner == "stubborn" else DEADLINE) == code
        assert await child.stop() == code
        assert not (tmp_path / "one.pid").exists()
        assert "serving" in (tmp_path / "one.log").read_text()

    asyncio.run(main())


def test_a_child_that_ends_early_says_why(tmp_path: Path) -> None:
    async def main() -> None:
        argv = [sys.executable, "-c", "import sys; print('no disk'); sys.exit(3)"]
        child = await spawn("two", argv, tmp_path, ready=tmp_path / "ready.json")
        with pytest.raises(ChildFailed, match=r"two ended with code 3.*no disk"):
            await child.wait_ready(DEADLINE)
        await child.stop()

    asyncio.run(main())


def test_a_child_that_is_not_ready_in_time(tmp_path: Path) -> None:
    async def main() -> None:
        child = await spawn(
            "three", [sys.executable, "-c", "import signal; signal.pause()"], tmp_path, ready=tmp_path / "r"
        )
        with pytest.raises(ChildFailed, match=r"was not ready after 0\.05 s"):
            await child.wait_ready(0.05)
        await child.stop()

    asyncio.run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_dies_with_its_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), SERVE], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert parent.stdout is not None
    with parent, parent.stdout:
        pid = int(parent.stdout.readline())
        assert start_time(pid) is not None
        parent.kill()
    asyncio.run(until(lambda: start_time(pid) is None))
    # The record of the crash stays until the next start, which finds nothing to end.
    assert (tmp_path / "served.pid").exists()
    assert asyncio.run(reap_leftovers(tmp_path)) == []
    assert not (tmp_path / "served.pid").exists()


@pytest.mark.parametrize("manner", ["meek", "stubborn"])
def test_reaps_exactly_what_was_left(tmp_path: Path, manner: str) -> None:
    left = subprocess.Popen(program(tmp_path, manner), process_group=0, stdout=subprocess.DEVNULL)
    bystander = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], process_group=0)

    async def main() -> None:
        await until((tmp_path / "ready.json").exists)
        records = tmp_path / "run"
        records.mkdir()
        write_json(records / "left.pid", {"name": "left", "pid": left.pid, "started": start_time(left.pid)})
        # The number of a process that ended, which another one has now.
        write_json(records / "other.pid", {"name": "other", "pid": bystander.pid, "started": "long ago"})
        (records / "torn.pid").write_text('{"pid": ')
        assert await reap_leftovers(records, grace=0.3) == ["left"]
        assert list(records.iterdir()) == []

    try:
        asyncio.run(main())
        assert left.wait() == (-signal.SIGTERM if manner == "meek" else -signal.SIGKILL)
        assert bystander.poll() is None
    finally:
        for process in (left, bystander):
            process.kill()
            process.wait()


def test_no_directory_means_no_leftovers(tmp_path: Path) -> None:
    assert asyncio.run(reap_leftovers(tmp_path / "none")) == []


def test_json_files_are_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert read_json(path) is None
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}
    path.write_text("[1]")
    assert read_json(path) is None
    assert json.loads(path.read_text()) == [1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]
