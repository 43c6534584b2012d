"""Whatever colluding parties can sign, `settle` returns: a bad row is a verdict, and never stops an epoch."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.protocol.messages import STREAM, VOUCHER, Close, Lease, Voucher
from freehold.protocol.units import AMOUNT_LIMIT, Hash
from freehold.services.storage.terms import LIST_BYTES_LIMIT, Delta
from tests.protocol.world import PARAMETERS, World, key, signed

CLIENT, POOR, NODE = key(1), key(2), key(11)
AMOUNTS = st.sampled_from([0, 1, 10**18, AMOUNT_LIMIT - 1])
SIZES = st.sampled_from([0, 1, LIST_BYTES_LIMIT, LIST_BYTES_LIMIT + 1, 2**63 - 1, 2**64 - 1])
LEASES = [
    Lease(
        client=client.address,
        node=NODE.address,
        service=service,
        mode=mode,
        price=price,
        number=1,
        deadline=deadline,
    )
    for client in (CLIENT, POOR)
    for service in ("storage", "nonsense")
    for mode in (STREAM, VOUCHER, 7)
    for price in (0, AMOUNT_LIMIT - 1)
    for deadline in (0, 10**7, 2**64 - 1)
]
IDS = [lease.struct_hash() for lease in LEASES]
OPEN = [i for i, lease in enumerate(LEASES) if lease.client == CLIENT.address and lease.deadline == 10**7]


def client_of(lease: int) -> Any:
    return CLIENT if LEASES[lease].client == CLIENT.address else POOR


def delta_of(lease: int, number: int, size: int, count: int) -> Delta:
    row = Delta(lease=IDS[lease], number=number, root=Hash(bytes(32)), count=count, size=size)
    return signed(row, client_signature=client_of(lease), node_signature=NODE)


def voucher_of(lease: int, amount: int) -> Voucher:
    return signed(Voucher(lease=IDS[lease], amount=amount), client_signature=client_of(lease))


def collude() -> World:
    """Two epochs in: every lease that can be opened is open, with nearly everything locked."""
    world = World((CLIENT, POOR), (NODE,))
    world.buy(CLIENT, 10**24, 10**24)
    world.settle([])
    rows = [signed(row, client_signature=client_of(i), node_signature=NODE) for i, row in enumerate(LEASES)]
    locks = world.reserve(CLIENT, 1, {IDS[i]: 10**20 for i in OPEN})
    world.settle([locks, world.batch("lease", rows, NODE)])
    return world


LEASE = st.integers(0, len(LEASES) - 1)
ROWS = {
    "storage.delta": st.builds(delta_of, LEASE, st.sampled_from([1, 2, 2**64 - 1]), SIZES, SIZES),
    "voucher": st.builds(voucher_of, LEASE, AMOUNTS),
    "close": st.builds(lambda i: signed(Close(lease=IDS[i]), client_signature=client_of(i)), LEASE),
}


@settings(max_examples=25)
@given(st.lists(st.fixed_dictionaries({kind: st.lists(rows, max_size=6) for kind, rows in ROWS.items()}), max_size=3))
def test_no_evidence_stops_an_epoch(epochs: list[dict[str, list[Any]]]) -> None:
    world = collude()
    for rows in epochs:
        settlement = world.settle([world.batch(kind, some, NODE) for kind, some in rows.items() if some])
        spent = world.state.clients[CLIENT.address].spent
        assert settlement.report.credits_spent == spent <= 10**24
        assert POOR.address not in {account.account for account in world.state.accounts}


def test_only_leases_of_clients_with_locks_are_opened() -> None:
    world = collude()
    assert {lease.client for lease in world.state.leases.values()} == {CLIENT.address}
    assert {lease.deadline for lease in world.state.leases.values()} == {10**7}
    reasons = {v.reason for v in world.settlements[-1].verdicts if v.kind == "lease"}
    assert reasons == {"good", "expired", "wrong_mode", "unlocked"}


@pytest.mark.parametrize(("size", "reason"), [(LIST_BYTES_LIMIT, "good"), (LIST_BYTES_LIMIT + 1, "too_large")])
def test_a_list_is_bounded_to_the_byte(size: int, reason: str) -> None:
    world = collude()
    stream = next(i for i in OPEN if LEASES[i].mode == STREAM and LEASES[i].service == "storage")
    world.settle([world.batch("storage.delta", [delta_of(stream, 1, size, 1)], NODE)])
    verdicts = [v.reason for v in world.settlements[-1].verdicts if v.kind == "storage.delta"]
    assert verdicts == [reason]
    assert LIST_BYTES_LIMIT * PARAMETERS.epoch_length < 2**63
