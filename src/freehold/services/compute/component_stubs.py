"""The stubs in a component that componentize-py makes, in an order of their own.

It stands a stub in for each of WASI's interfaces: a module whose functions all trap. They come in the order of a hash
table that is seeded anew for each build, and so do the functions in each. Here they are sorted, and what refers to them
is numbered anew. Names for debuggers, which number them too, go. Pure: bytes in, bytes out.

Invariant: the component means what it meant; one that is not of this shape comes back as it is.
"""

from __future__ import annotations

from typing import NamedTuple

PREAMBLE = 8  # bytes of magic and version
CUSTOM, MODULE, INSTANCES, ALIASES = 0, 1, 2, 6  # sections of a component
TYPES, FUNCTIONS, EXPORTS, CODE = 1, 3, 7, 10  # sections of a module
TRAP = b"\x03\x00\x00\x0b"  # a function's body: no locals, unreachable, end
CORE, CORE_EXPORT, OUTER = 0, 1, 2  # what an alias is of
INSTANCE = b"\x12"


class Reader:
    """Over bytes. IndexError behind their end."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def number(self) -> int:
        """An unsigned one, LEB128."""
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def take(self, size: int) -> bytes:
        """So many."""
        self.at += size
        return self.data[self.at - size : self.at]

    def text(self) -> bytes:
        """Those that stand behind their number."""
        return self.take(self.number())


def write_number(value: int) -> bytes:
    """Unsigned, LEB128."""
    written = bytearray()
    while value >= 128:
        written.append(value & 127 | 128)
        value >>= 7
    return bytes([*written, value])


def write_bytes(data: bytes) -> bytes:
    """Behind their number."""
    return write_number(len(data)) + data


class Section(NamedTuple):
    """A part of a module or component."""

    kind: int
    body: bytes


def read_sections(data: bytes) -> list[Section]:
    """Those behind the preamble."""
    reader, found = Reader(data, PREAMBLE), []
    while reader.at < len(data):
        kind = reader.take(1)[0]
        found.append(Section(kind, reader.text()))
    return found


def write_sections(preamble: bytes, sections: list[Section]) -> bytes:
    """A whole module or component."""
    return preamble + b"".join(bytes([one.kind]) + write_bytes(one.body) for one in sections)


def sort_stub(module: bytes) -> bytes | None:
    """The stub with its functions by name; None where it is none."""
    sections = read_sections(module)
    if [one.kind for one in sections] != [TYPES, FUNCTIONS, EXPORTS, CODE]:
        return None
    types, functions, exports, code = (Reader(one.body) for one in sections)
    count = types.number()
    if {functions.number(), exports.number(), code.number()} != {count}:
        return None
    if [functions.number() for _ in range(count)] != list(range(count)):
        return None
    if [code.take(len(TRAP)) for _ in range(count)] != [TRAP] * count:
        return None
    kinds = []
    for _ in range(count):
        start = types.at
        types.at += 1
        types.take(types.number())
        types.take(types.number())
        kinds.append(types.data[start : types.at])
    names = []
    for _ in range(count):
        name = exports.text()
        if exports.take(1) != b"\x00":
            return None
        names.append((name, exports.number()))
    names.sort()
    sections[0] = Section(TYPES, write_number(count) + b"".join(kinds[old] for _, old in names))
    listed = b"".join(write_bytes(name) + b"\x00" + write_number(new) for new, (name, _) in enumerate(names))
    sections[2] = Section(EXPORTS, write_number(count) + listed)
    return write_sections(module[:PREAMBLE], sections)


def sort_stubs(component: bytes) -> bytes:
    """The component with its stubs by name."""
    sections = read_sections(component)
    modules = [place for place, one in enumerate(sections) if one.kind == MODULE]
    stubs = {number: stub for number, place in enumerate(modules) if (stub := sort_stub(sections[place].body))}
    instances = _instances_of(sections, stubs)
    if instances is None:
        return component
    numbers = sorted(stubs)
    order = sorted(stubs.values())
    # Of equal stubs all refer to the first.
    moved = {instances[old]: instances[numbers[order.index(stub)]] for old, stub in stubs.items()}
    for number, stub in zip(numbers, order, strict=True):
        sections[modules[number]] = Section(MODULE, stub)
    for place, one in enumerate(sections):
        if one.kind == ALIASES:
            sections[place] = Section(ALIASES, _renumber_aliases(one.body, moved))
        elif one.kind == INSTANCES:
            sections[place] = Section(INSTANCES, _renumber_instances(one.body, moved))
    return write_sections(component[:PREAMBLE], [one for one in sections if one.kind != CUSTOM])


def _instances_of(sections: list[Section], stubs: dict[int, bytes]) -> dict[int, int] | None:
    """The instance of each stub; None where one is not instantiated just once, by nothing else."""
    found: dict[int, int] = {}
    count = 0
    for one in sections:
        if one.kind == INSTANCES:
            reader = Reader(one.body)
            for _ in range(reader.number()):
                if reader.take(1) == b"\x00":
                    module, arguments = reader.number(), reader.number()
                    if module in stubs and (module in found or arguments):
                        return None
                    found[module] = count
                else:
                    arguments = reader.number()
                for _ in range(arguments):
                    reader.text()
                    reader.take(1)
                    reader.number()
                count += 1
    return found if stubs.keys() <= found.keys() else None


def _renumber_instances(body: bytes, moved: dict[int, int]) -> bytes:
    reader = Reader(body)
    count = reader.number()
    written = bytearray(write_number(count))
    for _ in range(count):
        kind = reader.take(1)
        written += kind
        if kind == b"\x00":
            written += write_number(reader.number())
        items = reader.number()
        written += write_number(items)
        for _ in range(items):
            written += write_bytes(reader.text())
            sort = reader.take(1)
            index = reader.number()
            written += sort + write_number(moved.get(index, index) if sort == INSTANCE else index)
    return bytes(written)


def _renumber_aliases(body: bytes, moved: dict[int, int]) -> bytes:
    reader = Reader(body)
    count = reader.number()
    written = bytearray(write_number(count))
    for _ in range(count):
        sort = reader.take(1)
        written += sort + (reader.take(1) if sort[0] == CORE else b"")
        target, index = reader.take(1), reader.number()
        written += target + write_number(moved.get(index, index) if target[0] == CORE_EXPORT else index)
        written += write_number(reader.number()) if target[0] == OUTER else write_bytes(reader.text())
    return bytes(written)
