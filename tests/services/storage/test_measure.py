"""What a proven list comes to."""

from __future__ import annotations

from freehold.protocol.service import Context
from freehold.protocol.state import LeaseState
from freehold.protocol.tables import Table
from freehold.protocol.typed import keccak
from freehold.protocol.units import MEASURE_LIMIT
from freehold.protocol.verdicts import GOOD, Verdict
from freehold.services.judging import JUDGES
from freehold.services.storage.terms import DELTA, LIST_BYTES_LIMIT, NAME, PROOF, Delta, ListState
from tests.protocol.world import DOMAIN, PARAMETERS, key


def test_a_list_that_was_accepted_for_shorter_epochs_stops_no_longer_one() -> None:
    lease, client, node = keccak(b"lease"), key(1).address, key(2).address
    opened = LeaseState(
        lease=lease, client=client, node=node, service=NAME, mode=1, price=1, deadline=10**10, settled=0, opened=1,
        lapsed=0, closed=0,
    )  # fmt: skip
    row = ListState(lease=lease, node=node, number=1, root=keccak(b"root"), count=1, size=LIST_BYTES_LIMIT)
    proven = Verdict(
        epoch=7, service=NAME, kind=PROOF, subject=keccak(b"opening"), lease=lease, node=node, reason=GOOD, measure=1
    )
    for seconds, measure in ((20, 20 * LIST_BYTES_LIMIT), (86_400, MEASURE_LIMIT - 1)):
        state = Table.of(ListState, [row])
        context = Context(7, seconds, keccak(b"beacon"), PARAMETERS, DOMAIN, {lease: opened}, state)
        _, worked, _ = JUDGES[NAME].fold({DELTA: Table.of(Delta)}, Table.of(Verdict, [proven]), context)
        assert [work.measure for work in worked] == [measure]
