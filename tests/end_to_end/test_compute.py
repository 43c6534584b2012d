"""Compute over a real network by the command line: a script runs, is paid, survives its node; a liar is found."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end import jobs
from tests.end_to_end.jobs import ROOT, TIMEOUT, prepare
from tests.end_to_end.network import DEADLINE, RunningNetwork, get_json, wait_for

SETTINGS = jobs.SETTINGS
PRIMES = str(ROOT / "examples" / "primes.py")
ROUNDS = 10_000_000
BUSY = """
import sys
total = 0
for number in range(int(sys.argv[1])):
    total = (total * 31 + number) % 1000003
print(total)
"""

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", autouse=True)
def tools(network: RunningNetwork) -> None:
    prepare(network)


def run_job(network: RunningNetwork, *arguments: str) -> Any:
    done = network.run("job", "run", *arguments, "--yes", "--json", timeout=TIMEOUT)
    assert done.code == 0, done
    return done.data


def operator(network: RunningNetwork, name: str) -> dict[str, Any]:
    return next(row for row in network.ask("operator", "list")["operators"] if row["name"] == name)


def test_a_script_runs_on_somebodys_machine_and_is_paid(network: RunningNetwork) -> None:
    plain = network.run("job", "run", PRIMES, "--arg", "1000", "--yes", timeout=TIMEOUT)
    assert (plain.code, plain.stdout) == (0, "168 primes below 1000, the last is 997\n")
    (job,) = network.ask("job", "list")
    cost = network.ask("job", "cost", job["job"])
    assert 0 < int(cost["spent"]) <= int(cost["most"])
    wait_for(lambda: int(network.ask("epoch", "list", "--last", "2")["epochs"][-1]["credits_spent"]) > 0, "it is paid")
    epochs = [e["epoch"] for e in network.ask("epoch", "list")["epochs"] if int(e["credits_spent"])]
    (paid,) = network.ask("epoch", "show", str(min(epochs)))["payments"]
    assert paid["service"] == "compute"
    assert 0 <= int(cost["spent"]) - int(paid["credits"]) <= 1  # each receipt's cost is rounded up, a lease's down
    assert int(paid["earned"]) > 0


def test_a_nonzero_exit_is_the_commands_own(network: RunningNetwork, tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("import sys\nprint('half')\nsys.exit(7)\n")
    done = network.run("job", "run", str(script), "--yes", timeout=TIMEOUT)
    assert (done.code, done.stdout) == (7, "half\n")


def test_what_nobody_has_is_said_with_the_nearest(network: RunningNetwork) -> None:
    done = network.run("job", "run", PRIMES, "--where", "cpu.cores >= 1000", "--yes", "--json", timeout=TIMEOUT)
    assert done.code == 4, done
    assert "cpu.cores" in done.stdout


def test_a_job_whose_node_dies_goes_on_elsewhere(network: RunningNetwork, tmp_path: Path) -> None:
    """Killed in the middle: the job moves, and what it cost is within what it may."""
    script = tmp_path / "busy.py"
    script.write_text(BUSY)
    arguments = ("job", "run", str(script), "--arg", str(ROUNDS), "--most", "5", "--yes", "--json")
    with network.launch(*arguments) as running:
        name = wait_for(lambda: _find_busy(network), "a node runs it", TIMEOUT)
        network.kill(name)
        out, err = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 0, err
    total = 0
    for number in range(ROUNDS):
        total = (total * 31 + number) % 1_000_003
    done = json.loads(out)["data"]
    assert done["output"] == [f"{total}\n"]
    assert int(network.ask("job", "cost", done["job"])["spent"]) <= 5 * 10**18
    network.restart(name)


def _find_busy(network: RunningNetwork) -> str | None:
    """A node that runs an order just now."""
    nodes = {name: url for name, url in network.urls().items() if name.startswith("operator")}
    return next((name for name, url in nodes.items() if jobs.read_figure(url, "running")), None)


def test_a_liar_is_found_by_referees_and_loses_its_bond(network: RunningNetwork) -> None:
    """Two nodes contradict each other; referees run it again; the wrong receipt is never paid, and its node slashed."""
    network.kill("operator-1")
    config = network.local / "processes" / "operator-1" / "config.json"
    liar = subprocess.Popen(
        [sys.executable, "-m", "tests.end_to_end.lying_node", str(config)], cwd=ROOT, env=network.environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        ready = network.local / "processes" / "operator-1" / "ready.json"
        wait_for(lambda: ready.exists() and get_json(f"{_url(ready)}/readyz"), "the liar is up")
        _check_the_liar_pays(network)
    finally:
        liar.send_signal(signal.SIGTERM)
        liar.wait(timeout=DEADLINE)


def _url(ready: Path) -> str:
    return str(json.loads(ready.read_text())["url"])


def _check_the_liar_pays(network: RunningNetwork) -> None:
    accounts = network.info["accounts"]
    chosen = ", ".join(f'"{accounts[f"operator-{i}"]["address"]}"' for i in (1, 2, 3, 4))
    bond = int(operator(network, "operator-1")["bond"])
    for limit in range(2000, 2010):
        done = run_job(network, PRIMES, "--arg", str(limit), "--assurance", "0.9", "--where", f"operator in [{chosen}]")
        assert [text.split()[1:3] for text in done["output"]] == [["primes", "below"]], done
        if any(event["kind"] == "dispute" for event in network.ask("job", "why", done["job"])["events"]):
            break
    else:
        raise AssertionError("the liar was never asked")

    def slashed() -> int | None:
        for row in network.ask("epoch", "list")["epochs"]:
            if row["status"] == "active" and network.ask("epoch", "show", str(row["epoch"]))["slashes"]:
                return int(row["epoch"])
        return None

    epoch = wait_for(slashed, "a report says who lied, and is active", TIMEOUT)
    (slash,) = network.ask("epoch", "show", str(epoch))["slashes"]
    assert slash["operator"] == accounts["operator-1"]["address"]
    assert network.ask("epoch", "slash", str(epoch), "--wallet", "client")["taken"] == 1
    assert int(operator(network, "operator-1")["bond"]) == bond - int(slash["amount"])
    assert network.ask("epoch", "slash", str(epoch), "--wallet", "client")["taken"] == 0
