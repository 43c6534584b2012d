"""The quorum, with real processes and signals: one member may stop or lie, two stop the epochs, and nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from freehold.chain.contracts.oracle import EVENTS, EquivocationRecorded
from freehold.client.table_records import INLINE_LIMIT
from freehold.market.network import Network
from freehold.net.auth import authorize
from freehold.oracle.peers import BODY_HEADER, MESSAGES_PATH
from freehold.protocol.messages import Observation, Report, ViewChange, Vote
from freehold.protocol.typed import canonical_json, keccak
from freehold.protocol.units import Hash
from tests.end_to_end.network import DEADLINE, RunningNetwork, get_json, wait_for

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


def lying_member(network: RunningNetwork, liar: int = 4) -> Iterator[bytes]:
    """What a member might post with its real key: nonsense about anything, and two signatures for one view."""
    from freehold.local.accounts import derive_accounts

    key = derive_accounts(4, 0).members[liar - 1]
    domain = Network.load(network.local / "network.json").domain
    status = get_json(f"{network.urls()[f'member-{liar % 4 + 1}']}/v1/status")
    report = Report.from_json(status["last_report"])
    epoch = int(status["epoch"])
    for lie in (Hash(b"\x01" * 32), Hash(b"\x02" * 32)):
        observation = Observation(
            epoch=epoch, anchor=lie, price=1, commitment=lie, reveal=lie, certificates=(), member=key.address
        )
        signed = msgspec.structs.replace(observation, member_signature=key.sign(observation, domain))
        yield message_of(signed)
        forged = msgspec.structs.replace(report, epoch=epoch, state_root=lie, tokens_earned=10**24)
        signature = key.sign(forged, domain)
        yield message_of(Vote(report=forged, salt=lie, member=key.address, member_signature=signature))
    change = ViewChange(epoch=epoch, attempt=0, view=1000, member=key.address)
    yield message_of(msgspec.structs.replace(change, member_signature=key.sign(change, domain)))
    yield b'{"type": "Vote", "message": {}}'
    yield b"\x00" * 1000


def message_of(message: Observation | Vote | ViewChange) -> bytes:
    return canonical_json({"type": type(message).__name__, "message": message.to_json()})


def signed_headers(network: RunningNetwork, url: str, body: bytes, liar: int = 4) -> dict[str, str]:
    """What member `liar` sends along with a message to the member at `url`."""
    from freehold.local.accounts import derive_accounts

    known = Network.load(network.local / "network.json")
    recipient = next(member.address for member in known.members if member.url == url)
    key, body_hash, nonce = derive_accounts(4, 0).members[liar - 1], keccak(body), Hash(os.urandom(32))
    signed = authorize(key, "POST", MESSAGES_PATH, body_hash, recipient, known.domain, int(time.time()), nonce)
    return signed | {BODY_HEADER: str(body_hash)}


def test_a_lying_member_changes_nothing_and_is_found_out(network: RunningNetwork, tmp_path: Path) -> None:
    network.kill("member-4")
    honest = [network.urls()[f"member-{i}"] for i in (1, 2, 3)]

    def lie_and_look() -> bool:
        for lie in lying_member(network):
            for url in honest:
                request = urllib.request.Request(f"{url}/v1/messages", lie, signed_headers(network, url, lie))
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(request, timeout=10).close()
        return any(get_json(f"{url}/v1/status")["equivocations"] for url in honest)

    try:
        wait_for(lie_and_look, "two signatures for one view are seen")
        wait_for(lambda: equivocations(network), "they are shown to the contract")
        lie_and_look()
        check_replays(network, network.wait_epochs(2))
        store(network, tmp_path, "despite")
    finally:
        network.restart("member-4")


def equivocations(network: RunningNetwork) -> list[object]:
    """The contract's events of members that signed twice."""
    (topic,) = [topic for topic, event in EVENTS.items() if event.kind is EquivocationRecorded]
    at = str(Network.load(network.local / "network.json").contracts["oracle"])
    found = network.rpc("eth_getLogs", {"address": at, "topics": [f"0x{topic.hex()}"], "fromBlock": "0x0"})
    assert isinstance(found, list)
    return found


def test_two_members_down_stop_the_epochs_and_nothing_acknowledged_is_lost(
    network: RunningNetwork, tmp_path: Path
) -> None:
    store(network, tmp_path, "acknowledged")
    network.kill("member-1")
    network.signal("member-3", signal.SIGSTOP)
    (tmp_path / "patient").write_text("patient" * 10_000)  # too large for a head: it waits for its certificate
    upload = network.launch("cp", str(tmp_path / "patient"), "fh://demo/patient", "--yes", "--json")
    try:
        down = network.reported()
        height = chain_height(network)
        wait_for(lambda: chain_height(network) > height + 4 * LENGTH, "four epochs' time has passed")
        assert network.reported() <= down + 1
        assert upload.poll() is None, "nothing is acknowledged without a quorum"
        network.signal("member-3", signal.SIGCONT)
        network.restart("member-1")
        out, _ = upload.communicate(timeout=2 * DEADLINE)
    finally:
        network.signal("member-3", signal.SIGCONT)
        if upload.poll() is None:
            upload.kill()
            upload.communicate()
    assert json.loads(out)["success"], out
    check_replays(network, network.wait_epochs(2))
    names = {o["path"] for o in network.ask("ls", "fh://demo")["objects"]}
    assert names == {f"fh://demo/{name}" for name in ("before", "meanwhile", "despite", "acknowledged", "patient")}
    held = sum(row["holds"] for row in network.ask("operator", "list")["operators"])
    sizes = [entry["size"] for entry in network.ask("ls", "fh://demo")["objects"]]
    assert held >= 2 * sum(size for size in sizes if size > INLINE_LIMIT)
