"""Collector: vouchers of the active state are paid while frozen, each once, within lock and credits, less tau."""

from __future__ import annotations

from typing import Any

import boa
import pytest
from boa.util.abi import Address as Checksummed
from eth_abi import encode
from eth_utils import keccak
from hypothesis import given
from hypothesis import strategies as st

from freehold.protocol.keys import Key
from freehold.protocol.merkle import RowTree
from freehold.protocol.messages import VOUCHER, Report, Voucher
from freehold.protocol.shares import compute_release
from freehold.protocol.state import ClientState, LeaseState, LockState, State, genesis
from freehold.protocol.typed import Domain, fields_of
from freehold.protocol.units import Address, Hash
from tests.contracts.budgets import budget
from tests.contracts.world import TOKEN, Account, World, hexed, key_of, logs_of, tuple_of

CLIENT, OTHER, NODE, OPERATOR = (key_of(f"collector {name}") for name in ("client", "other", "node", "operator"))
CREDITS = 200  # what the client paid in, for 100 tokens
MILLION = 1_000_000


def lease_of(number: int, **changes: Any) -> LeaseState:
    """A voucher lease of the client with the node, in its number's place."""
    fields = {
        "lease": Hash(bytes([number]) * 32),
        "client": CLIENT.address,
        "node": NODE.address,
        "service": "storage",
        "mode": VOUCHER,
        "price": 5,
        "deadline": 2**40,
        "settled": 10 * TOKEN,
        "opened": 1,
        "lapsed": 0,
        "closed": 0,
    }
    return LeaseState(**(fields | changes))


def lock_of(lease: LeaseState, amount: int) -> LockState:
    return LockState(lease=lease.lease, client=lease.client, amount=amount, since=1)


def client_of(key: Key, **changes: int) -> ClientState:
    fields = {"reservation": 1, "paid_in": CREDITS * TOKEN, "burned": 100 * TOKEN, "spent": 0, "released": 0}
    return ClientState(client=key.address, **(fields | changes))


def state_of(leases: list[LeaseState], locks: list[LockState], clients: list[ClientState]) -> State:
    start = genesis(1, Hash(b"\x01" * 32), 1)
    by_client: dict[Address, dict[Hash, LockState]] = {}
    for lock in locks:
        by_client.setdefault(lock.client, {})[lock.lease] = lock
    return State(
        epoch=start.epoch,
        leases={lease.lease: lease for lease in leases},
        locks=by_client,
        clients={client.client: client for client in clients},
    )


def place_of(state: State, table: str, row: Any) -> tuple[Any, ...]:
    """Where a row stands, as the Collector takes it."""
    roots = state.table_roots()
    at = next(i for i, root in enumerate(roots) if root.name == table)
    rows = list(state.tables()[table])
    index = rows.index(row)
    return (
        len(roots),
        at,
        RowTree([root.row_hash() for root in roots]).proof(at),
        roots[at].root,
        roots[at].count,
        index,
        RowTree([one.row_hash() for one in rows]).proof(index),
    )


def abi_of(row: Any) -> tuple[Any, ...]:
    values = (getattr(row, field.name) for field in fields_of(type(row)))
    return tuple(hexed(value) if isinstance(value, Address) else value for value in values)


def sign(key: Key, lease: Hash, amount: int, domain: Domain) -> bytes:
    return bytes(key.sign_digest(Voucher(lease=lease, amount=amount).digest(domain)))


LEASE, SECOND, OTHERS = lease_of(1), lease_of(2, settled=0), lease_of(3, client=OTHER.address)
STATE = state_of(
    [LEASE, SECOND, OTHERS, lease_of(4, mode=1)],
    [
        lock_of(LEASE, 110 * TOKEN),
        lock_of(SECOND, 150 * TOKEN),
        lock_of(OTHERS, 110 * TOKEN),
        lock_of(lease_of(4, mode=1), 110 * TOKEN),
    ],
    [client_of(CLIENT, spent=20 * TOKEN, released=10 * TOKEN), client_of(OTHER)],
)


class Freezing:
    """A frozen network whose active state is known."""

    def __init__(self, world: World, state: State = STATE) -> None:
        self.world, self.state = world, state
        self.report: Report | None = None

    def settle(self, over: list[Account] | None = None) -> None:
        """A report over the state, active."""
        self.report = self.world.post(over, state_root=self.state.root())
        self.world.activate()

    def arguments(self, amount: int, lease: LeaseState = LEASE) -> dict[str, Any]:
        state = self.state
        lease = state.leases[lease.lease]
        lock, client = state.locks[lease.client][lease.lease], state.clients[lease.client]
        key = CLIENT if lease.client == CLIENT.address else OTHER
        assert self.report is not None
        return {
            "report": tuple_of(self.report),
            "lease": abi_of(lease),
            "lease_at": place_of(state, "leases", lease),
            "lock": abi_of(lock),
            "lock_at": place_of(state, "locks", lock),
            "client": abi_of(client),
            "client_at": place_of(state, "clients", client),
            "amount": amount,
            "signature": sign(key, lease.lease, amount, self.world.domain),
        }

    def collect(self, credits: int, of: LeaseState = LEASE, **changes: Any) -> int:
        """Collect for a voucher of so many whole credits; the tokens paid."""
        given = self.arguments(credits * TOKEN, of) | changes
        return int(self.world.collector.collect(*given.values(), sender=boa.env.generate_address()))


@pytest.fixture
def freezing(world: World) -> Freezing:
    """Frozen, with nothing pending, over STATE."""
    for key in (CLIENT, OTHER):
        world.fund(hexed(key.address), 100 * TOKEN)
        world.token.approve(world.credits, 100 * TOKEN, sender=hexed(key.address))
        world.credits.buy(100 * TOKEN, 0, 2**256 - 1, sender=hexed(key.address))
    world.register(hexed(OPERATOR.address), NODE)
    found = Freezing(world)
    found.settle()
    world.freeze()
    return found


def paid_for(credits: int) -> int:
    """Tokens for credits of a client with 180 left, behind which 90 tokens stand: tau burns a tenth."""
    return credits * TOKEN * 90 // 180 * 9 // 10


def test_a_voucher_pays_the_operator_what_was_not_settled(freezing: Freezing) -> None:
    world, operator = freezing.world, str(Checksummed(hexed(OPERATOR.address)))
    assert freezing.collect(50) == paid_for(40) == world.token.balanceOf(operator)
    (event,) = logs_of(world.collector, "Collected")
    assert (event.lease, event.client, event.operator) == (LEASE.lease, hexed_of(CLIENT), operator)
    assert (event.credits, event.released, event.tokens) == (40 * TOKEN, 20 * TOKEN, 18 * TOKEN)
    kinds = ["bytes32", "bytes32", "address", "address", "uint96", "uint96", "uint96"]
    values = [bytes(32), LEASE.lease, hexed(CLIENT.address), operator, 40 * TOKEN, 20 * TOKEN, 18 * TOKEN]
    assert event.chain == keccak(encode(kinds, values)) == world.ledger.collected()
    assert world.ledger.paid(operator) == 18 * TOKEN == world.ledger.uncounted()
    assert world.emission.total_revenue() == 18 * TOKEN == world.ledger.totals().revenue
    (minted,) = logs_of(world.collector, "CollectionMinted")
    assert (minted.owner, minted.amount, minted.total_revenue) == (operator, 18 * TOKEN, 18 * TOKEN)


def hexed_of(key: Key) -> str:
    return str(Checksummed(hexed(key.address)))


def test_it_goes_where_the_operator_said(freezing: Freezing) -> None:
    payout = boa.env.generate_address()
    freezing.world.registry.set_payout(payout, sender=hexed(OPERATOR.address))
    assert freezing.collect(50) == freezing.world.token.balanceOf(payout)


def test_a_voucher_pays_once_and_a_larger_one_the_rest(freezing: Freezing) -> None:
    assert freezing.collect(50) == paid_for(40)
    for amount in (9, 10, 49, 50):
        with boa.reverts("collector: nothing left"):
            freezing.collect(amount)
    assert freezing.collect(60) == paid_for(10)


def test_no_more_than_the_lock(freezing: Freezing) -> None:
    assert freezing.collect(2**30) == paid_for(100)
    with boa.reverts("collector: nothing left"):
        freezing.collect(2**31)


def test_leases_of_one_client_share_what_it_has_left(freezing: Freezing) -> None:
    """180 left: 100 for one lease, and 80 of the 150 that the other locks."""
    assert freezing.collect(110) + freezing.collect(150, SECOND) == paid_for(180)
    with boa.reverts("collector: nothing left"):
        freezing.collect(150, SECOND)
    assert freezing.collect(110, OTHERS) == 45 * TOKEN
    assert freezing.world.emission.total_revenue() <= freezing.world.credits.total_burned()


@pytest.mark.parametrize(
    ("lease", "changes", "reason"),
    [
        (LEASE, {"amount": 51 * TOKEN}, "collector: not signed by client"),
        (LEASE, {"signature": bytes(64)}, "collector: signature length"),
        (LEASE, {"lease": abi_of(lease_of(1, settled=0))}, "collector: row"),
        (LEASE, {"lease": abi_of(lease_of(1, node=OTHER.address))}, "collector: row"),
        (LEASE, {"lock": abi_of(lock_of(LEASE, 111 * TOKEN))}, "collector: row"),
        (LEASE, {"client": abi_of(client_of(CLIENT))}, "collector: row"),
        (lease_of(4), {}, "collector: not by voucher"),
    ],
)
def test_what_is_not_in_the_state_or_not_signed_is_not_paid(
    freezing: Freezing, lease: LeaseState, changes: dict[str, Any], reason: str
) -> None:
    with boa.reverts(reason):
        freezing.collect(50, lease, **changes)


def test_rows_of_others_are_not_this_leases(freezing: Freezing) -> None:
    theirs = freezing.arguments(50 * TOKEN, OTHERS)
    second = freezing.arguments(50 * TOKEN, SECOND)
    for source, names, reason in (
        (second, ("lock", "lock_at"), "collector: other lock"),
        (theirs, ("lock", "lock_at"), "collector: other lock"),
        (theirs, ("client", "client_at"), "collector: other client"),
        (theirs, ("signature",), "collector: not signed by client"),
    ):
        with boa.reverts(reason):
            freezing.collect(50, **{name: source[name] for name in names})


def test_a_row_stands_in_its_own_table(freezing: Freezing) -> None:
    at = freezing.arguments(1)["lease_at"]
    for changed, reason in (
        ((*at[:3], *at[3:5], at[5] + 1, at[6]), "collector: row"),
        ((*at[:3], at[3], at[4] - 1, *at[5:]), None),
        ((at[0], at[1] + 1, *at[2:]), None),
        ((*at[:5], at[4], at[6]), "rows: index"),
        ((*at[:6], at[6][:-1]), "rows: proof length"),
        ((*at[:6], [*at[6], bytes(32)]), "rows: proof length"),
        ((*at[:3], freezing.arguments(1)["lock_at"][3], *at[4:]), "collector: row"),
    ):
        with boa.reverts(reason) if reason else boa.reverts():
            freezing.collect(50, lease_at=changed)


def test_only_the_active_report_counts(freezing: Freezing) -> None:
    assert freezing.report is not None
    fields = {name: getattr(freezing.report, name) for name in freezing.report.__struct_fields__}
    other = Report(**(fields | {"price": 1}))
    with boa.reverts("collector: not active"):
        freezing.collect(50, report=tuple_of(other))


def test_a_voucher_of_another_network_is_none_here(freezing: Freezing) -> None:
    elsewhere = Domain(freezing.world.domain.chain_id + 1, freezing.world.domain.contract)
    with boa.reverts("collector: not signed by client"):
        freezing.collect(50, signature=sign(CLIENT, LEASE.lease, 50 * TOKEN, elsewhere))


def test_nobody_is_paid_for_a_node_that_is_nobodys(world: World) -> None:
    found = Freezing(world)
    found.settle()
    world.freeze()
    with boa.reverts("collector: no operator"):
        found.collect(50)


def test_only_the_collector_notes_and_mints(freezing: Freezing) -> None:
    world = freezing.world
    someone = boa.env.generate_address()
    for sender in (world.treasury, world.governor, world.ledger.address, world.oracle.address):
        with boa.reverts("ledger: only collector"):
            world.ledger.note_collection(bytes(32), someone, someone, 1, 1, 1, sender=sender)
        with boa.reverts("emission: only collector"):
            world.emission.mint_collected(someone, 1, sender=sender)


def test_it_collects_only_while_frozen_and_with_nothing_pending(freezing: Freezing) -> None:
    world = freezing.world
    world.post()
    with boa.reverts("ledger: not frozen"):
        freezing.collect(50)
    boa.env.time_travel(seconds=world.settings.freeze_lengths * world.settings.epoch_length + 1)
    world.ledger.freeze()
    with boa.reverts("ledger: reports pending"):
        freezing.collect(50)
    world.ledger.activate()
    with boa.reverts("collector: not active"):
        freezing.collect(50)


def test_nothing_is_collected_where_nothing_was_ever_active(world: World) -> None:
    found = Freezing(world)
    found.report = world.report(state_root=STATE.root())
    world.freeze()
    with boa.reverts("collector: not active"):
        found.collect(50)


def test_claims_and_collections_add_up_before_and_after_the_next_report(world: World, freezing: Freezing) -> None:
    """The leaf of the active report lacks what is collected on it; the next report's has it."""
    account = Account(OPERATOR.address, 100 * TOKEN)
    world.post([account], state_root=STATE.root())
    freezing.report = None
    world.activate()
    freezing.settle([account])
    assert world.claim([account], 0) == 100 * TOKEN
    world.freeze()
    collected = freezing.collect(50)
    assert world.claim([account], 0) == 0
    grown = account._replace(tokens_earned=100 * TOKEN + collected + 7)
    world.post([grown])
    assert world.ledger.uncounted() == 0
    world.activate()
    assert world.claim([grown], 0) == 7
    assert world.ledger.paid(hexed(OPERATOR.address)) == grown.tokens_earned


def test_what_was_earned_and_not_claimed_is_still_due_after_a_collection(freezing: Freezing) -> None:
    world, account = freezing.world, Account(OPERATOR.address, 100 * TOKEN)
    world.post([account])
    world.activate()
    freezing.settle([account])
    world.freeze()
    collected = freezing.collect(50)
    assert world.claim([account], 0) == 100 * TOKEN
    assert world.ledger.paid(hexed(OPERATOR.address)) == 100 * TOKEN + collected
    grown = account._replace(tokens_earned=100 * TOKEN + collected)
    world.post([grown])
    world.activate()
    assert world.claim([grown], 0) == 0


def test_a_second_freeze_goes_on_from_its_own_state(freezing: Freezing) -> None:
    """The first report after a freeze has settled what was collected: collections count by the state they are on."""
    assert freezing.collect(50) == paid_for(40)
    freezing.state = state_of(
        [lease_of(1, settled=50 * TOKEN), SECOND],
        list(STATE.locks[CLIENT.address].values()),
        [client_of(CLIENT, spent=60 * TOKEN, released=30 * TOKEN)],
    )
    freezing.settle()
    freezing.world.freeze()
    assert freezing.world.collector.collected_of(1, LEASE.lease) == 40 * TOKEN
    assert freezing.world.collector.collected_of(2, LEASE.lease) == 0
    with boa.reverts("collector: nothing left"):
        freezing.collect(50)
    assert freezing.collect(60) == paid_for(10)


def test_a_revoked_report_gives_back_what_it_had_counted(freezing: Freezing) -> None:
    world, first = freezing.world, freezing.report
    tokens = freezing.collect(50)
    world.post(subsidy=5)
    assert world.ledger.uncounted() == 0
    world.revoke(2, first)
    assert world.ledger.uncounted() == tokens
    assert world.ledger.totals().revenue == tokens
    report = world.post(subsidy=6)
    assert first is not None
    assert report.tokens_earned == first.tokens_earned + tokens + 6
    world.activate()
    world.freeze()
    with boa.reverts("collector: not active"):
        freezing.collect(60)


def test_a_collection_on_a_state_counts_once_through_a_revocation(freezing: Freezing) -> None:
    world = freezing.world
    assert freezing.collect(50) == paid_for(40)
    world.post()
    world.revoke(2, freezing.report)
    world.freeze()
    with boa.reverts("collector: nothing left"):
        freezing.collect(50)
    assert freezing.collect(60) == paid_for(10)
    assert world.ledger.uncounted() == paid_for(50)


def test_collections_leave_pending_and_later_revenue_what_was_burned(freezing: Freezing) -> None:
    world = freezing.world
    tokens = freezing.collect(110)
    left = world.credits.total_burned() - tokens
    with boa.reverts("ledger: revenue over burned"):
        world.post(revenue=left + 1)
    world.post(revenue=left)
    world.activate()
    world.freeze()
    freezing.report = world.report()
    assert world.emission.total_revenue() == world.credits.total_burned()


@budget(20)
@given(
    amounts=st.lists(st.tuples(st.sampled_from([1, 2]), st.integers(0, 200 * TOKEN)), max_size=8),
    paid_in=st.integers(1, 2**90),
    burned=st.integers(0, 2**90),
)
def test_collections_add_up_as_settlement_would(
    deployed: World, amounts: list[tuple[int, int]], paid_in: int, burned: int
) -> None:
    leases = [lease_of(1, settled=0), lease_of(2, settled=0)]
    client = client_of(CLIENT, paid_in=paid_in, burned=burned)
    state = state_of(leases, [lock_of(lease, 150 * TOKEN) for lease in leases], [client])
    settled, total = {1: 0, 2: 0}, 0
    with boa.env.anchor():
        deployed.buy(boa.env.generate_address(), 10_000_000 * TOKEN)
        deployed.register(hexed(OPERATOR.address), NODE)
        found = Freezing(deployed, state)
        found.settle()
        deployed.freeze()
        bound = deployed.credits.total_burned()
        for number, amount in amounts:
            given = found.arguments(amount, leases[number - 1])
            left = client.paid_in - client.spent
            credits = min(max(0, min(amount, 150 * TOKEN) - settled[number]), left)
            released = compute_release(client, credits) if credits else 0
            tokens = released * (MILLION - deployed.settings.tau) // MILLION
            if not credits or not tokens or total + tokens > bound:
                with boa.reverts():
                    deployed.collector.collect(*given.values())
                continue
            assert deployed.collector.collect(*given.values()) == tokens
            settled[number] += credits
            total += tokens
            client = ClientState(
                client=client.client,
                reservation=1,
                paid_in=paid_in,
                burned=burned,
                spent=client.spent + credits,
                released=client.released + released,
            )
        assert deployed.ledger.uncounted() == total == deployed.emission.total_revenue()
        assert deployed.token.balanceOf(hexed(OPERATOR.address)) == total
        assert client.spent <= paid_in
        assert client.released <= burned
