"""Bundles are taken from members only as far as the chain and the network file bear them out."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from freehold.cli import bundles
from freehold.cli.bundles import check_bundle, fetch_bundle
from freehold.market.network import MemberRecord
from freehold.market.quorum import Quorum
from freehold.protocol.bundle import encode_bundle
from freehold.protocol.errors import FreeholdError, NotFound, ReplayMismatch, Unavailable
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address
from tests.protocol.world import ADDRESSES, DOMAIN, MEMBERS, World, busy_world

NETWORK: Any = SimpleNamespace(domain=DOMAIN, member_addresses=ADDRESSES)


@pytest.fixture(scope="module")
def world() -> World:
    """Epoch 3: all prove."""
    made = busy_world()
    made.settle(made.proofs())
    return made


@pytest.fixture(scope="module")
def other() -> bytes:
    """An epoch 3 in which nobody proved, signed by the same members: sound in itself, and not what the chain took."""
    made = busy_world()
    made.settle([])
    return encode_bundle(made.bundles[2])


def accepted(world: World) -> Any:
    report = world.settlements[2].report
    fields = {name: getattr(report, name) for name in report.__struct_fields__}
    return SimpleNamespace(report_hash=report.struct_hash(), report=SimpleNamespace(_asdict=lambda: fields))


class Peer:
    def __init__(self, answer: bytes | FreeholdError) -> None:
        self.answer = answer

    async def get_bytes(self, path: str) -> bytes:
        if isinstance(self.answer, FreeholdError):
            raise self.answer
        return self.answer


def connect(answers: list[bytes | FreeholdError]) -> Any:
    peers = iter([Peer(answer) for answer in answers])
    dial: Any = SimpleNamespace(peer=lambda *_: next(peers))
    quorum = Quorum(dial, [MemberRecord(m.address, m.public, "") for m in MEMBERS], DOMAIN)

    async def posted() -> int:
        return 3

    return SimpleNamespace(network=NETWORK, quorum=quorum, ledger=SimpleNamespace(posted_epoch=posted))


def test_a_member_that_shows_another_epoch_than_the_chain_is_passed_over(
    world: World, other: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def find(*_: Any) -> Any:
        return accepted(world)

    monkeypatch.setattr(bundles, "find_accepted", find)
    good = encode_bundle(world.bundles[2])
    answers: list[bytes | FreeholdError] = [other, b"noise", Unavailable("away"), good]
    assert asyncio.run(fetch_bundle(connect(answers), 3)).data == good
    with pytest.raises(ReplayMismatch, match=r"report\.[a-z_]+: recomputed .*, on chain "):
        asyncio.run(fetch_bundle(connect([other] * 4), 3))


def test_an_epoch_that_the_chain_has_not_taken_is_not_shown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def find(*_: Any) -> None:
        return None

    monkeypatch.setattr(bundles, "find_accepted", find)
    with pytest.raises(NotFound, match="the last is 3"):
        asyncio.run(fetch_bundle(connect([encode_bundle(world.bundles[2])] * 4), 3))


@pytest.mark.parametrize(
    ("network", "first"),
    [
        (SimpleNamespace(domain=Domain(5, DOMAIN.contract), member_addresses=ADDRESSES), "domain"),
        (SimpleNamespace(domain=DOMAIN, member_addresses=ADDRESSES[:3]), "members"),
    ],
)
def test_a_bundle_of_another_network_is_refused(world: World, network: Any, first: str) -> None:
    with pytest.raises(ReplayMismatch) as caught:
        check_bundle(encode_bundle(world.bundles[2]), 3, network, None)
    assert caught.value.details["first"] == first


def test_the_network_file_may_list_members_that_are_to_come(world: World) -> None:
    """Offline the file vouches for its members, as long as liars among those listed are no quorum of the epoch's."""
    data, to_come = encode_bundle(world.bundles[2]), [Address(bytes([i]) * 20) for i in range(4)]
    for count in (1, 2):
        listed: Any = SimpleNamespace(domain=DOMAIN, member_addresses=(*ADDRESSES, *to_come[:count]))
        assert check_bundle(data, 3, listed, None).data == data
    strangers: Any = SimpleNamespace(domain=DOMAIN, member_addresses=(*ADDRESSES, *to_come))
    with pytest.raises(ReplayMismatch) as caught:
        check_bundle(data, 3, strangers, None)
    assert caught.value.details["first"] == "members"
    assert check_bundle(data, 3, strangers, accepted(world)).data == data  # the chain vouches for more than the file


def test_a_file_that_differs_from_the_chain_is_refused(world: World, other: bytes) -> None:
    with pytest.raises(ReplayMismatch, match="on chain"):
        check_bundle(other, 3, NETWORK, accepted(world))
    assert check_bundle(other, 3, NETWORK, None).data == other
