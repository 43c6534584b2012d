"""What a constraint is made of: rules about one property each, joined by and, or, not, in a logic of three values.

A rule about a property that is not stated, or is of another type than the rule speaks of, is neither true nor false but
unknown (None). As in Kleene's logic, and in Golem's resolver (golemfactory/yagna, core/market/resolver): `and` is false
as soon as one part is, `or` true as soon as one part is, `not` leaves unknown unknown.

Every term can be compiled to a closure that says its value, and nothing else, quickly; can say in words why its value
is not the one wanted; and can be reduced to what is left of it once everything that is stated has been put in.
Invariant: the three agree, and each takes time that is linear in the constraint's length and in the texts' it reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from operator import ge, gt, le, lt
from typing import Any, NamedTuple

Properties = Mapping[str, object]
Truth = bool | None  # None: unknown
Test = Callable[[Properties], Truth]

TEXT, NUMBER, BOOLEAN, LIST = "text", "a number", "true or false", "a list of text"

UNITS: dict[str, Fraction] = {
    **{name: Fraction(1024**power) for power, name in enumerate(("KiB", "MiB", "GiB", "TiB"), 1)},
    **{name: Fraction(1000**power) for power, name in enumerate(("kB", "MB", "GB", "TB"), 1)},
    **{name: Fraction(1000**power) for power, name in enumerate(("k", "M", "G", "T"), 1)},
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "min": Fraction(60),
    "h": Fraction(3600),
}
NEGATED = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">", "in": "not in", "not in": "in"}
NEGATED |= {"has": "without", "without": "has"}
_ORDERED: dict[str, Callable[[Any, Any], bool]] = {"<": lt, "<=": le, ">": gt, ">=": ge}
SHOWN_TEXT, SHOWN_ITEMS = 120, 8  # characters of a text, and items of a list, that a reason quotes


class Pattern:
    """Text in which `*` stands for any characters, if any; compared without regard to case."""

    __slots__ = ("first", "last", "middle", "shortest")

    def __init__(self, parts: Sequence[str]) -> None:
        folded = [part.casefold() for part in parts]
        self.first, self.last, self.middle = folded[0], folded[-1], [part for part in folded[1:-1] if part]
        self.shortest = sum(map(len, folded))

    def matches(self, folded: str) -> bool:
        """Whether this text (case-folded) is one. Each part is looked for once, from where the one before ended."""
        if len(folded) < self.shortest or not (folded.startswith(self.first) and folded.endswith(self.last)):
            return False
        at, end = len(self.first), len(folded) - len(self.last)
        for part in self.middle:
            at = folded.find(part, at, end)
            if at < 0:
                return False
            at += len(part)
        return at <= end


class Literal(NamedTuple):
    """A value as a constraint spells it. `parts`: of a text, what stands between its stars."""

    kind: str
    value: object  # str, int, Fraction or bool
    spelling: str
    unit: str = ""
    parts: tuple[str, ...] = ()


def _fraction(value: Any) -> Fraction:
    """A value that is known to be a number."""
    return Fraction(value)


def get_kind(value: object) -> str | None:
    """Which of the types that rules speak of this is; None for anything else, floats among them: they are not exact."""
    if isinstance(value, str):
        return TEXT
    if type(value) is bool:
        return BOOLEAN
    if isinstance(value, int | Fraction) or (isinstance(value, Decimal) and value.is_finite()):
        return NUMBER
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return LIST
    return None


def quote(text: str, wildcards: bool = False) -> str:
    """Text as a constraint spells it; its stars stand for themselves unless `wildcards`."""
    for mark in ("\\", '"') if wildcards else ("\\", '"', "*"):
        text = text.replace(mark, "\\" + mark)
    return f'"{text}"'


def show(value: object, unit: str = "") -> str:
    """A property's value for people; a number in the unit that the rule uses, where it is at least a hundredth."""
    if isinstance(value, str):
        shown = _cut(value)
        if not shown.isprintable():
            shown = "".join(one if one.isprintable() else "\ufffd" for one in shown)
        return quote(shown, wildcards=True)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        more = len(value) - SHOWN_ITEMS
        return f"[{', '.join(show(one) for one in value[:SHOWN_ITEMS])}{f', … {more} more' if more > 0 else ''}]"
    if get_kind(value) != NUMBER:
        return f"{value!r:.{SHOWN_TEXT}}"
    exact = _fraction(value)
    hundredths = exact * 100 / UNITS[unit] if unit else exact * 100
    if unit and (abs(hundredths) >= 1 or not exact):
        return f"{_decimal(hundredths)} {unit}"
    return str(value) if isinstance(value, int) else _decimal(exact * 100)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_TEXT else text[:SHOWN_TEXT] + "…"


def _decimal(hundredths: Fraction) -> str:
    whole, rest = divmod(abs(hundredths.numerator) // hundredths.denominator, 100)
    digits = f".{rest:02}".rstrip("0").rstrip(".")
    return f"{'-' if hundredths < 0 and (whole or rest) else ''}{whole}{digits}"


class Term(ABC):
    """A constraint, or a part of one."""

    __slots__ = ()

    @abstractmethod
    def compile(self) -> Test:
        """A function of properties that says true, false or unknown (None)."""

    @abstractmethod
    def why(self, properties: Properties, wanted: bool) -> str:
        """Why its value is not `wanted`, in words; empty where it is."""

    @abstractmethod
    def reduce(self, properties: Properties) -> bool | Term:
        """Its value, or what is left of it while that is unknown."""

    @abstractmethod
    def gap(self, properties: Properties, wanted: bool) -> Fraction:
        """How far from `wanted` it is, 0 to 1: for a bound on a number by how large a part it is missed."""


class Rule(Term):
    """What is said of one property."""

    __slots__ = ("_shown", "_test", "kind", "name", "sign", "wanted")

    def __init__(self, name: str, sign: str, wanted: Sequence[Literal]) -> None:
        self.name, self.sign, self.wanted = name, sign, tuple(wanted)
        self.kind = LIST if sign == "has" else wanted[0].kind
        self._shown = self._show_wanted()
        self._test = self._compile()

    def __str__(self) -> str:
        return f"{self.name} {self.sign} {self._spell()}"

    def _spell(self) -> str:
        if self.sign in ("in", "not in"):
            return f"[{', '.join(one.spelling for one in self.wanted)}]"
        return self.wanted[0].spelling

    def _show_wanted(self) -> str:
        """The same for people: cut where it is long, since each of many offers may have it as a reason."""
        shown = [_cut(one.spelling) for one in self.wanted[:SHOWN_ITEMS]]
        if self.sign not in ("in", "not in"):
            return shown[0]
        more = len(self.wanted) - SHOWN_ITEMS
        return f"[{', '.join(shown)}{f', … {more} more' if more > 0 else ''}]"

    def compile(self) -> Test:
        return self._test

    def _compile(self) -> Test:
        if self.kind in (TEXT, LIST):
            return self._compile_text()
        if self.sign in _ORDERED:
            return self._compile_bound(_ORDERED[self.sign])
        name, kind, yes = self.name, self.kind, self.sign in ("=", "in")
        values = frozenset(one.value for one in self.wanted)

        def is_among(properties: Properties) -> Truth:
            value = properties.get(name)
            return (value in values) is yes if get_kind(value) is kind else None

        return is_among

    def _compile_bound(self, compare: Callable[[object, object], bool]) -> Test:
        name, bound = self.name, self.wanted[0].value

        def keeps(properties: Properties) -> Truth:
            value = properties.get(name)
            return compare(value, bound) if type(value) is int or get_kind(value) is NUMBER else None

        return keeps

    def _compile_text(self) -> Test:
        name, yes, has = self.name, self.sign in ("=", "in"), self.kind == LIST
        plain = frozenset(str(one.value).casefold() for one in self.wanted if len(one.parts) == 1)
        patterns = [Pattern(one.parts) for one in self.wanted if len(one.parts) > 1]

        def fits(value: str) -> bool:
            folded = value.casefold()
            return folded in plain or any(pattern.matches(folded) for pattern in patterns)

        def is_text(properties: Properties) -> Truth:
            value = properties.get(name)
            return fits(value) is yes if isinstance(value, str) else None

        def has_text(properties: Properties) -> Truth:
            value = properties.get(name)
            return any(map(fits, value)) if get_kind(value) is LIST else None  # type: ignore[call-overload]

        return has_text if has else is_text

    def why(self, properties: Properties, wanted: bool) -> str:
        found = self._test(properties)
        if found is wanted:
            return ""
        sign, value = self.sign if wanted else NEGATED[self.sign], properties.get(self.name)
        if value is None:
            return f"{self.name} is not stated, wanted {sign} {self._shown}"
        shown = show(value, self.wanted[0].unit)
        if found is None:
            return f"{self.name} is {shown}, which is not {self.kind}, wanted {sign} {self._shown}"
        return f"{self.name} is {shown}, wanted {sign} {self._shown}"

    def reduce(self, properties: Properties) -> bool | Term:
        found = self._test(properties)
        return self if found is None else found

    def gap(self, properties: Properties, wanted: bool) -> Fraction:
        found = self._test(properties)
        if found is wanted:
            return Fraction(0)
        if found is None or self.sign not in _ORDERED:
            return Fraction(1)
        bound, value = _fraction(self.wanted[0].value), _fraction(properties[self.name])
        return abs(bound - value) / max(abs(bound), abs(value)) if bound * value > 0 else Fraction(1)


class Exists(Term):
    """That a property is stated. It alone is never unknown."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return f"exists {self.name}"

    def compile(self) -> Test:
        name = self.name
        return lambda properties: properties.get(name) is not None

    def why(self, properties: Properties, wanted: bool) -> str:
        value = properties.get(self.name)
        if (value is not None) is wanted:
            return ""
        return f"{self.name} is not stated" if wanted else f"{self.name} is {show(value)}, wanted not to be stated"

    def reduce(self, properties: Properties) -> bool | Term:
        return properties.get(self.name) is not None

    def gap(self, properties: Properties, wanted: bool) -> Fraction:
        return Fraction((properties.get(self.name) is not None) is not wanted)


class Not(Term):
    """The opposite of a term."""

    __slots__ = ("inner",)

    def __init__(self, inner: Term) -> None:
        self.inner = inner

    def __str__(self) -> str:
        return f"not ({self.inner})" if isinstance(self.inner, Joined) else f"not {self.inner}"

    def compile(self) -> Test:
        test = self.inner.compile()

        def negate(properties: Properties) -> Truth:
            found = test(properties)
            return None if found is None else not found

        return negate

    def why(self, properties: Properties, wanted: bool) -> str:
        return self.inner.why(properties, not wanted)

    def reduce(self, properties: Properties) -> bool | Term:
        left = self.inner.reduce(properties)
        return Not(left) if isinstance(left, Term) else not left

    def gap(self, properties: Properties, wanted: bool) -> Fraction:
        return self.inner.gap(properties, not wanted)


class Joined(Term):
    """All of several terms, or any of them. `decides` is the value of a part that decides the whole: false for `and`,
    true for `or`. Nested joins of one kind are one."""

    __slots__ = ("decides", "parts")
    parts: tuple[Term, ...]

    def __init__(self, decides: bool, parts: Sequence[Term]) -> None:
        self.decides = decides
        flat: list[Term] = []
        for part in parts:
            flat += part.parts if isinstance(part, Joined) and part.decides is decides else [part]
        self.parts = tuple(flat)

    def __str__(self) -> str:
        shown = [f"({part})" if isinstance(part, Joined) else str(part) for part in self.parts]
        return (" or " if self.decides else " and ").join(shown)

    def compile(self) -> Test:
        tests, decides = [part.compile() for part in self.parts], self.decides

        def join(properties: Properties) -> Truth:
            value: Truth = not decides
            for test in tests:
                found = test(properties)
                if found is decides:
                    return decides
                if found is None:
                    value = None
            return value

        return join

    def why(self, properties: Properties, wanted: bool) -> str:
        reasons = [part.why(properties, wanted) for part in self.parts]
        if wanted is not self.decides:  # every part has to be as wanted
            return ", and ".join(filter(None, reasons))
        return f"none of these: {'; '.join(reasons)}" if all(reasons) else ""

    def reduce(self, properties: Properties) -> bool | Term:
        left = []
        for part in self.parts:
            found = part.reduce(properties)
            if found is self.decides:
                return found
            if isinstance(found, Term):
                left.append(found)
        if not left:
            return not self.decides
        return left[0] if len(left) == 1 else Joined(self.decides, left)

    def gap(self, properties: Properties, wanted: bool) -> Fraction:
        gaps = [part.gap(properties, wanted) for part in self.parts]
        return max(gaps, default=Fraction(0)) if wanted is not self.decides else min(gaps, default=Fraction(1))
