"""How well each class of verification finds each kind of cheat, how often it blames the honest, and what it costs.

Every cell is a few hundred campaigns: twelve operators of which one cheats (or two together), a client that knows them
as the cell says, four jobs; cheats ask the least, so they are asked first. The client runs what a client runs: plans,
draws, decisions, records and metrics are the real ones, and disputes go before the real court (`court.hold_court`) with
referees drawn among the same operators. WebAssembly is run by the engine of nodes. Orders, transport and signatures are
not part of it. Then, in populations drawn as plans assume them, how often a wrong result is accepted: what `assurance`
promises. All of it follows from seeds; shares stand with 95 % bounds (`binomial.py`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import count
from typing import NamedTuple

from bench.binomial import lower_bound, upper_bound
from bench.calibration_parties import (
    Courtroom,
    Given,
    Kind,
    Party,
    answer,
    dispute_of,
    input_of,
    output_hash,
    receipt_of,
    referee,
)
from bench.calibration_work import ITEMS, Output, Work, all_work, are_near
from bench.rates import Figures, Options
from freehold.protocol.errors import InsufficientOperators
from freehold.protocol.typed import keccak
from freehold.services.compute.terms import EXACT, NEAR, REFEREES, Dispute
from freehold.services.compute.verification.bisect import build_step
from freehold.services.compute.verification.decision import Accept, NeedMore, Vote, confirms, decide
from freehold.services.compute.verification.plan import (
    DEFAULT_ADVERSARY,
    Candidate,
    Plan,
    Stake,
    make_plan,
    read_assurance,
)
from freehold.services.compute.verification.reliability import Evidence, Record, weight
from freehold.services.compute.verification.sampling import draw_audit, draw_items, receipts_hash

OPERATORS, JOBS, CAMPAIGNS, TRIALS = 12, 4, 75, 1500
SECRET = b"the client's own"
STAKE = Stake(gain=1, bond=40, slashed=Fraction(1, 2))  # in prices of a job: a cheat found out loses twenty
TRUSTED = Record(consecutive_valid=400, valid=400, answered=400, score=400)
ASSURANCE = "0.99"


class Cell(NamedTuple):
    """Of the table: a workload (and so a class), how its cheats cheat, and whether they had been honest for long."""

    work: str
    kind: Kind
    trusted: bool = False


class Tally(NamedTuple):
    """What was counted in a cell.

    attempts: wrong receipts of cheats; caught: those that the client found wrong, or useless; accepted: jobs that ended
    with a wrong result; honest: honest receipts, blamed: those that the client or referees counted as wrong; slashed:
    wrong receipts that referees convicted; runs: of tasks, referees' among them; quoted: what plans said.
    """

    jobs: int = 0
    attempts: int = 0
    caught: int = 0
    accepted: int = 0
    honest: int = 0
    blamed: int = 0
    slashed: int = 0
    unsettled: int = 0
    runs: Fraction = Fraction(0)
    quoted: Fraction = Fraction(0)

    def __add__(self, other: object) -> Tally:
        assert isinstance(other, Tally)
        return Tally(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


KINDS: tuple[tuple[Kind, bool], ...] = (
    ("honest", False),
    ("random", False),
    ("partial", False),
    ("copied", False),
    ("lazy", False),
    ("lowest", False),
    ("collusion", False),
    ("collusion", True),
    ("selective", True),
)


def all_cells() -> list[Cell]:
    """Every row of the table; who copies a map's items runs none of them wrong."""
    found = [Cell(work.name, kind, trusted) for work in all_work() for kind, trusted in KINDS]
    return [cell for cell in found if (cell.work, cell.kind) != ("items", "copied")]


def run_cell(cell: Cell, campaigns: int) -> Tally:
    """Counted over this many campaigns, the same each time."""
    work = next(each for each in all_work() if each.name == cell.work)
    tally = Tally()
    for number in range(campaigns):
        tally += Campaign(work, cell, number).run()
    return tally


def make_parties(kind: Kind) -> list[Party]:
    """One that cheats, or two together, among honest ones."""
    cheats = {"honest": [], "collusion": [Party(0, kind, 1), Party(1, kind, 0)], "copied": [Party(0, kind, 1)]}
    first = cheats.get(kind, [Party(0, kind)])
    return [*first, *(Party(number, "honest") for number in range(len(first), OPERATORS))]


class Campaign:
    """One client with its evidence, and four jobs."""

    def __init__(self, work: Work, cell: Cell, number: int) -> None:
        seed = f"{cell} {number}"
        self.work, self.draw = work, random.Random(seed)
        self.parties = make_parties(cell.kind)
        self.court = Courtroom(self.parties, number)
        self.evidence = Evidence()
        if cell.trusted:
            self.evidence.operators = {str(party.operator): TRUSTED for party in self.parties}
        self.first_job = int.from_bytes(keccak(seed.encode())[:4])
        self.numbers = count()

    def run(self) -> Tally:
        tally = Tally()
        for now in range(JOBS):
            one = self._run_map if self.work.kind == "sampled" else self._run_job
            try:
                tally += one(self.first_job + now, now)
            except InsufficientOperators:
                tally += Tally(jobs=1, unsettled=1)
        return tally

    def _candidates(self, now: int) -> list[Party]:
        """Those that may be chosen: cheats ask for less than anybody else."""
        ready = [p for p in self.parties if self.evidence.is_available(p.node, p.operator, now)]
        self.draw.shuffle(ready)
        return sorted(ready, key=lambda party: party.kind == "honest")

    def _plan(self, candidates: Sequence[Party], items: int = 1) -> Plan:
        known = [Candidate(p.node, p.operator, self.evidence.of(p.operator)) for p in candidates]
        return make_plan(read_assurance(ASSURANCE), self.work.kind, known, STAKE, items=items)

    def _run_job(self, job: int, now: int) -> Tally:
        candidates = self._candidates(now)
        plan = self._plan(candidates)
        ended = self._settle(job, now, candidates, plan)
        return ended._replace(jobs=1, quoted=plan.cost)

    def _settle(self, job: int, now: int, candidates: Sequence[Party], plan: Plan) -> Tally:
        """Orders, decides and disputes until a result is accepted or nobody is left; then counts."""
        waiting, asked, given = list(candidates), [], []
        guilty: set[int] = set()  # of what came, by the referees' rulings, which take an epoch or two
        wrong: set[int] = set()  # what is left out for it
        disputed: set[int] = set()
        drawn, wanted, referees = False, plan.replicas, Fraction(0)
        result: Accept | None = None
        while result is None:
            while wanted and waiting:
                party = waiting.pop(0)
                asked.append(party)
                came = answer(party, self.work, job, asked, self.draw)
                if came is None:
                    self.evidence.failed(party.node, party.operator, now)
                    continue
                self.evidence.answered(party.node, party.operator, now)
                given.append(came)
                wanted -= 1
            if wanted:
                break
            if len(given) == plan.replicas:
                hashes = [receipt_of(each, i).row_hash() for i, each in enumerate(given)]
                drawn = draw_audit(SECRET, receipts_hash(hashes), plan.audit_ppm)
            left = [i for i in range(len(given)) if i not in wrong]
            votes = [self._vote(given[i]) for i in left]
            near = {vote: given[i].output for vote, i in zip(votes, left, strict=True)}
            found = decide(
                votes,
                plan,
                drawn,
                lambda one, other: are_near(self.work, near[one], near[other]),  # noqa: B023
                input_of(job),
                {place for place, i in enumerate(left) if i in disputed},
            )
            pairs = found.disputes if isinstance(found, Accept | NeedMore) else found.pairs
            for one, other in pairs:
                bad, cost = self._dispute(given[left[one]], given[left[other]])
                disputed |= {left[one], left[other]}
                referees += cost
                guilty |= {place for place in (left[one], left[other]) if given[place].party.number in bad}
            if isinstance(found, Accept):
                result = self._translate(found, left)
            elif isinstance(found, NeedMore):
                wanted = found.more
            elif guilty <= wrong:
                break
            else:
                wrong = set(guilty)  # it has waited for the referees
        return self._count(given, plan, result, guilty, now)._replace(runs=len(given) + referees)

    def _translate(self, found: Accept, left: Sequence[int]) -> Accept:
        return found._replace(
            votes=tuple(left[i] for i in found.votes),
            against=tuple(left[i] for i in found.against),
            strays=tuple(left[i] for i in found.strays),
        )

    def _vote(self, given: Given) -> Vote:
        party = given.party
        weighs = weight(self.evidence.of(party.operator), DEFAULT_ADVERSARY.prior)
        return Vote(party.node, party.operator, given.input, output_hash(given.output), weighs)

    def _dispute(self, first: Given, second: Given) -> tuple[set[int], Fraction]:
        """Whom the referees convicted, and how many runs that took."""
        ruling = self.court.rule(*self._case(first, second))
        steps = ruling is not None and ruling.case.step
        cost = Fraction(REFEREES, len(first.output.leaves)) if steps else Fraction(REFEREES)
        if ruling is None:
            return set(), cost
        return {g.party.number for bit, g in ((1, first), (2, second)) if ruling.slashed & bit}, cost

    def _case(self, first: Given, second: Given) -> tuple[Dispute, object]:
        receipts = [receipt_of(each, next(self.numbers)) for each in (first, second)]
        step = build_step(*receipts, first.output.leaves, second.output.leaves) if first.output.leaves else None
        kind = NEAR if self.work.metric else EXACT
        return dispute_of(*receipts, kind, (step,) if step else ()), referee(self.work, first, second, self.draw)

    def _count(self, given: Sequence[Given], plan: Plan, result: Accept | None, found: set[int], now: int) -> Tally:
        """Writes down what was learned of each operator, and adds up what is true."""
        against = set(found) | (set(result.against) if result else set())
        useless = set(result.strays) if result else set()
        agreed = [given[i].party.operator for i in result.votes] if result else []
        confirmed = set(result.votes) if result and confirms(plan, agreed) else set()
        tally = Tally(unsettled=int(result is None))
        if result is not None:
            tally += Tally(accepted=int(not given[result.votes[0]].is_right))
        for place, one in enumerate(given):
            node, operator = one.party.node, one.party.operator
            if place in against or place in useless:
                self.evidence.invalid(node, operator, now)
            elif place in confirmed:
                self.evidence.valid(node, operator, now)
            blamed = int(place in against or place in useless)
            if one.is_right:
                tally += Tally(honest=1, blamed=blamed)
            else:
                tally += Tally(attempts=1, caught=blamed, slashed=int(place in found))
        return tally

    def _run_map(self, job: int, now: int) -> Tally:
        """ITEMS items at one operator, some of them again at others; all of them at others if one is contradicted."""
        worker, *others = self._candidates(now)
        plan = self._plan([worker, *others], ITEMS)
        wrong = self._wrong_items(worker)
        receipt = keccak(f"{job} {worker.number} {sorted(wrong)}".encode())
        others = others[: plan.auditors]
        tally = Tally(jobs=1, quoted=plan.cost, runs=1 + Fraction(plan.sample, ITEMS), attempts=int(bool(wrong)))
        bad: set[int] = set()
        for place, item in enumerate(draw_items(SECRET, receipt, ITEMS, plan.sample)):
            checker, number = others[place % len(others)], job * ITEMS + item
            own = self._item(worker, number, item in wrong)
            if checker.friend == worker.number:
                continue  # it looks away
            check = self._item(checker, number, checker.kind != "honest")
            if are_near(self.work, own, check):
                continue
            pair = [Given(p, number, input_of(number), o) for p, o in ((worker, own), (checker, check))]
            convicted, cost = self._dispute(*pair)
            bad |= convicted
            tally += Tally(runs=cost / ITEMS)
            if bad:
                break
        caught = worker.number in bad
        tally += Tally(runs=Fraction(caught))
        for party in (worker, *others):
            if party.number in bad:
                self.evidence.invalid(party.node, party.operator, now)
            else:
                self.evidence.valid(party.node, party.operator, now)
        honest = [party for party in others if party.kind == "honest"] + [worker] * (not wrong)
        return tally + Tally(
            caught=int(bool(wrong) and caught),
            slashed=int(bool(wrong) and caught),
            accepted=int(bool(wrong) and not caught),
            honest=len(honest),
            blamed=sum(party.number in bad for party in honest),
        )

    def _wrong_items(self, worker: Party) -> frozenset[int]:
        """Which items of its run a worker gets wrong."""
        shares = {"partial": 0.25, "selective": 0.1, "honest": 0.0, "copied": 0.0}
        if worker.kind == "selective" and self.draw.random() >= 0.2:
            return frozenset()
        return frozenset(self.draw.sample(range(ITEMS), round(ITEMS * shares.get(worker.kind, 1.0))))

    def _item(self, party: Party, number: int, is_wrong: bool) -> Output:
        return self.work.made_up(f"{party.number} {number}") if is_wrong else self.work.right(number, 0)


class Promise(NamedTuple):
    """How often a wrong result was accepted in populations drawn as plans assume them, and what was promised."""

    assurance: str
    population: str
    jobs: int
    accepted: int
    runs: float
    quoted: float


def run_promises(trials: int) -> Iterator[Promise]:
    """Every operator is bad as probably as its record leaves open, and always wrong then, all in the same way; the last
    two are a coalition, bad together. One job each; results stand for themselves."""
    for population, records in (
        ("nobody is known", [Record()] * OPERATORS),
        (
            "some are known well",
            [Record(), TRUSTED, Record(consecutive_valid=12, score=12), TRUSTED] * (OPERATORS // 4),
        ),
    ):
        for assurance, times in (("0.9", 1), ("0.99", 4), ("0.999", 10)):  # what is rarer takes longer to see
            draw = random.Random(f"{population} {assurance}")
            accepted, runs, quoted = 0, 0, Fraction(0)
            for _ in range(times * trials):
                is_wrong, took, plan = _promised(assurance, records, draw)
                accepted, runs, quoted = accepted + is_wrong, runs + took, quoted + plan.cost
            jobs = times * trials
            yield Promise(assurance, population, jobs, accepted, runs / jobs, float(quoted / jobs))


def _promised(assurance: str, records: Sequence[Record], draw: random.Random) -> tuple[bool, int, Plan]:
    prior = DEFAULT_ADVERSARY.prior
    odds = [weight(record, prior) for record in records]
    bad = [draw.random() < 1 / (1 + each) for each in odds]
    bad[-2] = bad[-1] = draw.random() < 1 / (1 + min(odds[-2:]))
    order = draw.sample(range(len(records)), len(records))
    parties = [Party(i, "honest") for i in order]
    plan = make_plan(
        read_assurance(assurance),
        "bit_exact",
        [Candidate(p.node, p.operator, records[p.number]) for p in parties],
        STAKE,
    )
    votes: list[Vote] = []
    drawn = draw.random() < plan.audit_ppm / 10**6
    wanted = plan.replicas
    while wanted and len(votes) + wanted <= len(parties):
        for party in parties[len(votes) : len(votes) + wanted]:
            output = keccak(b"wrong" if bad[party.number] else b"right")
            votes.append(Vote(party.node, party.operator, input_of(0), output, odds[party.number]))
        found = decide(votes, plan, drawn)
        wanted = found.more if isinstance(found, NeedMore) else 0
        if isinstance(found, Accept):
            return votes[found.votes[0]].output == keccak(b"wrong"), len(votes), plan
    return False, len(votes), plan


def measure(options: Options) -> tuple[Figures, Figures]:
    """Shares are figures; runs for one are ratios. `rounds` of CAMPAIGNS campaigns a cell."""
    figures: Figures = {}
    ratios: Figures = {}
    for cell in all_cells():
        tally = run_cell(cell, options.rounds * CAMPAIGNS)
        name = "_".join([cell.work, "trusted" * cell.trusted, cell.kind]).replace("__", "_")
        figures |= figures_of(name, tally)
        ratios[f"{name}_runs_for_one"] = round(float(tally.runs / tally.jobs), 3)
        ratios[f"{name}_runs_for_quoted"] = round(float(tally.runs / tally.quoted), 3)
    for promise in run_promises(options.rounds * TRIALS):
        name = f"{promise.population.replace(' ', '_')}_{promise.assurance}"
        figures[f"{name}_accepted_wrong"] = promise.accepted / promise.jobs
        figures[f"{name}_accepted_wrong_at_most"] = upper_bound(promise.accepted, promise.jobs)
        ratios[f"{name}_runs_for_one"] = round(promise.runs, 3)
        ratios[f"{name}_runs_for_quoted"] = round(promise.runs / promise.quoted, 3)
    return figures, ratios


def figures_of(name: str, tally: Tally) -> Figures:
    """Shares with the bound that counts: detection at least, blame at most."""
    found = {
        f"{name}_blamed": tally.blamed / max(tally.honest, 1),
        f"{name}_blamed_at_most": upper_bound(tally.blamed, tally.honest),
        f"{name}_unsettled": tally.unsettled / tally.jobs,
    }
    if tally.attempts:
        found[f"{name}_detected"] = tally.caught / tally.attempts
        found[f"{name}_detected_at_least"] = lower_bound(tally.caught, tally.attempts)
        found[f"{name}_slashed"] = tally.slashed / tally.attempts
    return found
