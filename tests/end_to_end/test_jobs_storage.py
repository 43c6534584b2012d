"""A job over an account's objects: nodes read and write them at the gateway, by grants for just that, and no client.

Invariant: what stands below the output's prefix is what the program makes of the inputs, byte by byte.
"""

from __future__ import annotations

import json
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

from freehold.client.grants import narrow
from tests.end_to_end import jobs
from tests.end_to_end.jobs import TIMEOUT, request
from tests.end_to_end.network import RunningNetwork, wait_for

SETTINGS = jobs.SETTINGS
ITEMS = 3
ROUNDS = 2_000_000  # long enough for a client to be killed meanwhile
READING = """
name: NAME
deadline: 10 min
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
WRITING = """
name: cut
deadline: 10 min
most: 50 credits
map: [first]
output: fh://demo/cut/
arguments: ["{item}"]
resources: {work: 60 s}
script: |
  import sys

  total = 0
  for number in range(2000000):
      total = (total * 31 + number) % 1000003
  for size in (150000, 250000):
      with open(f"/out/{sys.argv[1]}-{size}", "w") as target:
          target.write("a" * size)
"""
STORING = 6  # nodes that an object of several segments needs, at the least

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", autouse=True)
def objects(network: RunningNetwork, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The objects below fh://demo/in/, by name: some small enough for an index, some of several segments."""
    jobs.prepare(network)
    folder = tmp_path_factory.mktemp("objects") / "in"
    folder.mkdir()
    made = {f"{i}.bin": Random(i).randbytes(100_000 * i + 7) for i in range(ITEMS)}
    for name, data in made.items():
        (folder / name).write_bytes(data)
    network.ask("mb", "fh://demo")
    wait_for(lambda: _is_stored(network, folder), "the objects are stored", TIMEOUT)
    return made


def _is_stored(network: RunningNetwork, folder: Path) -> bool:
    """Where members are slow to close their first epochs, it is worth another try."""
    done = network.run("cp", "-r", "--yes", "--json", str(folder), "fh://demo/", timeout=TIMEOUT)
    assert done.code == 0 or done.error["retryable"], done
    return done.code == 0


def write_spec(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(text.replace("NAME", name))
    return str(path)


def written(network: RunningNetwork, name: str, folder: Path) -> dict[str, bytes]:
    """The objects below a job's output."""
    network.ask("cp", "-r", "--yes", f"fh://demo/{name}/", str(folder / name))
    return {path.name: path.read_bytes() for path in (folder / name).rglob("*") if path.is_file()}


def backwards(objects: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data[::-1] for name, data in objects.items()}


class Taken(NamedTuple):
    """An order in its node's database. `access` is there until it has ended, `ending` from then on."""

    node: str
    access: dict[str, Any] | None
    ending: dict[str, Any] | None
    is_delivering: bool


def find_taken(network: RunningNetwork, name: str) -> list[Taken]:
    """The orders of a job that nodes have taken: those whose tasks deliver below its name."""
    query = """SELECT access, ending, EXISTS (SELECT 1 FROM deliveries d WHERE d.id = jobs.id) FROM jobs
               JOIN tasks ON tasks.hash = jobs.task WHERE json_extract(tasks.body, '$.delivery.prefix') = ?"""
    found = []
    for path in sorted((network.local / "processes").glob("operator-*/data/compute.sqlite")):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            for access, ending, is_delivering in database.execute(query, (f"{name}/",)):
                parsed = [json.loads(one) if one else None for one in (access, ending)]
                found.append(Taken(path.parts[-3], *parsed, bool(is_delivering)))
    return found


def kill_client(network: RunningNetwork, spec: str, name: str, count: int) -> list[Taken]:
    """Order a job, and kill its client as soon as nodes have all its orders, while some still run; the orders."""
    with network.launch("job", "run", spec) as client:

        def all_taken() -> list[Taken] | None:
            found = find_taken(network, name)
            return found if len(found) == count else None

        taken = wait_for(all_taken, "nodes have taken all tasks", TIMEOUT)
        client.kill()
    assert any(one.ending is None for one in taken), taken
    return taken


def wait_until_delivered(network: RunningNetwork, name: str, count: int) -> None:
    """By the nodes themselves: each order once."""
    wait_for(lambda: all(one.ending for one in find_taken(network, name)), "nodes deliver", TIMEOUT)
    assert [one.ending and one.ending["delivered"] for one in find_taken(network, name)] == [True] * count


def find_again(network: RunningNetwork, name: str, count: int) -> None:
    """A new client comes back to the job: it is done, and nothing was ordered twice or paid twice."""
    found = network.run("job", "wait", name, timeout=TIMEOUT)
    assert found.code == 0, found
    assert "passed through this machine" not in found.stderr
    end = network.ask("job", "describe", name)
    assert (end["phase"], end["steps"][0]["orders"]) == ("done", count)
    cost = network.ask("job", "cost", name)
    assert int(cost["spent"]) == int(cost["work"]) > 0
    assert len(find_taken(network, name)) == count


def test_nodes_deliver_what_was_checked_and_one_bill_shows_all_of_it(
    network: RunningNetwork, objects: dict[str, bytes], tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, "checked", READING.replace("ROUNDS", "1"))
    with network.launch("job", "run", spec, "--assurance", "0.9") as client:
        grant = wait_for(lambda: _find_grant(network), "the job has a grant", TIMEOUT)
        stdout, stderr = client.communicate(timeout=TIMEOUT)
    assert (client.returncode, stdout) == (0, ""), stderr
    assert "passed through this machine" not in stderr
    assert written(network, "checked", tmp_path) == backwards(objects)
    bill = network.ask("job", "cost", "checked")
    cost = {name: int(bill[name]) for name in ("spent", "work", "assurance", "delivery")}
    assert min(cost.values()) > 0
    assert cost["spent"] == cost["work"] + cost["assurance"] + cost["delivery"]
    assert cost["assurance"] >= cost["work"]  # every result was confirmed by another operator's run at least
    gateway = json.loads((network.local / "gateway.json").read_text())["url"]
    write = narrow(grant, operations=["write"], bucket="demo", prefix="checked/")
    assert request(f"{gateway}/-/share/{write}/demo/checked/late", "PUT", b"late")[0] == 410  # it ended with the job


def _find_grant(network: RunningNetwork) -> str | None:
    """What a job that runs now has its nodes' grants narrowed from."""
    for path in network.local.rglob("jobs/jobs.sqlite"):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            row = database.execute("SELECT data FROM records WHERE name LIKE 'grant %'").fetchone()
        if row is not None:
            return str(row[0], "ascii")
    return None


def test_what_runs_is_delivered_although_its_client_is_dead(
    network: RunningNetwork, objects: dict[str, bytes], tmp_path: Path
) -> None:
    """The same program has run before, for less: what its nodes may take is not what receipts have shown. What a node
    was given opens its own input and the output's prefix, and nothing once the job has ended."""
    spec = write_spec(tmp_path, "alone", READING.replace("ROUNDS", str(ROUNDS)))
    taken = kill_client(network, spec, "alone", ITEMS)
    access = next(one.access for one in taken if one.access is not None)
    assert not network.ask("job", "describe", "alone")["driven"]
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
    wait_until_delivered(network, "alone", ITEMS)
    assert written(network, "alone", tmp_path) == backwards(objects)
    assert all(one.access is None for one in find_taken(network, "alone"))  # nodes forget what they were given
    assert request(f"{read}/{mine}")[0] == 200  # whose job nobody has ended yet
    find_again(network, "alone", ITEMS)
    wait_for(lambda: request(f"{read}/{mine}")[0] == 410, "the job's grants have ended with it")
    assert request(f"{write}/demo/alone/late", "PUT", b"late")[0] == 410


def _is_uploading(network: RunningNetwork, name: str) -> bool:
    (one,) = find_taken(network, name)
    assert one.ending is None, one  # it cannot end: too few nodes are there to store it
    return one.is_delivering


def test_an_upload_that_is_cut_off_at_both_ends_goes_on(
    network: RunningNetwork, objects: dict[str, bytes], tmp_path: Path
) -> None:
    """Nodes that store fall silent, and the node that uploads is killed: it goes on with the upload, and is paid once;
    no client is there."""
    nodes = [name for name in network.urls() if name.startswith("operator")]
    (taken,) = kill_client(network, write_spec(tmp_path, "cut", WRITING), "cut", 1)
    silent = [name for name in nodes if name != taken.node][: len(nodes) - STORING + 1]
    for name in silent:
        network.signal(name, signal.SIGSTOP)
    try:
        wait_for(lambda: _is_uploading(network, "cut"), "its node uploads what came out", TIMEOUT)
        network.kill(taken.node)
    finally:
        for name in silent:
            network.signal(name, signal.SIGCONT)
    assert _is_uploading(network, "cut")  # it was killed before the end of it
    network.restart(taken.node)
    wait_until_delivered(network, "cut", 1)
    assert written(network, "cut", tmp_path) == {f"first-{size}": b"a" * size for size in (150_000, 250_000)}
    find_again(network, "cut", 1)
