"""Compute on a local network of its own, beside the bare engine and beside the pools that Python users know.

warm_job_p50_ms          one small Python script after the other on a standing lease: order, run, receipt, output
sleeping_jobs_overhead   1,000 jobs that sleep for 0.2 s, two at once at each of eight nodes, by what sleeping takes;
                         beside it what one costs in processor time at the client, the nodes and in the sandbox
wasm_vs_wasmtime         the time of a module through the executor by that of the bare engine with fuel on
map_vs_dask, _ray        1,000 small Python functions, by dask.distributed and by Ray on as many processes as there are
                         processors: theirs run in the clear on one machine that is trusted; ours are ordered from
                         strangers, metered and signed for, in WebAssembly. What verification adds: `assurance_price`

A part that fails is in `failed` with its reason, and the others are measured all the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.children import Children
from bench.environments import install
from bench.freehold_compute import AT_ONCE, LIMIT, MAPPED, NODES, PARTS, SLEEP, SLEEPS
from bench.rates import Figures, Options
from bench.wasm import measure_wasm

POOL_SECONDS = 60
TARGETS = {"warm_job_p50_ms": 25.0, "warm_job_p99_ms": 100.0}


def measure(options: Options) -> tuple[Figures, Figures, dict[str, str]]:
    """Everything, one after the other; and what failed."""
    found, ratios, failed = Figures(), Figures(), dict[str, str]()
    with tempfile.TemporaryDirectory(dir=options.work) as directory:
        try:
            run_network(Path(directory) / "home", options.work / "toolchain", found, failed)
        except Exception as error:
            failed["network"] = repr(error)
        try:
            figures, more = measure_wasm(Path(directory))
            found |= figures
            ratios |= more
        except Exception as error:
            failed["wasm"] = repr(error)
    for name in ("dask", "ray"):
        try:
            found |= run_pool(name)
        except Exception as error:
            failed[name] = repr(error)
    sums = {name: value for name, value in found.items() if name.endswith("_sum")}
    if len(set(sums.values())) > 1:
        failed["sums"] = f"the same map came to different sums: {sums}"
    for which in ("p50", "p99"):
        if (name := f"warm_script_{which}_ms") in found:
            found[f"warm_job_{which}_ms"] = found[name]
    figures = {name: round(value, 3) for name, value in found.items() if name not in sums}
    return figures, {name: round(value, 3) for name, value in (ratios | compare(found)).items()}, failed


def compare(found: Figures) -> Figures:
    """What can be said of what was found."""
    ratios: Figures = {}
    for pool in ("dask", "ray"):
        for name in ("each", "batched"):
            if {f"map_{name}_seconds", f"{pool}_map_seconds"} <= found.keys():
                ratios[f"map_{name}_vs_{pool}"] = found[f"map_{name}_seconds"] / found[f"{pool}_map_seconds"]
    if {"map_batched_assured_seconds", "map_batched_seconds"} <= found.keys():
        ratios["assurance_price"] = found["map_batched_assured_seconds"] / found["map_batched_seconds"]
    ratios |= {f"{name}_vs_target": found[name] / target for name, target in TARGETS.items() if name in found}
    if "sleeping_seconds" in found:
        ratios["sleeping_jobs_overhead"] = found["sleeping_seconds"] / (SLEEPS * SLEEP / (NODES * AT_ONCE)) - 1
    return ratios


def run_pool(name: str) -> Figures:
    """The map on a pool of local processes."""
    python = install("pools") / "python"
    command = [str(python), str(Path(__file__).with_name("pool_map.py")), name, str(MAPPED), str(LIMIT)]
    done = subprocess.run(
        [*command, str(os.cpu_count())], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True,
        timeout=POOL_SECONDS,
    )  # fmt: skip
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {f"{name}_map_seconds": result["seconds"], f"{name}_map_sum": result["sum"]}


def run_network(home: Path, cache: Path, found: Figures, failed: dict[str, str]) -> None:
    """What `bench/freehold_compute.py` measures over a network of its own, part by part; the interpreter and modules
    stay built and compiled in `cache`."""
    home.mkdir(parents=True)
    (cache / "tools").mkdir(parents=True, exist_ok=True)
    (home / "tools").symlink_to((cache / "tools").absolute())
    settings = home / "settings.json"
    settings.write_text(json.dumps({"module_cache": str(cache / "modules")}))
    with Children() as children:
        free = {name: value for name, value in os.environ.items() if not name.startswith("FREEHOLD_")}
        anvil = {name: os.environ[name] for name in ("FREEHOLD_ANVIL",) if name in os.environ}
        environment = ["env", "-i", *(f"{n}={v}" for n, v in (free | anvil | {"FREEHOLD_HOME": str(home)}).items())]
        up = [*environment, sys.executable, "-m", "freehold.cli.main", "up", "--json", "--settings", str(settings)]
        children.ready_line(children.start(up, home / "up.log"))
        client = children.start([*environment, sys.executable, "-m", "bench.freehold_compute", str(home)], home / "log")
        assert client.stdout is not None
        left = dict.fromkeys(PARTS)
        for line in client.stdout:
            said = json.loads(line)
            del left[said["part"]]
            found |= said.get("found", {})
            failed |= {said["part"]: said["failed"]} if "failed" in said else {}
        if left:
            end = (home / "log").read_text()[-2000:]
            failed |= dict.fromkeys(left, f"the client ended before it: {end}")
        client.wait()
