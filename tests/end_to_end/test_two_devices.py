"""One account on two devices: real command lines at the same time, each with a home of its own, against one network.

They share nothing but the wallet's words: heads, leases, reservations, lists and vouchers are at nodes and members.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.devices import Device
from tests.end_to_end.files import MIB, hash_of, make_file
from tests.end_to_end.network import DEADLINE, RunningNetwork, wait_for

TOKEN = 10**18
ROUNDS = 2

pytestmark = pytest.mark.timeout(240)


def finish(running: Sequence[Any]) -> list[Any]:
    """The data of commands that run at the same time, all of which must succeed."""
    outputs = [process.communicate(timeout=DEADLINE) for process in running]
    assert all(process.returncode == 0 for process in running), outputs
    return [json.loads(stdout)["data"] for stdout, _ in outputs]


@pytest.fixture
def devices(network: RunningNetwork, tmp_path: Path) -> list[Device]:
    one = Device(network, tmp_path, "one")
    two = Device(network, tmp_path, "two", one.words)
    assert one.address == two.address
    one.take_credits()
    return [one, two]


def check_both_read(devices: Sequence[Device], files: Mapping[str, str], folder: Path) -> None:
    """Each device reads the whole bucket, both at once."""
    for device in devices:
        shutil.rmtree(folder / f"back-{device.name}", ignore_errors=True)
        (folder / f"back-{device.name}").mkdir()
    finish([d.launch("cp", "-r", "fh://demo", str(folder / f"back-{d.name}"), "--yes") for d in devices])
    for device in devices:
        back = [path for path in (folder / f"back-{device.name}").rglob("*") if path.is_file()]
        assert {path.name: hash_of(path) for path in back} == files


def test_two_devices_write_and_read_at_once_and_everything_is_there_and_paid(
    network: RunningNetwork, devices: list[Device], tmp_path: Path
) -> None:
    files: dict[str, str] = {}
    for number in range(ROUNDS):
        fresh = {f"{device.name}-{number}": device for device in devices}
        files |= {name: make_file(tmp_path / name, MIB) for name in fresh}
        finish([d.launch("cp", str(tmp_path / name), f"fh://demo/{name}", "--yes") for name, d in fresh.items()])
    one, two = devices
    finish([one.launch("rm", "fh://demo/two-0", "--yes"), two.launch("rm", "fh://demo/one-0", "--yes")])
    files = {name: digest for name, digest in files.items() if not name.endswith("-0")}
    last = network.wait_epochs(2)

    def paid() -> list[dict[str, Any]] | None:
        rows: list[dict[str, Any]] = one.ask("lease", "list")
        return rows if all(row["settled"] != "0" for row in rows if row["mode"] == "stream") else None

    rows = wait_for(paid, "what is kept is paid")
    assert {row["lease"]: row["lock"] for row in rows} == {
        row["lease"]: row["lock"] for row in two.ask("lease", "list")
    }
    nodes = [(row["node"], row["mode"]) for row in rows]
    assert len(nodes) == len(set(nodes))
    assert network.ask("epoch", "replay", str(last))["on_chain"]
    check_both_read(devices, files, tmp_path)
