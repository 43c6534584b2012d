"""Compute over whole epochs: a client with leases at nodes, in a world that settles them."""

from __future__ import annotations

from collections.abc import Sequence

from freehold.protocol.batches import Batch
from freehold.protocol.epoch import Settlement, make_context
from freehold.protocol.keys import Key
from freehold.protocol.messages import STREAM, Close, Lease
from freehold.protocol.service import Context
from freehold.protocol.units import Hash
from freehold.services.compute.terms import (
    CASE,
    DISPUTE,
    EXACT,
    JOB,
    OPINION,
    RECEIPT,
    SEAT,
    UNITS_PER_PRICE,
    Dispute,
    Opinion,
    Order,
    Receipt,
    WorkState,
    claim_of,
)
from freehold.services.judging import JUDGES
from tests.protocol.world import DOMAIN, World, key, signed
from tests.services.compute_world import INPUT, RIGHT, TASK, WRONG_OUTPUT, receipt_of

CLIENT = key(1)
NODES = tuple(key(11 + i) for i in range(6))
CREDIT = 10**18
PRICE = 3600 * CREDIT  # a credit for a second of one processor
SECOND = UNITS_PER_PRICE // 3600
LOCK = 1000 * CREDIT


class ComputeLife(World):
    """`nodes` with a compute lease each, after two epochs."""

    def __init__(self, nodes: Sequence[Key] = NODES) -> None:
        super().__init__((CLIENT,), tuple(nodes))
        self.buy(CLIENT, 10 * LOCK, 10 * LOCK)
        self.settle([])
        self.leases = {node.address: self.lease(node) for node in nodes}
        self.reservation = 0
        self.lock(LOCK, self.leases.values())

    def lease(self, node: Key) -> Lease:
        """A stream of the client's at this node."""
        lease = Lease(
            client=CLIENT.address, node=node.address, service="compute", mode=STREAM, price=PRICE, number=1,
            deadline=10**7,
        )  # fmt: skip
        return signed(lease, client_signature=CLIENT, node_signature=node)

    def lock(self, amount: int, leases: Sequence[Lease]) -> Settlement:
        """An epoch in which the client locks so much for each of these."""
        self.reservation += 1
        rows = list(leases)
        reservation = self.reserve(CLIENT, self.reservation, {lease.struct_hash(): amount for lease in rows})
        return self.settle([reservation, self.batch("lease", rows, CLIENT)])

    @property
    def epoch(self) -> int:
        """The one that is open."""
        return self.state.epoch.epoch + 1

    def run(
        self, node: Key, number: int, output: Hash = RIGHT, measure: int = 2 * SECOND, task: Hash = TASK
    ) -> Receipt:
        """An order and its receipt."""
        lease = self.leases[node.address].struct_hash()
        order = Order(lease=lease, number=number, task=task, most=10 * SECOND, until=self.epoch + 20)
        return receipt_of(signed(order, client_signature=CLIENT), node, input=INPUT, output=output, measure=measure)

    def receipts(self, *rows: Receipt) -> list[Batch]:
        """Each node's batch of its own."""
        keys = {node.address: node for node in self.nodes}
        return [self.batch(RECEIPT, [r for r in rows if r.node == n], keys[n]) for n in {row.node for row in rows}]

    def dispute(self, first: Receipt, second: Receipt, kind: int = EXACT) -> Batch:
        """The client's batch with a dispute."""
        row = Dispute(client=CLIENT.address, first=first, second=second, kind=kind, steps=())
        return self.batch(DISPUTE, [row], CLIENT)

    def close(self, node: Key) -> Batch:
        """The client ends its lease there."""
        row = signed(Close(lease=self.leases[node.address].struct_hash()), client_signature=CLIENT)
        return self.batch("close", [row], CLIENT)

    def context(self) -> Context:
        """What compute's judge knows of the epoch that is open."""
        return make_context(self.state, self.anchor(self.epoch), JUDGES["compute"], DOMAIN, self.state.leases)

    def opinions(
        self, output: Hash = RIGHT, liars: Sequence[Key] = (), lie: Hash = WRONG_OUTPUT, measure: int = 0
    ) -> list[Batch]:
        """What every referee finds that owes something: `output`, or what liars say."""
        seats = {(row.id, row.node): row for row in self.rows(SEAT)}
        keys, batches = {node.address: node for node in self.nodes}, []
        for owed in JUDGES["compute"].obligations(self.context()):
            seat, found = seats[owed.case, owed.node], lie if keys[owed.node] in liars else output
            if seat.kind == EXACT and not seat.step:
                found = claim_of(INPUT, found, measure or seat.measure)
            good = (found == seat.first_output) | (found == seat.second_output) << 1
            row = Opinion(epoch=owed.epoch, case=owed.case, node=owed.node, output=found, good=good)
            batches.append(self.batch(OPINION, [row], keys[owed.node]))
        return batches

    def rows(self, role: int) -> list[WorkState]:
        """The state's rows of one kind."""
        return [row for row in self.state.services["compute"] if row.role == role]

    def stands(self) -> dict[Hash, int]:
        """How each order stands."""
        return {row.id: row.stand for row in self.rows(JOB)}

    def cases(self) -> list[WorkState]:
        """What is being decided."""
        return self.rows(CASE)

    def paid(self) -> dict[Hash, int]:
        """What the last epoch paid, by lease."""
        return {payment.lease: payment.credits for payment in self.settlements[-1].payments}
