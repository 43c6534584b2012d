"""`python -m bench.run NAME [--megabytes N] [--rounds N]`: measure, print a table, write bench/results/NAME.json.

The JSON is {"machine": ..., "figures": {...}, "ratios": {...}}. Figures are one machine's on one day; ratios are what
to compare. A benchmark is a module with `measure(options) -> (figures, ratios)` and a line in BENCHES; one that can go
on without a part gives a third object, which says by name what failed: "failed" in the JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
from pathlib import Path

from bench.rates import Figures, Options

HERE = Path(__file__).parent
RESULTS = HERE / "results"
CACHE = HERE / ".cache"

BENCHES = {
    "calibration": "bench.calibration",
    "compute": "bench.compute",
    "epoch": "bench.epoch",
    "load": "bench.load",
    "matching": "bench.matching",
    "s3": "bench.s3",
    "sandbox": "bench.sandbox",
    "scaling": "bench.scaling",
    "storage": "bench.storage",
}


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "python": platform.python_version(),
    }


def show(title: str, values: Figures) -> None:
    width = max((len(name) for name in values), default=0)
    print(title)
    for name, value in values.items():
        print(f"  {name:<{width}}  {value:>10,.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("name", choices=sorted(BENCHES))
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=100_000)
    arguments = parser.parse_args()
    for directory in (CACHE, RESULTS):
        directory.mkdir(exist_ok=True)
        (directory / ".gitignore").write_text("*\n")
    bench = importlib.import_module(BENCHES[arguments.name])
    options = Options(arguments.megabytes << 20, arguments.rounds, CACHE, arguments.devices, arguments.keys)
    figures, ratios, *more = bench.measure(options)
    failed: dict[str, str] = more[0] if more else {}
    found = {"machine": machine(), "figures": figures, "ratios": ratios} | ({"failed": failed} if failed else {})
    result = RESULTS / f"{arguments.name}.json"
    result.write_text(json.dumps(found, indent=2) + "\n")
    show(f"{arguments.name}: figures", figures)
    show(f"{arguments.name}: ratios", ratios)
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}")
    print(f"written to {os.path.relpath(result)}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    main()
