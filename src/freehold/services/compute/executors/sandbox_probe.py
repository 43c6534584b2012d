"""What the sandbox executor does to know that it works here: programs that try what they must not be able to do.

Invariant: a capability is only claimed where every attempt was seen to fail.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Protocol

from freehold.services.compute.executors.seam import Capability, Outcome, Work
from freehold.services.compute.tasks import Resources, Task

SMALL = Resources(processors=1, memory=64 * 2**20, disk=2**20, seconds=10, processes=8)

# One line each: what is wrong where its exit status is this one.
ATTEMPTS = (
    ("the host's passwords can be read", "test -e /etc/shadow || grep -qv -e ^root: -e ^nobody: /etc/passwd"),
    ("the root can be written to", "( : >/written ) 2>/dev/null || ( : >/usr/written ) 2>/dev/null"),
    ("inputs can be written to", "( : >/in/written ) 2>/dev/null"),
    ("the kernel's settings can be written to", "( : >/proc/sys/kernel/core_pattern ) 2>/dev/null"),
    ("there is a network", "grep -v -e Inter -e face -e ' lo:' /proc/net/dev"),
    ("processes of the host can be seen", "test -e /proc/3000000000 || test $(ls -d /proc/[0-9]* | wc -l) -gt 8"),
    ("it has the node's environment", 'test -n "$FREEHOLD_PROBE" || grep -qz FREEHOLD /proc/1/environ'),
    ("new namespaces can be made", "unshare -U true 2>/dev/null"),
    ("its disk has no bound", "head -c 2000000 /dev/zero >/tmp/large 2>/dev/null"),
)
FORKS = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep 5 & done; wait"


class Runner(Protocol):
    """What runs a task."""

    async def run(self, work: Work) -> Outcome:
        """See the seam."""


async def probe_sandbox(executor: Runner, counted: bool) -> Capability:
    """Whether the executor's sandbox holds. Unavailable where it cannot be set up."""
    script = "".join(f"if {attempt}; then exit {number}; fi\n" for number, (_, attempt) in enumerate(ATTEMPTS, 10))
    tried = await _run(executor, script)
    if tried.ended != "exited" or tried.status != 0:
        return Capability(False, f"the sandbox does not hold: {_explain(tried)}", {})
    forked = await _run(executor, FORKS)
    if forked.ended != "processes" and forked.status == 0:
        return Capability(False, "the sandbox does not hold: the number of processes has no bound", {})
    return Capability(True, "", {"executor.sandbox.bounds": "cgroup" if counted else "rlimit"})


async def _run(executor: Runner, script: str) -> Outcome:
    task = Task(executor="sandbox", kind="native", arguments=("sh", "-c", script), resources=SMALL)
    with tempfile.TemporaryDirectory(prefix="freehold-probe-") as name:
        folder = Path(name)
        for part in ("in", "out"):
            os.mkdir(folder / part)
        return await executor.run(Work(task, None, None, folder, 10 * 10**9, lambda _: None))


def _explain(outcome: Outcome) -> str:
    at = outcome.status - 10
    if outcome.ended == "exited" and 0 <= at < len(ATTEMPTS):
        return ATTEMPTS[at][0]
    return outcome.reason or f"a small program ended with status {outcome.status}"
