"""An epoch of a million devices, each with its own signed report, from bytes on disk to the signed root.

Targets on two cores: at most 1.7 times what the signature checks alone take in the same run, 45 s and 4 GB. Beside it
the accounts tree and OpenZeppelin's, and evidence streamed from disk in bounded memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import trees
from bench.devices import write_epoch
from bench.rates import Figures, Options

STREAMED_COPIES = 50  # of every report: as many gateways heard it


def measure(options: Options) -> tuple[Figures, Figures]:
    """The best of the rounds; every round is a process of its own, so that its peak memory is the epoch's."""
    with tempfile.TemporaryDirectory(dir=options.work) as directory:
        print(f"making {options.devices:,} devices and their reports")
        write_epoch(Path(directory), options.devices)
        rounds = [run("bench.settling", directory) for _ in range(options.rounds)]
        streamed = run("bench.streaming", directory, str(STREAMED_COPIES))
    best = min(rounds, key=lambda found: found["total_s"] / found["signatures_alone_s"])
    show_steps(best)
    figures, ratios = trees.measure(options.work)
    figures = {
        "devices": options.devices,
        "accounts": best["accounts"],
        "total_s": best["total_s"],
        "signatures_alone_s": best["signatures_alone_s"],
        "peak_gb": best["peak_bytes"] / 1e9,
        "streamed_rows": streamed["rows"],
        "streamed_s": streamed["seconds"],
        "streamed_peak_gb": streamed["peak_bytes"] / 1e9,
    } | figures
    ratios = {"total_vs_signatures": best["total_s"] / best["signatures_alone_s"]} | ratios
    return figures, {name: round(ratio, 3) for name, ratio in ratios.items()}


def run(module: str, *arguments: str) -> dict[str, Any]:
    """What one run of a program of this folder found."""
    command = [sys.executable, "-m", module, *arguments]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def show_steps(found: dict[str, Any]) -> None:
    print("where the time goes")
    for step, seconds in found["steps"].items():
        print(f"  {step:<52} {seconds:>7.2f} s  {100 * seconds / found['total_s']:>4.0f} %")
