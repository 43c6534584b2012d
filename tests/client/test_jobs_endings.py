"""Why a run came to nothing: the bound that it reached is named with its figures, and what raises it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from freehold.client.jobs_endings import explain_end
from freehold.protocol.units import ONE
from freehold.services.compute.tasks import OutputFile, Resources, Result, Task

SECOND = 10**9
NOTHING = OutputFile(path="stdout", sha256="0" * 64, size=0)
TASK = Task(executor="wasm", kind="module", resources=Resources(memory=2**29, disk=2**28, seconds=60, processes=9))


def order(ended: str, most: int, measure: int, status: int = 0) -> Any:
    result = Result(ended=ended, status=status, stdout=NOTHING, files=())
    known = SimpleNamespace(most=most)
    receipt = SimpleNamespace(measure=measure)
    return SimpleNamespace(result=result.encode().decode(), order=known, receipt=receipt, cost=ONE // 4)


@pytest.mark.parametrize(
    ("row", "said", "helps"),
    [
        (order("exited", SECOND, 5, 3), "exited with status 3", ""),
        (order("fuel", SECOND, SECOND), "used up what a run may be billed (1.00 s of a processor, 0.25 cr", "`work"),
        (order("fuel", SECOND // 2, SECOND // 2), "more was not left of what the job may cost", "--most"),
        (order("time", SECOND, SECOND), "used up what a run may be billed", "`work"),
        (order("time", SECOND, SECOND - 1), "took longer than 60 s", "`time`"),
        (order("memory", SECOND, 5), "needed more memory than its 512 MiB", "`memory`"),
        (order("disk", SECOND, 5), "needed more disk than its 256 MiB", "`disk`"),
        (order("processes", SECOND, 5), "more processes than its 9 at once", "`processes`"),
        (order("trap", SECOND, 5), "ended: trap", ""),
        (order("something", SECOND, 5), "ended: something", ""),
    ],
)
def test_the_bound_is_named_and_what_raises_it(row: Any, said: str, helps: str) -> None:
    reason, hint = explain_end(row, TASK, SECOND)
    assert said in reason
    assert helps in hint
    assert bool(hint) == bool(helps)
