"""What a member knows of the chain: a pure fold of the contracts' events over final blocks, in their order.

Settlement reads balances, bonds and registrations at an epoch's anchor and nowhere else; so when a block turns out
to be the anchor, the view freezes them into that epoch's AnchorData. Beacon and anchor follow `protocol/beacon.py`.

Invariant: members that have folded the same blocks hold equal views, and a view restored from its snapshot goes on
exactly as the one that it was taken from.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from freehold.protocol.beacon import Block, compute_anchor_time
from freehold.protocol.errors import Corrupt
from freehold.protocol.messages import Report
from freehold.protocol.parameters import Parameters
from freehold.protocol.state import AnchorData, BuyerRecord, NodeRecord
from freehold.protocol.typed import canonical_json, parse_json
from freehold.protocol.units import Address, Hash


class Registered(NamedTuple):
    """A node came into the registry, or changed its endpoint."""

    operator: Address
    node: Address
    endpoint: str
    payout: Address


class Retired(NamedTuple):
    """A node left the registry for good."""

    operator: Address
    node: Address


class PayoutSet(NamedTuple):
    """An operator's earnings go to another address from here on."""

    operator: Address
    payout: Address


class Bonded(NamedTuple):
    """What an operator has staked for a node, after any change to it."""

    operator: Address
    node: Address
    bond: int


class Bought(NamedTuple):
    """A client's cumulative purchases, after one more."""

    client: Address
    paid_in: int
    burned: int


class Accepted(NamedTuple):
    """The Oracle took this report. `signatures` are its signers', where the transaction shows them, else empty."""

    report: Report
    signers: int
    signatures: bytes


ChainRecord = Registered | Retired | PayoutSet | Bonded | Bought | Accepted


class FinalBlock(NamedTuple):
    """A final block and what the contracts recorded in it, in order."""

    block: Block
    records: tuple[ChainRecord, ...]


class AcceptedEpoch(NamedTuple):
    """An epoch that the chain has taken a report for: all that a member needs in order to commit it."""

    accepted: Accepted
    anchor: AnchorData
    previous: Report | None


class Start(NamedTuple):
    """The block that deployed the Oracle: anchor(0) and the acceptance of report 0."""

    block: Block
    parameters: Parameters


class _Node(NamedTuple):
    operator: Address
    endpoint: str


class ChainView:
    """The fold. `epoch` is the one to settle next; `anchor` its chain data once its anchor is final."""

    def __init__(self, start: Start) -> None:
        self.parameters = start.parameters
        self.block = start.block
        self.last_report: Report | None = None
        self.anchor: AnchorData | None = None
        self._nodes: dict[Address, _Node] = {}
        self._payouts: dict[Address, Address] = {}
        self._bonds: dict[tuple[Address, Address], int] = {}
        self._buyers: dict[Address, tuple[int, int]] = {}
        self._accepted = start.block
        self._anchored = start.block.time
        self._beacon: Block | None = None

    @property
    def epoch(self) -> int:
        """The epoch that is to be settled next: the last final accepted report's, and one."""
        return self.last_report.epoch + 1 if self.last_report else 1

    @property
    def previous(self) -> Hash:
        """What the next report must name as its predecessor."""
        return self.last_report.struct_hash() if self.last_report else self.parameters.hash()

    @property
    def beacon(self) -> Block | None:
        """The block whose hash is the open epoch's beacon, once it is final."""
        return self._beacon

    @property
    def anchor_time(self) -> int:
        """The chain time from which on a block may be the anchor."""
        return compute_anchor_time(self.parameters, self._anchored, self._accepted.time)

    def is_known(self, sender: Address) -> bool:
        """Whether it is a live node or a client that has bought credits: somebody with something at stake."""
        return sender in self._nodes or sender in self._buyers

    def is_bonded(self, sender: Address) -> bool:
        """Whether it is a live node with the least bond or more."""
        node = self._nodes.get(sender)
        return node is not None and self._bonds.get((node.operator, sender), 0) >= self.parameters.minimum_bond

    def process_block(self, final: FinalBlock) -> AcceptedEpoch | None:
        """Fold the next final block; what was accepted in it, if anything. Corrupt if it is not the next one."""
        block = final.block
        if block.number != self.block.number + 1:
            raise Corrupt(f"final block {block.number} came after {self.block.number}")
        self.block = block
        accepted = None
        for record in final.records:
            if isinstance(record, Accepted):
                accepted = self._accept(record, block)
            else:
                self._fold(record)
        if accepted is None:
            self._find_anchor(block)
        return accepted

    def _fold(self, record: ChainRecord) -> None:
        if isinstance(record, Registered):
            self._nodes[record.node] = _Node(record.operator, record.endpoint)
            self._payouts[record.operator] = record.payout
        elif isinstance(record, Retired):
            self._nodes.pop(record.node, None)
        elif isinstance(record, PayoutSet):
            self._payouts[record.operator] = record.payout
        elif isinstance(record, Bonded):
            self._bonds[record.operator, record.node] = record.bond
        elif isinstance(record, Bought):
            self._buyers[record.client] = (record.paid_in, record.burned)

    def _accept(self, record: Accepted, block: Block) -> AcceptedEpoch:
        report, anchor, previous = record.report, self.anchor, self.last_report
        if report.epoch != self.epoch:
            raise Corrupt(f"the chain accepted epoch {report.epoch} where {self.epoch} was next")
        if anchor is None or report.anchor_hash != anchor.anchor_hash:
            raise Corrupt(f"the accepted report of epoch {report.epoch} names another anchor than the chain has")
        self._anchored, self._accepted = anchor.anchor_time, block
        self.last_report, self.anchor, self._beacon = report, None, None
        return AcceptedEpoch(record, anchor, previous)

    def _find_anchor(self, block: Block) -> None:
        if self._beacon is None:
            self._beacon = block
        if self.anchor is None and block.time >= self.anchor_time:
            self.anchor = self._freeze(block, self._beacon)

    def _freeze(self, block: Block, beacon: Block) -> AnchorData:
        nodes = (
            NodeRecord(
                node=node,
                operator=known.operator,
                payout=self._payouts.get(known.operator, known.operator),
                endpoint=known.endpoint,
                bond=self._bonds.get((known.operator, node), 0),
            )
            for node, known in sorted(self._nodes.items())
        )
        buyers = (
            BuyerRecord(client=client, paid_in=paid_in, burned=burned)
            for client, (paid_in, burned) in sorted(self._buyers.items())
        )
        return AnchorData(
            epoch=self.epoch,
            anchor_block=block.number,
            anchor_hash=block.hash,
            anchor_time=block.time,
            beacon_block=beacon.number,
            beacon=beacon.hash,
            previous=self.previous,
            nodes=tuple(nodes),
            buyers=tuple(buyers),
            parameters=self.parameters,
        )

    def to_bytes(self) -> bytes:
        """A snapshot, so that a restart need not fold from the deployment on."""
        return canonical_json(
            {
                "block": _block_json(self.block),
                "accepted": _block_json(self._accepted),
                "beacon": _block_json(self._beacon) if self._beacon else None,
                "anchored": self._anchored,
                "last_report": self.last_report.to_json() if self.last_report else None,
                "anchor": self.anchor.to_json() if self.anchor else None,
                "nodes": [[str(n), str(k.operator), k.endpoint] for n, k in self._nodes.items()],
                "payouts": [[str(o), str(p)] for o, p in self._payouts.items()],
                "bonds": [[str(o), str(n), str(bond)] for (o, n), bond in self._bonds.items()],
                "buyers": [[str(c), str(paid), str(burned)] for c, (paid, burned) in self._buyers.items()],
            }
        )

    @staticmethod
    def from_bytes(data: bytes, parameters: Parameters) -> ChainView:
        """The view behind `to_bytes`'s form."""
        value: dict[str, Any] = parse_json(data)
        view = ChainView(Start(_block(value["block"]), parameters))
        view._accepted = _block(value["accepted"])
        view._beacon = _block(value["beacon"]) if value["beacon"] else None
        view._anchored = value["anchored"]
        view.last_report = Report.from_json(value["last_report"]) if value["last_report"] else None
        view.anchor = AnchorData.from_json(value["anchor"]) if value["anchor"] else None
        view._nodes = {Address(n): _Node(Address(o), endpoint) for n, o, endpoint in value["nodes"]}
        view._payouts = {Address(o): Address(p) for o, p in value["payouts"]}
        view._bonds = {(Address(o), Address(n)): int(bond) for o, n, bond in value["bonds"]}
        view._buyers = {Address(c): (int(paid), int(burned)) for c, paid, burned in value["buyers"]}
        return view


def _block_json(block: Block) -> list[Any]:
    return [block.number, str(block.hash), block.time]


def _block(value: list[Any]) -> Block:
    number, hash_, time = value
    return Block(number, Hash(hash_), time)
