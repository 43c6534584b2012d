"""The constraint language: what an order says of a node's properties, and a node of an order's.

    constraint  = alternative { "or" alternative }           not binds closest, then and, then or
    alternative = part { "and" part }
    part        = "not" part | "(" constraint ")" | "exists" NAME | NAME rule
    rule        = ( "=" | "!=" ) value | ( "<" | "<=" | ">" | ">=" ) NUMBER
                | [ "not" ] "in" "[" value { "," value } "]" | "has" TEXT
    value       = TEXT | NUMBER | "true" | "false"

Text stands in quotes; `*` in it matches any characters, and `\\*` a star. Numbers are exact and may carry a unit
(`4 GiB`, `1.5 h`). Nothing at all is a constraint that always holds. Only a constraint that is *true* matches: one that
is unknown says which property it lacks. `constraint_terms.py` has the logic.

Invariant: strangers' text is read in time linear in its length, which is bounded, as is its nesting; and
`parse(str(constraint))` is the same constraint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from typing import Final, NamedTuple

from freehold.market.constraint_terms import (
    BOOLEAN,
    NUMBER,
    TEXT,
    UNITS,
    Exists,
    Joined,
    Literal,
    Not,
    Properties,
    Rule,
    Term,
    Test,
    Truth,
    quote,
)
from freehold.protocol.errors import InvalidInput

LENGTH_LIMIT = 8192  # characters
DEPTH_LIMIT = 32  # of brackets and nots within each other
RULE_LIMIT = 128  # brackets and nots among them
KEYWORDS = frozenset({"and", "or", "not", "in", "has", "exists", "true", "false"})
END: Final = "the end"

_UNIT = "|".join(sorted(UNITS, key=len, reverse=True))
_TOKEN = re.compile(
    rf"""[ \t\r\n]*(?:
      (?P<number>-?[0-9]{{1,40}}(?:\.[0-9]{{1,40}})?)(?:[ ]?(?P<unit>{_UNIT}))?(?![\w.])
    | (?P<word>[A-Za-z_][\w-]*(?:\.[\w-]+)*)
    | (?P<text>"(?:[^"\\\x00-\x1f\x7f]|\\["'\\*])*"|'(?:[^'\\\x00-\x1f\x7f]|\\["'\\*])*')
    | (?P<sign><=|>=|!=|==|[=<>()\[\],])
    )""",
    re.VERBOSE | re.ASCII,
)
_BLANK = re.compile(r"[ \t\r\n]*")
_PIECE = re.compile(r"\\(.)|([^\\*]+)|(\*)")


class Verdict(NamedTuple):
    """What a constraint says of properties: `value` is None while it is unknown. `reason` says in words why it is not
    true; `reduced` is what is left of it ("true", "false", or the part that is still to be decided)."""

    value: Truth
    reason: str
    reduced: str


class Constraint:
    """A parsed constraint. `test` says its value and nothing else, quickly."""

    __slots__ = ("_clauses", "term", "test", "text")

    def __init__(self, term: Term) -> None:
        self.term = term
        self.text = str(term)
        self.test: Test = term.compile()
        self._clauses: tuple[Constraint, ...] | None = None

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Constraint({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constraint) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    @property
    def clauses(self) -> tuple[Constraint, ...]:
        """The parts that must all be true: what its outermost `and` joins."""
        if self._clauses is None:
            joined = isinstance(self.term, Joined) and not self.term.decides
            self._clauses = tuple(Constraint(part) for part in self.term.parts) if joined else (self,)  # type: ignore[attr-defined]
        return self._clauses

    def evaluate(self, properties: Properties) -> Verdict:
        """What it says of these properties, and why."""
        left = self.term.reduce(properties)
        if isinstance(left, Term):
            return Verdict(None, self.term.why(properties, True), str(left))
        return Verdict(left, "" if left else self.term.why(properties, True), "true" if left else "false")


def join(constraints: Iterable[Constraint]) -> Constraint:
    """All of them."""
    whole = Joined(False, [one.term for one in constraints])
    return Constraint(whole.parts[0] if len(whole.parts) == 1 else whole)


@lru_cache(maxsize=256)
def parse(text: str) -> Constraint:
    """The constraint that the text says. InvalidInput says where it stops making sense, and what would: its details
    are `line`, `column` (both from 1) and `expected`."""
    if len(text) > LENGTH_LIMIT:
        raise InvalidInput(f"a constraint has at most {LENGTH_LIMIT} characters, not {len(text)}")
    return Constraint(_Parser(text).parse())


class _Parser:
    """Recursive descent, one token ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0  # where the token ahead begins
        self._next = 0  # where the one after it may begin
        self._depth = self._rules = 0
        self._kind, self._token, self._unit = "", "", ""
        self._advance()

    def parse(self) -> Term:
        if self._token == END:
            return Joined(False, ())
        term = self._any()
        if self._token != END:
            raise self._error("and, or, or the end")
        return term

    def _any(self) -> Term:
        parts = [self._all()]
        while self._take("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else Joined(True, parts)

    def _all(self) -> Term:
        parts = [self._part()]
        while self._take("and"):
            parts.append(self._part())
        return parts[0] if len(parts) == 1 else Joined(False, parts)

    def _part(self) -> Term:
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            raise self._error(f"at most {DEPTH_LIMIT} brackets and nots within each other")
        self._rules += 1
        if self._rules > RULE_LIMIT:
            raise self._error(f"at most {RULE_LIMIT} rules")
        if self._take("not"):
            term: Term = Not(self._part())
        elif self._take("("):
            term = self._any()
            self._expect(")")
        elif self._take("exists"):
            term = Exists(self._name())
        else:
            term = self._rule()
        self._depth -= 1
        return term

    def _rule(self) -> Rule:
        name = self._name("a property's name, not, exists or (")
        for sign in ("=", "==", "!="):
            if self._take(sign):
                return Rule(name, "=" if sign == "==" else sign, [self._value()])
        for sign in ("<", "<=", ">", ">="):
            if self._take(sign):
                return Rule(name, sign, [self._value(NUMBER)])
        if self._take("has"):
            return Rule(name, "has", [self._value(TEXT)])
        sign = "not in" if self._take("not") else "in"
        if not self._take("in"):
            raise self._error("in" if sign == "not in" else "=, !=, <, <=, >, >=, in, not in or has")
        self._expect("[")
        wanted = [self._value()]
        while self._take(","):
            wanted.append(self._value(wanted[0].kind))
        self._expect("]")
        return Rule(name, sign, wanted)

    def _name(self, expected: str = "a property's name") -> str:
        if self._kind != "word" or self._token.lower() in KEYWORDS:
            raise self._error(expected)
        name = self._token
        self._advance()
        return name

    def _value(self, kind: str = "") -> Literal:
        found = self._literal()
        if found is None or (kind and found.kind != kind):
            raise self._error("text in quotes" if kind == TEXT else kind or "text in quotes, a number, true or false")
        self._advance()
        return found

    def _literal(self) -> Literal | None:
        """What the token ahead stands for, if it is a value."""
        if self._kind == "text":
            return _read_text(self._token[1:-1])
        if self._kind == "number":
            exact = Fraction(self._token) * UNITS.get(self._unit, 1)
            value = exact.numerator if exact.denominator == 1 else exact
            return Literal(NUMBER, value, f"{self._token} {self._unit}".strip(), self._unit)
        if self._kind == "word" and self._token.lower() in ("true", "false"):
            return Literal(BOOLEAN, self._token.lower() == "true", self._token.lower())
        return None

    def _take(self, token: str) -> bool:
        """Step over the token ahead if it is this sign or keyword."""
        if self._kind not in ("word", "sign") or self._token.lower() != token:
            return False
        self._advance()
        return True

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise self._error(token)

    def _advance(self) -> None:
        blank = _BLANK.match(self._text, self._next)
        self._at = self._next if blank is None else blank.end()
        found = _TOKEN.match(self._text, self._at)
        if found is None:
            self._kind, self._token = "", END if self._at == len(self._text) else self._text[self._at :][:20]
            if self._token != END:
                raise self._error("a name, a value or a sign")
            return
        self._kind = "number" if found["number"] else str(found.lastgroup)
        self._token, self._unit = found[self._kind], found["unit"] or ""
        self._next = found.end()

    def _error(self, expected: str) -> InvalidInput:
        line = self._text.count("\n", 0, self._at) + 1
        column = self._at - self._text.rfind("\n", 0, self._at)
        shown = self._token if self._token == END else repr(self._token[:40])
        return InvalidInput(
            f"constraint, line {line}, column {column}: expected {expected}, found {shown}",
            line=line,
            column=column,
            expected=expected,
        )


def _read_text(inner: str) -> Literal:
    """The text between two quotes: its escapes undone, and split at its stars."""
    parts = [""]
    for piece in _PIECE.finditer(inner):
        if piece[3]:
            parts.append("")
        else:
            parts[-1] += piece[1] or piece[2]
    return Literal(TEXT, "*".join(parts), quote_parts(parts), parts=tuple(parts))


def quote_parts(parts: Iterable[str]) -> str:
    """Text whose parts stand between stars, as a constraint spells it."""
    return f'"{"*".join(quote(part)[1:-1] for part in parts)}"'
