"""What a key has signed and the chain has not decided yet, on disk: a process that was killed is not asked to guess.

A signed transaction stands here before it is first sent, and until its fate is final. After a kill the next process
takes its nonces up, sends again what got lost, and finds the transaction of an intent by the intent's name: so it
waits for the purchase that is under way instead of making another.

Invariant: what leaves the machine is on its disk first; and of several processes with one journal one signs at a time.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from freehold.chain.abi import Call
from freehold.chain.fees import Fees
from freehold.protocol.errors import Corrupt
from freehold.protocol.units import Address, Hash

LOCK_PAUSE = 0.02  # seconds between looks at a lock that another process holds


@dataclass(frozen=True)
class Sent:
    """A signed transaction on its way: `raw` is all that is ever sent for this intent at these fees.

    `earlier` are the same intent and nonce at lower fees: any of them may be mined, and only one can. `intent` names
    what must not be done twice; "" for what may. `signed_at` is seconds by this machine's clock.
    """

    call: Call
    nonce: int
    gas: int
    fees: Fees
    transaction: Hash
    raw: bytes = field(repr=False)
    intent: str = ""
    signed_at: int = 0
    earlier: tuple[Hash, ...] = ()

    @property
    def hashes(self) -> tuple[Hash, ...]:
        """Under which the chain may have it, the newest first."""
        return (self.transaction, *self.earlier)

    def replaced_by(self, fees: Fees, transaction: Hash, raw: bytes) -> Sent:
        """The same intent and nonce at other fees."""
        return replace(self, fees=fees, transaction=transaction, raw=raw, earlier=self.hashes)

    def to_json(self) -> dict[str, Any]:
        return {
            "to": None if self.call.to is None else str(self.call.to),
            "data": self.call.data.hex(),
            "value": str(self.call.value),
            "nonce": self.nonce,
            "gas": self.gas,
            "fees": [str(fee) if fee is not None else None for fee in self.fees],
            "transaction": str(self.transaction),
            "raw": self.raw.hex(),
            "intent": self.intent,
            "signed_at": self.signed_at,
            "earlier": [str(transaction) for transaction in self.earlier],
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> Sent:
        most, tip = value["fees"]
        to = None if value["to"] is None else Address(value["to"])
        return Sent(
            call=Call(to, bytes.fromhex(value["data"]), int(value["value"])),
            nonce=value["nonce"],
            gas=value["gas"],
            fees=Fees(int(most), None if tip is None else int(tip)),
            transaction=Hash(value["transaction"]),
            raw=bytes.fromhex(value["raw"]),
            intent=value["intent"],
            signed_at=value["signed_at"],
            earlier=tuple(Hash(transaction) for transaction in value["earlier"]),
        )


class Journal:
    """One key's undecided transactions, in the file `path`; those of another chain are forgotten."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """While no other process signs with this key."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._path.with_name(self._path.name + ".lock").open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(LOCK_PAUSE)
            yield

    async def read(self, chain: Hash) -> dict[int, Sent]:
        """What is undecided on the chain whose first block is `chain`, by nonce. Corrupt."""
        return await asyncio.to_thread(self._read, chain)

    def _read(self, chain: Hash) -> dict[int, Sent]:
        try:
            value = json.loads(self._path.read_bytes())
            if value["chain"] != str(chain):
                return {}
            return {sent.nonce: sent for sent in map(Sent.from_json, value["sent"])}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Corrupt(
                f"{self._path} is no journal of transactions: {error}",
                hint="See on chain what this key has sent last, then remove the file.",
            ) from None

    async def write(self, chain: Hash, sent: Iterable[Sent]) -> None:
        """Replace what is there, durably."""
        await asyncio.to_thread(self._write, {"chain": str(chain), "sent": [entry.to_json() for entry in sent]})

    def _write(self, value: dict[str, Any]) -> None:
        temporary = self._path.with_name(self._path.name + ".new")
        with temporary.open("w") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
