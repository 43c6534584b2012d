"""What a watcher does for others on chain: it takes the bonds that a report's slashes name, each by itself."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from freehold.oracle.court import Court
from freehold.protocol.errors import ChainError
from freehold.protocol.tables import Table
from freehold.protocol.units import Address, Hash
from freehold.protocol.verdicts import Slash
from tests.protocol.world import busy_world, key

SLASHES = Table.of(
    Slash,
    [
        Slash(
            service="compute", node=key(i).address, operator=key(10 + i).address, subject=Hash(bytes([i]) * 32),
            harmed=key(99).address, amount=5,
        )
        for i in range(1, 5)
    ],
)  # fmt: skip


class Position(NamedTuple):
    bond: int
    thawing: int


class FakeChain:
    """The contracts that a court asks, and who sends its transactions: those over `broken` nodes revert."""

    def __init__(self, bonds: dict[Address, Position], broken: set[Address]) -> None:
        self.bonds, self.broken = bonds, broken
        self.done: set[Hash] = set()
        self.sent: list[Address] = []

    async def slashed(self, _: Hash, row: Hash) -> bool:
        return row in self.done

    async def position(self, _: Address, node: Address) -> Position:
        return self.bonds.get(node, Position(5, 0))

    def slash(self, _report: Any, count: int, index: int, row: Any, _proof: Any) -> Any:
        assert count == len(SLASHES)
        return SLASHES.row(index).row_hash(), row.node

    async def transact(self, call: tuple[Hash, Address]) -> None:
        if call[1] in self.broken:
            raise ChainError("it reverted")
        self.done.add(call[0])
        self.sent.append(call[1])


def court_of(chain: FakeChain) -> Court:
    court = Court.__new__(Court)
    court.__dict__ = {"_slasher": chain, "_staking": chain, "_sender": chain}
    return court


def test_a_bond_that_cannot_be_taken_keeps_no_other_back() -> None:
    first, second, third, fourth = (row.node for row in SLASHES)
    chain = FakeChain({third: Position(0, 0), fourth: Position(0, 5)}, {first})
    court, report = court_of(chain), busy_world().settlements[-1].report
    taken = asyncio.run(court.take(report, SLASHES))
    assert chain.sent == [second, fourth]  # of the third nothing is left
    assert taken.bonds == 2
    assert [str(first) in why and "it reverted" in why for why in taken.failures] == [True]
    chain.broken.clear()
    taken = asyncio.run(court.take(report, SLASHES))
    assert (taken.bonds, taken.failures, chain.sent) == (1, [], [second, fourth, first])
