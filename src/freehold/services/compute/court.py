"""How cases are decided: which receipt of two that contradict each other is wrong.

Two such receipts prove that one node is wrong, not which. Referees say which: nodes that the beacon draws, one epoch
after the dispute, so that nobody knew them when it was made. They must be bonded and hold compute leases; no two are of
one operator, none is of the accused's operators or the client's. A case is decided if a strict majority of REFEREES (of
all, not of those that answered) found the same. If a round ends without one, others are drawn by a later epoch's
beacon; after ROUNDS both receipts are paid: an accusation that nobody proves costs nobody anything.

**Who is slashed, and on what assumption.** A ruling is as good as the assumption that among those whom the beacon
draws, fewer than a majority of REFEREES are of one mind to lie: operators, whom a bond each makes costly to multiply.
Within it no honest node is slashed, because

    EXACT   the majority must have got one output, the same hash, that is not the slashed node's
    NEAR    distance is a matter of a declared threshold: a majority withholds the pay, but only all REFEREES slash, and
            only if the node showed them its result: silence is unpaid
    SPARED  a receipt whose node says that its run was cut short ("time", "stopped", "failed") is no result, and nobody
            can prove that it was not cut short: where the work can be done, it is unpaid, and takes no bond
    BOTH    a referee that cannot be sure (the task is not deterministic, its run was stopped, the distance is within
            the threshold) says that both may be right; a majority of these pays both. Honest referees must: otherwise
            a client could order something random of two honest nodes, and have one of them slashed

A referee is never slashed, whatever it said: an opinion proves nothing against itself, and two that collude could
otherwise take the third's bond. One that contradicts a majority gets the verdict `wrong_result`, which is kept; one
that is silent gets nothing worse than silence.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from freehold.protocol.parameters import Parameters
from freehold.protocol.service import Context
from freehold.protocol.state import NodeRecord
from freehold.protocol.tables import Table
from freehold.protocol.typed import keccak
from freehold.protocol.units import ZERO_ADDRESS, ZERO_HASH, Address, Hash
from freehold.protocol.verdicts import GOOD, Slash
from freehold.services.compute.proof import SeatKey, Work, judge_opinions
from freehold.services.compute.terms import (
    BOTH,
    CASE,
    EXACT,
    HELD,
    KEPT_EPOCHS,
    NAME,
    REFEREES,
    ROUNDS,
    SEAT,
    SEATS_AT_ONCE,
    SPARED,
    WRONG_RESULT,
    Dispute,
    Opinion,
    WorkState,
)

MAJORITY = REFEREES // 2 + 1
NANOSECONDS = 10**9  # a second
Finding = tuple[int, Hash]  # what opinions must have in common: their bits, and by EXACT the output behind them


class Ruling(NamedTuple):
    """What became of a case: the bits of the receipts that are paid, those whose nodes are slashed, and what the
    majority found; None where there was none."""

    case: WorkState
    good: int
    slashed: int
    found: Finding | None

    def receipts(self) -> Iterable[tuple[Hash, Address, bool]]:
        """For both: the order, the node, and whether it is paid."""
        yield self.case.first_order, self.case.first, bool(self.good & 1)
        yield self.case.second_order, self.case.second, bool(self.good & 2)

    def slashes(self) -> Iterable[Slash]:
        """Whose bond answers to the case's client."""
        for bit, node in ((1, self.case.first), (2, self.case.second)):
            if self.slashed & bit:
                yield Slash(
                    service=NAME,
                    node=node,
                    operator=ZERO_ADDRESS,
                    subject=self.case.id,
                    harmed=self.case.node,
                    amount=0,
                )


class Court(NamedTuple):
    """An epoch's work on cases: each opinion's reason, the reason of the one that counts by seat, what was decided, and
    the cases and seats that go on."""

    said: list[str]
    answers: dict[SeatKey, str]
    rulings: list[Ruling]
    cases: list[WorkState]
    seats: list[WorkState]


def hold_court(work: Work, opinions: Table[Opinion], context: Context) -> Court:
    """Decide what can be decided, and seat referees in cases that had none when the epoch began."""
    said = judge_opinions(opinions, {(row.id, row.node): row for row in work.seats}, context)
    votes = {(row.case, row.node): row for row, reason in zip(opinions, said, strict=True) if reason == GOOD}
    court = Court(said, dict.fromkeys(votes, GOOD), [], [], [])
    seats: defaultdict[Hash, list[WorkState]] = defaultdict(list)
    for seat in work.seats:
        seats[seat.id].append(seat)
    for case in work.cases:
        if seats[case.id]:
            answers = [votes[row.id, row.node] for row in seats[case.id] if (row.id, row.node) in votes]
            _hear(case, seats[case.id], answers, court, context)
    rulings = {ruling.case.id: ruling for ruling in court.rulings}
    for place, row in enumerate(opinions):
        if said[place] == GOOD and row.case in rulings and _contradicts(row, rulings[row.case]):
            said[place] = court.answers[row.case, row.node] = WRONG_RESULT
    _seat_referees([case for case in work.cases if not seats[case.id]], court, context)
    return court


def _hear(
    case: WorkState, seats: Sequence[WorkState], answers: Sequence[Opinion], court: Court, context: Context
) -> None:
    """Decide the case, or leave it to its referees, or to others where these have no time left."""
    over = len(answers) == len(seats) or context.epoch >= seats[0].until
    counts = Counter(_finding(case.kind, vote) for vote in answers)
    found = next((finding for finding, count in counts.items() if count >= MAJORITY), None)
    if found is not None:
        alike = [vote for vote in answers if _finding(case.kind, vote) == found]
        slashed, settled = _find_slashed(case.kind, alike, len(seats) - len(answers))
        if settled or over:  # else the rest decide about a bond: they have time
            court.rulings.append(Ruling(case, found[0], slashed, found))
            return
    if over:
        _end_round(case, court)
    else:
        court.cases.append(case)
        court.seats.extend(seats)


def _find_slashed(kind: int, alike: Sequence[Opinion], open_seats: int) -> tuple[int, bool]:
    """The bits of receipts whose nodes are slashed by opinions that agree, and whether those that are still to come
    cannot change it."""
    needed, slashed, settled = MAJORITY if kind == EXACT else REFEREES, 0, True
    for bit in (1, 2):
        against = sum(not vote.good & bit * (1 + SPARED) for vote in alike)
        slashed |= bit * (against >= needed)
        settled &= not needed - open_seats <= against < needed
    return slashed, settled


def _finding(kind: int, vote: Opinion) -> Finding:
    return vote.good & BOTH, vote.output if kind == EXACT and vote.good != BOTH else ZERO_HASH


def _contradicts(vote: Opinion, ruling: Ruling) -> bool:
    """Whether a majority found otherwise; who could not tell contradicts nobody."""
    found = ruling.found
    return found is not None and BOTH not in (vote.good, found[0]) and _finding(ruling.case.kind, vote) != found


def _end_round(case: WorkState, court: Court) -> None:
    if case.round >= ROUNDS:
        court.rulings.append(Ruling(case, BOTH, 0, None))
    else:
        court.cases.append(case)


def _seat_referees(cases: Sequence[WorkState], court: Court, context: Context) -> None:
    """Clients take turns, each with its oldest case first, and there are no more cases at once than operators can bear.
    A client's next case needs more free places than it has cases at work: so however many clients flood the court,
    about as many places as each of them holds stay free for one that comes later. Who is drawn does not depend on who
    is busy: nobody chooses referees by keeping others at work."""
    if not cases:
        return
    seated = {row.id for row in court.seats}
    at_work = Counter(case.node for case in court.cases if case.id in seated)
    workers = {lease.node for lease in context.leases.values()}
    bonded = [row for row in context.nodes if row.bond >= context.parameters.minimum_bond and row.node in workers]
    operators = {row.node: row.operator for row in context.nodes}
    bearable = max(1, SEATS_AT_ONCE * len({row.operator for row in bonded}) // REFEREES)
    places = bearable - len(seated)
    for case in _take_turns(cases, at_work):
        if places <= at_work[case.node]:
            court.cases.append(case)
            continue
        accused = {case.first, case.second}
        barred = accused | {case.node} | {operators.get(node, node) for node in accused}
        eligible = [row for row in bonded if row.node not in barred and row.operator not in barred]
        drawn = draw_referees(case, eligible, context.beacon)
        tried = msgspec.structs.replace(case, round=case.round + 1)
        if len(drawn) < MAJORITY:
            _end_round(tried, court)
            continue
        places -= 1
        at_work[case.node] += 1
        court.cases.append(tried)
        court.seats.extend(_make_seat(tried, node, context) for node in drawn)


def _take_turns(cases: Iterable[WorkState], at_work: Mapping[Address, int]) -> list[WorkState]:
    """Cases by how many of their client's come before them, those at work included, then by age."""
    before, turns = Counter(at_work), []
    for case in sorted(cases, key=lambda row: (row.epoch, row.id)):
        turns.append((before[case.node], case.epoch, case.id, case))
        before[case.node] += 1
    return [case for *_, case in sorted(turns, key=lambda turn: turn[:3])]


def draw_referees(case: WorkState, eligible: Iterable[NodeRecord], beacon: Hash) -> list[Address]:
    """Up to REFEREES nodes in an order that the beacon gives them, no two of one operator."""
    seed = beacon + case.id + case.round.to_bytes(4)
    drawn: dict[Address, Address] = {}
    for row in sorted(eligible, key=lambda row: (keccak(seed + row.node), row.node)):
        if len(drawn) < REFEREES:
            drawn.setdefault(row.operator, row.node)
    return list(drawn.values())


def _make_seat(case: WorkState, node: Address, context: Context) -> WorkState:
    until = context.epoch + seat_epochs(case.measure, context.parameters)
    return msgspec.structs.replace(case, role=SEAT, node=node, epoch=context.epoch, until=until)


def seat_epochs(measure: int, parameters: Parameters) -> int:
    """A referee has twice the time that the work took, and two epochs more to hear of it and to be heard."""
    return min(2 + 2 * measure // (max(1, parameters.epoch_length) * NANOSECONDS), KEPT_EPOCHS)


def needed_thaw(measure: int, parameters: Parameters) -> int:
    """The least `thaw_epochs` by which a bond cannot be gone before a wrong receipt for so much work takes it: disputed
    in the epoch after it came, seated at once, and decided in the last round.

    With the receipt in e, referees sit from e + 2; a round lasts their seats' epochs, and one more until others sit.
    A thaw counts from the epoch that was active when it began: those in the window, and the open one, are not yet.
    """
    ruled = 2 + ROUNDS * seat_epochs(measure, parameters) + ROUNDS - 1
    behind = 2 - (-parameters.dispute_window // max(1, parameters.epoch_length))
    return ruled + behind + 1


def open_case(row: Dispute, epoch: int) -> WorkState:
    """The case of a dispute that is good."""
    first, second, step = row.first, row.second, row.steps[0] if row.steps else None
    said = [one.claim() if row.kind == EXACT else one.output for one in (first, second)]
    return WorkState(
        role=CASE,
        id=row.case(),
        node=row.client,
        lease=ZERO_HASH,
        task=first.task,
        input=step.before if step else first.input if first.input == second.input else ZERO_HASH,
        first=first.node,
        second=second.node,
        first_output=step.first if step else said[0],
        second_output=step.second if step else said[1],
        first_order=first.order().struct_hash(),
        second_order=second.order().struct_hash(),
        step=step.index + 1 if step else 0,
        kind=row.kind,
        measure=max(first.measure, second.measure),
        epoch=epoch,
        until=max(first.until, second.until),
        round=0,
        stand=HELD,
    )
