"""Settling: what is paid, what is not and why, and that sums are conserved over whole histories."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.protocol.epoch import check_manifest
from freehold.protocol.errors import Corrupt, FreeholdError, MalformedMessage, WrongSignature
from freehold.protocol.messages import STREAM, VOUCHER, Close, Lock, Reservation, Voucher
from freehold.protocol.units import ZERO_HASH, Hash
from freehold.protocol.verdicts import GOOD, SILENT, SLEPT
from freehold.services.storage.terms import PROOF, Delta
from tests.protocol.world import DOMAIN, MEMBERS, PARAMETERS, PRICE, World, busy_world, key, signed

CLIENT = key(1)


def reasons(world: World, kind: str) -> list[str]:
    return [v.reason for v in world.settlements[-1].verdicts if v.kind == kind]


def test_proven_streams_are_paid_bytes_times_seconds_times_price() -> None:
    world = busy_world()
    settlement = world.settle(world.proofs())
    assert reasons(world, PROOF) == [GOOD] * 4 * 3
    size = 5000 + 4096 + 1
    for payment in settlement.payments:
        assert payment.measure == size * 20
        assert payment.credits == payment.owed == size * 20 * PRICE // (2**40 * 3600)
        assert payment.earned + payment.burned == payment.released > 0
        assert payment.subsidy == payment.burned * PARAMETERS.beta // 10**6
    totals = {a.account: a for a in settlement.state.accounts}
    assert totals[CLIENT.address].credits_spent == sum(p.credits for p in settlement.payments)
    assert settlement.report.tokens_earned == sum(p.earned + p.subsidy for p in settlement.payments)
    assert settlement.report.subsidy + settlement.report.revenue == settlement.report.tokens_earned


def test_new_leases_are_challenged_and_paid_from_the_next_epoch() -> None:
    world = busy_world()
    assert reasons(world, "lease") == [GOOD] * 3
    assert reasons(world, PROOF) == []
    assert len(world.settlements[-1].payments) == 0


def test_silence_is_unpaid_and_the_others_are_not_hurt() -> None:
    world = busy_world()
    silent = world.nodes[0].address
    settlement = world.settle(world.proofs(frozenset([silent])))
    assert sorted(reasons(world, PROOF)) == [GOOD] * 8 + [SILENT] * 4
    assert {p.node for p in settlement.payments if p.credits} == {n.address for n in world.nodes[1:]}


def test_when_more_than_a_third_is_silent_it_slept() -> None:
    world = busy_world()
    world.settle(world.proofs(frozenset(n.address for n in world.nodes[:2])))
    assert sorted(reasons(world, PROOF)) == [GOOD] * 4 + [SLEPT] * 8


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"leaf": b"x" * 4096}, {"wrong_shard_path", "wrong_leaf"}),
        ({"leaf": b""}, {"wrong_leaf"}),
        ({"shard_path": b"x"}, {"wrong_leaf"}),
        ({"shard_path": bytes(96)}, {"wrong_shard_path"}),
        ({"list_path": b"x"}, {"wrong_list_path"}),
        ({"position": 7}, {"wrong_list_path"}),
        ({"lease": ZERO_HASH}, {"wrong_lease"}),
        ({"epoch": 1}, {"silent", "wrong_epoch"}),
        ({"draw": 99}, {"silent", "unobliged"}),
    ],
)
def test_a_bad_proof_is_a_verdict_and_unpaid(change: dict[str, Any], reason: set[str]) -> None:
    world = busy_world()
    bad, *good = world.proofs()
    rows = [msgspec.structs.replace(row, **change) for row in bad.table]
    node = next(n for n in world.nodes if n.address == bad.header.sender)
    settlement = world.settle([world.batch(PROOF, rows, node), *good])
    assert {r for r in reasons(world, PROOF) if r != GOOD} <= reason
    assert node.address not in {p.node for p in settlement.payments if p.credits}


def test_an_opening_of_another_byte_is_wrong_even_if_it_verifies() -> None:
    world = busy_world()
    batches = world.proofs()
    rows = list(batches[0].table)
    swapped = [msgspec.structs.replace(a, draw=b.draw) for a, b in zip(rows, [*rows[1:], rows[0]], strict=True)]
    node = next(n for n in world.nodes if n.address == batches[0].header.sender)
    world.settle([world.batch(PROOF, swapped, node), *batches[1:]])
    assert {"wrong_position", "wrong_leaf", "wrong_shard_path"} & set(reasons(world, PROOF))


def test_a_good_answer_counts_beside_a_bad_one() -> None:
    world = busy_world()
    batches = world.proofs()
    node = next(n for n in world.nodes if n.address == batches[0].header.sender)
    bad = world.batch(PROOF, [msgspec.structs.replace(r, leaf=b"?") for r in batches[0].table], node)
    world.settle([bad, *batches])
    assert reasons(world, PROOF) == [GOOD] * 12


def test_a_stream_pays_for_one_nominal_length_after_a_night_asleep() -> None:
    world = busy_world()
    state = world.state
    late = msgspec.structs.replace(state.epoch, anchor_time=state.epoch.anchor_time - 1000)
    world.state = type(state)(**{f: getattr(state, f) for f in state.__dataclass_fields__} | {"epoch": late})
    settlement = world.settle(world.proofs())
    assert {p.measure for p in settlement.payments} == {(5000 + 4096 + 1) * PARAMETERS.epoch_length}


def test_a_lock_bounds_the_stream_which_lapses_and_closes_after_its_grace() -> None:
    world = busy_world(lock=10**14)
    paid = []
    for _ in range(6):
        paid.append(sum(p.credits for p in world.settle(world.proofs()).payments))
    assert sum(paid) == 3 * 10**14
    leases = world.state.leases.values()
    assert all(lease.settled == 10**14 and lease.lapsed and lease.closed for lease in leases)
    assert world.proofs() == []
    assert len(world.state.services["storage"]) == 0


def voucher_world() -> tuple[World, Hash]:
    world = World((CLIENT,), (key(11),))
    world.buy(CLIENT, 10**20, 10**20)
    world.settle([])
    lease = world.open(CLIENT, key(11), mode=VOUCHER)
    locks = {lease.struct_hash(): 1000}
    world.settle([world.reserve(CLIENT, 1, locks), world.batch("lease", [lease], CLIENT)])
    return world, lease.struct_hash()


def test_vouchers_are_cumulative_and_bounded_by_the_lock() -> None:
    world, lease = voucher_world()

    def send(*amounts: int) -> int:
        rows = [signed(Voucher(lease=lease, amount=a), client_signature=CLIENT) for a in amounts]
        return sum(p.credits for p in world.settle([world.batch("voucher", rows, key(11))]).payments)

    assert [send(100), send(100), send(50), send(300, 200), send(5000), send(6000)] == [100, 0, 0, 200, 700, 0]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (lambda lease: signed(Voucher(lease=lease, amount=9), client_signature=key(2)), "wrong_signature"),
        (lambda lease: Voucher(lease=lease, amount=9), "wrong_signature"),
        (lambda lease: signed(Voucher(lease=ZERO_HASH, amount=9), client_signature=CLIENT), "unknown_lease"),
    ],
)
def test_a_bad_voucher_pays_nothing(row: Any, reason: str) -> None:
    world, lease = voucher_world()
    settlement = world.settle([world.batch("voucher", [row(lease)], key(11))])
    assert reasons(world, "voucher") == [reason]
    assert settlement.report.credits_spent == 0


def test_a_closed_lease_is_paid_for_its_last_epoch_and_then_owes_nothing() -> None:
    world = busy_world()
    rows = [signed(Close(lease=k), client_signature=CLIENT) for k in world.state.leases]
    settlement = world.settle([*world.proofs(), world.batch("close", rows, CLIENT)])
    assert all(p.credits for p in settlement.payments)
    assert world.proofs() == []
    assert len(world.settle([]).payments) == 0


def test_only_the_client_closes() -> None:
    world = busy_world()
    rows = [signed(Close(lease=k), client_signature=world.nodes[0]) for k in world.state.leases]
    world.settle([*world.proofs(), world.batch("close", rows, world.nodes[0])])
    assert reasons(world, "close") == ["wrong_signature"] * 3
    assert not any(lease.closed for lease in world.state.leases.values())


@pytest.mark.parametrize("who", ["client_signature", "node_signature"])
def test_a_delta_needs_both_signatures(who: str) -> None:
    world = busy_world()
    held = next(iter(world.lists.values()))
    delta = Delta(lease=held.id, number=99, root=ZERO_HASH, count=0, size=0)
    node = next(n for n in world.nodes if n.address == held.lease.node)
    signers = {"client_signature": CLIENT, "node_signature": node} | {who: key(77)}
    before = world.state.services["storage"].root
    world.settle([*world.proofs(), world.batch("storage.delta", [signed(delta, **signers)], CLIENT)])
    assert reasons(world, "storage.delta") == ["wrong_signature"]
    assert world.state.services["storage"].root == before


def test_deltas_sent_again_change_nothing_and_the_newest_counts() -> None:
    world = busy_world()
    held = next(iter(world.lists.values()))
    node = next(n for n in world.nodes if n.address == held.lease.node)
    first = held.delta(CLIENT, node)
    held.shards.append(b"more")
    second = held.delta(CLIENT, node)
    world.settle([world.batch("storage.delta", [second, first], CLIENT)])
    assert reasons(world, "storage.delta") == [GOOD, GOOD]
    world.settle([world.batch("storage.delta", [first, second], CLIENT)])
    assert reasons(world, "storage.delta") == ["known", "known"]
    row = next(r for r in world.state.services["storage"] if r.lease == held.id)
    assert (row.number, row.count, row.size) == (second.number, second.count, second.size)


def reservation(number: int, locks: dict[Hash, int], signer: Any = CLIENT) -> Reservation:
    row = Reservation(
        client=CLIENT.address,
        number=number,
        locks=tuple(Lock(lease=k, amount=v) for k, v in locks.items()),
        deadline=10**7,
    )
    return signed(row, client_signature=signer)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda locks: reservation(2, locks), GOOD),
        (lambda locks: reservation(3, locks), "reservation_gap"),
        (lambda locks: reservation(1, locks), "reservation_gap"),
        (lambda locks: reservation(2, locks, key(2)), "wrong_signature"),
        (lambda locks: reservation(2, {}), "lock_fell"),
        (lambda locks: reservation(2, {k: v - 1 for k, v in locks.items()}), "lock_fell"),
        (lambda locks: reservation(2, locks | {Hash(bytes(31) + b"\x01"): 1}), "overcommitted"),
    ],
)
def test_a_reservation_promises_no_more_than_was_paid_in(make: Any, reason: str) -> None:
    world = busy_world()
    locks = {lock.lease: lock.amount for lock in world.state.locks[CLIENT.address].values()}
    world.settle([world.batch("reservation", [make(locks)], CLIENT)])
    assert reasons(world, "reservation") == [reason]
    if reason != GOOD:
        assert {lock.lease: lock.amount for lock in world.state.locks[CLIENT.address].values()} == locks


def test_a_lock_may_fall_two_reports_after_its_lease_closed() -> None:
    world = busy_world()
    locks = {lock.lease: lock.amount for lock in world.state.locks[CLIENT.address].values()}
    closed = min(locks)
    world.settle([world.batch("close", [signed(Close(lease=closed), client_signature=CLIENT)], CLIENT)])
    rest = {k: v for k, v in locks.items() if k != closed}
    outcome = []
    for _ in range(3):
        world.settle([world.batch("reservation", [reservation(2, rest)], CLIENT)])
        outcome += reasons(world, "reservation")
    assert outcome == ["lock_fell", "lock_fell", GOOD]


def test_state_and_accounts_are_what_the_report_commits_to() -> None:
    world = busy_world()
    settlement = world.settle(world.proofs())
    tree = settlement.state.accounts_tree()
    assert settlement.report.state_root == settlement.state.root()
    assert settlement.report.accounts_root == Hash(tree.root.hash + b"\x00")
    assert (settlement.report.tokens_earned, 0, settlement.report.credits_spent) == tree.root.sums
    assert type(settlement.state).from_tables(settlement.state.tables()).root() == settlement.report.state_root


@settings(max_examples=15)
@given(st.lists(st.sets(st.integers(0, 2)), min_size=1, max_size=6), st.integers(10**12, 10**16))
def test_histories_conserve_tokens_and_credits_and_never_shrink(silent: list[set[int]], lock: int) -> None:
    world = busy_world(lock=lock)
    before = {a.account: a for a in world.state.accounts}
    for epoch in silent:
        world.settle(world.proofs(frozenset(world.nodes[i].address for i in epoch)))
        client = world.state.clients[CLIENT.address]
        accounts = {a.account: a for a in world.state.accounts}
        for address, account in before.items():
            assert accounts[address].index == account.index
            assert accounts[address].tokens_earned >= account.tokens_earned
            assert accounts[address].credits_spent >= account.credits_spent
        before = accounts
        assert client.spent == sum(lease.settled for lease in world.state.leases.values()) <= client.paid_in
        revenue = sum(s.report.revenue for s in world.settlements)
        subsidy = sum(s.report.subsidy for s in world.settlements)
        assert world.state.accounts_tree().root.sums == (revenue + subsidy, 0, client.spent)
        assert revenue + subsidy <= client.released <= client.burned
        assert all(lease.settled <= lock for lease in world.state.leases.values())


def test_the_order_of_batches_does_not_matter() -> None:
    one, two = busy_world(), busy_world()
    proofs = one.proofs()
    forth, back = one.settle(proofs), two.settle(proofs[::-1])
    assert forth.verdicts == back.verdicts
    assert forth.report.state_root == back.report.state_root


def manifest_of(world: World) -> tuple[Any, Any]:
    anchor = world.anchor(world.state.epoch.epoch + 1)
    return world.manifest(anchor, world.proofs(), (1, 2, 3)), anchor


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda m: msgspec.structs.replace(m, observations=m.observations[:2]), MalformedMessage),
        (lambda m: msgspec.structs.replace(m, observations=m.observations[:1] * 3), MalformedMessage),
        (lambda m: _with(m, price=77), WrongSignature),
        (lambda m: _with(m, member=key(3).address), MalformedMessage),
        (lambda m: _with(m, member=MEMBERS[3].address), WrongSignature),
        (lambda m: _with(m, epoch=2), MalformedMessage),
        (lambda m: _with(m, anchor=ZERO_HASH), MalformedMessage),
    ],
)
def test_a_manifest_is_q_members_own_words(change: Any, error: type[FreeholdError]) -> None:
    manifest, anchor = manifest_of(busy_world())
    check_manifest(manifest, anchor, DOMAIN)
    with pytest.raises(error):
        check_manifest(change(manifest), anchor, DOMAIN)


def _with(manifest: Any, **change: Any) -> Any:
    first, *rest = manifest.observations
    return msgspec.structs.replace(manifest, observations=(msgspec.structs.replace(first, **change), *rest))


def test_settling_without_a_certified_batch_is_refused() -> None:
    world = busy_world()
    manifest, anchor = manifest_of(world)
    from freehold.protocol.epoch import settle
    from freehold.services.judging import JUDGES

    with pytest.raises(Corrupt, match="certified and not here"):
        settle(world.state, manifest, {}, anchor, JUDGES, DOMAIN)


def test_a_stream_lease_takes_no_voucher() -> None:
    world = busy_world()
    lease = next(k for k, v in world.state.leases.items() if v.mode == STREAM)
    world.settle([world.batch("voucher", [signed(Voucher(lease=lease, amount=5), client_signature=CLIENT)], key(11))])
    assert reasons(world, "voucher") == ["wrong_mode"]
