"""Native programs in the sandbox: what they get, what comes of them, how they end, and what a killed node leaves."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from freehold.protocol.errors import Unavailable
from freehold.services.compute.executors import sandbox_command
from freehold.services.compute.executors.cgroups import find_cgroups
from freehold.services.compute.executors.sandbox import SandboxExecutor
from freehold.services.compute.executors.seam import Outcome
from freehold.services.compute.tasks import Resources
from tests.servers.boxes import LIMIT, MARK, MISSING, MOST, Ran, Traces, has_logged, make_work, native, run, wait_for


@pytest.fixture(scope="module")
def executor() -> SandboxExecutor:
    """The sandbox, seen to hold."""
    if shutil.which("bwrap") is None:
        pytest.skip(MISSING)
    found = SandboxExecutor()
    capability = asyncio.run(found.probe())
    assert capability.works, capability.reason
    assert capability.properties["executor.sandbox.bounds"] in ("cgroup", "rlimit")
    return found


def without(*words: str) -> Callable[[list[str]], list[str]]:
    """Bubblewrap's command line without these words, where they stand beside each other."""

    def change(line: list[str]) -> list[str]:
        at = next(at for at in range(len(line)) if tuple(line[at : at + len(words)]) == words)
        return line[:at] + line[at + len(words) :]

    return change


def instead(*words: str) -> Callable[[list[str]], list[str]]:
    """The command line with these words for those before them that begin alike."""

    def change(line: list[str]) -> list[str]:
        at = line.index(words[-1])
        return [*line[: at - len(words) + 1], *words, *line[at + 1 :]]

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("--unshare-net"), "there is a network"),
        (without("--unshare-pid"), "processes of the host can be seen"),
        (instead("--bind", "/etc/passwd", "/etc/passwd"), "the host's passwords can be read"),
        (
            instead("--size", "100000000", "--tmpfs", "/box"),
            "its disk has no bound|it filled its",
        ),  # the latter on a busy machine
    ],
    ids=["network", "processes", "passwords", "disk"],
)
def test_sandbox_that_does_not_hold_is_not_offered(
    change: Callable[[list[str]], list[str]], reason: str, executor: SandboxExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sandbox_command._box
    monkeypatch.setattr(sandbox_command, "_box", lambda *given: change(whole(*given)))
    found = asyncio.run(SandboxExecutor().probe())
    assert not found.works
    assert re.search(reason, found.reason), found.reason


def test_program_of_the_root_gets_its_arguments_input_and_environment(
    executor: SandboxExecutor, tmp_path: Path
) -> None:
    script = 'cat; cat /in/given; echo " $0 $1 $HI $PWD"; echo out >made; mkdir a; echo b >a/b; echo log >&2; exit 7'
    task = native("sh", "-c", script, "zero", "one two", environment={"HI": "hello there"})
    ran = run(executor, make_work(tmp_path, task, stdin=b"standard "))
    assert ran.outcome[:3] == ("exited", 7, b"standard an input zero one two hello there /out\n")
    assert ran.log == b"log\n"
    assert ran.files() == {"made": b"out\n", "a/b": b"b\n"}


def test_program_that_the_client_brings_needs_no_mode(executor: SandboxExecutor, tmp_path: Path) -> None:
    program = tmp_path / "blob"
    program.write_text('#!/bin/sh\necho "$0 $1"; rm -f /program || echo kept\n')
    program.chmod(0o400)
    ran = run(executor, make_work(tmp_path, native("argument"), program=program))
    assert ran.text == "/program argument\nkept\n"
    program = tmp_path / "executable"
    shutil.copyfile("/bin/cat", program)
    ran = run(executor, make_work(tmp_path, native("/in/given"), program=program))
    assert ran.text == "an input"


def test_program_that_is_not_there_says_so(executor: SandboxExecutor, tmp_path: Path) -> None:
    ran = run(executor, make_work(tmp_path, native("no-such-program")))
    assert (ran.outcome.ended, ran.outcome.status) == ("exited", 127)
    assert b"no-such-program" in ran.log


def test_least_resources_start_a_program_and_hold_it(executor: SandboxExecutor, tmp_path: Path) -> None:
    least = Resources(processors=1, memory=1, disk=1, seconds=1, processes=1)
    ran = run(executor, make_work(tmp_path, native("sh", "-c", "sleep 60", resources=least)))
    assert ran.outcome.ended in ("memory", "processes"), ran.outcome
    ran = run(executor, make_work(tmp_path, native("true", resources=msgspec.structs.replace(least, memory=2**20))))
    assert ran.outcome.ended in ("exited", "memory"), ran.outcome


@pytest.mark.parametrize("name", ["processors", "memory", "disk", "seconds", "processes"])
def test_resources_that_no_kernel_takes_are_refused(name: str, executor: SandboxExecutor, tmp_path: Path) -> None:
    for value in (10**30, sandbox_command.LARGEST[name] + 1):
        resources = msgspec.structs.replace(native("true").resources, **{name: value})
        assert run(executor, make_work(tmp_path, native("true", resources=resources))).outcome.ended == "refused"
    largest = msgspec.structs.replace(native("true").resources, **{name: sandbox_command.LARGEST[name]})
    work = make_work(tmp_path, native("true", resources=largest), most=2**62)  # of so many processors, a second each
    assert run(executor, work).outcome.ended == "exited"


def test_many_arguments_and_variables_reach_the_program(executor: SandboxExecutor, tmp_path: Path) -> None:
    variables = {f"V{number}": "" for number in range(1000)}
    task = native("sh", "-c", "echo $#; env | grep -c ^V", "sh", *["a"] * 1000, environment=variables)
    assert run(executor, make_work(tmp_path, task)).text == "1000\n1000\n"


def test_measure_is_time_by_processors(executor: SandboxExecutor, tmp_path: Path) -> None:
    resources = msgspec.structs.replace(native("true").resources, processors=2)
    began = time.monotonic_ns()
    ran = run(executor, make_work(tmp_path, native("sleep", "0.2", resources=resources)))
    assert 2 * 200_000_000 <= ran.outcome.measure <= 2 * (time.monotonic_ns() - began)


def test_steps_pass_a_state_on_and_nothing_else(executor: SandboxExecutor, tmp_path: Path) -> None:
    script = "read n; test -e /tmp/left || test -e left && exit 9; echo x >/tmp/left; echo $n >left; echo $((n + 1))"
    task = msgspec.structs.replace(native("sh", "-c", script), steps=3)
    ran = run(executor, make_work(tmp_path, task, stdin=b"5\n"))
    assert ran.outcome[:3] == ("exited", 0, b"8\n")
    assert ran.outcome.states == (b"6\n", b"7\n", b"8\n")
    assert ran.files() == {"left": b"7\n"}


def test_steps_end_with_the_first_that_fails_and_share_what_was_ordered(
    executor: SandboxExecutor, tmp_path: Path
) -> None:
    task = msgspec.structs.replace(native("sh", "-c", "read n; echo $((n + 1)); exit $((n / 2))"), steps=9)
    ran = run(executor, make_work(tmp_path, task, stdin=b"0\n"))
    assert ran.outcome[:3] == ("exited", 1, b"3\n")
    assert ran.outcome.states == (b"1\n", b"2\n")
    task = msgspec.structs.replace(native("sleep", "0.3"), steps=9)
    ran = run(executor, make_work(tmp_path, task, MOST))
    assert (ran.outcome.ended, ran.outcome.measure) == ("time", MOST)
    assert len(ran.outcome.states) < 2


def filter_with(executor: SandboxExecutor, tmp_path: Path, words: tuple[str, ...], data: bytes) -> Ran:
    """A program that turns its standard input into its standard output."""
    large = msgspec.structs.replace(native("true").resources, memory=2**29, disk=2**26, processes=64)
    return run(executor, make_work(tmp_path, native(*words, resources=large), stdin=data))


def test_programs_of_every_day_do_what_they_do_outside(executor: SandboxExecutor, tmp_path: Path) -> None:
    data = b"".join(b"%d\n" % (n * 7919 % 10_007) for n in range(10_000))
    for words in (("sort", "-n"), ("gzip", "-n"), ("sha256sum",)):
        ran = filter_with(executor, tmp_path, words, data)
        outside = subprocess.run(words, input=data, capture_output=True, check=True, env={"PATH": "/usr/bin:/bin"})
        assert ran.outcome.ended == "exited"
        assert ran.outcome.stdout == outside.stdout


# Debian's ffmpeg brings some two hundred packages, so where it is not there is nothing missing.
@pytest.mark.parametrize("program", [path for path in ["/usr/bin/ffmpeg"] if os.path.exists(path)])
def test_film_is_made_in_the_sandbox(program: str, executor: SandboxExecutor, tmp_path: Path) -> None:
    script = (
        "ffmpeg -v error -f lavfi -i testsrc=duration=1:size=160x120:rate=10 -c:v mpeg4 clip.mp4 && "
        "ffmpeg -v error -i clip.mp4 -vf scale=80:60 -f rawvideo -pix_fmt gray small.raw"
    )
    ran = filter_with(executor, tmp_path, ("sh", "-c", script), b"")
    assert ran.outcome.ended == "exited", ran.log
    assert ran.outcome.status == 0, ran.log
    assert len(ran.files()["small.raw"]) == 10 * 80 * 60


class Gate:
    """A turn that comes when it is told to."""

    def __init__(self) -> None:
        self.asked, self.come, self.is_over = asyncio.Event(), asyncio.Event(), False

    async def begin(self) -> None:
        self.asked.set()
        await self.come.wait()

    def end(self) -> None:
        self.is_over = True


@pytest.mark.parametrize("how", ["its turn comes", "it is ended", "it is cancelled"])
def test_a_box_is_ready_before_its_programs_turn(how: str, executor: SandboxExecutor, tmp_path: Path) -> None:
    traces = Traces()
    work = make_work(tmp_path, native("sh", "-c", "echo begun >&2; cat"), stdin=b"given")

    async def scenario() -> Outcome | None:
        gate = Gate()
        running = asyncio.create_task(executor.run_in_turn(work, gate))
        async with asyncio.timeout(LIMIT):
            await gate.asked.wait()
            assert executor.measure(work.folder) == 0
            if how == "it is ended":
                executor.end(work.folder)
            if how == "it is cancelled":
                running.cancel()
                await asyncio.wait([running])
                return None
            gate.come.set()
            outcome = await running
        assert gate.is_over == (how == "its turn comes")
        return outcome

    outcome = asyncio.run(scenario())
    assert has_logged(work.folder, b"begun") == (how == "its turn comes")
    assert (outcome.ended if outcome else "") == {"its turn comes": "exited", "it is ended": "stopped"}.get(how, "")
    assert (outcome.stdout if outcome else b"") == (b"given" if how == "its turn comes" else b"")
    traces.assert_none()


def test_run_that_is_asked_to_end_may_finish_what_it_does(executor: SandboxExecutor, tmp_path: Path) -> None:
    script = "trap 'echo saved >state; echo bye; exit 0' TERM; echo ready >&2; while :; do sleep 0.05; done"

    async def main() -> Outcome:
        work = make_work(tmp_path, native("sh", "-c", script))
        running = asyncio.create_task(executor.run(work))
        await wait_for(lambda: has_logged(work.folder, b"ready"))
        assert executor.measure(work.folder) > 0
        executor.end(work.folder)
        outcome = await running
        assert (work.folder / "out" / "state").read_text() == "saved\n"
        assert executor.measure(work.folder) == 0
        return outcome

    outcome = asyncio.run(main())
    assert (outcome.ended, outcome.status, outcome.stdout) == ("stopped", 0, b"bye\n")
    assert outcome.measure > 0


@pytest.mark.parametrize("how", ["cancel", "stop"])
def test_runs_that_are_ended_leave_nothing(how: str, executor: SandboxExecutor, tmp_path: Path) -> None:
    async def main() -> None:
        script = "trap '' TERM; (setsid sleep 60 &); echo ready >&2; sleep 60"
        works = [make_work(tmp_path, native("sh", "-c", script, environment={MARK: traces.mark})) for _ in range(3)]
        tasks = [asyncio.create_task(executor.run(work)) for work in works]
        await wait_for(lambda: all(has_logged(work.folder, b"ready") for work in works))
        if how == "cancel":
            for task in tasks:
                task.cancel()
            for found in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(found, asyncio.CancelledError)
        else:
            await executor.stop()
            assert {(await task).ended for task in tasks} == {"stopped"}

    traces = Traces()
    asyncio.run(main())
    traces.assert_none()


def test_run_that_is_cancelled_at_any_moment_leaves_nothing(executor: SandboxExecutor, tmp_path: Path) -> None:
    async def main(delay: float) -> None:
        work = make_work(tmp_path, native("sleep", "60", environment={MARK: traces.mark}))
        task = asyncio.create_task(executor.run(work))
        await asyncio.wait([task], timeout=delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    traces = Traces()
    for step in range(12):
        asyncio.run(main(step * 0.002))
    traces.assert_none()


def test_failure_of_bubblewrap_is_the_executors(tmp_path: Path, executor: SandboxExecutor) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: no permission to do that' >&2; exit 1\n")
    broken.chmod(0o755)
    failing = SandboxExecutor()
    asyncio.run(failing.probe())
    failing._bubblewrap = str(broken)
    traces = Traces()
    with pytest.raises(Unavailable, match="no permission to do that"):
        run(failing, make_work(tmp_path, native("true")))
    failing._bubblewrap = str(tmp_path / "gone")
    with pytest.raises(Unavailable, match="could not be set up"):
        run(failing, make_work(tmp_path, native("true")))
    traces.assert_none()


NODE = """
import asyncio, sys
from pathlib import Path
from freehold.services.compute.executors.sandbox import SandboxExecutor
from freehold.services.compute.tasks import Resources
from tests.servers.boxes import MARK, make_work, native

async def main():
    executor = SandboxExecutor()
    assert (await executor.probe()).works
    script = "setsid sleep 60 & echo ready >&2; sleep 60"
    work = make_work(Path(sys.argv[1]), native("sh", "-c", script, environment={MARK: sys.argv[2]}))
    print(work.folder, flush=True)
    await executor.run(work)

asyncio.run(main())
"""


def test_node_that_is_killed_leaves_no_program(executor: SandboxExecutor, tmp_path: Path) -> None:
    traces = Traces()
    with subprocess.Popen(
        [sys.executable, "-c", NODE, str(tmp_path), traces.mark],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{os.getcwd()}/src:{os.getcwd()}"},
    ) as node:
        assert node.stdout is not None
        folder = Path(node.stdout.readline().strip())
        asyncio.run(wait_for(lambda: has_logged(folder, b"ready")))
        assert traces._marked()
        node.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + LIMIT
    while traces._marked():
        assert time.monotonic() < deadline, "programs of a killed node run on"
        time.sleep(0.01)
    find_cgroups()  # what a node does when it starts: it removes what others left
    left = [str(one) for one in Path("/sys/fs/cgroup").rglob(f"freehold-{node.pid}-*")]
    assert left == []
    traces.assert_none()
