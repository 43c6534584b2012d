"""What a step would take before anything is ordered: its tasks, how each is checked, and what both come to.

The price of the work is what the tasks would cost run once at the best node; the price of assurance is what replicas
and audits add to it, on average; the most is what no node's receipts together can exceed.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from freehold.client.jobs_market import Market
from freehold.client.jobs_spec import Job, Step
from freehold.client.jobs_yaml import mark_of, spec_error
from freehold.protocol.parameters import Parameters
from freehold.protocol.units import MEASURE_LIMIT, ONE
from freehold.services.compute.ordering.checks import most_cost
from freehold.services.compute.tasks import Task
from freehold.services.compute.terms import UNITS_PER_PRICE
from freehold.services.compute.verification.classes import check_class
from freehold.services.compute.verification.plan import Candidate, Plan, Stake, for_item, make_plan, read_assurance
from freehold.services.compute.verification.reliability import Evidence

LEARNED_FACTOR = 4  # times the largest measure of a program's receipts: the most of its next order
LEAST_MEASURE = 10**8


class Checking(NamedTuple):
    """How a step's pieces are checked: the plan that a checked piece is held to, how many are (None: all), the replicas
    of all on average, the expected price of that in runs a piece, and sentences."""

    plan: Plan
    sample: int | None
    runs: Fraction
    reasons: tuple[str, ...]


class StepQuote(NamedTuple):
    """A step. `tasks` is None where it is known only when an earlier step is done; amounts are credits (base units)."""

    step: str
    tasks: int | None
    replicas: int
    audit_ppm: int
    sample: int | None
    nodes: int
    price: int
    work: int
    assurance: int
    most: int
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**self._asdict(), "price": str(self.price), "work": str(self.work), "assurance": str(self.assurance),
                "most": str(self.most), "reasons": list(self.reasons)}  # fmt: skip


class Quote(NamedTuple):
    """A job. `stored` is what its inputs cost to be read; `known`: whether every step's tasks are counted."""

    steps: tuple[StepQuote, ...]
    stored: int
    stored_bytes: int

    @property
    def known(self) -> bool:
        return all(step.tasks is not None for step in self.steps)

    @property
    def work(self) -> int:
        return sum(step.work for step in self.steps)

    @property
    def assurance(self) -> int:
        return sum(step.assurance for step in self.steps)

    @property
    def most(self) -> int:
        return sum(step.most for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        return {
            "steps": [step.to_json() for step in self.steps],
            "work": str(self.work),
            "assurance": str(self.assurance),
            "storage": str(self.stored),
            "storage_bytes": self.stored_bytes,
            "most": str(self.most),
            "known": self.known,
        }


def first_most(largest: int, bound: int, *, is_left_alone: bool = False) -> int:
    """The most of a task's first order, from the largest measure that a receipt for its program had (0: there is none).

    What nodes deliver by themselves is ordered for all that it may take: with other arguments it may take more than was
    learned, and nobody may be there to order it anew.
    """
    if is_left_alone or not largest:
        return bound
    return min(bound, max(LEAST_MEASURE, LEARNED_FACTOR * largest))


def affordable(credits: int, price: int, runs: int) -> int:
    """The measure that each of `runs` orders at this price may be for, so that together they cost no more."""
    return credits // runs * UNITS_PER_PRICE // price if price else MEASURE_LIMIT - 1


def bound_of(step: Step) -> int:
    """The most that any order of a step is for: what `work` says."""
    return step.resources.work * 10**9


def plan_checks(
    job: Job, step: Step, tasks: Sequence[Task], market: Market, evidence: Evidence, parameters: Parameters, most: int
) -> Checking:
    """How the tasks of a step are checked. InsufficientOperators, InvalidInput where the class cannot do it."""
    candidates = [Candidate(one.node, one.operator, evidence.of(one.operator)) for one in market.offers]
    assurance = read_assurance(job.assurance)
    kind = step.verify.kind
    if kind == "attested":  # whatever the assurance: a quote is good or not
        check_class(kind, tasks[0], len(tasks))
        plan = make_plan(assurance, "attested", candidates)
        return Checking(plan, None, plan.cost, plan.reasons)
    if assurance == 0 or step.service is not None:
        plan = make_plan(Fraction(0), "bit_exact", candidates)
        return Checking(plan, 0, Fraction(1), plan.reasons)
    for task in tasks[:1]:
        check_class(kind, task, len(tasks))
    stake = _stake(market, parameters, most)
    if kind != "sampled":
        plan = make_plan(assurance, kind, candidates, stake)  # type: ignore[arg-type]
        return Checking(plan, None, plan.cost, plan.reasons)
    workers = min(len({one.operator for one in market.offers}), max(1, len(tasks)))
    sampled = make_plan(assurance, "sampled", candidates, stake, items=len(tasks), workers=workers)
    plan = for_item(sampled, "tolerance" if step.verify.metric else "bit_exact")
    return Checking(plan, sampled.sample, sampled.cost, sampled.reasons)


def _stake(market: Market, parameters: Parameters, most: int) -> Stake:
    """What a cheat gains at most (what an order pays) and loses, in credits by the network's first price of a token."""
    least = min(market.offers, key=lambda one: one.record.bond)
    gain = max(most_cost(most, one.price) for one in market.offers)
    lost = min(parameters.wrong_result_slash, least.record.bond) * parameters.initial_price // ONE
    return Stake(gain, lost, Fraction(1))


def quote_step(step: Step, tasks: int | None, most: int, market: Market, checking: Checking) -> StepQuote:
    """The step's part of a quote, by the best node's price; its most by the dearest that matches."""
    count = 1 if tasks is None else tasks
    best, dearest = market.offers[0].price, max(one.price for one in market.offers)
    once = most_cost(most, best) * count
    extra = checking.runs - 1
    runs = checking.plan.audited if checking.sample is None else checking.plan.replicas
    if checking.sample:
        runs = checking.plan.audited
    return StepQuote(
        step=str(step.name), tasks=tasks, replicas=checking.plan.replicas, audit_ppm=checking.plan.audit_ppm,
        sample=checking.sample, nodes=len(market.offers), price=best, work=once,
        assurance=-(-once * extra.numerator // extra.denominator), most=most_cost(most, dearest) * count * runs,
        reasons=checking.reasons,
    )  # fmt: skip


def check_classes(job: Job) -> None:
    """SpecError where an assurance is asked for what cannot be checked so, before anybody is asked for a bid."""
    if read_assurance(job.assurance) == 0:
        return
    for step in job.steps:
        native = step.kind in ("program", "command", "image")
        if native and step.service is None and step.verify.kind in ("bit_exact", "refereed"):
            raise spec_error(
                f"step {str(step.name)!r}: two honest runs of a native program may differ, so not {step.verify.kind}",
                mark_of(step.verify.kind) or step.place(),
                "Say `verify: {kind: tolerance, metric: ...}`, run it as WebAssembly, or ask for no assurance.",
            )
