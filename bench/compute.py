"""Compute on a local network of its own, beside the bare engine and beside the pools that Python users know.

warm_job_p50_ms       one small Python script after the other on a standing lease: order, run, receipt, output
sleeping_overhead     1,000 jobs that sleep for 0.2 s, two at once at each of eight nodes, by what sleeping takes
wasm_vs_wasmtime      the time of a module through the executor by that of the bare engine with fuel on
map_vs_dask, _ray     1,000 small Python functions, by dask.distributed and by Ray on as many processes as there are
                      processors: theirs run in the clear on one machine that is trusted; ours are ordered from
                      strangers, metered and signed for, in WebAssembly. What verification adds is `assurance_price`
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
from bench.freehold_compute import AT_ONCE, LIMIT, MAPPED, NODES, SLEEP, SLEEPS
from bench.rates import Figures, Options
from bench.wasm import measure_wasm

TARGETS = {"warm_job_p50_ms": 25.0, "warm_job_p99_ms": 100.0}


def measure(options: Options) -> tuple[Figures, Figures]:
    """Everything, one after the other."""
    pools = {name: run_pool(name) for name in ("dask", "ray")}
    with tempfile.TemporaryDirectory(dir=options.work) as directory:
        found = run_network(Path(directory) / "home", options.work / "toolchain")
        figures, ratios = measure_wasm(Path(directory))
    for name, pool in pools.items():
        if pool["sum"] != found["map_sum"]:
            raise RuntimeError(f"{name} came to another sum than we did")
        figures[f"{name}_map_seconds"] = pool["seconds"]
        ratios[f"map_each_vs_{name}"] = found["map_each_seconds"] / pool["seconds"]
        ratios[f"map_batched_vs_{name}"] = found["map_batched_seconds"] / pool["seconds"]
    ratios["assurance_price"] = found["map_batched_assured_seconds"] / found["map_batched_seconds"]
    found |= {f"warm_job_{which}_ms": found[f"warm_script_{which}_ms"] for which in ("p50", "p99")}
    ratios |= {f"{name}_vs_target": found[name] / target for name, target in TARGETS.items()}
    if "sleeping_seconds" in found:
        ratios["sleeping_overhead"] = found["sleeping_seconds"] / (SLEEPS * SLEEP / (NODES * AT_ONCE)) - 1
    return {k: round(v, 3) for k, v in (figures | found).items()}, {k: round(v, 3) for k, v in ratios.items()}


def run_pool(name: str) -> dict[str, float]:
    """The map on a pool of local processes."""
    python = install("pools") / "python"
    command = [str(python), str(Path(__file__).with_name("pool_map.py")), name, str(MAPPED), str(LIMIT)]
    done = subprocess.run(
        [*command, str(os.cpu_count())], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_network(home: Path, cache: Path) -> dict[str, float]:
    """What `bench/freehold_compute.py` measures over a network of its own; modules stay compiled in `cache`."""
    home.mkdir(parents=True)
    settings = home / "settings.json"
    settings.write_text(json.dumps({"module_cache": str(cache / "modules")}))
    with Children() as children:
        free = {name: value for name, value in os.environ.items() if not name.startswith("FREEHOLD_")}
        anvil = {name: os.environ[name] for name in ("FREEHOLD_ANVIL",) if name in os.environ}
        environment = ["env", "-i", *(f"{n}={v}" for n, v in (free | anvil | {"FREEHOLD_HOME": str(home)}).items())]
        up = [*environment, sys.executable, "-m", "freehold.cli.main", "up", "--json", "--settings", str(settings)]
        children.ready_line(children.start(up, home / "up.log"))
        client = children.start([*environment, sys.executable, "-m", "bench.freehold_compute", str(home)], home / "log")
        try:
            found: dict[str, float] = json.loads(children.ready_line(client))
        except RuntimeError:
            raise RuntimeError((home / "log").read_text()[-2000:]) from None
        client.wait()
    return found
