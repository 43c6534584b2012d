"""The state between epochs: what a report's state root commits to, and everything that settling the next one needs.

Each table is rows of one message type in the order of its key; the state root is the row root over the tables'
(name, count, root). So any row can be proven against a report: its proof in its table, and the tables' list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from freehold.protocol.errors import Corrupt
from freehold.protocol.hashing import Bytes
from freehold.protocol.merkle import ACCOUNTS, SumNode, SumTree, row_root
from freehold.protocol.parameters import Parameters
from freehold.protocol.tables import Table
from freehold.protocol.typed import Message
from freehold.protocol.units import ZERO_HASH, Address, Amount, Hash, Uint8, Uint32, Uint64

M = TypeVar("M", bound=Message)
SUMS = ("tokens_earned", "credits_earned", "credits_spent")  # of an account, in the accounts tree's order


class EpochState(Message, frozen=True):
    """Which epoch the state is after, its anchor, and what its members revealed (`beacon.py`)."""

    epoch: Uint64
    anchor_block: Uint64
    anchor_hash: Hash
    anchor_time: Uint64
    reveals: Hash


class MemberState(Message, frozen=True):
    """A member whose observation the epoch's manifest has, and what it committed to there."""

    member: Address
    commitment: Hash


class AccountState(Message, frozen=True):
    """Cumulative totals of one account; `index` is its position for good."""

    index: Uint64
    account: Address
    tokens_earned: Amount
    credits_earned: Amount
    credits_spent: Amount

    def leaf(self) -> SumNode:
        """This account's leaf in the accounts tree."""
        sums = (self.tokens_earned, self.credits_earned, self.credits_spent)
        return ACCOUNTS.leaf(self.index.to_bytes(8) + self.account, sums)


class ClientState(Message, frozen=True):
    """A client's credits and reservation. Credits left: paid_in - spent; cost basis left: burned - released."""

    client: Address
    reservation: Uint64
    paid_in: Amount
    burned: Amount
    spent: Amount
    released: Amount


class LockState(Message, frozen=True):
    """The lifetime cap that the client's latest reservation sets for a lease; `since`: the epoch that first had one.

    Its key is client and lease: what one client locks says nothing about another's lease.
    """

    lease: Hash
    client: Address
    amount: Amount
    since: Uint64


class LeaseState(Message, frozen=True):
    """A lease both signed, and what it has settled. `closed`, `lapsed` are epochs, 0 for not."""

    lease: Hash
    client: Address
    node: Address
    service: str
    mode: Uint8
    price: Amount
    deadline: Uint64
    settled: Amount
    opened: Uint64
    lapsed: Uint64
    closed: Uint64


class OperatorState(Message, frozen=True):
    """A registered node: its operator, its bond at the anchor, what it holds (in its services' units)."""

    node: Address
    operator: Address
    bond: Amount
    holdings: Uint64
    reputation: Uint64


class NodeRecord(Message, frozen=True):
    """A live registration at the anchor."""

    node: Address
    operator: Address
    payout: Address
    endpoint: str
    bond: Amount


class BuyerRecord(Message, frozen=True):
    """A client's cumulative purchases at the anchor: credits bought, tokens burned for them."""

    client: Address
    paid_in: Amount
    burned: Amount


class FleetRecord(Message, frozen=True):
    """A live fleet at the anchor: the root of its devices' rows, and what its operator's nodes have staked in all."""

    fleet: Hash
    operator: Address
    root: Hash
    count: Uint32
    bond: Amount


class DeviceChange(Message, frozen=True):
    """What the chain says of one device of a fleet since its registration: its owner now, or zero: revoked for good."""

    fleet: Hash
    index: Uint32
    device: Address
    owner: Address


class Collection(Message, frozen=True):
    """A voucher that was paid on chain while the network was frozen: `tokens` to the operator for `credits`."""

    lease: Hash
    client: Address
    operator: Address
    credits: Amount
    released: Amount
    tokens: Amount


class MemberSet(Message, frozen=True):
    """The members, in the contract's order, from an epoch on until the next set's."""

    from_epoch: Uint64
    members: tuple[Address, ...]


class AnchorData(Message, frozen=True):
    """All that settlement reads of the chain: folded from events up to the anchor, and the block behind the beacon.

    `fleets` are in the order of their registration, `changes` in that of (fleet, index), `collections` those since the
    report before, in the chain's order, and `collected` the hash chain over all that ever were; `membership` ascends.
    """

    epoch: Uint64
    anchor_block: Uint64
    anchor_hash: Hash
    anchor_time: Uint64
    beacon_block: Uint64
    beacon_hash: Hash
    previous: Hash
    nodes: tuple[NodeRecord, ...]
    buyers: tuple[BuyerRecord, ...]
    fleets: tuple[FleetRecord, ...]
    changes: tuple[DeviceChange, ...]
    collections: tuple[Collection, ...]
    collected: Hash
    membership: tuple[MemberSet, ...]
    parameters: Parameters

    @property
    def members(self) -> tuple[Address, ...]:
        """The members of this epoch."""
        return members_at(self.membership, self.epoch)


def members_at(membership: Sequence[MemberSet], epoch: int) -> tuple[Address, ...]:
    """The members of `epoch`: the last set that has begun. Corrupt if none has."""
    begun = [one.members for one in membership if one.from_epoch <= epoch]
    if not begun:
        raise Corrupt(f"no set of members is in force in epoch {epoch}")
    return begun[-1]


class TableRoot(Message, frozen=True):
    """One table of the state, as the state root commits to it."""

    name: str
    count: Uint32
    root: Hash


TABLES: dict[str, type[Message]] = {
    "epoch": EpochState,
    "accounts": AccountState,
    "clients": ClientState,
    "leases": LeaseState,
    "locks": LockState,
    "operators": OperatorState,
    "members": MemberState,
}


@dataclass(frozen=True)
class State:
    """The state after an epoch. Treat every mapping as immutable; `settle` copies what it changes."""

    epoch: EpochState
    accounts: Table[AccountState] = field(default_factory=lambda: Table.of(AccountState))
    clients: Mapping[Address, ClientState] = field(default_factory=dict)
    leases: Mapping[Hash, LeaseState] = field(default_factory=dict)
    locks: Mapping[Address, Mapping[Hash, LockState]] = field(default_factory=dict)  # by client, by lease
    operators: Mapping[Address, OperatorState] = field(default_factory=dict)
    members: Mapping[Address, MemberState] = field(default_factory=dict)
    services: Mapping[str, Table[Message]] = field(default_factory=dict)

    def tables(self) -> dict[str, Table[Message]]:
        """All tables by name, rows in the order of their keys; a service's own as `service.<name>`."""
        rows: dict[str, Sequence[Message]] = {
            "epoch": (self.epoch,),
            "clients": [self.clients[k] for k in sorted(self.clients)],
            "leases": [self.leases[k] for k in sorted(self.leases)],
            "locks": [own[lease] for _, own in sorted(self.locks.items()) for lease in sorted(own)],
            "operators": [self.operators[k] for k in sorted(self.operators)],
            "members": [self.members[k] for k in sorted(self.members)],
        }
        tables: dict[str, Table[Any]] = {"accounts": self.accounts}
        own = {name: tables[name] if name in tables else Table.of(TABLES[name], rows[name]) for name in TABLES}
        return own | {f"service.{name}": table for name, table in sorted(self.services.items())}

    @staticmethod
    def from_tables(tables: Mapping[str, Table[Message]]) -> State:
        """The state behind `tables()`'s form. Corrupt if a table is missing."""
        missing = set(TABLES) - set(tables)
        if missing:
            raise Corrupt(f"the state lacks its table {sorted(missing)[0]!r}")
        return State(
            epoch=_only(tables["epoch"]),
            accounts=_checked(tables["accounts"], AccountState),
            clients={row.client: row for row in _rows(tables["clients"], ClientState)},
            leases={row.lease: row for row in _rows(tables["leases"], LeaseState)},
            locks=_by_client(_rows(tables["locks"], LockState)),
            operators={row.node: row for row in _rows(tables["operators"], OperatorState)},
            members={row.member: row for row in _rows(tables["members"], MemberState)},
            services={n.removeprefix("service."): t for n, t in tables.items() if n.startswith("service.")},
        )

    def table_roots(self) -> tuple[TableRoot, ...]:
        """What the state root is over."""
        return tuple(TableRoot(name=n, count=len(t), root=t.root) for n, t in self.tables().items())

    def root(self) -> Hash:
        """What a report commits to."""
        return row_root([row.row_hash() for row in self.table_roots()])

    def accounts_tree(self) -> SumTree:
        """The positional Merkle-sum tree that claims are proven against."""
        return self._accounts_tree

    @cached_property
    def _accounts_tree(self) -> SumTree:
        return SumTree(ACCOUNTS, account_leaves(self.accounts))


def _checked(table: Table[Any], kind: type[M]) -> Table[M]:
    if table.kind is not kind:
        raise Corrupt(f"a table of {table.kind.__name__} where {kind.__name__} belongs")
    return table


def _rows(table: Table[Any], kind: type[M]) -> tuple[M, ...]:
    return _checked(table, kind).rows


def _by_client(rows: tuple[LockState, ...]) -> dict[Address, dict[Hash, LockState]]:
    locks: dict[Address, dict[Hash, LockState]] = {}
    for row in rows:
        locks.setdefault(row.client, {})[row.lease] = row
    return locks


def _only(table: Table[Any]) -> EpochState:
    rows = _rows(table, EpochState)
    if len(rows) != 1:
        raise Corrupt("the state must name one epoch")
    return rows[0]


def account_leaves(accounts: Table[AccountState]) -> Bytes:
    """(n, 67): the accounts tree's leaves, packed, in the order of their positions."""
    content = [accounts.column("index"), accounts.column("account")]
    return ACCOUNTS.leaves(content, [accounts.column(name) for name in SUMS])


def genesis(anchor_block: int, anchor_hash: Hash, anchor_time: int) -> State:
    """S_0: empty, anchored at the block that deployed the Oracle."""
    start = EpochState(
        epoch=0, anchor_block=anchor_block, anchor_hash=anchor_hash, anchor_time=anchor_time, reveals=ZERO_HASH
    )
    return State(start)
