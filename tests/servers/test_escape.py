"""Programs that try to get out of the sandbox, to take more than their task may, or to leave something behind.

The tricks are rows of `tricks.py`. Whatever one tries, it ends as its row says, is billed for no more than was ordered,
shows nothing of the host, and leaves no process, file, mount or cgroup.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from freehold.services.compute.executors.outputs import close_all, collect
from freehold.services.compute.executors.sandbox import SandboxExecutor
from tests.servers.boxes import MARK, MISSING, MOST, PATIENT, Traces, make_work, native, run
from tests.servers.tricks import TRICKS, Trick

SECRET = "the wallet of this node"


@pytest.fixture(scope="module")
def executor() -> SandboxExecutor:
    """The sandbox, seen to hold."""
    if shutil.which("bwrap") is None:
        pytest.skip(MISSING)
    found = SandboxExecutor()
    capability = asyncio.run(found.probe())
    assert capability.works, capability.reason
    return found


@pytest.fixture(scope="module")
def uncounted(executor: SandboxExecutor) -> SandboxExecutor:
    """The sandbox as it is where no cgroups can be made."""
    found = SandboxExecutor()
    asyncio.run(found.probe())
    found._cgroups = None
    return found


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What a trick is told of the host: where it listens, its process, where a node keeps its wallet."""
    data = tmp_path_factory.mktemp("data")
    (data / "wallet.json").write_text(SECRET)
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as abstract,
    ):
        udp.bind(("127.0.0.1", 0))
        udp.setblocking(False)
        name = f"freehold-{os.getpid()}"
        abstract.bind(f"\0{name}")
        abstract.listen()
        yield {
            "HOST_TCP": f"127.0.0.1:{tcp.getsockname()[1]}",
            "HOST_UDP": f"127.0.0.1:{udp.getsockname()[1]}",
            "HOST_ABSTRACT": name,
            "HOST_PID": str(os.getpid()),
            "HOST_DATA": str(data),
        }
        with pytest.raises(BlockingIOError):  # no datagram came
            udp.recv(16)
        assert (data / "wallet.json").read_text() == SECRET


@pytest.mark.parametrize("counted", [True, False], ids=["cgroup", "rlimit"])
@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: trick.name)
def test_trick_is_contained(
    trick: Trick,
    counted: bool,
    executor: SandboxExecutor,
    uncounted: SandboxExecutor,
    host: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WALLET_PASSWORD", SECRET)
    traces = Traces()
    words = ("perl", "-e", trick.script[5:]) if trick.script.startswith("perl:") else ("sh", "-c", trick.script)
    task = native(*words, resources=trick.resources, environment={**host, MARK: traces.mark})
    most = PATIENT if trick.long else MOST
    ran = run(executor if counted else uncounted, make_work(tmp_path, task, most))
    outcome = ran.outcome
    assert b"Can't locate" not in ran.log, "perl lacks a module that the trick needs"
    assert outcome.ended in trick.ended, (outcome.reason, ran.log[-500:])
    assert "escaped" not in ran.text
    assert 0 < outcome.measure <= most
    assert outcome.reason or outcome.ended == "exited"
    written = [ran.text.encode(), ran.log, *ran.files().values()]
    assert not any(SECRET.encode() in data for data in written)
    assert sum(map(len, ran.files().values())) <= trick.resources.disk
    traces.assert_none()


PLANTED = """
cd /out
echo plain >plain; mkdir -p a/b; echo deep >a/b/deep
ln -s /etc/passwd absolute; ln -s ../../../../etc/passwd relative; ln -s nowhere dangling; ln -s loop loop
ln -s / root; ln -s $HOST_DATA data; ln -s plain inside
echo twice >first; ln first second; ln /usr/bin/env hard
mkfifo pipe; mknod device c 1 3
perl -e 'use Socket; socket(S, AF_UNIX, SOCK_STREAM, 0); bind(S, pack_sockaddr_un("socket"))'
perl -e 'for ("new\\nline", "not\\xfftext", "back\\\\slash", "escape\\x1b") { open(F, ">", $_); print F "x" }'
perl -e 'for (1..200) { mkdir "d"; chdir "d" } open(F, ">", "far")'
truncate -s 100000 sparse
"""


def test_only_plain_files_come_out(executor: SandboxExecutor, host: dict[str, str], tmp_path: Path) -> None:
    ran = run(executor, make_work(tmp_path, native("sh", "-c", PLANTED, environment=host)))
    assert ran.outcome.ended == "exited"
    assert {path: len(data) for path, data in ran.files().items()} == {"plain": 6, "a/b/deep": 5, "sparse": 100_000}
    found = collect(ran.folder / "out", ["**"], size=10**6)
    close_all(found)
    assert [one.path for one in found] == ["a/b/deep", "plain", "sparse"]


def test_folder_of_outputs_that_is_replaced_by_a_symlink_is_empty(executor: SandboxExecutor, tmp_path: Path) -> None:
    script = "mkdir /box/other; cd /; mv /box/out /box/gone && ln -s /etc /box/out"
    ran = run(executor, make_work(tmp_path, native("sh", "-c", script)))
    assert (ran.outcome.ended, ran.outcome.status) == ("exited", 0)
    assert ran.files() == {}


def test_outputs_that_pretend_to_be_large_do_not_come_out(executor: SandboxExecutor, tmp_path: Path) -> None:
    script = "for i in 1 2 3; do truncate -s 900000 /out/$i; done"
    ran = run(executor, make_work(tmp_path, native("sh", "-c", script)))
    assert ran.outcome.ended == "disk"
    assert ran.files() == {}


def test_arguments_longer_than_a_process_may_have_are_refused(executor: SandboxExecutor, tmp_path: Path) -> None:
    for task in (native("true", "a" * 200_000), native("true", environment={"LONG": "a" * 200_000})):
        ran = run(executor, make_work(tmp_path, task))
        assert (ran.outcome.ended, ran.outcome.measure) == ("refused", 0), ran.outcome


def test_environment_reaches_nothing_outside(executor: SandboxExecutor, tmp_path: Path) -> None:
    """A library to load first is loaded in the sandbox, where it is not, and never by bubblewrap."""
    work = make_work(tmp_path, native("sh", "-c", "echo $LD_PRELOAD", environment={"LD_PRELOAD": "/in/evil.so"}))
    (work.folder / "in" / "evil.so").write_bytes(b"no library")
    ran = run(executor, work)
    assert ran.text.strip() == "/in/evil.so"
    assert b"cannot be preloaded" in ran.log
    assert (tmp_path / "loaded").exists() is False


def test_network_is_given_only_where_the_operator_gives_it(executor: SandboxExecutor, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        script = f"use IO::Socket::INET; print 'reached' if IO::Socket::INET->new(PeerAddr => '127.0.0.1:{port}')"
        task = msgspec.structs.replace(native("perl", "-e", script), network=True)
        assert run(executor, make_work(tmp_path, task)).outcome.ended == "refused"
        open_handed = SandboxExecutor({"network": True})
        asyncio.run(open_handed.probe())
        assert run(open_handed, make_work(tmp_path, task)).text == "reached"
        without = msgspec.structs.replace(task, network=False)
        assert run(open_handed, make_work(tmp_path, without)).text == ""
