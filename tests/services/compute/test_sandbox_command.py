"""The command under which a native program runs: whose environment goes where, and what is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from freehold.protocol.errors import InvalidInput
from freehold.services.compute.executors.sandbox_command import HOST_ENVIRONMENT, Layout, build_command
from freehold.services.compute.tasks import Resources, Task

LAYOUT = Layout("/usr/bin/bwrap", Path("/job/in"), None)
TASK = Task(
    executor="sandbox",
    kind="native",
    arguments=("sort", "-n", "--", "a b"),
    environment=(("LD_PRELOAD", "/in/x.so"), ("PATH", "/in")),
    resources=Resources(processors=2, memory=2**20, disk=5000, seconds=3, processes=7),
)


def split(command: list[str]) -> list[list[str]]:
    """The shell before, bubblewrap, and what runs in it; each up to its "--"."""
    first = command.index("--")
    second = command.index("--", first + 1)
    return [command[:first], command[first + 1 : second], command[second + 1 :]]


def has(words: list[str], *wanted: str) -> bool:
    """Whether these words stand beside each other."""
    return any(tuple(words[at : at + len(wanted)]) == wanted for at in range(len(words)))


def test_command_of_a_counted_run() -> None:
    doors = [Path("/sys/fs/cgroup/x/cgroup.procs")]
    before, box, inside = split(build_command(TASK, LAYOUT, doors))
    assert before[:2] == ["/bin/sh", "-c"]
    assert before[-1] == str(doors[0])
    assert box[0] == "/usr/bin/bwrap"
    assert {"--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-net", "--die-with-parent"} <= set(box)
    assert "--clearenv" in box
    assert has(box, "--cap-drop", "ALL")
    assert has(box, "--ro-bind", "/job/in", "/in")
    assert has(box, "--size", "5000", "--tmpfs", "/box")
    assert has(box, "--remount-ro", "/proc")
    assert "/etc/shadow" not in box
    assert not has(box, "--ro-bind", "/etc/passwd")
    assert inside[-5:] == ["--", "sort", "-n", "--", "a b"]
    assert has(inside, "-t", "7")
    assert "-v" not in inside


def test_environment_is_the_tasks_and_only_in_the_box() -> None:
    before, box, inside = split(build_command(TASK, LAYOUT, ()))
    assert has(box, "--setenv", "LD_PRELOAD", "/in/x.so")
    assert has(box, "--setenv", "PATH", "/in")
    assert has(box, "--setenv", "HOME", "/tmp")
    assert not any("/in/x.so" in word for word in (*before, *inside))
    assert HOST_ENVIRONMENT == {"PATH": "/usr/bin:/bin"}


def test_run_that_is_not_counted_has_rlimits() -> None:
    _, _, inside = split(build_command(TASK, LAYOUT, ()))
    assert has(inside, "-v", str((2**20 + 2**30) // 1024))
    assert "--nproc=11:11" in inside


def test_network_and_program_are_shown_where_they_are_given() -> None:
    layout = LAYOUT._replace(program=Path("/job/program"), network=True, guards=("--disable-userns",))
    _, box, inside = split(build_command(TASK, layout, ()))
    assert "--unshare-net" not in box
    assert "/etc/resolv.conf" in box
    assert "--disable-userns" in box
    assert has(box, "--ro-bind", "/job/program", "/program")
    assert has(inside, "/program", "sort")
    assert "/etc/resolv.conf" not in split(build_command(TASK, LAYOUT, ()))[1]


@pytest.mark.parametrize(
    "change",
    [
        {"arguments": ()},
        {"arguments": ("",)},
        {"arguments": ("a\x00b",)},
        {"arguments": ("a\ud800",)},
        {"arguments": ("a",) * 2049},
        {"environment": tuple((f"A{number}", "") for number in range(2049))},
        {"environment": (("", "x"),)},
        {"environment": (("A=B", "x"),)},
        {"environment": (("A\x00", "x"),)},
        {"environment": (("A", "x\x00"),)},
    ],
)
def test_what_no_process_can_have_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        build_command(msgspec.structs.replace(TASK, **change), LAYOUT, ())
