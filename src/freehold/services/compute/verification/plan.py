"""How often a task is run, and how often that is checked, so that a wrong result is accepted no more often than agreed.

The adversary. Each operator is bad with the probability that evidence leaves open (`wrong_probability`: at most
`prior`), independently of the others, but for one coalition of at most `collusion` operators, who are bad together or
not at all; which they are, nobody knows. A bad operator may always be wrong, and then agrees with every other bad one.

The risk. An operator weighs w = (1 - p) / p (iExec's weight). Of a group that agrees, a coalition counts as one, so its
`collusion - 1` heaviest members are left out; W is the product of the other weights. By Bayes' rule the group is wrong
with a probability of at most 1 / (1 + W) if nobody contradicts it, and 1 - W / total in general, where total is 1 plus
the products of all groups. iExec accepts where group x trust > total x (trust - 1); with assurance = 1 - 1/trust that
is W > total x assurance. A rule that accepts only where the risk, given all that was seen, is below 1 - assurance, is
wrong no more often than that, however it came to stop.

The audit. Fewer replicas do if, at random and unpredictably, the run is repeated until `audited` operators agree:
(1 - a) x risk(replicas) + a x risk(audited) <= 1 - assurance gives the least rate a. Nothing of one node's result is
shown to another before its receipt is in, and `a` is drawn from receipts, so copying and waiting gain nothing.

The floor. Where no outsider of the coalition is certain to run it (replicas <= collusion), a cheat of value `gain` is
found with probability a x detection, and costs `bond` x `slashed`: a >= gain / (bond x slashed x detection), and a
millionth more, makes it lose. Nor is it ever below LEAST_AUDIT_PPM; BOINC's counting puts it at 1/n after n valid in a
row (n >= 10), and asks for two replicas before that. An audited run goes to collusion + 1 operators at least.

What this does not catch. More than `collusion` operators in one coalition. Gain that is not the client's to know: what
a node takes from all clients at once, or gains outside. A result that is wrong in the same way at everyone (a fault of
the engine). A cache of an earlier *right* result of the same task and input, which is no harm: for a changed input the
receipt names another input root, or lies about it, and lies differently from others.

Invariant: residual <= 1 - assurance for candidates as the plan was made with, and the audit rate is at or above its
floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import prod
from typing import NamedTuple

from freehold.protocol.errors import InsufficientOperators, InvalidInput
from freehold.protocol.units import Address
from freehold.services.compute.verification.classes import ClassName
from freehold.services.compute.verification.reliability import Record, is_trusted, weight
from freehold.services.compute.verification.sampling import detection, sample_size, wrong_items

MILLION = 10**6
LEAST_AUDIT_PPM = 10_000
ASSURANCE_LIMIT = Fraction(999_999_999, 10**9)
WRONG_FRACTION = Fraction(1, 20)


class Adversary(NamedTuple):
    """Who is assumed to be bad: the share of operators of whom nothing is known, and how many at most act as one."""

    prior: Fraction = Fraction(1, 20)
    collusion: int = 2


DEFAULT_ADVERSARY = Adversary()


class Stake(NamedTuple):
    """What a wrong result is worth to a node (at least what it is paid for it), and what it loses if found out: the
    share `slashed` of `bond`, in the same unit. `detection`: how probably a check finds a wrong result wrong."""

    gain: int
    bond: int
    slashed: Fraction
    detection: Fraction = Fraction(1)


class Candidate(NamedTuple):
    """A node that could run it, and what is known of its operator."""

    node: Address
    operator: Address
    record: Record


class Map(NamedTuple):
    """A map of so many items, run by so many operators, of which so many may not be wrong."""

    items: int
    workers: int
    wrong_fraction: Fraction


class Plan(NamedTuple):
    """`replicas` different operators run it; with probability `audit_ppm` it goes on to `audited` of them.

    sampled: each item is run once; `sample` of them, drawn after the receipts, are run again, spread over `auditors`.
    `risk_audited` is what a drawn audit has to reach. `residual` bounds how often a wrong result is accepted; `cost` is
    in runs. `deterred`: a cheat loses more than it gains. `limit`: of runs, after which only referees can tell.
    """

    kind: ClassName
    assurance: Fraction
    adversary: Adversary
    replicas: int
    audit_ppm: int
    audited: int
    risk_audited: Fraction
    residual: Fraction
    cost: Fraction
    deterred: bool
    limit: int
    sample: int = 0
    auditors: int = 0
    reasons: tuple[str, ...] = ()


def read_assurance(text: str) -> Fraction:
    """The exact fraction that is written as 0.999, 99.9% or 999/1000, from 0 to ASSURANCE_LIMIT. InvalidInput."""
    try:
        bare = text.strip()
        value = Fraction(bare[:-1]) / 100 if bare.endswith("%") else Fraction(bare)
    except (ValueError, ZeroDivisionError):
        raise InvalidInput(f"{text!r} is no assurance", hint="Write it as 0.999 or 99.9%.") from None
    return check_assurance(value)


def check_assurance(value: Fraction) -> Fraction:
    """The value. InvalidInput unless it lies in 0 to ASSURANCE_LIMIT."""
    if not 0 <= value <= ASSURANCE_LIMIT:
        raise InvalidInput(f"an assurance lies from 0 to {float(ASSURANCE_LIMIT)}: nothing is certain")
    return value


def joint_weight(weights: Sequence[Fraction], collusion: int) -> Fraction:
    """The odds that a group with these weights is right, if any `collusion` of it may be one."""
    return prod(sorted(weights)[: max(1, len(weights) - collusion + 1)], start=Fraction(1))


def risk(weights: Sequence[Fraction], collusion: int) -> Fraction:
    """The probability at most that operators with these weights, who agree, are wrong together."""
    return 1 / (1 + joint_weight(weights, collusion))


def has_consensus(group: Fraction, total: Fraction, assurance: Fraction) -> bool:
    """iExec's rule, group x trust > total x (trust - 1), for trust = 1 / (1 - assurance)."""
    return group > total * assurance


def audit_floor_ppm(stake: Stake) -> int:
    """The least rate at which a cheat loses: rate x detection x bond x slashed > gain. Above a million: none does."""
    loss = stake.bond * stake.slashed * stake.detection
    return int(stake.gain * MILLION / loss) + 1 if loss > 0 else MILLION + 1


def make_plan(
    assurance: Fraction,
    kind: ClassName,
    candidates: Sequence[Candidate],
    stake: Stake | None = None,
    adversary: Adversary = DEFAULT_ADVERSARY,
    items: int = 1,
    workers: int = 1,
    wrong_fraction: Fraction = WRONG_FRACTION,
) -> Plan:
    """The cheapest plan that reaches `assurance` with `candidates`, the preferred ones first.

    sampled: `items` is how many the map has, `workers` how many operators run them, and what is assured is that no map
    with `wrong_fraction` of its items wrong is accepted; a drawn item is held to `for_item`'s plan.
    InsufficientOperators says how many there are and how many are needed.
    """
    check_assurance(assurance)
    if not 0 < adversary.prior <= Fraction(1, 2) or adversary.collusion < 1:
        raise InvalidInput("the share of bad operators lies within 0 and 1/2, and a coalition has one or more")
    first_of: dict[Address, Candidate] = {}
    for candidate in candidates:
        first_of.setdefault(candidate.operator, candidate)
    chosen = list(first_of.values())
    weights = [weight(candidate.record, adversary.prior) for candidate in chosen]
    if not chosen:
        raise InsufficientOperators("nobody could run it", available=0, needed=1)
    if kind == "attested":
        return _attested(assurance, adversary)
    if assurance == 0:
        return _unchecked(kind, adversary, weights)
    floor = audit_floor_ppm(stake) if stake is not None else LEAST_AUDIT_PPM
    if kind == "sampled":
        return _sampled(assurance, adversary, weights, floor, stake, Map(items, max(workers, 1), wrong_fraction))
    return _replicated(assurance, kind, adversary, chosen, weights, floor, stake)


def _unchecked(kind: ClassName, adversary: Adversary, weights: Sequence[Fraction]) -> Plan:
    reason = "assurance 0: one operator runs it, and nothing is checked"
    return _single(kind, Fraction(0), adversary, risk(weights[:1], adversary.collusion), reason)


def _attested(assurance: Fraction, adversary: Adversary) -> Plan:
    reason = "one operator runs it; what it is worth rests on its hardware's maker and on the verifier of its quote"
    return _single("attested", assurance, adversary, Fraction(0), reason)


def _single(kind: ClassName, assurance: Fraction, adversary: Adversary, residual: Fraction, reason: str) -> Plan:
    return Plan(
        kind=kind,
        assurance=assurance,
        adversary=adversary,
        replicas=1,
        audit_ppm=0,
        audited=1,
        risk_audited=residual,
        residual=residual,
        cost=Fraction(1),
        deterred=False,
        limit=1,
        reasons=(reason,),
    )


def _replicated(
    assurance: Fraction,
    kind: ClassName,
    adversary: Adversary,
    chosen: Sequence[Candidate],
    weights: Sequence[Fraction],
    floor: int,
    stake: Stake | None,
) -> Plan:
    allowed, collusion = 1 - assurance, adversary.collusion
    least = 1 if is_trusted(chosen[0].record) else 2
    enough = next((n for n in range(1, len(weights) + 1) if risk(weights[:n], collusion) < allowed), None)
    if enough is None or len(weights) < least:
        raise _too_few(assurance, adversary, weights, least)
    enough = max(enough, least)
    audited = min(max(enough, collusion + 1), len(weights))
    lowest = risk(weights[:audited], collusion)
    best: tuple[Fraction, int, int] | None = None
    for replicas in range(least, enough + 1):
        rate = _audit_rate(risk(weights[:replicas], collusion), lowest, allowed)
        if replicas <= collusion:
            rate = max(rate, LEAST_AUDIT_PPM, floor)
        if replicas == 1:
            rate = max(rate, -(-MILLION // chosen[0].record.consecutive_valid))
        rate = min(rate, MILLION) if audited > replicas else 0
        if rate < MILLION or replicas == enough:
            found = (replicas + Fraction(rate, MILLION) * (audited - replicas), replicas, rate)
            best = min(best or found, found)
    assert best is not None
    cost, replicas, rate = best
    if rate == MILLION:
        replicas, rate = audited, 0
    missed = 1 - Fraction(rate, MILLION)
    residual = missed * risk(weights[:replicas], collusion) + (1 - missed) * lowest
    reaches_outsider = audited > collusion
    return Plan(
        kind=kind,
        assurance=assurance,
        adversary=adversary,
        replicas=replicas,
        audit_ppm=rate,
        audited=audited,
        risk_audited=lowest if risk(weights[:replicas], collusion) >= allowed else allowed,
        residual=residual,
        cost=cost,
        deterred=stake is not None and floor <= MILLION and reaches_outsider,
        limit=2 * audited + 1,
        reasons=_explain(replicas, rate, audited, residual, floor, stake, adversary),
    )


def _audit_rate(now: Fraction, lowest: Fraction, allowed: Fraction) -> int:
    """The least a, in millionths, with (1 - a) x now + a x lowest <= allowed."""
    if now < allowed:
        return 0
    if lowest >= now:
        return MILLION
    rate = (now - allowed) / (now - lowest) * MILLION
    return -(-rate.numerator // rate.denominator)


def _too_few(
    assurance: Fraction, adversary: Adversary, weights: Sequence[Fraction], least: int
) -> InsufficientOperators:
    reached, fresh = list(weights), 1 / adversary.prior - 1
    while (risk(reached, adversary.collusion) >= 1 - assurance or len(reached) < least) and fresh > 1:
        reached.append(fresh)
    return InsufficientOperators(
        f"an assurance of {_decimal(assurance)} needs {len(reached)} operators, and {len(weights)} could run it",
        hint="Ask for less assurance, or relax the job's constraints (`freehold job why`).",
        available=len(weights),
        needed=len(reached),
    )


def _sampled(
    assurance: Fraction,
    adversary: Adversary,
    weights: Sequence[Fraction],
    floor: int,
    stake: Stake | None,
    work: Map,
) -> Plan:
    """Of a sample spread evenly over m auditors, collusion - 1 of them may look away: what the others run has to find
    `wrong_fraction` of the items with probability 1 - (1 - assurance) / p, where p is the risk that any of the workers
    is bad (at most the sum of theirs), and never less probably than the floor."""
    items = work.items
    others, friends = len(weights) - 1, adversary.collusion - 1
    if others <= friends:
        raise InsufficientOperators(
            f"a sample needs {adversary.collusion + 1} operators: one to run it, and one more than could look away",
            available=len(weights),
            needed=adversary.collusion + 1,
        )
    bad = min(Fraction(1), sum((risk([each], 1) for each in sorted(weights)[: work.workers]), Fraction(0)))
    wanted = max(1 - (1 - assurance) / bad, Fraction(min(max(floor, LEAST_AUDIT_PPM), MILLION), MILLION))
    watched = sample_size(items, work.wrong_fraction, wanted)
    count = watched
    while count <= items and _watched(count, others, friends) < watched:
        count += 1
    if count > items:
        raise InvalidInput(
            f"{items} items at {others} operators are too few to be sampled for an assurance of {_decimal(assurance)}",
            hint="Use bit_exact or tolerance, which run each item several times.",
        )
    wrong = wrong_items(items, work.wrong_fraction)
    residual = bad * (1 - detection(items, wrong, _watched(count, others, friends)))
    reasons = (
        f"{count} of {items} items, drawn after they are done, are run again at {min(others, count)} other operators",
        f"a map with {wrong} or more wrong items is accepted with a probability of at most {_decimal(residual)}",
    )
    return Plan(
        kind="sampled",
        assurance=assurance,
        adversary=adversary,
        replicas=1,
        audit_ppm=0,
        audited=1,
        risk_audited=1 - assurance,
        residual=residual,
        cost=1 + Fraction(count, items),
        deterred=stake is not None and floor <= MILLION,
        limit=3,
        sample=count,
        auditors=min(others, count),
        reasons=reasons,
    )


def for_item(plan: Plan, kind: ClassName) -> Plan:
    """What an item that was drawn for a sampled plan is held to: one operator more gives the same, or contradicts it.

    That is all that `plan.residual` counts on; `kind` says how results are compared.
    """
    half = Fraction(1, 2)
    return plan._replace(
        kind=kind, assurance=half, replicas=2, audit_ppm=0, audited=2, risk_audited=half, limit=5, sample=0, auditors=0
    )


def _watched(count: int, others: int, friends: int) -> int:
    """How many of `count` items, spread evenly over `others`, are not run by the busiest `friends` of them."""
    auditors = max(1, min(others, count))
    return max(0, count - friends * -(-count // auditors))


def _decimal(value: Fraction) -> str:
    """For people."""
    return f"{float(value):.6g}"


def _explain(
    replicas: int, rate: int, audited: int, residual: Fraction, floor: int, stake: Stake | None, adversary: Adversary
) -> tuple[str, ...]:
    lines = [f"{replicas} operator{'s' * (replicas > 1)} run{'s' * (replicas == 1)} it, and have to agree"]
    if rate:
        lines.append(f"{_decimal(Fraction(rate, 10_000))} % of runs, drawn afterwards, go on to {audited} operators")
    lines.append(
        f"a wrong result is accepted with a probability of at most {_decimal(residual)}, if of operators unknown so far"
        f" {_decimal(100 * adversary.prior)} % are bad and at most {adversary.collusion} act together"
    )
    if audited <= adversary.collusion:
        lines.append(f"with {audited} operators, all of them could act together: cheating need not lose money")
    elif stake is None:
        lines.append("what a cheat would lose is not known: nothing says that it does not pay")
    elif floor > MILLION:
        lines.append("the bond that would be slashed is smaller than what a cheat would gain: it could pay")
    else:
        lines.append("a cheat loses more than it gains")
    return tuple(lines)
