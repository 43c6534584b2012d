"""What a member knows of the chain: a pure fold of the contracts' events over final blocks, in their order.

Settlement reads balances, bonds and registrations at an epoch's anchor and nowhere else; so when a block turns out
to be the anchor, the view freezes them into that epoch's AnchorData. Beacon and anchor follow `protocol/beacon.py`.

    Accepted    the epoch is pending: its AnchorData is kept until it is active (a ring of PENDING, as in the Ledger)
    Revoked     epoch and all after it are to be settled again, attempt + 1, with the AnchorData that they had in time
    Resumed     the freeze is over: epoch is settled again with a fresh anchor after that block
    Activated   nobody can revoke up to this epoch any more

The contract does not know anchors, so a dishonest quorum's report may name any, and may come before one is due. The
fold goes on with its own, then with one frozen where the report was taken: whoever settles finds the difference.

Invariant: members that have folded the same blocks hold equal views, and a view restored from its snapshot goes on
exactly as the one that it was taken from.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from freehold.oracle.chain_records import (
    Accepted,
    Activated,
    Bonded,
    Bought,
    ChainRecord,
    Collected,
    DeviceMoved,
    DeviceRevoked,
    FinalBlock,
    FleetRegistered,
    FleetRetired,
    Frozen,
    MembersScheduled,
    ParametersScheduled,
    PayoutSet,
    Registered,
    Resumed,
    Retired,
    Revoked,
)
from freehold.protocol.beacon import Block, compute_anchor_time
from freehold.protocol.errors import Corrupt
from freehold.protocol.messages import Report
from freehold.protocol.parameters import Parameters
from freehold.protocol.state import (
    AnchorData,
    BuyerRecord,
    Collection,
    DeviceChange,
    FleetRecord,
    MemberSet,
    NodeRecord,
    members_at,
)
from freehold.protocol.typed import Message, canonical_json, parse_json
from freehold.protocol.units import ZERO_HASH, Address, Hash

PENDING = 64  # accepted epochs that may be revoked: the Ledger's ring has no more


class AcceptedEpoch(NamedTuple):
    """An epoch that the chain has taken a report for: all that a member needs in order to commit it."""

    accepted: Accepted
    anchor: AnchorData
    previous: Report | None

    @property
    def is_anchored(self) -> bool:
        """Whether the report is about the anchor that the chain has: no manifest makes another report follow."""
        return self.accepted.report.anchor_hash == self.anchor.anchor_hash


Happening = AcceptedEpoch | Revoked | Resumed | Activated


class Start(NamedTuple):
    """The block that deployed the Oracle: anchor(0) and the acceptance of report 0; what was in force there."""

    block: Block
    parameters: Parameters
    members: tuple[Address, ...]


class _Node(NamedTuple):
    operator: Address
    endpoint: str


class _Fleet(NamedTuple):
    operator: Address
    root: Hash
    devices: int


class _Pending(NamedTuple):
    """An accepted epoch, and what it took for it: enough to go back to before it."""

    anchor: AnchorData
    beacon: Block
    manifest: Hash
    previous: Report | None
    anchored: int
    accepted: Block


class _Again(NamedTuple):
    """What a revoked epoch had, to be settled again with it; no anchor, or beacon, that was not found in time."""

    anchor: AnchorData | None
    beacon: Block | None
    manifest: Hash


class ChainView:
    """The fold. `epoch` is the one to settle next; `anchor` its chain data once its anchor is final."""

    def __init__(self, start: Start) -> None:
        self.block = start.block
        self._first = start.parameters.hash()
        self.last_report: Report | None = None
        self.anchor: AnchorData | None = None
        self.active = 0
        self.frozen_at: int | None = None
        self.membership: tuple[MemberSet, ...] = (MemberSet(from_epoch=1, members=start.members),)
        self._parameters: tuple[tuple[int, Parameters], ...] = ((1, start.parameters),)
        self._nodes: dict[Address, _Node] = {}
        self._payouts: dict[Address, Address] = {}
        self._bonds: dict[tuple[Address, Address], int] = {}
        self._buyers: dict[Address, tuple[int, int]] = {}
        self._fleets: dict[Hash, _Fleet] = {}
        self._changes: dict[tuple[Hash, int], DeviceChange] = {}
        self._collections: tuple[Collection, ...] = ()
        self._collected = ZERO_HASH
        self._accepted = start.block
        self._anchored = start.block.time
        self._beacon: Block | None = None
        self._attempts: dict[int, int] = {}
        self._pending: dict[int, _Pending] = {}
        self._again: dict[int, _Again] = {}

    # -- what is in force -----------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The epoch that is to be settled next: the last final accepted report's, and one."""
        return self.last_report.epoch + 1 if self.last_report else 1

    @property
    def attempt(self) -> int:
        """The attempt of the epoch that is to be settled next."""
        return self.attempt_of(self.epoch)

    def attempt_of(self, epoch: int) -> int:
        """How often an epoch that is not active yet has been revoked, or reopened by a freeze."""
        return self._attempts.get(epoch, 0)

    def members_of(self, epoch: int) -> tuple[Address, ...]:
        """The members of an epoch, as far as the chain has scheduled them."""
        return members_at(self.membership, epoch)

    def parameters_of(self, epoch: int) -> Parameters:
        """The parameters of an epoch, as far as the chain has scheduled them."""
        return [parameters for begin, parameters in self._parameters if begin <= epoch][-1]

    @property
    def parameters(self) -> Parameters:
        """The open epoch's."""
        return self.parameters_of(self.epoch)

    @property
    def previous(self) -> Hash:
        """What the next report must name as its predecessor."""
        return self.last_report.struct_hash() if self.last_report else self._first

    @property
    def beacon(self) -> Block | None:
        """The block whose hash is in the open epoch's beacon, once it is final."""
        return self._beacon

    @property
    def revoked_manifest(self) -> Hash | None:
        """The manifest of the open epoch's revoked report: an honest leader proposes its observations again."""
        again = self._again.get(self.epoch)
        return again.manifest if again else None

    @property
    def pending_block(self) -> int:
        """A block before anything that is still open about a pending report: the oldest one's anchor."""
        return min([pending.anchor.anchor_block for pending in self._pending.values()], default=self.block.number)

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

    # -- the fold -------------------------------------------------------------------------------------------------

    def process_block(self, final: FinalBlock) -> tuple[Happening, ...]:
        """Fold the next final block; what happened to epochs in it. Corrupt if it is not the next, or cannot be."""
        block = final.block
        if block.number != self.block.number + 1:
            raise Corrupt(f"final block {block.number} came after {self.block.number}")
        self.block = block
        happened: list[Happening] = []
        for record in final.records:
            if isinstance(record, Accepted):
                happened.append(self._accept(record, block))
            elif isinstance(record, Revoked):
                happened.append(self._revoke(record))
            elif isinstance(record, Resumed):
                happened.append(self._resume(record))
            elif isinstance(record, Activated):
                happened.append(self._activate(record))
            else:
                self._fold(record)
        if not any(isinstance(one, AcceptedEpoch | Revoked | Resumed) for one in happened):
            self._find_anchor(block)
        return tuple(happened)

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
        elif isinstance(record, MembersScheduled):
            kept = tuple(one for one in self.membership if one.from_epoch < record.from_epoch)
            self.membership = (*kept, MemberSet(from_epoch=record.from_epoch, members=record.members))
        elif isinstance(record, ParametersScheduled):
            before = tuple(one for one in self._parameters if one[0] < record.from_epoch)
            self._parameters = (*before, (record.from_epoch, record.parameters))
        elif isinstance(record, FleetRegistered):
            self._fleets[record.fleet] = _Fleet(record.operator, record.root, record.devices)
        elif isinstance(record, FleetRetired):
            self._fleets.pop(record.fleet, None)
            self._changes = {key: change for key, change in self._changes.items() if key[0] != record.fleet}
        elif isinstance(record, DeviceRevoked):
            self._change(record.fleet, record.position, record.device, Address(bytes(20)))
        elif isinstance(record, DeviceMoved):
            self._change(record.fleet, record.position, record.device, record.owner)
        elif isinstance(record, Frozen):
            self.frozen_at = record.at
        elif isinstance(record, Collected):
            collection = Collection(
                lease=record.lease,
                client=record.client,
                operator=record.operator,
                credits=record.credits,
                released=record.released,
                tokens=record.tokens,
            )
            self._collections, self._collected = (*self._collections, collection), record.chain

    def _change(self, fleet: Hash, index: int, device: Address, owner: Address) -> None:
        if fleet in self._fleets:
            self._changes[fleet, index] = DeviceChange(fleet=fleet, index=index, device=device, owner=owner)

    def _accept(self, record: Accepted, block: Block) -> AcceptedEpoch:
        report, anchor, beacon, previous = record.report, self.anchor, self._beacon, self.last_report
        if (report.epoch, report.attempt) != (self.epoch, self.attempt):
            raise Corrupt(
                f"the chain accepted epoch {report.epoch}, attempt {report.attempt} "
                f"where {self.epoch}, attempt {self.attempt} was next"
            )
        if anchor is None or beacon is None:  # nobody could settle yet: a dishonest quorum's
            beacon = beacon or block
            anchor = self._freeze(block, beacon)
        self._pending[report.epoch] = _Pending(
            anchor, beacon, report.manifest, previous, self._anchored, self._accepted
        )
        self._anchored, self._accepted, self.frozen_at = anchor.anchor_time, block, None
        again = self._again.pop(report.epoch, None)
        if again is None or again.anchor is None:
            self._collections = self._collections[len(anchor.collections) :]
        self.last_report = report
        self._forget(report.epoch - PENDING)
        self._open()
        return AcceptedEpoch(record, anchor, previous)

    def _revoke(self, record: Revoked) -> Revoked:
        if record.epoch not in self._pending or record.last != self.epoch - 1:
            raise Corrupt(f"the chain revoked epochs {record.epoch} to {record.last}, which are not pending here")
        revoked = {epoch: self._pending.pop(epoch) for epoch in range(record.epoch, record.last + 1)}
        taken_at = [*(pending.accepted.number for pending in revoked.values()), self._accepted.number][1:]
        early: list[_Pending] = []  # from the first whose anchor was not due on: the later ones' are counted from it
        for (epoch, pending), taken in zip(revoked.items(), taken_at, strict=True):
            self._attempts[epoch] = self.attempt_of(epoch) + 1
            if early or pending.anchor.anchor_block == taken:
                beacon = pending.beacon if not early and pending.beacon.number < taken else None
                self._again[epoch] = _Again(None, beacon, pending.manifest)
                early.append(pending)
            else:
                self._again[epoch] = _Again(pending.anchor, pending.beacon, pending.manifest)
        self._collections = (*(row for pending in early for row in pending.anchor.collections), *self._collections)
        first = revoked[record.epoch]
        self.last_report, self._anchored, self._accepted = first.previous, first.anchored, first.accepted
        if self.attempt_of(record.epoch) != record.attempt:
            raise Corrupt(f"epoch {record.epoch} is revoked to attempt {record.attempt}, here {self.attempt}")
        self._open()
        return record

    def _resume(self, record: Resumed) -> Resumed:
        if record.epoch != self.epoch:
            raise Corrupt(f"the freeze ended at epoch {record.epoch}; open is {self.epoch}")
        self._attempts[record.epoch] = record.attempt
        kept = [again.anchor for _, again in sorted(self._again.items()) if again.anchor is not None]
        taken = [row for anchor in kept for row in anchor.collections]
        self._collections = (*taken, *self._collections)
        self._again.clear()
        self.anchor, self.frozen_at = None, None
        return record

    def _activate(self, record: Activated) -> Activated:
        self.active = max(self.active, record.epoch)
        self._forget(record.epoch)
        return record

    def _forget(self, epoch: int) -> None:
        self._pending = {e: pending for e, pending in self._pending.items() if e > epoch}
        self._attempts = {e: attempt for e, attempt in self._attempts.items() if e > epoch}

    def _open(self) -> None:
        """The next epoch begins: with the chain data that it had, if it was revoked, else with none yet."""
        again = self._again.get(self.epoch)
        self.anchor, self._beacon = (again.anchor, again.beacon) if again else (None, None)
        if again is None or again.anchor is None:
            return
        self.anchor = msgspec.structs.replace(again.anchor, previous=self.previous)
        if self.anchor.members != self.members_of(self.epoch):
            self.anchor = msgspec.structs.replace(self.anchor, membership=self.membership)
        if self.anchor.parameters != self.parameters:
            self.anchor = msgspec.structs.replace(self.anchor, parameters=self.parameters)

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
            beacon_hash=beacon.hash,
            previous=self.previous,
            nodes=tuple(nodes),
            buyers=tuple(buyers),
            fleets=self._live_fleets(),
            changes=tuple(self._changes[key] for key in sorted(self._changes)),
            collections=self._collections,
            collected=self._collected,
            membership=self.membership,
            parameters=self.parameters,
        )

    def _live_fleets(self) -> tuple[FleetRecord, ...]:
        bonds: dict[Address, int] = {}
        for node, known in self._nodes.items():
            bonds[known.operator] = bonds.get(known.operator, 0) + self._bonds.get((known.operator, node), 0)
        return tuple(
            FleetRecord(fleet=key, operator=f.operator, root=f.root, count=f.devices, bond=bonds.get(f.operator, 0))
            for key, f in self._fleets.items()
        )

    # -- a snapshot, so that a restart need not fold from the deployment on -------------------------------------------

    def to_bytes(self) -> bytes:
        """The view as canonical JSON."""
        return canonical_json(
            {
                "block": _block_json(self.block),
                "accepted": _block_json(self._accepted),
                "beacon": _block_json(self._beacon) if self._beacon else None,
                "anchored": self._anchored,
                "active": self.active,
                "frozen_at": self.frozen_at,
                "last_report": _to_json(self.last_report),
                "anchor": _to_json(self.anchor),
                "membership": [one.to_json() for one in self.membership],
                "parameters": [[begin, parameters.to_json()] for begin, parameters in self._parameters],
                "nodes": [[str(n), str(k.operator), k.endpoint] for n, k in self._nodes.items()],
                "payouts": [[str(o), str(p)] for o, p in self._payouts.items()],
                "bonds": [[str(o), str(n), str(bond)] for (o, n), bond in self._bonds.items()],
                "buyers": [[str(c), str(paid), str(burned)] for c, (paid, burned) in self._buyers.items()],
                "fleets": [[str(key), str(f.operator), str(f.root), f.devices] for key, f in self._fleets.items()],
                "changes": [change.to_json() for change in self._changes.values()],
                "collections": [row.to_json() for row in self._collections],
                "collected": str(self._collected),
                "attempts": list(self._attempts.items()),
                "pending": [
                    [
                        epoch,
                        p.anchor.to_json(),
                        _block_json(p.beacon),
                        str(p.manifest),
                        _to_json(p.previous),
                        p.anchored,
                        _block_json(p.accepted),
                    ]
                    for epoch, p in self._pending.items()
                ],
                "again": [
                    [epoch, _to_json(a.anchor), _block_json(a.beacon) if a.beacon else None, str(a.manifest)]
                    for epoch, a in self._again.items()
                ],
            }
        )

    @staticmethod
    def from_bytes(data: bytes, start: Start) -> ChainView:
        """The view behind `to_bytes`'s form."""
        value: dict[str, Any] = parse_json(data)
        view = ChainView(start)
        view.block = _block(value["block"])
        view._accepted = _block(value["accepted"])
        view._beacon = _block(value["beacon"]) if value["beacon"] else None
        view._anchored = value["anchored"]
        view.active, view.frozen_at = value["active"], value["frozen_at"]
        view.last_report = _report(value["last_report"])
        view.anchor = AnchorData.from_json(value["anchor"]) if value["anchor"] else None
        view.membership = tuple(MemberSet.from_json(one) for one in value["membership"])
        view._parameters = tuple((begin, Parameters.from_json(one)) for begin, one in value["parameters"])
        view._nodes = {Address(n): _Node(Address(o), endpoint) for n, o, endpoint in value["nodes"]}
        view._payouts = {Address(o): Address(p) for o, p in value["payouts"]}
        view._bonds = {(Address(o), Address(n)): int(bond) for o, n, bond in value["bonds"]}
        view._buyers = {Address(c): (int(paid), int(burned)) for c, paid, burned in value["buyers"]}
        view._fleets = {Hash(k): _Fleet(Address(o), Hash(root), devices) for k, o, root, devices in value["fleets"]}
        changes = [DeviceChange.from_json(change) for change in value["changes"]]
        view._changes = {(change.fleet, change.index): change for change in changes}
        view._collections = tuple(Collection.from_json(row) for row in value["collections"])
        view._collected = Hash(value["collected"])
        view._attempts = dict(value["attempts"])
        view._pending = {
            epoch: _Pending(
                AnchorData.from_json(anchor),
                _block(beacon),
                Hash(manifest),
                _report(previous),
                anchored,
                _block(accepted),
            )
            for epoch, anchor, beacon, manifest, previous, anchored, accepted in value["pending"]
        }
        view._again = {
            epoch: _Again(
                AnchorData.from_json(anchor) if anchor else None, _block(beacon) if beacon else None, Hash(manifest)
            )
            for epoch, anchor, beacon, manifest in value["again"]
        }
        return view


def _to_json(message: Message | None) -> Any:
    return message.to_json() if message is not None else None


def _report(value: Any) -> Report | None:
    return Report.from_json(value) if value else None


def _block_json(block: Block) -> list[Any]:
    return [block.number, str(block.hash), block.time]


def _block(value: list[Any]) -> Block:
    number, hash_, time = value
    return Block(number, Hash(hash_), time)
