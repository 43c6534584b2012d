"""The command line under which a native program runs: bubblewrap's, and a shell's before and in it. Pure.

    /bin/sh (joins the cgroup) -> bwrap (namespaces, files, filter) -> /bin/sh (limits, waits for "go") -> program

In the sandbox the root is a read-only tree of the host's programs and libraries, a few harmless files of /etc, and

    /in       the task's inputs, read-only
    /out      what comes out: the working directory        both in one file system in memory of resources.disk bytes,
    /tmp      scratch                                       which is gone with the last process

Invariant: the host's environment never reaches the sandbox, and the task's environment reaches nothing outside of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from freehold.protocol.errors import InvalidInput
from freehold.services.compute.executors.cgroups import OWN_TASKS
from freehold.services.compute.tasks import Resources, Task

CONTROL, INFO, FILTER = 3, 4, 5  # open files of the sandbox's first processes; the program has none of them
HOST_ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
SCRATCH, SHARED = "/tmp", "/dev/shm"  # noqa: S108 - in the sandbox, where both are the task's own
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": SCRATCH, "LANG": "C.UTF-8", "TZ": "UTC"}
NOBODY = "65534"
OPEN_FILES = 1024
WORDS_LIMIT = 2048  # bubblewrap takes 9000 words, of which a variable takes three
LARGEST = {"processors": 4096, "memory": 2**48, "disk": 2**48, "seconds": 2**31, "processes": 2**20}
_SPARE_ADDRESSES = 2**30  # beyond memory: programs reserve addresses that they never touch
_FILE_BLOCK = 512  # what the shell counts RLIMIT_FSIZE in
_ETC = Path(__file__).parent / "etc"
_ROOTS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_SHOWN = ("alternatives", "fonts", "ld.so.cache", "ssl/certs")
_SHOWN_WITH_NETWORK = ("resolv.conf",)
_NAME = re.compile(r"[^=\x00]+")

JOIN = 'while [ "$1" != -- ]; do echo 0 >"$1" || exit 125; shift; done; shift; exec "$@"'
ENTER = (
    'while [ "$1" != -- ]; do ulimit $1 "$2" || exit 125; shift 2; done; shift; '
    'echo >&3; read -r go <&3 || exit 125; exec 3>&- 4>&- 5>&-; exec "$@"'
)


class Layout(NamedTuple):
    """What of the host a run sees: its inputs' folder, its program's file (None: one of the root's), and bubblewrap."""

    bubblewrap: str
    inputs: Path
    program: Path | None
    network: bool = False
    guards: tuple[str, ...] = ()  # options that not every bubblewrap has


def build_command(task: Task, layout: Layout, doors: Sequence[Path]) -> list[str]:
    """The whole command. `doors` are the files that a process joins the run's cgroup by; without any, rlimits hold
    its memory and processes. InvalidInput for arguments or an environment that no process can have."""
    program = ["/program"] if layout.program is not None else []
    words = [*program, *task.arguments]
    environment = {**ENVIRONMENT, **dict(task.environment)}
    if not words or not words[0]:
        raise InvalidInput("a native task without a program names one as its first argument")
    check_words(words, environment)
    return [
        *("/bin/sh", "-c", JOIN, "sh", *map(str, doors), "--"),
        *(layout.bubblewrap, *_box(task.resources, layout), *_variables(environment), "--"),
        *("/bin/sh", "-c", ENTER, "sh", *_limits(task.resources, bool(doors)), "--"),
        *_tasks(task.resources, bool(doors)),
        *words,
    ]


def check_resources(resources: Resources) -> None:
    """InvalidInput for more than any machine's kernel takes as a bound."""
    for name, most in LARGEST.items():
        if getattr(resources, name) > most:
            raise InvalidInput(f"a task has at most {most} {name}")


def check_words(words: Sequence[str], environment: Mapping[str, str]) -> None:
    """InvalidInput unless a process can have these arguments and this environment."""
    if not all(_NAME.fullmatch(name) for name in environment):
        raise InvalidInput("a variable of the environment has a name, without '='")
    if len(words) + len(environment) > WORDS_LIMIT:
        raise InvalidInput(f"a program has at most {WORDS_LIMIT} arguments and variables")
    try:
        if any(b"\x00" in text.encode() for text in (*words, *environment, *environment.values())):
            raise InvalidInput("arguments and environment hold no zero bytes")
    except UnicodeEncodeError:
        raise InvalidInput("arguments and environment are text") from None


def _box(resources: Resources, layout: Layout) -> list[str]:
    words = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    words += [] if layout.network else ["--unshare-net"]
    words += ["--uid", NOBODY, "--gid", NOBODY, "--hostname", "freehold", "--cap-drop", "ALL"]
    words += [
        *layout.guards,
        "--die-with-parent",
        "--new-session",
        "--clearenv",
        "--info-fd",
        str(INFO),
        "--seccomp",
        str(FILTER),
    ]
    words += _root(layout.network)
    words += ["--proc", "/proc", "--dev", "/dev"]
    words += ["--perms", "1777", "--size", str(resources.memory), "--tmpfs", SHARED]
    words += ["--perms", "0755", "--size", str(resources.disk), "--tmpfs", "/box"]
    words += ["--dir", "/box/out", "--symlink", "box/out", "/out"]
    words += ["--dir", "/box/tmp", "--symlink", "box/tmp", SCRATCH]
    words += ["--ro-bind", str(layout.inputs), "/in"]
    if layout.program is not None:
        words += ["--ro-bind", str(layout.program), "/program"]
    # The host's root owns what is below /proc/sys, and a node that runs as root is still that user in here.
    words += ["--remount-ro", "/dev", "--remount-ro", "/proc", "--remount-ro", "/", "--chdir", "/out"]
    return words


@cache
def _root(network: bool) -> Sequence[str]:
    words = ["--ro-bind", "/usr", "/usr"]
    for name in _ROOTS:
        path = f"/{name}"
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            words += ["--ro-bind", path, path]
    for name in (*_SHOWN, *(_SHOWN_WITH_NETWORK if network else ())):
        words += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for name in ("passwd", "group", "hosts"):
        words += ["--ro-bind", str(_ETC / name), f"/etc/{name}"]
    return words


def _variables(environment: Mapping[str, str]) -> list[str]:
    return [word for name, value in sorted(environment.items()) for word in ("--setenv", name, value)]


def _limits(resources: Resources, counted: bool) -> list[str]:
    """Pairs of the shell's ulimit: in the sandbox, so that bubblewrap itself is not held to them."""
    limits = {
        "-c": 0,
        "-n": OPEN_FILES,
        "-f": max(resources.disk // _FILE_BLOCK, 1),
        "-t": resources.seconds * resources.processors + 1,
    }
    if not counted:
        limits["-v"] = (resources.memory + _SPARE_ADDRESSES) // 1024
    return [word for name, value in limits.items() for word in (name, str(value))]


def _tasks(resources: Resources, counted: bool) -> list[str]:
    """What limits processes by the kernel where no cgroup does (shells differ in how they call it), and lets this
    process look in time at those of a root that the kernel does not limit."""
    most = resources.processes + OWN_TASKS + 1  # so that one too many is seen
    return [] if counted else ["/usr/bin/nice", "-n", "19", "/usr/bin/prlimit", f"--nproc={most}:{most}", "--"]
