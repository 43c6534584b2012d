"""Who suits whom: an order and offers, each with properties and a constraint over the other's.

An offer matches when the order's constraint is true of the offer's properties *and* the offer's is true of the order's.
A Match says so, and otherwise why not, clause by clause: what is, and what was wanted. `nearest` is for an order that
nobody suits: how many offers each of its clauses keeps away, the fewest clauses to drop, and who comes closest.
`rank` puts those who suit in the order of price / (speed x reliability).

Everything here is a pure function of what it is given, and the order of the offers changes nothing but the order of the
answers. Invariant: a match has no reasons, and what is no match has at least one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

from freehold.market.constraint_terms import Properties, Truth
from freehold.market.constraints import Constraint
from freehold.protocol.errors import InvalidInput

Side = Literal["order", "offer"]


class Party(NamedTuple):
    """One side: what it says of itself, and what it asks of the other. `name` is how reasons and ties call it."""

    name: str
    properties: Properties
    constraint: Constraint


class Reason(NamedTuple):
    """Why there is no match: a clause of the order's or the offer's constraint, its value (False, or None: unknown),
    and in words what is and what was wanted."""

    side: Side
    clause: str
    value: Truth
    text: str


class Match:
    """What came of holding an order and an offer against each other; the reasons are worked out when asked for."""

    __slots__ = ("_reasons", "offer", "order", "value")

    def __init__(self, order: Party, offer: Party, value: Truth) -> None:
        self.order, self.offer, self.value = order, offer, value
        self._reasons: tuple[Reason, ...] | None = () if value is True else None

    @property
    def matched(self) -> bool:
        """Whether each suits the other: nothing unknown is left."""
        return self.value is True

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why they do not match: first what the order wants, then what the offer does."""
        if self._reasons is None:
            self._reasons = (
                *_reasons("order", self.order.constraint, self.offer.properties),
                *_reasons("offer", self.offer.constraint, self.order.properties),
            )
        return self._reasons

    def __repr__(self) -> str:
        return f"Match({self.offer.name!r}, {self.value}, {[reason.text for reason in self.reasons]})"


def _reasons(side: Side, constraint: Constraint, properties: Properties) -> list[Reason]:
    found = []
    for clause in constraint.clauses:
        value = clause.test(properties)
        if value is not True:
            text = clause.term.why(properties, True)
            found.append(
                Reason(side, clause.text, value, text if side == "order" else f"it takes no such order: {text}")
            )
    return found


def match(order: Party, offer: Party) -> Match:
    """Hold one offer against an order."""
    return match_all(order, [offer])[0]


def match_all(order: Party, offers: Iterable[Party]) -> list[Match]:
    """Hold every offer against an order. Offers with the same constraint are asked once whether they take it."""
    test, taken = order.constraint.test, _Taken(order)
    found = []
    for offer in offers:
        value = test(offer.properties)
        if value is not False:
            theirs = taken.by(offer.constraint)
            value = theirs if value or theirs is False else None
        found.append(Match(order, offer, value))
    return found


class _Taken:
    """Whether offers' constraints hold for the order, found once for each constraint."""

    def __init__(self, order: Party) -> None:
        self._properties = order.properties
        self._known: dict[str, Truth] = {}

    def by(self, constraint: Constraint) -> Truth:
        """What the constraint says of the order."""
        text = constraint.text
        if text not in self._known:
            self._known[text] = constraint.test(self._properties)
        return self._known[text]


class Hurdle(NamedTuple):
    """A clause and the offers that fail it: all of them, and those that fail nothing else."""

    clause: str
    excluded: int
    alone: int


class Nearest(NamedTuple):
    """How far an order is from a match.

    `hurdles` are the order's clauses; `rules` the offers' own constraints that do not take the order, each with the
    number of offers that have it. `drop` is a smallest set of the order's clauses without which offers would match,
    and `freed` their number; it is empty if something matches as it is, or if nobody takes the order whatever it drops.
    `offer` fails the fewest clauses (its own constraint counts as one), and of those misses numbers by the least; None
    if there is no offer at all.
    """

    offers: int
    matched: int
    hurdles: tuple[Hurdle, ...]
    rules: tuple[tuple[str, int], ...]
    drop: tuple[str, ...]
    freed: int
    offer: Match | None

    def describe(self) -> list[str]:
        """The same in sentences."""
        lines = [f"{self.matched} of {self.offers} match"]
        for clause, excluded, alone in self.hurdles:
            if excluded:
                lines.append(f"{clause}: not so for {excluded}{f', the only thing for {alone}' if alone else ''}")
        lines += [f"{count} take only orders with {rule}" for rule, count in self.rules]
        if self.drop:
            lines.append(f"without {' and '.join(self.drop)}, {self.freed} would match")
        if self.offer is not None and not self.offer.matched:
            lacks = "; ".join(reason.text for reason in self.offer.reasons)
            lines.append(f"the nearest is {self.offer.offer.name}: {lacks}")
        return lines


def nearest(order: Party, offers: Sequence[Party]) -> Nearest:
    """Why few or none match, and what would help."""
    clauses, taken = order.constraint.clauses, _Taken(order)
    excluded, alone, rules = [0] * len(clauses), [0] * len(clauses), Counter[str]()
    sets: Counter[tuple[int, ...]] = Counter()  # of clauses failed by offers that take the order
    fewest, closest = len(clauses) + 1, list[Party]()
    for offer in offers:
        failed = tuple(i for i, clause in enumerate(clauses) if clause.test(offer.properties) is not True)
        for i in failed:
            excluded[i] += 1
        takes = taken.by(offer.constraint) is True
        if takes:
            sets[failed] += 1
            if len(failed) == 1:
                alone[failed[0]] += 1
        else:
            rules[offer.constraint.text] += 1
        count = len(failed) + (not takes)
        if count < fewest:
            fewest, closest = count, []
        if count == fewest:
            closest.append(offer)
    matched = sets[()]
    # Of sets of the smallest size none holds another, so dropping one frees just the offers that fail exactly it.
    smallest = min(sets, key=lambda one: (len(one), -sets[one], one), default=()) if not matched else ()
    found = min(closest, key=lambda offer: (_gap(order, offer), offer.name), default=None)
    return Nearest(
        len(offers),
        matched,
        tuple(map(Hurdle, (clause.text for clause in clauses), excluded, alone)),
        tuple(sorted(rules.items(), key=lambda one: (-one[1], one[0]))),
        tuple(clauses[i].text for i in smallest),
        sets[smallest] if smallest else 0,
        None if found is None else match(order, found),
    )


def _gap(order: Party, offer: Party) -> Fraction:
    """By how much the two miss each other, clause by clause."""
    gaps = [clause.term.gap(offer.properties, True) for clause in order.constraint.clauses]
    gaps += [clause.term.gap(order.properties, True) for clause in offer.constraint.clauses]
    return sum(gaps, Fraction(0))


class Rated(NamedTuple):
    """Who may be chosen. `speed` and `reliability` are in any unit that is the same for all, above zero if any."""

    address: bytes
    operator: bytes
    price: int
    speed: int
    reliability: int


def rank(rated: Iterable[Rated]) -> list[Rated]:
    """The best first: by price / (speed x reliability), exactly, then by address. Who has no speed or reliability at
    all comes last. InvalidInput for a number below zero."""

    def key(one: Rated) -> tuple[bool, Fraction, bytes]:
        if min(one.price, one.speed, one.reliability) < 0:
            raise InvalidInput(f"a price, speed or reliability of {one.address.hex()} is below zero")
        worth = one.speed * one.reliability
        return (not worth, Fraction(one.price, worth or 1), one.address)

    return sorted(rated, key=key)


def choose(rated: Iterable[Rated], count: int, per_operator: int = 1) -> list[Rated]:
    """The best `count` of them, at most `per_operator` of one operator; fewer where there are no more."""
    chosen, operators = list[Rated](), Counter[bytes]()
    for one in rank(rated):
        if len(chosen) < count and operators[one.operator] < per_operator:
            operators[one.operator] += 1
            chosen.append(one)
    return chosen
