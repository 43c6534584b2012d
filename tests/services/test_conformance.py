"""Every registered judge passes the one suite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from freehold.protocol.messages import STREAM, Lease
from freehold.protocol.service import Context
from freehold.protocol.state import LeaseState
from freehold.protocol.tables import Table
from freehold.protocol.units import ZERO_HASH, Hash
from freehold.services.compute.terms import HELD, WorkState
from freehold.services.judging import JUDGES
from freehold.services.storage.proof import draw_openings, group_lists
from freehold.services.storage.terms import DELTA, PROOF, Delta, ListState, StorageProof
from tests.protocol.world import DOMAIN, PARAMETERS, StoredList, block_hash, key, signed
from tests.services import compute_world as compute
from tests.services import sensing_world as sensing
from tests.services.conformance import CHECKS, Case, check_bad_rows

CLIENTS, NODES = [key(1), key(2)], [key(10), key(11), key(12), key(13)]


def storage_case() -> Case:
    """Four nodes, two clients with a list at each, one of which has just changed."""
    lists: list[StoredList] = []
    leases: dict[Hash, LeaseState] = {}
    states, deltas = [], []
    for node in NODES:
        for number, client in enumerate(CLIENTS):
            lease = Lease(
                client=client.address,
                node=node.address,
                service="storage",
                mode=STREAM,
                price=1,
                number=number,
                deadline=10**10,
            )
            lease = signed(lease, client_signature=client, node_signature=node)
            stored = StoredList(lease, [bytes([number]) * size for size in (5000, 1, 8192)])
            before = stored.delta(client, node)
            lists.append(stored)
            leases[stored.id] = LeaseState(
                lease=stored.id, client=client.address, node=node.address, service="storage", mode=STREAM, price=1,
                deadline=10**10, settled=0, opened=1, lapsed=0, closed=0,
            )  # fmt: skip
            states.append(list_state(before, node.address))
            after = StoredList(lease, [*stored.shards, b"new"], stored.number)
            deltas.append(after.delta(client, node))
    context = Context(
        epoch=7,
        seconds=20,
        beacon=block_hash(7),
        parameters=PARAMETERS,
        domain=DOMAIN,
        leases=leases,
        state=Table.of(ListState, sorted(states, key=lambda row: row.lease)),
    )
    by_id = {stored.id: stored for stored in lists}
    proofs = [
        by_id[opening.lease].prove(opening)
        for node, rows in group_lists(context).items()
        for opening in draw_openings(context, node, rows)
    ]
    grown = context._replace(
        state=Table.of(ListState, [msgspec.structs.replace(row, size=row.size * 1000) for row in context.state])
    )
    rows = {PROOF: Table.of(StorageProof, proofs), DELTA: Table.of(Delta, deltas)}
    return Case(JUDGES["storage"], context, rows, grown)


def list_state(delta: Delta, node: Any) -> ListState:
    return ListState(
        lease=delta.lease, node=node, number=delta.number, root=delta.root, count=delta.count, size=delta.size
    )


def sensing_case() -> Case:
    """A fleet of four devices that report, and another that is shown for the first time."""
    known, fresh = sensing.listed(sensing.DEVICES[:4]), sensing.listed(sensing.DEVICES[4:7])
    fleets = [sensing.fleet_of(1, known), sensing.fleet_of(2, fresh)]
    context = sensing.context_of(fleets, sensing.state_of(sensing.enrolments(fleets[0], known)))
    reports = sorted((sensing.report(device, context) for device in sensing.DEVICES[:4]), key=lambda row: row.device)
    return Case(JUDGES["sensing"], context, sensing.rows_of(reports, sensing.enrolments(fleets[1], fresh)), context)


def compute_case() -> Case:
    """A disputed receipt that its three referees find good, a wrong one, two that have just come, and a dispute."""
    right, wrong = compute.run(compute.NODES[0]), compute.run(compute.NODES[1], output=compute.WRONG_OUTPUT)
    case = compute.case_of(compute.dispute_of(right, wrong))
    referees = sorted(compute.NODES[2:5], key=lambda node: node.address)
    state = [compute.job_of(right, HELD), compute.job_of(wrong, HELD), case]
    context = compute.context_of([*state, *(compute.seat_of(case, node) for node in referees)])
    fresh = [compute.run(node, 2) for node in compute.NODES[:2]]
    disputes = [compute.dispute_of(compute.run(compute.NODES[5]), compute.run(compute.NODES[6], output=ZERO_HASH))]
    rows = compute.rows_of(fresh, disputes, [compute.opinion_of(case, node) for node in referees])
    grown = [msgspec.structs.replace(row, measure=10**12) for row in context.state]
    return Case(JUDGES["compute"], context, rows, context._replace(state=Table.of(WorkState, grown)))


CASES: dict[str, Callable[[], Case]] = {"compute": compute_case, "sensing": sensing_case, "storage": storage_case}


def test_every_judge_is_here() -> None:
    assert set(CASES) == set(JUDGES)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("service", CASES)
def test_a_judge_conforms(service: str, check: str) -> None:
    CHECKS[check](CASES[service]())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("service", CASES)
def test_bad_rows_are_verdicts_and_never_pay(service: str, seed: int) -> None:
    check_bad_rows(CASES[service](), seed)
