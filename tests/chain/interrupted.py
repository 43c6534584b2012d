"""A process that pays once, as "the purchase", and is killed at a step: `python -m tests.chain.interrupted`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from freehold.chain.abi import Call
from freehold.chain.journal import Journal, Sent
from freehold.chain.rpc import Rpc
from freehold.chain.transactor import Receipt, Sender
from freehold.protocol.units import Address
from tests.local.chains import key

RECIPIENT = Address(b"\x11" * 20)
PAY = Call(RECIPIENT, b"", 1)
PURCHASE = "the purchase"
STEPS = ("before it is kept", "before it is sent", "after it is sent", "after it is mined")


class Killed(Sender):
    """Ends the process, as kill -9 does, at `step`."""

    step = ""

    def _reach(self, step: str) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    async def _keep(self) -> None:
        self._reach("before it is kept")
        await super()._keep()

    async def _broadcast(self, sent: Sent) -> None:
        self._reach("before it is sent")
        await super()._broadcast(sent)
        self._reach("after it is sent")

    async def _forget(self, sent: Sent) -> None:
        self._reach("after it is mined")
        await super()._forget(sent)


async def pay(url: str, journal: Path, step: str) -> Receipt:
    async with Rpc(url, chain_id=31337) as rpc:
        sender = Killed(rpc, key(0), poll=0.01, confirmations=1, journal=Journal(journal))
        sender.step = step
        return await sender.transact(PAY, intent=PURCHASE)


if __name__ == "__main__":
    asyncio.run(pay(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
