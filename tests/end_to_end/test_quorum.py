"""The quorum, with real processes and signals: one member may stop or lie, two stop the epochs, and nothing is lost."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from freehold.market.network import Network
from freehold.protocol.messages import Observation, Report, ViewChange, Vote
from freehold.protocol.typed import canonical_json
from freehold.protocol.units import Hash
from tests.end_to_end.network import RunningNetwork, get_json, wait_for

pytestmark = pytest.mark.timeout(240)

LENGTH = 10  # chain seconds an epoch (network.QUICK), one a block


def chain_height(network: RunningNetwork) -> int:
    return int(network.rpc("eth_blockNumber"), 16)


def store(network: RunningNetwork, folder: Path, name: str) -> None:
    (folder / name).write_text(name * 1000)
    network.ask("cp", str(folder / name), f"fh://demo/{name}", "--yes")


def check_replays(network: RunningNetwork, epoch: int) -> None:
    assert network.ask("epoch", "replay", str(epoch))["on_chain"]


def test_a_member_that_stops_answering_does_not_stop_the_epochs(network: RunningNetwork, tmp_path: Path) -> None:
    store(network, tmp_path, "before")
    network.signal("member-2", signal.SIGSTOP)
    try:
        epoch = network.wait_epochs(3)
        check_replays(network, epoch)
        store(network, tmp_path, "meanwhile")
        told = network.ask("status")
        assert any("member-2" in problem for problem in told["problems"])
    finally:
        network.signal("member-2", signal.SIGCONT)
    wait_for(lambda: network.ask("status")["healthy"], "the member is level again")


def lying_member(network: RunningNetwork) -> Iterator[bytes]:
    """What a member might post with its real key: nonsense about anything, and two signatures for one view."""
    from freehold.local.accounts import derive_accounts

    key = derive_accounts(4, 0).members[3]
    domain = Network.load(network.local / "network.json").domain
    status = get_json(f"{network.urls()['member-1']}/v1/status")
    report = Report.from_json(status["last_report"])
    epoch = int(status["epoch"])
    for lie in (Hash(b"\x01" * 32), Hash(b"\x02" * 32)):
        observation = Observation(epoch=epoch, anchor=lie, price=1, certificates=(), member=key.address)
        signed = msgspec.structs.replace(observation, member_signature=key.sign(observation, domain))
        yield message_of(signed)
        forged = msgspec.structs.replace(report, epoch=epoch, state_root=lie, tokens_earned=10**24)
        yield message_of(Vote(report=forged, member=key.address, member_signature=key.sign(forged, domain)))
    change = ViewChange(epoch=epoch, view=1000, member=key.address)
    yield message_of(msgspec.structs.replace(change, member_signature=key.sign(change, domain)))
    yield b'{"type": "Vote", "message": {}}'
    yield b"\x00" * 1000


def message_of(message: Observation | Vote | ViewChange) -> bytes:
    return canonical_json({"type": type(message).__name__, "message": message.to_json()})


def test_a_lying_member_changes_nothing_and_is_found_out(network: RunningNetwork, tmp_path: Path) -> None:
    network.kill("member-4")
    honest = [network.urls()[f"member-{i}"] for i in (1, 2, 3)]
    try:
        for _ in range(3):
            for lie in lying_member(network):
                for url in honest:
                    with contextlib.suppress(OSError):
                        urllib.request.urlopen(urllib.request.Request(f"{url}/v1/messages", lie), timeout=10).close()
            epoch = network.wait_epochs(1)
            check_replays(network, epoch)
        known = [get_json(f"{url}/v1/status")["equivocations"] for url in honest]
        assert any(known), "two signatures for one view were seen by nobody"
        store(network, tmp_path, "despite")
    finally:
        restart(network, "member-4")


def restart(network: RunningNetwork, name: str) -> None:
    """Start a program again the way an operator would, by `freehold oracle run`."""
    config = network.local / "processes" / name / "config.json"
    kind = "oracle" if name.startswith("member") else "node"
    process = network.launch(kind, "run", "--config", str(config))
    BACK.append(process)
    wait_for(lambda: get_json(f"{network.urls()[name]}/readyz"), f"{name} is back")


BACK: list[subprocess.Popen[str]] = []


@pytest.fixture(scope="module", autouse=True)
def end_what_was_restarted() -> Iterator[None]:
    yield
    for process in BACK:
        process.terminate()
        process.communicate(timeout=30)


def test_two_members_down_stop_the_epochs_and_nothing_acknowledged_is_lost(
    network: RunningNetwork, tmp_path: Path
) -> None:
    store(network, tmp_path, "acknowledged")
    network.kill("member-1")
    network.signal("member-3", signal.SIGSTOP)
    try:
        down = any_status(network, "member-2")
        height = chain_height(network)
        wait_for(lambda: chain_height(network) > height + 4 * LENGTH, "four epochs' time has passed")
        assert any_status(network, "member-2") <= down + 1
        refused = network.run("cp", str(tmp_path / "acknowledged"), "fh://demo/refused", "--yes", "--json")
        assert refused.error["retryable"]
    finally:
        network.signal("member-3", signal.SIGCONT)
        restart(network, "member-1")
    epoch = network.wait_epochs(3)
    check_replays(network, epoch)
    names = {o["path"] for o in network.ask("ls", "fh://demo")["objects"]}
    assert names == {f"fh://demo/{name}" for name in ("before", "meanwhile", "despite", "acknowledged")}
    held = sum(row["holds"] for row in network.ask("operator", "list")["operators"])
    listed = sum(entry["size"] for entry in network.ask("ls", "fh://demo")["objects"])
    assert held >= 2 * listed


def any_status(network: RunningNetwork, name: str) -> int:
    return int(get_json(f"{network.urls()[name]}/v1/status")["epoch"])
