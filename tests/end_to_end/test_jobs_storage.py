"""A job over an account's objects: nodes read and write them at the gateway, by grants for just that, and no client.

Invariant: what stands below the output's prefix is what the program makes of the inputs, byte by byte.
"""

from __future__ import annotations

import json
import random
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end import jobs
from tests.end_to_end.jobs import TIMEOUT, count_taken, request, wait_for_job
from tests.end_to_end.network import RunningNetwork, wait_for

SETTINGS = jobs.SETTINGS
ITEMS = 3
ROUNDS = 3_000_000
SPEC = """
name: NAME
deadline: DEADLINE
most: 50 credits
map: fh://demo/in/
output: fh://demo/NAME/
arguments: ["{item}", "ROUNDS"]
resources: {work: 60 s}
script: |
  import sys

  name, rounds = sys.argv[1:]
  total = 0
  for number in range(int(rounds)):
      total = (total * 31 + number) % 1000003
  with open(f"/in/{name}", "rb") as source, open(f"/out/{name}", "wb") as target:
      target.write(source.read()[::-1])
"""

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", autouse=True)
def objects(network: RunningNetwork, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The objects below fh://demo/in/, by name: some small enough for an index, some of several segments."""
    jobs.prepare(network)
    folder = tmp_path_factory.mktemp("objects") / "in"
    folder.mkdir()
    made = {f"{i}.bin": random.Random(i).randbytes(100_000 * i + 7) for i in range(ITEMS)}
    for name, data in made.items():
        (folder / name).write_bytes(data)
    network.ask("mb", "fh://demo")
    network.ask("cp", "-r", "--yes", str(folder), "fh://demo/")
    return made


def write_spec(folder: Path, name: str, *, rounds: int = 1, deadline: str = "10 min") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(SPEC.replace("NAME", name).replace("ROUNDS", str(rounds)).replace("DEADLINE", deadline))
    return str(path)


def written(network: RunningNetwork, name: str, folder: Path) -> dict[str, bytes]:
    """The objects below a job's output."""
    found = {}
    for row in network.ask("ls", f"fh://demo/{name}/")["objects"]:
        target = folder / f"{name}-{Path(row['path']).name}"
        network.ask("cp", "--yes", row["path"], str(target))
        found[Path(row["path"]).name] = target.read_bytes()
    return found


def backwards(objects: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data[::-1] for name, data in objects.items()}


def test_nodes_deliver_what_was_checked_and_one_bill_shows_all_of_it(
    network: RunningNetwork, objects: dict[str, bytes], tmp_path: Path
) -> None:
    done = network.run("job", "run", write_spec(tmp_path, "checked"), "--assurance", "0.9", timeout=TIMEOUT)
    assert (done.code, done.stdout) == (0, ""), done
    assert "passed through this machine" not in done.stderr
    assert written(network, "checked", tmp_path) == backwards(objects)
    cost = {
        name: int(network.ask("job", "cost", "checked")[name]) for name in ("spent", "work", "assurance", "delivery")
    }
    assert min(cost.values()) > 0
    assert cost["spent"] == cost["work"] + cost["assurance"] + cost["delivery"]
    assert cost["assurance"] >= cost["work"]  # every result was confirmed by another operator's run at least


@pytest.mark.soak
def test_what_runs_is_delivered_although_its_client_is_dead(
    network: RunningNetwork, objects: dict[str, bytes], tmp_path: Path
) -> None:
    """The client's process is killed once all is ordered: so nothing can have passed through it."""
    before = count_taken(network)
    with network.launch("job", "run", write_spec(tmp_path, "alone", rounds=ROUNDS)) as client:
        # The journal has orders before they are sent.
        wait_for(lambda: count_taken(network) >= before + ITEMS, "nodes have taken all tasks", TIMEOUT)
        client.kill()
    assert not network.ask("job", "describe", "alone")["driven"]
    wait_for(lambda: len(network.ask("ls", "fh://demo/alone/")["objects"]) == ITEMS, "nodes deliver", TIMEOUT)
    assert written(network, "alone", tmp_path) == backwards(objects)
    found = network.run("job", "wait", "alone", timeout=TIMEOUT)
    assert found.code == 0, found
    assert "passed through this machine" not in found.stderr
    end = network.ask("job", "describe", "alone")
    assert (end["phase"], end["steps"][0]["orders"]) == ("done", ITEMS)  # nothing was ordered twice


@pytest.mark.soak
def test_a_nodes_grant_is_for_its_task_alone_and_ends(
    network: RunningNetwork, objects: dict[str, bytes], tmp_path: Path
) -> None:
    """What a node was given opens its own input and the output's prefix, and nothing once the job has ended."""
    with network.launch("job", "run", write_spec(tmp_path, "spied", rounds=ROUNDS)) as client:
        access = wait_for(lambda: _find_access(network), "a node holds a grant", TIMEOUT)
        (mine,) = access["read"]
        read, write = (f"{access['url']}/-/share/{token}" for token in (access["read"][mine], access["write"]))
        other = next(f"demo/in/{name}" for name in objects if f"demo/in/{name}" != mine)
        assert request(f"{read}/{mine}") == (200, objects[mine.rpartition("/")[2]])
        assert request(f"{read}/{other}")[0] == 403
        assert request(f"{read}/{mine}", "PUT", b"mine")[0] == 403
        assert request(f"{read}/demo/in/?list")[0] == 403
        assert request(f"{write}/{mine}")[0] == 403
        assert request(f"{write}/{mine}", "PUT", b"mine")[0] == 403
        assert request(f"{write}/demo/elsewhere", "PUT", b"mine")[0] == 403
        client.communicate(timeout=TIMEOUT)
    wait_for_job(network, "spied", "done")
    assert _find_access(network) is None  # nodes forget what they were given
    for attempt in (f"{write}/demo/spied/late", f"{read}/{mine}"):
        method, data = ("PUT", b"late") if "late" in attempt else ("GET", None)
        wait_for(partial(_is_over, attempt, method, data), "the job's grants have ended with it")
    left = written(network, "spied", tmp_path)
    assert {name: left[name] for name in objects} == backwards(objects)


def _is_over(url: str, method: str, data: bytes | None) -> bool:
    return request(url, method, data)[0] == 410


def _find_access(network: RunningNetwork) -> dict[str, Any] | None:
    """What an order that runs now lets its node do with storage, as it stands in the node's database."""
    for path in (network.local / "processes").glob("operator-*/data/compute.sqlite"):
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            row = database.execute("SELECT access FROM jobs WHERE access IS NOT NULL").fetchone()
        if row is not None:
            return dict(json.loads(row[0]))
    return None
