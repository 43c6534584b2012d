"""What survives: n - k operators gone, a node killed during an upload, everything killed at once. In order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.files import MIB, hash_of, make_file
from tests.end_to_end.network import DEADLINE, RunningNetwork, wait_for

pytestmark = pytest.mark.timeout(240)

SIZE = 64 * MIB
LOST = 3  # n - k


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def stored(network: RunningNetwork, folder: Path) -> str:
    digest = make_file(folder / "data.bin", SIZE)
    network.ask("cp", str(folder / "data.bin"), "fh://demo/data.bin", "--yes")
    return digest


def fetch(network: RunningNetwork, folder: Path, name: str = "data.bin") -> str:
    network.ask("cp", f"fh://demo/{name}", str(folder / f"{name}.back"), "--yes")
    return hash_of(folder / f"{name}.back")


def test_a_node_killed_in_the_middle_of_an_upload_costs_nothing(
    network: RunningNetwork, folder: Path, stored: str
) -> None:
    digest = make_file(folder / "more.bin", 128 * MIB)
    start = network.stored_bytes()
    upload = network.launch("cp", str(folder / "more.bin"), "fh://demo/more.bin", "--yes", "--json")
    try:
        wait_for(lambda: network.stored_bytes() > start + 16 * MIB or upload.poll() is not None, "the upload runs")
        assert upload.poll() is None
        network.kill(largest_holder(network))
        out, _ = upload.communicate(timeout=DEADLINE)
    finally:
        if upload.poll() is None:
            upload.kill()
            upload.wait()
    listed = [o["path"] for o in network.ask("ls", "fh://demo")["objects"]]
    if json.loads(out)["success"]:
        assert "fh://demo/more.bin" in listed
        assert fetch(network, folder, "more.bin") == digest
    else:
        assert listed == ["fh://demo/data.bin"]
    assert fetch(network, folder) == stored


def largest_holder(network: RunningNetwork) -> str:
    def size(name: str) -> int:
        folder = network.local / "processes" / name / "data" / "storage"
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    return max((f"operator-{i + 1}" for i in range(8)), key=size)


def test_everything_is_killed_at_once_and_resumes(network: RunningNetwork, folder: Path, stored: str) -> None:
    before, genesis = network.reported(), network.rpc("eth_getBlockByNumber", "0x1", False)["hash"]
    network.kill_everything()
    network.start()
    assert network.rpc("eth_getBlockByNumber", "0x1", False)["hash"] == genesis
    assert network.reported() >= before
    assert fetch(network, folder) == stored
    network.wait_epochs(2)
    assert network.ask("status")["healthy"]


def test_files_survive_the_loss_of_n_minus_k_of_their_operators(
    network: RunningNetwork, folder: Path, stored: str
) -> None:
    holders = [row["name"] for row in network.ask("operator", "list")["operators"] if row["holds"]]
    assert len(holders) >= 6
    for name in holders[:LOST]:
        network.kill(name)
    told = network.ask("status")
    assert not told["healthy"]
    for name in holders[:LOST]:
        assert any(problem.startswith(f"{name} at http://127.0.0.1") for problem in told["problems"])
    assert fetch(network, folder) == stored


def test_silence_is_explained_and_never_slashed(network: RunningNetwork, stored: str) -> None:
    silent = next(row for row in network.ask("operator", "list")["operators"] if row["state"] != "ready")
    assert silent["state"].startswith("offline")
    epoch = network.wait_epochs(2)
    told = network.ask("why", silent["name"], "--epoch", str(epoch))
    assert {verdict["reason"] for verdict in told["verdicts"] if verdict["obligation"]} <= {"silent", "slept"}
    assert told["totals"]["tokens"] == "0"
    assert any("x s" in reason for reason in told["zero"])
    assert int(silent["bond"]) > 0


def test_the_supervisor_alone_is_killed_and_leaves_nothing_behind_that_matters(
    network: RunningNetwork, folder: Path, stored: str
) -> None:
    network.kill_supervisor()
    network.start()
    assert network.ask("status")["healthy"]
    assert fetch(network, folder) == stored
