"""Leases, orders, receipts, disputes and opinions, for tests of compute's judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from freehold.protocol.keys import Key
from freehold.protocol.messages import STREAM
from freehold.protocol.service import Context
from freehold.protocol.state import LeaseState, NodeRecord
from freehold.protocol.tables import Table
from freehold.protocol.typed import keccak
from freehold.protocol.units import ZERO_ADDRESS, ZERO_HASH, Address, Hash
from freehold.services.compute.terms import (
    CASE,
    DISPUTE,
    EXACT,
    HELD,
    JOB,
    OPINION,
    RECEIPT,
    SEAT,
    WAITING,
    Dispute,
    Opinion,
    Order,
    Receipt,
    WorkState,
)
from tests.protocol.world import DOMAIN, PARAMETERS, key, signed

CLIENT, STRANGER = key(1), key(2)
NODES = [key(10 + i) for i in range(8)]
EPOCH = 7
TASK, INPUT = keccak(b"task"), keccak(b"input")
RIGHT, WRONG_OUTPUT = keccak(b"right"), keccak(b"wrong")


def operator_of(node: Key) -> Address:
    return Address(keccak(node.address)[12:])


def records(nodes: Sequence[Key] = NODES, **changes: Any) -> tuple[NodeRecord, ...]:
    return tuple(
        NodeRecord(
            **{
                "node": node.address,
                "operator": operator_of(node),
                "payout": operator_of(node),
                "endpoint": "",
                "bond": PARAMETERS.minimum_bond,
                **changes,
            }
        )
        for node in nodes
    )


def lease_of(node: Key, client: Key = CLIENT, number: int = 0, **changes: Any) -> LeaseState:
    values: dict[str, Any] = {
        "lease": keccak(client.address + node.address + number.to_bytes(8)),
        "client": client.address,
        "node": node.address,
        "service": "compute",
        "mode": STREAM,
        "price": 1,
        "deadline": 10**10,
        "settled": 0,
        "opened": 1,
        "lapsed": 0,
        "closed": 0,
    }
    return LeaseState(**values | changes)


def order_of(lease: LeaseState, number: int = 1, client: Key = CLIENT, **changes: Any) -> Order:
    values: dict[str, Any] = {"lease": lease.lease, "number": number, "task": TASK, "most": 1000, "until": EPOCH + 5}
    return signed(Order(**values | changes), client_signature=client)


def receipt_of(order: Order, node: Key, /, **changes: Any) -> Receipt:
    """The node's receipt for an order; `changes` are what it says instead, and signs."""
    values = {name: getattr(order, name) for name in order.__struct_fields__}
    said = {"node": node.address, "input": INPUT, "output": RIGHT, "steps": ZERO_HASH, "measure": 700}
    return signed(Receipt(**values | said | changes), node_signature=node)


def run(node: Key, number: int = 1, **changes: Any) -> Receipt:
    """The receipt of this node's run of an order of the client's."""
    return receipt_of(order_of(lease_of(node), number), node, **changes)


def dispute_of(first: Receipt, second: Receipt, client: Key = CLIENT, kind: int = EXACT, steps: Any = ()) -> Dispute:
    return Dispute(client=client.address, first=first, second=second, kind=kind, steps=steps)


def job_of(receipt: Receipt, stand: int = WAITING, client: Key = CLIENT, epoch: int = EPOCH - 1) -> WorkState:
    """The row that a receipt leaves in the state."""
    return WorkState(
        role=JOB,
        id=receipt.order().struct_hash(),
        node=receipt.node,
        lease=receipt.lease,
        task=receipt.task,
        input=receipt.input,
        first=client.address,
        second=ZERO_ADDRESS,
        first_output=receipt.output,
        second_output=ZERO_HASH,
        first_order=ZERO_HASH,
        second_order=ZERO_HASH,
        step=0,
        kind=0,
        measure=receipt.measure,
        epoch=epoch,
        until=receipt.until,
        round=0,
        stand=stand,
    )


def case_of(dispute: Dispute, round_: int = 1, epoch: int = EPOCH - 2) -> WorkState:
    """The row of the case that a dispute opened."""
    first, second = dispute.first, dispute.second
    return WorkState(
        role=CASE,
        id=dispute.case(),
        node=dispute.client,
        lease=ZERO_HASH,
        task=first.task,
        input=first.input,
        first=first.node,
        second=second.node,
        first_output=first.output,
        second_output=second.output,
        first_order=first.order().struct_hash(),
        second_order=second.order().struct_hash(),
        step=0,
        kind=dispute.kind,
        measure=max(first.measure, second.measure),
        epoch=epoch,
        until=max(first.until, second.until),
        round=round_,
        stand=HELD,
    )


def seat_of(case: WorkState, node: Key, until: int = EPOCH + 1) -> WorkState:
    return msgspec.structs.replace(case, role=SEAT, node=node.address, epoch=EPOCH - 1, until=until)


def opinion_of(
    case: WorkState, node: Key, output: Hash = RIGHT, good: int | None = None, epoch: int = EPOCH
) -> Opinion:
    bits = (output == case.first_output) | (output == case.second_output) << 1
    return Opinion(epoch=epoch, case=case.id, node=node.address, output=output, good=bits if good is None else good)


def ordered(rows: Sequence[WorkState]) -> list[WorkState]:
    return sorted(rows, key=lambda row: (row.role, row.id, row.node))


def context_of(state: Sequence[WorkState] = (), leases: Sequence[LeaseState] | None = None, **changes: Any) -> Context:
    """An epoch in which every node has a lease of the client's, unless `leases` says otherwise."""
    open_leases = [lease_of(node) for node in NODES] if leases is None else leases
    context = Context(
        epoch=EPOCH,
        seconds=20,
        beacon=keccak(b"beacon"),
        parameters=PARAMETERS,
        domain=DOMAIN,
        leases={lease.lease: lease for lease in open_leases},
        state=Table.of(WorkState, ordered(state)),
        nodes=records(),
    )
    return context._replace(**changes)


def rows_of(
    receipts: Sequence[Receipt] = (), disputes: Sequence[Dispute] = (), opinions: Sequence[Opinion] = ()
) -> Mapping[str, Table[Any]]:
    tables = {
        RECEIPT: Table.of(Receipt, receipts),
        DISPUTE: Table.of(Dispute, disputes),
        OPINION: Table.of(Opinion, opinions),
    }
    return {kind: table.distinct() for kind, table in tables.items()}
