"""`python -m bench.settling DIRECTORY`: settle the epoch in DIRECTORY as a member does, and say where the time went.

The clock runs from the bytes on disk to the signed report: batches decoded (their roots and senders checked), the
manifest checked, everything settled, the report signed. Loading the state before is not counted: a member has it in
memory. What the signature checks alone take is measured in the same process, over the same digests and threads.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from bench.devices import DOMAIN, MEMBERS, read_state
from freehold.protocol.batches import Batch, decode_batch, kinds_of
from freehold.protocol.epoch import Settlement, check_manifest, settle
from freehold.protocol.hashing import load_kernels, spread_over
from freehold.protocol.keys import are_signed_by
from freehold.protocol.messages import Manifest
from freehold.protocol.state import TABLES, AnchorData
from freehold.protocol.tables import Table
from freehold.services.judging import JUDGES
from freehold.services.sensing.terms import REPORT, DeviceReport

T = TypeVar("T")
# Functions whose time is shown, each without those below it in this table: file and name, what it is called there.
STEPS = {
    ("batches.py", "decode_batch"): "decode batches, check their roots",
    ("epoch.py", "check_manifest"): "check the manifest",
    ("batches.py", "collect_rows"): "collect rows, each once",
    ("keys.py", "are_signed_by"): "check the signatures",
    ("score.py", "judge"): "judge, beside the signatures",
    ("score.py", "fold"): "fold the service's state",
    ("shares.py", "compute_coverage"): "share the coverage pool",
    ("epoch.py", "process_accounts"): "update the accounts",
    ("epoch.py", "make_report"): "hash verdicts, state and accounts into the report",
}


def main(directory: Path) -> None:
    """Print {"total_s", "signatures_alone_s", "peak_bytes", "steps": {...}, ...} as JSON."""
    ways = os.cpu_count() or 1
    kinds: dict[str, Any] = TABLES | {f"service.{judge.name}": judge.state_kind for judge in JUDGES.values()}
    state = read_state(directory, kinds)
    state.root()  # a member has settled the epoch before, and keeps its trees
    state.accounts_tree()
    with ThreadPoolExecutor(ways) as pool, spread_over(pool.map, ways):
        load_kernels()
        profile = cProfile.Profile()
        total, settlement = timed(lambda: profile.runcall(settle_all, directory, state))
        report = settlement.report
        alone = check_alone(directory)
    found = {
        "total_s": total,
        "signatures_alone_s": alone,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "accounts": report.accounts,
        "rewards": len(settlement.rewards),
        "steps": steps_of(profile, total),
        "accounts_root": str(report.accounts_root),
    }
    json.dump(found, sys.stdout)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds, and what the work gave."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def settle_all(directory: Path, state: Any) -> Settlement:
    """From the bytes on disk to the signed report."""
    anchor = AnchorData.from_bytes((directory / "anchor.json").read_bytes())
    manifest = Manifest.from_bytes((directory / "manifest.json").read_bytes())
    batches = read_batches(directory)
    check_manifest(manifest, anchor, DOMAIN)
    settlement = settle(state, manifest, batches, anchor, JUDGES, DOMAIN)
    MEMBERS[0].sign(settlement.report, DOMAIN)
    return settlement


def read_batches(directory: Path) -> dict[Any, Batch]:
    """Every batch of the directory, checked as a member checks one that comes in."""
    kinds = kinds_of(JUDGES)
    batches = (decode_batch(path.read_bytes(), kinds, DOMAIN) for path in sorted((directory / "batches").iterdir()))
    return {batch.subject: batch for batch in batches}


def check_alone(directory: Path) -> float:
    """Seconds that the devices' signature checks take, all else being ready."""
    reports = Table.concat(DeviceReport, [batch.table for batch in read_batches(directory).values()])
    digests, signatures = reports.digests(DOMAIN), reports.column("device_signature").padded(65)
    seconds, good = timed(lambda: are_signed_by(digests, signatures, reports.column("device")))
    if not good.all():
        raise AssertionError(f"{REPORT}: {int((~good).sum())} signatures of the bench's own are wrong")
    return seconds


def steps_of(profile: cProfile.Profile, total: float) -> dict[str, float]:
    """Seconds by step; the rest is what no step of the table has."""
    stats: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    spent: dict[str, float] = {}
    for (file, _, name), (_, _, _, cumulative, _) in stats.items():
        step = STEPS.get((Path(file).name, name))
        if step is not None:
            spent[step] = max(spent.get(step, 0.0), cumulative)
    spent["judge, beside the signatures"] -= spent["check the signatures"]
    ordered = {step: round(spent[step], 3) for step in STEPS.values() if step in spent}
    return ordered | {"everything else": round(total - sum(ordered.values()), 3)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
