"""A member as a process of its own, for load: real HTTP, state machine, disk and commits; of the chain a block or two.

    python -m tests.oracle.load_member DIRECTORY SYNC_SECONDS [PORT]

Every commit takes SYNC_SECONDS longer than the disk does. Prints its URL, and serves until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from freehold.net.server import make_app, serve
from freehold.oracle.engine import Engine
from freehold.oracle.events import ChainAdvanced, Tick
from freehold.oracle.member import Member
from freehold.oracle.records import Record
from freehold.oracle.server import Api
from freehold.oracle.setup import Setup
from freehold.oracle.store import Store
from freehold.protocol.keys import Key
from freehold.protocol.typed import keccak
from freehold.protocol.units import ONE
from tests.oracle.fake_chain import PARAMETERS, START, FakeChain
from tests.oracle.simulation import DOMAIN, KEYS, NODE, TIMING

CLIENTS = [Key(keccak(f"load client {i}".encode())) for i in range(16)]
STRANGER = Key(keccak(b"load stranger"))


def load_setup() -> Setup:
    return Setup(KEYS[0], DOMAIN, START, {}, TIMING)


def open_store(directory: Path, kind: type[Store] = Store) -> Store:
    return kind(directory, 2**30, PARAMETERS.bundle_epochs, DOMAIN, {})


def chain(blocks: int) -> FakeChain:
    """A chain on which NODE is bonded and every one of CLIENTS has bought credits."""
    found = FakeChain(DOMAIN)
    found.register(NODE.address, NODE.address, PARAMETERS.minimum_bond)
    for client in CLIENTS:
        found.buy(client.address, ONE)
    for _ in range(blocks):
        found.mine()
    return found


class SlowStore(Store):
    """A disk that takes its time to sync."""

    seconds = 0.0

    async def write(self, records: Sequence[Record]) -> None:
        await asyncio.sleep(self.seconds)
        await super().write(records)


async def run(directory: Path, seconds: float, port: int) -> None:
    SlowStore.seconds = seconds
    store = open_store(directory, SlowStore)
    member = Member(load_setup(), *await store.load())
    peers: Any = SimpleNamespace(send=lambda *_: None)
    nobody: Any = None
    engine = Engine(member, store, peers, nobody)
    status: Any = SimpleNamespace(batches=0, certificates=0, messages=0)
    api = Api(engine, store, status)
    server = await serve(make_app(api.routes(), ready=lambda: (True, ""), metrics=lambda: ""), "127.0.0.1", port)
    engine.handle(Tick(0))
    engine.handle(ChainAdvanced((chain(1).blocks[0],)))
    print(server.url, flush=True)
    await engine.run()


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), float(sys.argv[2]), int([*sys.argv, "0"][3])))
