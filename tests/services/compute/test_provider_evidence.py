"""Receipts on their way to the members, by themselves: none is left behind, whatever epochs come again."""

from __future__ import annotations

import asyncio
from typing import Any

from freehold.protocol.units import ZERO_HASH, Address, Hash
from freehold.services.compute.node.evidence import Evidence
from freehold.services.compute.node.orders_credits import Credits
from freehold.services.compute.terms import RECEIPT, Receipt

NODE = Address(b"n" * 20)


class FakeOrders:
    """SQL that has all receipts, and of which the state has none."""

    def __init__(self) -> None:
        self.receipts: list[Receipt] = []

    async def unsent(self, committed: int) -> list[Receipt]:
        return list(self.receipts)


def test_what_comes_in_an_epoch_that_is_settled_again_goes_out_in_the_next() -> None:
    """Epoch 6 is revoked while 7 is open: nothing is committed or collected between, and `gather` begins anew."""
    orders: Any = FakeOrders()
    evidence = Evidence(NODE, orders, Credits(), lambda: 0)

    def give(number: int) -> None:
        receipt = Receipt(
            node=NODE, lease=ZERO_HASH, number=number, task=ZERO_HASH, most=1, until=99, input=ZERO_HASH,
            output=ZERO_HASH, steps=ZERO_HASH, measure=1,
        )  # fmt: skip
        orders.receipts.append(receipt)
        evidence.given(receipt, Hash(number.to_bytes(32)))

    def numbers() -> list[int]:
        return [row.number for row in evidence.gather({})[RECEIPT]]

    async def run() -> None:
        give(1)
        give(2)
        evidence.begin(7)
        await evidence.collect()
        evidence.begin(6)  # once more
        give(3)
        give(4)
        assert numbers() == [3, 4]
        evidence.begin(7)
        assert numbers() == [3, 4]

    asyncio.run(run())
