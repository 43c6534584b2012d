"""The tables of docs/jobs.md, from the definitions themselves: a test holds the page to them."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any

from freehold.client.jobs_attested import Hardware
from freehold.client.jobs_fields import CREDITS, DURATION, SIZE, Kind, Part
from freehold.client.jobs_spec import File, Job, Map, Resources, Service, Step, Verify

PARTS: tuple[type[Part], ...] = (Job, Step, File, Map, Resources, Service, Verify, Hardware)


def write_tables() -> str:
    """A heading and a table for each part."""
    return "\n".join(_write(kind) for kind in PARTS)


def _write(kind: type[Part]) -> str:
    rows = []
    for one in fields(kind):
        expects, doc = (_escape(text) for text in (one.metadata["kind"].expects, one.metadata["doc"]))
        rows.append(f"| `{one.name}` | {expects} | {_default(one)} | {doc} |")
    head = ["| field | takes | default | what for |", "|---|---|---|---|"]
    return "\n".join([f"### {kind.__name__}", "", " ".join((kind.__doc__ or "").split()), "", *head, *rows, ""])


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def _default(one: Field[Any]) -> str:
    if one.default is MISSING and one.default_factory is MISSING:
        return "required"
    value = one.default
    if value in (None, "", ()) or value is MISSING or isinstance(value, Part):
        return ""
    return f"`{_in_units(one.metadata['kind'], value)}`"


def _in_units(kind: Kind, value: Any) -> str:
    if kind is SIZE and value:
        return f"{value // 2**20} MiB"
    if kind is DURATION:
        return f"{value // 60} min" if value % 60 == 0 else f"{value} s"
    if kind is CREDITS or isinstance(value, bool):
        return str(value).lower()
    return ", ".join(value) if isinstance(value, tuple) else str(value)
