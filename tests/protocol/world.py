"""A small world for protocol tests: members, nodes with real lists and shards, clients, and epochs over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from freehold.protocol.batches import Batch, make_batch
from freehold.protocol.bundle import Bundle
from freehold.protocol.certificates import make_certificate, quorum
from freehold.protocol.epoch import Settlement, make_context, settle
from freehold.protocol.keys import Key
from freehold.protocol.merkle import LISTS, SumTree
from freehold.protocol.messages import (
    STREAM,
    Acknowledgement,
    Certificate,
    Lease,
    Lock,
    Manifest,
    Observation,
    Report,
    Reservation,
)
from freehold.protocol.parameters import Parameters
from freehold.protocol.state import (
    AnchorData,
    BuyerRecord,
    DeviceChange,
    FleetRecord,
    MemberSet,
    NodeRecord,
    State,
    genesis,
)
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain, Message, keccak
from freehold.protocol.units import ZERO_HASH, Address, Hash
from freehold.services.judging import JUDGES
from freehold.services.storage import shard_tree
from freehold.services.storage.proof import draw_openings, group_lists, pack_list_path
from freehold.services.storage.terms import DELTA, PROOF, TIB, Delta, Opening, ShardEntry, StorageProof

DOMAIN = Domain(31337, Address(bytes(19) + b"\x01"))
PARAMETERS = Parameters(
    epoch_length=20,
    answering_window=5,
    finality_depth=1,
    challenges=4,
    tau=100_000,
    beta=500_000,
    initial_subsidy=10**21,
    halving_epochs=1000,
    minimum_bond=10**18,
    wrong_result_slash=10**17,
    lapse_grace=2,
    lock_release=2,
    segment_size=2**20,
    dispute_window=10,
    thaw_epochs=2,
    max_price_age=600,
    initial_price=2 * 10**18,
    member_share=0,
    coverage_share=0,
    device_bond=10**15,
    freeze_lengths=5,
    answer_reports=2,
    claim_epochs=4,
    bundle_epochs=100,
)
PRICE = TIB * 10**12  # a stream price that makes a few kilobytes for a few seconds cost visible amounts


def key(number: int) -> Key:
    """A deterministic key."""
    return Key(keccak(b"test key" + number.to_bytes(8)))


MEMBERS = tuple(key(1000 + i) for i in range(4))
ADDRESSES = tuple(member.address for member in MEMBERS)


def secret(member: Key, epoch: int) -> Hash:
    """What the member's commitment of an epoch hides."""
    return keccak(member.address + epoch.to_bytes(8))


def block_hash(number: int) -> Hash:
    """The hash of the fake chain's block."""
    return keccak(b"block" + number.to_bytes(8))


def signed(message: Any, **signers: Key) -> Any:
    """The message with its signature fields filled in by these keys."""
    return msgspec.structs.replace(message, **{name: k.sign(message, DOMAIN) for name, k in signers.items()})


def certify(batch: Batch, epoch: int, members: Sequence[Key] = MEMBERS) -> Certificate:
    """A certificate of the batch."""
    acknowledgement = Acknowledgement(epoch=epoch, subject=batch.subject)
    signatures = {m.address: m.sign(acknowledgement, DOMAIN) for m in members}
    return make_certificate(acknowledgement, signatures, ADDRESSES)


@dataclass
class StoredList:
    """One client's shards at one node, the way a node keeps them."""

    lease: Lease
    shards: list[bytes] = field(default_factory=list)
    number: int = 0

    @property
    def id(self) -> Hash:
        return self.lease.struct_hash()

    def entries(self) -> list[ShardEntry]:
        return [
            ShardEntry(record=keccak(b"record"), index=i, root=Hash(shard_tree.root(s)), size=len(s))
            for i, s in enumerate(self.shards)
        ]

    def tree(self) -> SumTree:
        return SumTree(LISTS, [entry.leaf() for entry in self.entries()])

    def delta(self, client: Key, node: Key) -> Delta:
        self.number += 1
        root = self.tree().root
        delta = Delta(
            lease=self.id,
            number=self.number,
            root=Hash(root.hash + b"\x00"),
            count=len(self.shards),
            size=root.sums[0],
        )
        return signed(delta, client_signature=client, node_signature=node)

    def prove(self, opening: Opening) -> StorageProof:
        tree = self.tree()
        position, within = tree.find(opening.offset)
        shard, leaf = self.shards[position], within // shard_tree.LEAF_BYTES
        start = leaf * shard_tree.LEAF_BYTES
        return StorageProof(
            epoch=opening.epoch,
            node=opening.node,
            draw=opening.draw,
            lease=opening.lease,
            position=position,
            entry=self.entries()[position],
            list_path=pack_list_path(tree.proof(position)),
            leaf=shard[start : start + shard_tree.LEAF_BYTES],
            shard_path=b"".join(shard_tree.proof(shard_tree.leaf_hashes(shard), leaf)),
        )


@dataclass
class World:
    """Epochs, one after the other, over a fake chain."""

    clients: tuple[Key, ...]
    nodes: tuple[Key, ...]
    buyers: dict[Address, tuple[int, int]] = field(default_factory=dict)
    lists: dict[Hash, StoredList] = field(default_factory=dict)
    state: State = field(default_factory=lambda: genesis(1, block_hash(1), 1000))
    report: Report | None = None
    bundles: list[Bundle] = field(default_factory=list)
    settlements: list[Settlement] = field(default_factory=list)
    parameters: Parameters = PARAMETERS
    fleets: tuple[FleetRecord, ...] = ()
    changes: tuple[DeviceChange, ...] = ()

    def buy(self, client: Key, credits: int, tokens: int) -> None:
        """Credits bought by burning tokens, before the next anchor."""
        paid, burned = self.buyers.get(client.address, (0, 0))
        self.buyers[client.address] = (paid + credits, burned + tokens)

    def open(self, client: Key, node: Key, mode: int = STREAM, price: int = PRICE, number: int = 1) -> Lease:
        """A lease both signed; a stream gets an empty list."""
        lease = Lease(
            client=client.address,
            node=node.address,
            service="storage",
            mode=mode,
            price=price,
            number=number,
            deadline=10**7,
        )
        lease = signed(lease, client_signature=client, node_signature=node)
        if mode == STREAM:
            self.lists[lease.struct_hash()] = StoredList(lease)
        return lease

    def reserve(self, client: Key, number: int, locks: dict[Hash, int]) -> Batch:
        """The batch of a reservation."""
        row = Reservation(
            client=client.address,
            number=number,
            locks=tuple(Lock(lease=k, amount=v) for k, v in sorted(locks.items())),
            deadline=10**7,
        )
        return self.batch("reservation", [signed(row, client_signature=client)], client)

    def batch(self, kind: str, rows: Sequence[Message], sender: Key) -> Batch:
        """A signed batch of rows."""
        return make_batch(kind, Table.of(type(rows[0]), rows), sender, DOMAIN)

    def anchor(self, epoch: int) -> AnchorData:
        """What the chain says at the epoch's anchor."""
        number = 10 * epoch
        return AnchorData(
            epoch=epoch,
            anchor_block=number,
            anchor_hash=block_hash(number),
            anchor_time=1000 + 20 * epoch,
            beacon_block=number - 8,
            beacon_hash=block_hash(number - 8),
            previous=self.report.struct_hash() if self.report else self.parameters.hash(),
            nodes=tuple(
                NodeRecord(
                    node=node.address,
                    operator=key(5000 + i).address,
                    payout=key(5000 + i).address,
                    endpoint=f"http://127.0.0.1:{9000 + i}",
                    bond=10**18,
                )
                for i, node in enumerate(self.nodes)
            ),
            buyers=tuple(
                BuyerRecord(client=c, paid_in=paid, burned=burned) for c, (paid, burned) in sorted(self.buyers.items())
            ),
            fleets=self.fleets,
            changes=self.changes,
            collections=(),
            collected=ZERO_HASH,
            membership=(MemberSet(from_epoch=1, members=ADDRESSES),),
            parameters=self.parameters,
        )

    def proofs(self, silent: frozenset[Address] = frozenset()) -> list[Batch]:
        """What honest nodes answer in the coming epoch."""
        epoch = self.state.epoch.epoch + 1
        context = make_context(self.state, self.anchor(epoch), JUDGES["storage"], DOMAIN, self.state.leases)
        by_address = {node.address: node for node in self.nodes}
        batches = []
        for node, lists in group_lists(context).items():
            if node not in silent:
                rows = [self.lists[o.lease].prove(o) for o in draw_openings(context, node, lists)]
                batches.append(self.batch(PROOF, rows, by_address[node]))
        return batches

    def deltas(self, client: Key) -> list[Batch]:
        """A batch with a new delta for each of the client's lists."""
        nodes = {node.address: node for node in self.nodes}
        own = [held for held in self.lists.values() if held.lease.client == client.address]
        return [self.batch(DELTA, [held.delta(client, nodes[held.lease.node]) for held in own], client)] if own else []

    def manifest(self, anchor: AnchorData, batches: Sequence[Batch], prices: Sequence[int], view: int = 0) -> Manifest:
        """Q observations that hold every batch's certificate."""
        certificates = tuple(certify(batch, anchor.epoch) for batch in batches)
        observations = tuple(
            signed(
                Observation(
                    epoch=anchor.epoch,
                    anchor=anchor.struct_hash(),
                    price=prices[i],
                    commitment=keccak(secret(MEMBERS[i], anchor.epoch)),
                    reveal=secret(MEMBERS[i], anchor.epoch - 1) if anchor.epoch > 1 else ZERO_HASH,
                    certificates=certificates,
                    member=MEMBERS[i].address,
                ),
                member_signature=MEMBERS[i],
            )
            for i in range(quorum(len(MEMBERS)))
        )
        return Manifest(epoch=anchor.epoch, attempt=0, view=view, observations=observations)

    def settle(self, batches: Sequence[Batch], prices: Sequence[int] = (2 * 10**18,) * 3) -> Settlement:
        """Settle the next epoch over these batches, and keep its bundle."""
        anchor = self.anchor(self.state.epoch.epoch + 1)
        manifest = self.manifest(anchor, batches, prices)
        by_subject = {batch.subject: batch for batch in batches}
        settlement = settle(self.state, manifest, by_subject, anchor, JUDGES, DOMAIN)
        signers = MEMBERS[:3]
        self.bundles.append(
            Bundle(
                domain=DOMAIN,
                anchor=anchor,
                previous=self.report,
                state=self.state,
                manifest=manifest,
                batches=by_subject,
                report=settlement.report,
                signers=0b111,
                signatures=b"".join(m.sign(settlement.report, DOMAIN) for m in signers),
            )
        )
        self.state, self.report = settlement.state, settlement.report
        self.settlements.append(settlement)
        return settlement


def busy_world(shards: Sequence[bytes] = (b"a" * 5000, b"b" * 4096, b"c"), lock: int = 10**22) -> World:
    """One client with credits and leases at three nodes, its shards in their lists, after two settled epochs."""
    client, nodes = key(1), (key(11), key(12), key(13))
    world = World((client,), nodes)
    world.buy(client, 3 * lock, lock)
    world.settle([])
    leases = [world.open(client, node) for node in nodes]
    for held in world.lists.values():
        held.shards.extend(shards)
    reservation = world.reserve(client, 1, {lease.struct_hash(): lock for lease in leases})
    world.settle([reservation, world.batch("lease", leases, client), *world.deltas(client)])
    return world
