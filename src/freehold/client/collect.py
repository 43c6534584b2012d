"""The way out of a frozen network: vouchers paid on chain, by the rows that the active report committed to.

    rows        a client's leases, locks and credits, each with its place under the report's state root
    from where  a member, if any lives (`ask_rows`); else a state that somebody kept (`KeptState`)
    collect     one transaction a voucher: what the Collector paid, or in words why it pays nothing

A bundle of the active epoch or of the next holds the state, and anybody may have kept one. Invariant: whoever gives the
rows, they are proven against the report that the chain has as active before anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from freehold.chain.contracts import Collector, Ledger
from freehold.chain.contracts import collector as collector_abi
from freehold.chain.errors import Reverted
from freehold.chain.rpc import Rpc
from freehold.chain.transactor import Receipt, Sender
from freehold.market.network import Network
from freehold.market.quorum import Quorum
from freehold.protocol.bundle import decode_bundle, replay
from freehold.protocol.errors import Corrupt, FreeholdError, MalformedMessage, NotFound, Refused
from freehold.protocol.lookup import Finder
from freehold.protocol.merkle import row_proof, row_root, verify_row
from freehold.protocol.messages import Report, Voucher
from freehold.protocol.service import Judge
from freehold.protocol.state import ClientState, LeaseState, LockState, State, TableRoot
from freehold.protocol.typed import Message, fields_of
from freehold.protocol.units import ZERO_HASH, Address, Hash

KINDS: dict[str, type[ClientState] | type[LeaseState] | type[LockState]] = {
    "clients": ClientState,
    "leases": LeaseState,
    "locks": LockState,
}
# What the Collector and the Ledger say where a voucher pays nothing now, in words.
NOTHING = {
    "collector: nothing left": "the client has no credits left, or the lease was paid meanwhile",
    "collector: worth nothing": "the credits left of this voucher are worth less than the smallest part of a token",
    "collector: no operator": "the lease's node is nobody's any more",
    "collector: not by voucher": "a stream is paid by reports alone",
    "collector: not signed by client": "the voucher is not signed by the lease's client",
}


class Placed(NamedTuple):
    """A row of the state and where it stands: at `position` of its table, and its siblings' hashes, bottom up."""

    row: Any
    position: int
    proof: tuple[Hash, ...]


class ClientRows(NamedTuple):
    """What the state has of one client: its own row (None: it has none), its leases and locks by lease."""

    tables: tuple[TableRoot, ...]
    client: Placed | None
    leases: Mapping[Hash, Placed]
    locks: Mapping[Hash, Placed]

    def place(self, table: str, placed: Placed) -> collector_abi.LockAt:
        """Where a row stands, as the Collector takes it."""
        at = next(i for i, root in enumerate(self.tables) if root.name == table)
        siblings = row_proof([root.row_hash() for root in self.tables], at)
        root = self.tables[at]
        return collector_abi.LockAt(
            len(self.tables), at, tuple(siblings), root.root, root.count, placed.position, placed.proof
        )


class Outcome(NamedTuple):
    """What became of one voucher: credits settled and tokens paid, or why nothing was."""

    lease: Hash
    client: Address
    operator: Address | None
    credits: int
    tokens: int
    transaction: Hash | None
    why: str


class KeptState:
    """A state that somebody kept, as rows with proofs."""

    def __init__(self, state: State) -> None:
        self._tables = state.tables()
        self._roots = state.table_roots()
        self._finders = {name: Finder(self._tables[name].column("client")) for name in KINDS}

    def rows_of(self, client: Address) -> ClientRows:
        """What it has of a client."""
        placed: dict[str, list[Placed]] = {}
        for name in KINDS:
            table = self._tables[name]
            places = self._finders[name].find(client)
            placed[name] = [Placed(table.row(i), i, tuple(table.tree.proof(i))) for i in places]
        return _gather(self._roots, placed)


def read_state(data: bytes, report: Report, judges: Mapping[str, Judge]) -> State:
    """The state that `report` commits to, out of a bundle of its epoch or of the next.

    NotFound where the bundle is of another epoch; Corrupt where it does not lead to the report.
    """
    bundle = decode_bundle(data, judges)
    if bundle.state.epoch.epoch == report.epoch:
        state = bundle.state
    elif bundle.report.epoch == report.epoch:
        state = replay(data, judges).state
    else:
        raise NotFound(
            f"this is the bundle of epoch {bundle.report.epoch}: the active report is of epoch {report.epoch}, and its "
            f"state is in the bundles of {report.epoch} and {report.epoch + 1}"
        )
    if state.root() != report.state_root:
        raise Corrupt(f"the bundle's state after epoch {report.epoch} is not the one that the chain's report names")
    return state


async def ask_rows(quorum: Quorum, report: Report, client: Address) -> ClientRows:
    """What the state has of a client, from the first member whose rows prove themselves. Unavailable, Corrupt."""
    failure: FreeholdError = Corrupt("no member was asked")
    for _, answer in await quorum.ask(f"/v1/state/{report.epoch}/clients/{client}"):
        try:
            return parse_rows(answer, report.state_root, client)
        except (Corrupt, MalformedMessage) as error:
            failure = error
    raise failure


def parse_rows(answer: Any, state_root: Hash, client: Address) -> ClientRows:
    """A member's answer, every row proven under the state root. MalformedMessage, Corrupt."""
    try:
        roots = tuple(TableRoot.from_json(root) for root in answer["tables"])
        rows = {name: list(answer["rows"][name]) for name in KINDS}
    except (KeyError, TypeError):
        raise MalformedMessage("an answer that holds no rows of a client") from None
    if row_root([root.row_hash() for root in roots]) != state_root:
        raise Corrupt("the tables are not those of the state that the active report commits to")
    return _gather(roots, {name: _proven(roots, name, entries, client) for name, entries in rows.items()})


def _proven(roots: Sequence[TableRoot], name: str, entries: Sequence[Any], client: Address) -> list[Placed]:
    root = next((root for root in roots if root.name == name), TableRoot(name=name, count=0, root=ZERO_HASH))
    placed = []
    for entry in entries:
        try:
            row, position = KINDS[name].from_json(entry["row"]), entry["index"]
            proof = tuple(Hash(sibling) for sibling in entry["proof"])
        except (KeyError, TypeError):
            raise MalformedMessage(f"a row of {name} without its proof") from None
        if type(position) is not int or not verify_row(root.root, root.count, position, row.row_hash(), proof):
            raise Corrupt(f"a row of {name} does not stand in the state that the active report commits to")
        if row.client != client:
            raise Corrupt(f"a row of {name} is another client's")
        placed.append(Placed(row, position, proof))
    return placed


def _gather(roots: Sequence[TableRoot], placed: Mapping[str, Sequence[Placed]]) -> ClientRows:
    return ClientRows(
        tuple(roots),
        next(iter(placed["clients"]), None),
        {one.row.lease: one for one in placed["leases"]},
        {one.row.lease: one for one in placed["locks"]},
    )


async def check_open(rpc: Rpc, ledger: Ledger) -> None:
    """Refused, in words, where nobody can collect now."""
    if not await ledger.frozen():
        raise Refused(
            "the network is not frozen: vouchers are paid by its reports",
            hint="`freehold freeze` says when it may be frozen.",
        )
    header, paused = await rpc.header("latest"), await ledger.paused_until()
    if header is not None and header.timestamp < paused:
        raise Refused(f"the guardian has paused what leaves the contracts, for {paused - header.timestamp} s more")
    posted = await ledger.posted_epoch()
    if await ledger.active_epoch() != posted:
        raise Refused(
            f"the reports up to epoch {posted} are not all active yet, and might pay the same vouchers",
            hint="They become active by time; `freehold freeze` activates those that are due.",
        )


class Collecting:
    """One sender's collections on the state of the active report."""

    def __init__(self, rpc: Rpc, network: Network, sender: Sender, report: Report) -> None:
        self._collector = Collector(rpc, network.contracts["collector"])
        self._sender, self._report = sender, report

    async def collect(self, voucher: Voucher, rows: ClientRows) -> Outcome:
        """Have one voucher paid. What pays nothing is an outcome with its reason; ChainError where none is known."""
        client, lease, lock = rows.client, rows.leases.get(voucher.lease), rows.locks.get(voucher.lease)
        if client is None or lease is None:
            raise NotFound(
                f"the state of epoch {self._report.epoch} does not have lease {voucher.lease}",
                hint="A lease counts from the first report after both signed it: there is nothing to collect for it.",
            )
        nothing = Outcome(voucher.lease, client.row.client, None, 0, 0, None, "")
        if lock is None:
            return nothing._replace(why="nothing is locked for this lease")
        settled = lease.row.settled + await self._collector.collected_of(self._report.epoch, voucher.lease)
        if min(voucher.amount, lock.row.amount) <= settled:
            limit = "voucher" if voucher.amount <= lock.row.amount else "lock"
            return nothing._replace(why=f"all that its {limit} covers is paid")
        try:
            receipt = await self._sender.transact(
                self._collector.collect(
                    collector_abi.Report(*values_of(self._report)),
                    collector_abi.Lease(*values_of(lease.row)),
                    rows.place("leases", lease),
                    collector_abi.Lock(*values_of(lock.row)),
                    rows.place("locks", lock),
                    collector_abi.Client(*values_of(client.row)),
                    rows.place("clients", client),
                    voucher.amount,
                    bytes(voucher.client_signature),
                )
            )
        except Reverted as error:
            if error.reason not in NOTHING:
                raise
            return nothing._replace(why=NOTHING[error.reason])
        paid = self._read(receipt)
        return Outcome(
            voucher.lease, paid.client, paid.operator, paid.credits, paid.tokens, receipt.transaction, "paid"
        )

    def _read(self, receipt: Receipt) -> collector_abi.Collected:
        logs = [entry for entry in receipt.logs if entry.address == self._collector.address]
        (event,) = [e for e in map(Collector.decode, logs) if isinstance(e, collector_abi.Collected)]
        return event


def values_of(row: Message) -> Iterable[Any]:
    """A message's fields in their order: the contract's structs have the same."""
    return (getattr(row, field.name) for field in fields_of(type(row)))
