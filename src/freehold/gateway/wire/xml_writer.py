"""Writes the XML that S3 answers with.

What XML 1.0 cannot hold (control characters) is written as a numeric reference, as AWS does: a strict parser refuses
such an answer, which is why `encoding-type=url` exists for listings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
_SPECIAL = re.compile('[&<>"\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]')
_NAMES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}


def escape(text: str) -> str:
    """`text` as the content of an element."""
    return _SPECIAL.sub(_reference, text) if _SPECIAL.search(text) else text


def _reference(match: re.Match[str]) -> str:
    found = match.group()
    return _NAMES.get(found) or f"&#x{ord(found):x};"


class Writer:
    """An XML document, element by element, in the order of the calls."""

    def __init__(self, root: str, namespace: str = NAMESPACE) -> None:
        self._root = root
        self._parts = [DECLARATION, f'<{root} xmlns="{namespace}">' if namespace else f"<{root}>"]

    def leaf(self, name: str, value: str | int | bool) -> None:
        """`<name>value</name>`; a bool is written as true or false."""
        text = ("true" if value else "false") if isinstance(value, bool) else escape(str(value))
        self._parts.append(f"<{name}>{text}</{name}>")

    def optional(self, name: str, value: str | int | bool | None) -> None:
        """As `leaf`; nothing where there is no value."""
        if value is not None and value != "":
            self.leaf(name, value)

    @contextmanager
    def inside(self, name: str, attributes: str = "") -> Iterator[None]:
        """What is written within stands inside `<name>`; `attributes` is written as it is."""
        self._parts.append(f"<{name}{' ' + attributes if attributes else ''}>")
        yield
        self._parts.append(f"</{name}>")

    def done(self) -> bytes:
        """The whole document."""
        return "".join((*self._parts, f"</{self._root}>")).encode("utf-8")
