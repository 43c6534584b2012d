"""YAML as plain values that remember where they stand, read safely: text, lists and mappings, and nothing else.

Every scalar is text: what it means is for the schema to say (so `no` is a country where a country is expected). Tags,
aliases, merge keys and a second document are refused: they are how a small file becomes a large or a foreign object.
Invariant: reading takes time and memory in proportion to a file that is at most SIZE_LIMIT bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import yaml

from freehold.protocol.errors import InvalidInput

SIZE_LIMIT = 1 * 2**20  # bytes
DEPTH_LIMIT = 16
COUNT_LIMIT = 100_000  # values in all


class Mark(NamedTuple):
    """A place in a file; `line` and `column` count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class SpecError(InvalidInput):
    """A job's spec is not as it must be: `details` have file, line and column where it came from a file."""

    code = "invalid_spec"


class Text(str):
    """A scalar. `null`: it was empty or `~` and not quoted."""

    __slots__ = ("at", "null")
    at: Mark
    null: bool


class Items(list[Any]):
    """A sequence."""

    __slots__ = ("at",)
    at: Mark


class Entries(dict[str, Any]):
    """A mapping; its keys are Text."""

    __slots__ = ("at",)
    at: Mark


def mark_of(value: object) -> Mark | None:
    """Where a value stands; None for one that no file has."""
    return getattr(value, "at", None)


def spec_error(message: str, value: object = None, hint: str = "") -> SpecError:
    """The error at a value's place (or at a Mark)."""
    at = value if isinstance(value, Mark) else mark_of(value)
    if at is None:
        return SpecError(message, hint=hint)
    return SpecError(f"{at}: {message}", hint=hint, file=at.file, line=at.line, column=at.column)


def read_yaml(data: bytes, file: str) -> Text | Items | Entries:
    """The one document in `data`; `file` is what errors call it. SpecError."""
    start = Mark(file, 1, 1)
    if len(data) > SIZE_LIMIT:
        raise spec_error(f"a spec has at most {SIZE_LIMIT} bytes, not {len(data)}", start)
    try:
        return _Reader(file, data.decode()).read()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise spec_error("this is not UTF-8", Mark(file, line, 1)) from None
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        at = Mark(file, place.line + 1, place.column + 1) if place else start
        raise spec_error(f"this is not YAML: {error.problem or error.context}", at) from None
    except yaml.YAMLError as error:
        raise spec_error(f"this is not YAML: {error}", start) from None


class _Reader:
    """Builds values from the parser's events, which it reads one by one: nothing recurses before it is counted."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._events = yaml.parse(text, Loader=yaml.CSafeLoader)
        self._count = 0

    def read(self) -> Text | Items | Entries:
        next(self._events)  # the stream's start
        first = next(self._events)
        if isinstance(first, yaml.StreamEndEvent):
            raise spec_error("the spec is empty", Mark(self._file, 1, 1))
        value = self._value(next(self._events), 0)
        next(self._events)  # the document's end
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise spec_error("a spec is one document: another begins here", self._mark(after))
        return value

    def _mark(self, event: yaml.Event) -> Mark:
        return Mark(self._file, event.start_mark.line + 1, event.start_mark.column + 1)

    def _value(self, event: yaml.Event, depth: int) -> Text | Items | Entries:
        at = self._mark(event)
        self._count += 1
        if self._count > COUNT_LIMIT or depth > DEPTH_LIMIT:
            raise spec_error(f"a spec has at most {COUNT_LIMIT} values, nested {DEPTH_LIMIT} deep", at)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise spec_error("anchors and aliases (&, *) are not taken: write the value again", at)
        if getattr(event, "tag", None) not in (None, "!"):
            raise spec_error(f"tags are not taken: {event.tag}", at)
        if isinstance(event, yaml.ScalarEvent):
            return self._text(event, at)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._items(at, depth)
        return self._entries(at, depth)

    def _text(self, event: yaml.ScalarEvent, at: Mark) -> Text:
        text = Text(event.value)
        text.at = at
        text.null = event.style is None and event.value in ("", "~", "null")
        return text

    def _items(self, at: Mark, depth: int) -> Items:
        items = Items()
        items.at = at
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._value(event, depth + 1))
        return items

    def _entries(self, at: Mark, depth: int) -> Entries:
        entries = Entries()
        entries.at = at
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._value(event, depth + 1)
            if not isinstance(key, Text):
                raise spec_error("a key is text", key)
            if key in entries:
                raise spec_error(f"{str(key)!r} stands here twice", key)
            entries[key] = self._value(next(self._events), depth + 1)
        return entries
