"""`python -m bench.streaming DIRECTORY COPIES`: judge evidence that does not fit into memory, batch by batch.

The reports of the epoch in DIRECTORY, each heard by COPIES gateways: every batch is read from disk and decoded with its
root and its sender checked, and dropped before the next. What must stay is a code, a hash and a position a device.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.devices import DOMAIN, read_state
from freehold.protocol.batches import decode_batch, kinds_of
from freehold.protocol.epoch import make_context
from freehold.protocol.hashing import load_kernels, spread_over
from freehold.protocol.state import TABLES, AnchorData
from freehold.protocol.tables import Parts, Table
from freehold.protocol.verdicts import GOOD
from freehold.services.judging import JUDGES
from freehold.services.sensing.terms import ENROLMENT, REPORT, DeviceReport, Enrolment

KINDS = kinds_of(JUDGES)


class OnDisk:
    """A batch's table, read each time that it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def table(self) -> Table[Any]:
        """Its rows, checked against the batch's header."""
        return decode_batch(self._path.read_bytes(), KINDS, DOMAIN).table


def main(directory: Path, copies: int) -> None:
    """Print {"rows", "seconds", "start_bytes", "peak_bytes"} as JSON."""
    ways = os.cpu_count() or 1
    kinds: dict[str, Any] = TABLES | {f"service.{judge.name}": judge.state_kind for judge in JUDGES.values()}
    state = read_state(directory, kinds)
    anchor = AnchorData.from_bytes((directory / "anchor.json").read_bytes())
    judge = JUDGES["sensing"]
    context = make_context(state, anchor, judge, DOMAIN, {})
    sources = [OnDisk(path) for path in sorted((directory / "batches").iterdir())] * copies
    rows: dict[str, Any] = {REPORT: Parts(DeviceReport, sources), ENROLMENT: Table.of(Enrolment)}
    with ThreadPoolExecutor(ways) as pool, spread_over(pool.map, ways):
        load_kernels()
        before = peak()
        start = time.perf_counter()
        verdicts = judge.judge(judge.obligations(context), rows, context)
        seconds = time.perf_counter() - start
    _, contributions, _ = judge.fold(rows, verdicts, context)
    if len(contributions) != len(context.state) or {v.reason for v in verdicts.take([0])} != {GOOD}:
        raise AssertionError("not every device was counted once")
    found = {"rows": len(context.state) * copies, "seconds": seconds, "start_bytes": before, "peak_bytes": peak()}
    json.dump(found, sys.stdout)


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
