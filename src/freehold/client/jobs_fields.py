"""How one definition of a job's parts gives its YAML, its Python and its documentation.

A part is a frozen dataclass below `Part`; each field says by its kind what it takes, and in a sentence what it is for.
YAML's values (`jobs_yaml.py`) and Python's go through the same kinds, so "512 MiB" is as good as 2**29 in both. An
error stands where the value stands: file, line and column for YAML, the field's name for Python.

Invariant: a kind takes what it gives: a part made from another part's fields is equal to it.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple, Self

from freehold.client import jobs_units
from freehold.client.jobs_yaml import SpecError, Text, spec_error

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class Kind(NamedTuple):
    """What a field takes: `expects` says it in words, `take` gives the value as it is kept, or raises ValueError (which
    becomes "expected ...") or SpecError (which is more exact)."""

    expects: str
    take: Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Base of every part of a job."""

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if value is one.default:
                continue
            object.__setattr__(self, one.name, take(one.metadata["kind"], value, one.name))
        self.check()

    def check(self) -> None:
        """SpecError where the fields do not go together."""

    @classmethod
    def of(cls, value: object) -> Self:
        """The part itself, or the one that a mapping describes. ValueError if it is neither."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(value)
        names = [one.name for one in dataclasses.fields(cls)]
        for key in value:
            if key not in names:
                raise spec_error(f"there is no {str(key)!r} here", key, suggest(key, names))
        for one in dataclasses.fields(cls):
            if one.default is MISSING and one.default_factory is MISSING and one.name not in value:
                raise spec_error(f"{one.name!r} is missing: {one.metadata['doc']}", value)
        given = {key: one for key, one in value.items() if not (isinstance(one, Text) and one.null)}
        try:
            return cls(**given)
        except TypeError as error:  # a required field was given as nothing
            raise spec_error(str(error).partition("() ")[2], value) from None
        except SpecError as error:
            if "line" in error.details:
                raise
            raise spec_error(error.message, value, error.advice) from None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, without what is as it would be anyway; `of` takes it."""
        found: dict[str, Any] = {}
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            default = one.default_factory() if one.default_factory is not MISSING else one.default
            if value != default:
                found[one.name] = _plain(value)
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, str) else value


def take(kind: Kind, value: Any, name: str) -> Any:
    """The value as a field keeps it. SpecError says what was expected."""
    try:
        return kind.take(value)
    except (ValueError, TypeError) as error:
        detail = error.args[0] if error.args and isinstance(error.args[0], Refusal) else None
        shown = (
            "a mapping" if isinstance(value, Mapping) else "a list" if isinstance(value, list) else repr(_short(value))
        )
        hint = detail.hint if detail else ""
        raise spec_error(f"{name}: expected {kind.expects}, not {shown}", value, hint) from None


class Refusal(NamedTuple):
    """What a kind's ValueError may carry: a hint."""

    hint: str


def _short(value: Any) -> Any:
    text = str(value) if isinstance(value, str) else value
    return text if not isinstance(text, str) or len(text) <= 60 else text[:57] + "..."


def suggest(word: str, known: Iterable[str]) -> str:
    """A hint: what was probably meant, or what there is."""
    names = sorted(known)
    near = difflib.get_close_matches(str(word), names, 1, 0.6)
    return f"Did you mean {near[0]!r}?" if near else f"There is: {', '.join(names)}."


def one_of(kind: Kind, doc: str, default: Any = MISSING) -> Any:
    """A field of a part."""
    metadata = {"kind": kind, "doc": doc}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


# Kinds


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(value)
    return value if isinstance(value, Text) else str(value)


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}[_known(value, ("true", "false"))]


def _known(value: Any, names: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in names:
        raise ValueError(Refusal(suggest(value, names)) if isinstance(value, str) else value)
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(value)
    return value


def count(least: int, most: int) -> Kind:
    """A whole number."""

    def number(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(value)
        made = int(value) if isinstance(value, int) or (value.isascii() and value.isdigit() and len(value) < 20) else -1
        if not least <= made <= most:
            raise ValueError(value)
        return made

    return Kind(f"a whole number from {least} to {most}", number)


def measured(expects: str, parse: Callable[[str], int]) -> Kind:
    """A text with a unit, or (in Python) the number itself."""

    def amount(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(value)
        if isinstance(value, int):
            if value < 0:
                raise ValueError(value)
            return value
        return parse(value)

    return Kind(expects, amount)


def choice(*names: str) -> Kind:
    """One of some words."""
    return Kind(f"one of {', '.join(names)}", lambda value: _known(value, names))


def many(item: Kind, name: str) -> Kind:
    """A list."""

    def listed(value: Any) -> tuple[Any, ...]:
        if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
            raise ValueError(value)
        return tuple(take(item, one, f"{name} {number}") for number, one in enumerate(value, 1))

    return Kind(f"a list, each {item.expects}", listed)


def named(item: Kind) -> Kind:
    """A mapping from text."""

    def mapped(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError(value)
        return {key: take(item, one, str(key)) for key, one in value.items()}

    return Kind(f"a mapping, each {item.expects}", mapped)


def part(cls: type[Part], expects: str, short: Callable[[Any], Any] = lambda value: value) -> Kind:
    """Another part; `short` turns a shorter way to write it into a mapping."""
    return Kind(expects, lambda value: cls.of(value if isinstance(value, cls) else short(value)))


def _assurance(value: Any) -> str:
    """As a decimal text in its shortest form: it is compared and computed with as an exact fraction."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(value)
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        raise ValueError(value) from None
    if not number.is_finite() or not 0 <= number < 1 or -int(number.as_tuple().exponent) > 9:
        raise ValueError(value)
    return f"{number.normalize():f}"


TEXT = Kind("text", _text)
NAME = Kind("a name: a-z, 0-9, - and _", _name)
FLAG = Kind("true or false", _flag)
SIZE = measured(jobs_units.SIZE, jobs_units.parse_size)
DURATION = measured(jobs_units.DURATION, jobs_units.parse_duration)
CREDITS = measured(jobs_units.CREDITS, jobs_units.parse_credits)
ASSURANCE = Kind("a probability from 0 to below 1, like 0.999, with at most 9 places", _assurance)
