"""The smallest contract with an event: whatever it is sent, it logs the first word as Counted(uint256)."""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

from freehold.chain.abi import Call, Contract, EventType, Parameter
from freehold.chain.transactor import Sender
from freehold.protocol.typed import keccak

TOPIC = keccak(b"Counted(uint256)")
# PUSH0 CALLDATALOAD PUSH0 MSTORE PUSH32 topic PUSH1 32 PUSH0 LOG1 STOP
RUNTIME = bytes.fromhex("5f355f527f") + TOPIC + bytes.fromhex("60205fa100")
# PUSH1 size, PUSH1 offset, PUSH0, CODECOPY, PUSH1 size, PUSH0, RETURN
CREATION = bytes([0x60, len(RUNTIME), 0x60, 0x0A, 0x5F, 0x39, 0x60, len(RUNTIME), 0x5F, 0xF3]) + RUNTIME


class Counted(NamedTuple):
    number: int


class Counter(Contract):
    NAME = "Counter"
    EVENTS = MappingProxyType({TOPIC: EventType(Counted, TOPIC, (Parameter("uint256"),))})

    def count(self, number: int) -> Call:
        return Call(self.address, number.to_bytes(32))

    @classmethod
    async def make(cls, sender: Sender) -> Counter:
        receipt = await sender.transact(Call(None, CREATION))
        assert receipt.contract is not None
        return cls(sender.rpc, receipt.contract)
