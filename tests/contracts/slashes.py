"""Slashes as settlement commits to them, and one of them as the Slasher takes it."""

from __future__ import annotations

from typing import Any

from freehold.protocol.merkle import row_proof
from freehold.protocol.messages import Report
from freehold.protocol.tables import Table
from freehold.protocol.typed import keccak
from freehold.protocol.units import Address
from freehold.protocol.verdicts import Slash
from tests.contracts.world import TOKEN, hexed, key_of, tuple_of

HARMED = key_of("harmed").address


def slashes_of(count: int, operator: str, node: str, amount: int = 10 * TOKEN) -> Table[Slash]:
    """`count` slashes of one node, for different subjects."""
    rows = (
        Slash(
            service="compute",
            node=Address(node),
            operator=Address(operator),
            subject=keccak(b"case" + bytes([i])),
            harmed=HARMED,
            amount=amount,
        )
        for i in range(count)
    )
    return Table.of(Slash, rows)


def shown(report: Report, slashes: Table[Slash], index: int) -> tuple[Any, ...]:
    """The arguments of `slash`."""
    row = slashes.rows[index]
    values = tuple(
        hexed(value) if isinstance(value, Address) else value
        for value in (getattr(row, name) for name in row.__struct_fields__)
    )
    return tuple_of(report), len(slashes), index, values, row_proof([slash.row_hash() for slash in slashes.rows], index)
