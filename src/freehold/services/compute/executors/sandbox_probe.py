"""What executors of native programs do to know that they work here: programs that try what they must not be able to do.

Invariant: a capability is only claimed where every attempt was seen to fail.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Protocol

import msgspec

from freehold.services.compute.executors.container_process import Podman
from freehold.services.compute.executors.seam import Capability, Outcome, Work
from freehold.services.compute.tasks import Resources, Task

SMALL = Resources(processors=1, memory=64 * 2**20, disk=2**20, seconds=60, processes=8)

# One line each: what is wrong where its exit status is this one.
ATTEMPTS = (
    ("the host's passwords can be read", "test -e /etc/shadow || grep -qs ^daemon: /etc/passwd"),
    ("the root can be written to", "( : >/written ) 2>/dev/null || ( : >/usr/written ) 2>/dev/null"),
    ("inputs can be written to", "( : >/in/written ) 2>/dev/null"),
    ("the kernel's settings can be written to", "( : >/proc/sys/kernel/core_pattern ) 2>/dev/null"),
    ("there is a network", "test $(wc -l </proc/net/route) -gt 1"),
    ("processes of the host can be seen", "test $(ls -d /proc/[0-9]* | wc -l) -gt 8"),
    ("new namespaces can be made", "unshare -U true 2>/dev/null"),
    ("its disk has no bound", "( for i in 1 2 3; do head -c 700000 /dev/zero >/tmp/$i || exit 1; done ) 2>/dev/null"),
)
OVER = {  # how what takes more than it may ends, and something that does
    "processes": "for i in 1 2 3 4; do for j in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done; done; wait",
    "memory": "text=aaaaaaaaaaaaaaaa; while :; do text=$text$text; done",
}
PROGRAMS = ("sh", "cat", "grep", "head", "ls", "sleep", "true", "unshare", "wc")


class Runner(Protocol):
    """What runs a task. `is_counted`: whether a cgroup held the last run."""

    is_counted: bool

    async def run(self, work: Work) -> Outcome:
        """See the seam."""


async def probe_sandbox(executor: Runner) -> Capability:
    """Whether the sandbox's executor holds programs. Unavailable where it cannot be set up."""
    return await _probe(executor, Task(executor="sandbox", kind="native", resources=SMALL))


async def probe_container(executor: Runner, podman: Podman) -> Capability:
    """Whether the containers' executor holds programs, with an image made of this machine's own, which goes again.
    Unavailable where it cannot be set up."""
    image = f"localhost/freehold-probe-{os.getpid()}"  # other nodes of this machine probe too
    with tempfile.TemporaryDirectory(prefix="freehold-probe-") as name:
        archive = Path(name) / "image.tar"
        await asyncio.to_thread(pack_image, archive)
        await podman.ask("import", "--quiet", str(archive), f"{image}:1")
    try:
        digest = await podman.ask("image", "inspect", "--format", "{{.Digest}}", f"{image}:1")
        task = Task(executor="container", kind="image", image=f"{image}@{digest}", resources=SMALL)
        return await _probe(executor, task)
    finally:
        await podman.ask("rmi", "--force", f"{image}:1")


def pack_image(archive: Path) -> None:
    """A root file system of a shell and a few programs of this machine, with the libraries that they need."""
    paths = {found for program in PROGRAMS if (found := shutil.which(program, path="/usr/bin:/bin"))}
    for path in sorted(paths):
        said = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
        paths.update(word for line in said.splitlines() for word in line.split() if word.startswith("/"))
    with tarfile.open(archive, "w") as image:
        for path in sorted(paths):
            name = f"bin/{os.path.basename(path)}" if os.path.basename(path) in PROGRAMS else path.lstrip("/")
            member = image.gettarinfo(os.path.realpath(path), name)
            member.type, member.mode, member.uid, member.gid = tarfile.REGTYPE, 0o755, 0, 0
            with open(path, "rb") as body:
                image.addfile(member, body)
        for folder in ("in", "out", "tmp", "usr"):
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            image.addfile(member)


async def _probe(executor: Runner, task: Task) -> Capability:
    script = "".join(f"if {attempt}; then exit {number}; fi\n" for number, (_, attempt) in enumerate(ATTEMPTS, 10))
    tried = await _run(executor, task, script)
    if tried.ended != "exited" or tried.status != 0:
        return Capability(False, f"the {task.executor} does not hold: {_explain(tried)}", {})
    for ended, script in OVER.items():
        over = await _run(executor, task, script)
        if over.ended != ended and over.status == 0:
            return Capability(False, f"the {task.executor} does not hold: there is no bound of {ended}", {})
    return Capability(True, "", {f"executor.{task.executor}.bounds": "cgroup" if executor.is_counted else "rlimit"})


async def _run(executor: Runner, task: Task, script: str) -> Outcome:
    task = msgspec.structs.replace(task, arguments=("sh", "-c", script))
    with tempfile.TemporaryDirectory(prefix="freehold-probe-") as name:
        folder = Path(name)
        for part in ("in", "out"):
            (folder / part).mkdir()
        return await executor.run(Work(task, None, None, folder, SMALL.seconds * 10**9, lambda _: None))


def _explain(outcome: Outcome) -> str:
    at = outcome.status - 10
    if outcome.ended == "exited" and 0 <= at < len(ATTEMPTS):
        return ATTEMPTS[at][0]
    return outcome.reason or f"a small program ended with status {outcome.status}"
