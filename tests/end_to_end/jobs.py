"""What tests of jobs over a real network share: tools that are built once a machine, and ways to look at jobs."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from freehold.services.compute.toolchain import python_runner
from tests.end_to_end.network import DEADLINE, RunningNetwork, get_json, wait_for

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "build" / "compute"  # built and compiled once a machine, not once a test
SETTINGS = {"restart": False, "module_cache": str(TOOLS / "modules")}
TIMEOUT = 4 * DEADLINE


def prepare(network: RunningNetwork) -> None:
    """The Python runner, where the network's client looks for it; and credits."""
    runner = python_runner(TOOLS)
    (network.home / "tools" / runner.name).symlink_to(runner)
    wait_for(lambda: _have_all_reported(network), "credits count, whichever members are asked")


def _have_all_reported(network: RunningNetwork) -> bool:
    members = [url for name, url in network.urls().items() if name.startswith("member")]
    return all((answer := get_json(f"{url}/v1/status")) and answer["last_report"] for url in members)


def wait_for_job(network: RunningNetwork, job: str, phase: str) -> dict[str, Any]:
    """The job, once the journal has that phase of it."""

    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = network.ask("job", "describe", job)
        return found if found["phase"] == phase else None

    return wait_for(look, f"job {job} is {phase}", TIMEOUT)


def read_figure(url: str, name: str) -> int:
    """A node's figure of compute, by its metrics; 0 where it does not answer."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=2) as response:
            lines = response.read().decode().splitlines()
    except (urllib.error.URLError, OSError):
        return 0
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith(f"freehold_node_compute_{name}{{"))


def request(url: str, method: str = "GET", data: bytes | None = None) -> tuple[int, bytes]:
    """The status and body of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=DEADLINE) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
