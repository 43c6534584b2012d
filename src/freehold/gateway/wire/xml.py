"""Reads the XML of request bodies: small trees, with limits, and nothing of XML that S3 does not need.

Namespaces and prefixes are looked through (clients send the right one, another one or none). Document types and with
them entities are refused. Whatever is wrong is MalformedXML.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from xml.parsers import expat

from freehold.gateway.wire.errors import S3Error

LARGEST_BODY = 2 << 20  # bytes
DEEPEST = 16
MOST_ELEMENTS = 120_000  # 10,000 parts with every checksum have fewer


class Node:
    """An element: its name without prefix, its text, its children in their order."""

    __slots__ = ("children", "name", "text")

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = ""
        self.children: list[Node] = []

    def all(self, name: str) -> Iterator[Node]:
        """The children of this name."""
        return (child for child in self.children if child.name == name)

    def get(self, name: str) -> Node | None:
        """The one child of this name, or None. MalformedXML where there are more."""
        found = [child for child in self.children if child.name == name]
        if len(found) > 1:
            raise malformed(f"<{name}> stands more than once in <{self.name}>")
        return found[0] if found else None

    def get_text(self, name: str) -> str | None:
        """The text of the one child of this name, or None."""
        child = self.get(name)
        return None if child is None else child.text

    def require_text(self, name: str) -> str:
        """The text of the one child of this name. MalformedXML where it is missing or empty."""
        text = self.get_text(name)
        if not text:
            raise malformed(f"<{self.name}> needs <{name}>")
        return text

    def get_integer(self, name: str, smallest: int, largest: int) -> int | None:
        """The number in the one child of this name, or None. MalformedXML for what is none or out of bounds."""
        text = self.get_text(name)
        if text is None:
            return None
        digits = text.strip()
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 20 and smallest <= int(digits) <= largest):
            raise malformed(f"<{name}> must be a whole number from {smallest} to {largest}")
        return int(digits)

    def check_children(self, *names: str) -> None:
        """MalformedXML where there are children of other names."""
        for child in self.children:
            if child.name not in names:
                raise malformed(f"<{child.name}> is not known in <{self.name}>")


def malformed(why: str) -> S3Error:
    """MalformedXML, with what is wrong after AWS's own sentence."""
    message = "The XML you provided was not well-formed or did not validate against our published schema"
    return S3Error("MalformedXML", f"{message}: {why}")


def parse_xml(data: bytes, root: str) -> Node:
    """The document's root element, which must be called `root`."""
    if len(data) > LARGEST_BODY:
        raise S3Error("MaxMessageLengthExceeded", MaxMessageLengthBytes=LARGEST_BODY)
    if not data:
        raise S3Error("MissingRequestBodyError")
    parser = expat.ParserCreate("UTF-8")
    parser.buffer_text = True
    top = Node("")
    stack = [top]
    texts: list[list[str]] = [[]]
    count = 0

    def start(name: str, _attributes: Any) -> None:
        nonlocal count
        count += 1
        if len(stack) > DEEPEST or count > MOST_ELEMENTS:
            raise malformed("too many elements, or too deep")
        node = Node(name.rpartition(":")[2])
        stack[-1].children.append(node)
        stack.append(node)
        texts.append([])

    def end(_name: str) -> None:
        stack.pop().text = "".join(texts.pop())

    def text(piece: str) -> None:
        texts[-1].append(piece)

    def doctype(*_: Any) -> None:
        raise malformed("a document type")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError) as error:
        raise malformed(str(error)) from None
    node = top.children[0]
    if node.name != root:
        raise malformed(f"expected <{root}>, not <{node.name}>")
    return node
