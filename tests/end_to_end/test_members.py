"""Members as they run: over a real chain, real disks and HTTP; what they publish can be replayed and proven."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from freehold.net.auth import authorize
from freehold.net.client import Peer
from freehold.oracle.peers import BODY_HEADER, MESSAGES_PATH
from freehold.protocol.batches import CLOSE, RESERVATION, make_batch
from freehold.protocol.bundle import decode_bundle, replay
from freehold.protocol.errors import InsufficientCredits, MalformedMessage, NotFound, WrongSignature
from freehold.protocol.keys import Key
from freehold.protocol.merkle import row_root, verify_row
from freehold.protocol.messages import Close, Lock, Report, Reservation
from freehold.protocol.state import ClientState, LockState, TableRoot
from freehold.protocol.tables import Table
from freehold.protocol.typed import keccak
from freehold.protocol.units import ONE, Hash
from freehold.services.judging import JUDGES
from tests.oracle.real_network import CLIENT, DEADLINE, MEMBERS, RealNetwork, real_network


def reservation(network: RealNetwork, number: int, amount: int) -> Reservation:
    key = Key(CLIENT)
    lock = Lock(lease=keccak(b"a lease"), amount=amount)
    row = Reservation(client=key.address, number=number, locks=(lock,), deadline=2**40)
    signature = key.sign(row, network.network.domain)
    return Reservation(client=key.address, number=number, locks=(lock,), deadline=2**40, client_signature=signature)


@pytest.mark.timeout(150)
def test_epochs_settle_and_can_be_replayed(tmp_path: Path) -> None:
    asyncio.run(scenario(tmp_path))


async def scenario(tmp_path: Path) -> None:
    async with real_network(tmp_path) as network:
        domain, client = network.network.domain, Key(CLIENT)
        await network.buy_credits(100 * ONE)
        await network.wait_for_epoch(2)
        quorum = network.quorum()

        close = make_batch(CLOSE, Table.of(Close, [Close(lease=keccak(b"none"))]), client, domain)
        held = await quorum.certify(close)
        await network.wait_for_epoch(held.epoch)

        row = reservation(network, 1, 20 * ONE)
        held = await quorum.certify(make_batch(RESERVATION, Table.of(Reservation, [row]), client, domain))
        assert held.epoch == held.certificate.epoch
        row = reservation(network, 2, 1000 * ONE)
        too_much = make_batch(RESERVATION, Table.of(Reservation, [row]), client, domain)
        with pytest.raises(InsufficientCredits) as refused:
            await quorum.certify(too_much)
        assert int(refused.value.details["missing"]) == 950 * ONE  # 100 tokens bought 50 credits
        epoch = held.epoch
        await network.wait_for_epoch(epoch)

        await check_published(network, epoch)
        await check_state(network, epoch)
        await check_refusals(network)

        await network.stop(0)
        await network.wait_for_epoch(await network.ledger.posted_epoch() + 2)
        await network.stop(1)  # two of four: epochs stop
        posted = await network.ledger.posted_epoch()
        for i in (0, 1):
            await network.start(i)
        await network.wait_for_epoch(posted + 3)
        state = await network.quorum().agree(f"/v1/state/{posted + 2}/clients/{client.address}")
        assert ClientState.from_json(state["rows"]["clients"][0]["row"]).reservation == 1


async def check_published(network: RealNetwork, epoch: int) -> None:
    """Every member's bundle replays to the report that the chain has."""
    await committed(network, epoch)
    (summary,) = [s for s in await network.quorum().agree("/v1/reports?from=1") if s["report"]["epoch"] == str(epoch)]
    for i in range(4):
        data = await network.dial.peer(network.urls[i]).get_bytes(f"/v1/bundles/{epoch}")
        settlement = await asyncio.to_thread(replay, data, JUDGES)
        assert settlement.report.to_json() == summary["report"]
        assert decode_bundle(data, JUDGES).previous is not None
        shown = await network.get(i, f"/v1/reports/{epoch}")
        assert Report.from_json(shown["report"]) == settlement.report
        status = await network.get(i, "/v1/status")
        assert status["level"]
        assert status["epoch"] > epoch
        assert (await network.get(i, "/readyz"))["ready"]
    metrics = (await network.dial.peer(network.urls[0]).get_bytes("/metrics")).decode()
    values = dict(line.split(" ") for line in metrics.splitlines() if not line.startswith("#"))
    assert int(values["freehold_oracle_epoch_committed"]) >= epoch
    assert int(values["freehold_oracle_batches_received_total"]) >= 2


async def committed(network: RealNetwork, epoch: int) -> None:
    """Wait until every member has the epoch."""
    async with asyncio.timeout(DEADLINE):
        for i in range(4):
            while not await has(network, i, epoch):  # noqa: ASYNC110 - the members cause it
                await asyncio.sleep(0.02)


async def has(network: RealNetwork, i: int, epoch: int) -> bool:
    try:
        await network.get(i, f"/v1/reports/{epoch}")
    except NotFound:
        return False
    return True


async def check_state(network: RealNetwork, epoch: int) -> None:
    """Rows of the state prove themselves against the report."""
    quorum, client = network.quorum(), Key(CLIENT).address
    report = Report.from_json((await network.get(0, f"/v1/reports/{epoch}"))["report"])
    answer = await quorum.agree(f"/v1/state/{epoch}/clients/{client}")
    roots = {root.name: root for root in map(TableRoot.from_json, answer["tables"])}
    assert row_root([TableRoot.from_json(root).row_hash() for root in answer["tables"]]) == report.state_root
    for name, kind in (("clients", ClientState), ("locks", LockState)):
        (entry,) = answer["rows"][name]
        row, proof = kind.from_json(entry["row"]), [Hash(h) for h in entry["proof"]]
        assert verify_row(roots[name].root, roots[name].count, entry["index"], row.row_hash(), proof)
    node = await quorum.agree(f"/v1/state/{epoch}/nodes/{client}")
    assert node["rows"]["operators"] == []


async def check_refusals(network: RealNetwork) -> None:
    peer = network.dial.peer(network.urls[0])
    with pytest.raises(MalformedMessage):
        await peer.post_bytes("/v1/batches", b"\0\0\0\7garbage")
    await check_messages(network, peer)
    with pytest.raises(NotFound):
        await peer.get_bytes("/v1/bundles/100000")
    with pytest.raises(NotFound):
        await peer.get_json(f"/v1/accounts/{Key(CLIENT).address}?epoch=1")


async def check_messages(network: RealNetwork, peer: Peer) -> None:
    """Only members' messages are read, and only as they were signed."""
    body = b'{"type": "Gossip", "message": {}}'
    with pytest.raises(WrongSignature):
        await peer.post_bytes(MESSAGES_PATH, body)

    def headers(key: Key, said: Hash) -> dict[str, str]:
        recipient, nonce = network.network.member_addresses[0], Hash(os.urandom(32))
        domain = network.network.domain
        signed = authorize(key, "POST", MESSAGES_PATH, said, recipient, domain, int(time.time()), nonce)
        return signed | {BODY_HEADER: str(said)}

    async def endless() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    member = Key(MEMBERS[1])
    with pytest.raises(MalformedMessage, match="a message is"):
        await peer.post_bytes(MESSAGES_PATH, body, headers(member, keccak(body)))
    with pytest.raises(WrongSignature, match="the body"):
        await peer.post_bytes(MESSAGES_PATH, body, headers(member, keccak(b"another")))
    with pytest.raises(WrongSignature, match="who may not"):  # without waiting for the body
        async with peer.request("POST", MESSAGES_PATH, headers=headers(Key(CLIENT), keccak(body)), data=endless()):
            pass
