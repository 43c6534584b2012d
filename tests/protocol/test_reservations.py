"""Reservations: a lock falls with the node's release, for exactly what it released."""

from __future__ import annotations

import pytest

from freehold.protocol.certificates import CERTIFICATE_EPOCHS
from freehold.protocol.keys import Key
from freehold.protocol.messages import Lock, LockRelease, Reservation
from freehold.protocol.reservations import compute_commitment
from freehold.protocol.units import Hash
from tests.protocol.world import DOMAIN, World, busy_world, key, signed

CLIENT = key(1)


def lowered(world: World, amount: int, signer: Key, *, released: int | None = None, number: int = 2) -> Reservation:
    """Reservation 2 with the first lock lowered to `amount`, released by `signer` for `released` and `number`."""
    first, *rest = sorted(world.state.locks[CLIENT.address])
    release = LockRelease(
        client=CLIENT.address, number=number, lease=first, amount=amount if released is None else released
    )
    locks = (
        Lock(lease=first, amount=amount, node_signature=signer.sign(release, DOMAIN)),
        *(Lock(lease=lease, amount=world.state.locks[CLIENT.address][lease].amount) for lease in rest),
    )
    row = Reservation(client=CLIENT.address, number=2, locks=locks, deadline=10**7)
    return signed(row, client_signature=CLIENT)


def node_of_first(world: World) -> Key:
    address = world.state.leases[min(world.state.locks[CLIENT.address])].node
    return next(node for node in world.nodes if node.address == address)


def verdict(world: World, row: Reservation) -> str:
    world.settle([world.batch("reservation", [row], CLIENT)])
    return next(v.reason for v in world.settlements[-1].verdicts if v.kind == "reservation")


def test_a_lock_falls_with_its_nodes_release() -> None:
    world = busy_world()
    assert verdict(world, lowered(world, 5, node_of_first(world))) == "good"
    assert world.state.locks[CLIENT.address][min(world.state.locks[CLIENT.address])].amount == 5


@pytest.mark.parametrize("change", [{"signer": key(99)}, {"released": 6}, {"number": 3}])
def test_a_release_counts_for_its_node_amount_and_number(change: dict[str, object]) -> None:
    world = busy_world()
    arguments = {"signer": node_of_first(world)} | change
    assert verdict(world, lowered(world, 5, **arguments)) == "lock_fell"  # type: ignore[arg-type]


def test_a_lock_may_not_be_dropped_while_its_lease_is_unknown() -> None:
    world = busy_world()
    unknown = Hash(bytes(31) + b"\x09")
    locks = {lock.lease: lock.amount for lock in world.state.locks[CLIENT.address].values()}
    world.buy(CLIENT, 1000, 1000)
    world.settle([])
    world.settle([world.reserve(CLIENT, 2, locks | {unknown: 10})])
    assert world.state.locks[CLIENT.address][unknown].amount == 10
    world.settle([world.reserve(CLIENT, 3, locks)])
    assert world.state.locks[CLIENT.address][unknown].amount == 10


def test_the_commitment_is_what_locks_promise_beyond_what_is_settled() -> None:
    world = busy_world()
    world.settle(world.proofs())
    settled = sum(lease.settled for lease in world.state.leases.values())
    locks = {lock.lease: lock.amount for lock in world.state.locks[CLIENT.address].values()}
    row = world.reserve(CLIENT, 2, locks).table.rows[0]
    assert settled > 0
    assert compute_commitment(world.state, row) == sum(locks.values()) - settled
    small = world.reserve(CLIENT, 2, dict.fromkeys(locks, 1)).table.rows[0]
    assert compute_commitment(world.state, small) == 0


def test_nobodys_reservation_changes_anothers_locks_or_pay() -> None:
    world, stranger = busy_world(), key(66)
    world.buy(stranger, 1, 1)
    world.settle(world.proofs())
    before = dict(world.state.locks[CLIENT.address])
    row = world.reserve(stranger, 1, dict.fromkeys(before, 0)).table.rows[0]
    claim = world.reserve(stranger, 1, {min(before): 1}).table.rows[0]
    for attempt in (row, claim):
        settlement = world.settle([*world.proofs(), world.batch("reservation", [attempt], stranger)])
        assert world.state.locks[CLIENT.address] == before
        assert all(p.credits for p in settlement.payments)


def test_a_client_without_credits_reserves_nothing() -> None:
    world, stranger = busy_world(), key(66)
    assert_reason(world, world.reserve(stranger, 1, {}).table.rows[0], "overcommitted", stranger)
    assert stranger.address not in world.state.locks


def assert_reason(world: World, row: Reservation, reason: str, sender: Key) -> None:
    settlement = world.settle([world.batch("reservation", [row], sender)])
    assert [v.reason for v in settlement.verdicts if v.kind == "reservation"] == [reason]


@pytest.mark.parametrize(("count", "reason"), [(1000, "good"), (1001, "too_many_locks")])
def test_a_reservation_has_a_bounded_number_of_locks(count: int, reason: str) -> None:
    client = key(70)
    world = World((client,), ())
    world.buy(client, 10**6, 10**6)
    world.settle([])
    row = world.reserve(client, 1, {Hash(i.to_bytes(32)): 1 for i in range(count)}).table.rows[0]
    assert_reason(world, row, reason, client)


def test_a_lock_falls_once_its_lease_can_no_longer_come() -> None:
    world = busy_world()
    unknown = Hash(bytes(31) + b"\x09")
    locks = {lock.lease: lock.amount for lock in world.state.locks[CLIENT.address].values()}
    world.buy(CLIENT, 1000, 1000)
    world.settle([])
    world.settle([world.reserve(CLIENT, 2, locks | {unknown: 10})])
    for _ in range(CERTIFICATE_EPOCHS - 1):
        assert_reason(world, world.reserve(CLIENT, 3, locks).table.rows[0], "lock_fell", CLIENT)
    world.settle([])
    assert_reason(world, world.reserve(CLIENT, 3, locks).table.rows[0], "good", CLIENT)
