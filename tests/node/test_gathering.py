"""What comes to a provider in an open epoch goes out before it closes; lists until the committed state has them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from freehold.node import epochs
from freehold.node.book import MIGRATIONS, Book
from freehold.node.epochs import EpochLoop
from freehold.protocol.errors import Unavailable
from freehold.protocol.tables import Table
from freehold.protocol.units import Address, Hash
from freehold.protocol.verdicts import GOOD, SILENT
from freehold.services.seam import LiveFleet, ProviderContext
from freehold.services.sensing.device import OpenEpoch, derive_keys, sign_devices, sign_reports
from freehold.services.sensing.provider import SensingProvider
from freehold.services.sensing.terms import ENROLMENT, REPORT, DeviceReport
from freehold.store.blobs import Blobs
from freehold.store.sql import Database
from tests.node.world import FakeQuorum
from tests.protocol.world import DOMAIN, PARAMETERS, World, key
from tests.services.contexts import NOTHING_ELSE
from tests.services.sensing_world import fleet_of

NODE = key(11)
KEYS = list(derive_keys(b"gathering", 7))
DEVICES = sign_devices(KEYS, Address(bytes(19) + b"\x07"), 5, DOMAIN)
FLEET = fleet_of(1, list(DEVICES))


class Looping:
    """An EpochLoop over the sensing provider; members that settle with the real rules."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        parameters = msgspec.structs.replace(PARAMETERS, coverage_share=100_000)
        self.world = World((), (NODE,), parameters=parameters, fleets=(FLEET,))
        self.quorum = FakeQuorum(self.world)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Looping:
        database = Database(self.directory / "node.sqlite", MIGRATIONS)
        self._stack.callback(database.close)
        book = Book(database, DOMAIN)
        self.provider = SensingProvider(
            ProviderContext(
                key=NODE,
                domain=DOMAIN,
                parameters=PARAMETERS,
                leases=book,
                files=Blobs(self.directory / "sensing", 0),
                open_sql=lambda migrations: Database(self.directory / "sensing.sqlite", migrations),
                authenticate=lambda *_: None,
                find_fleet=self.find_fleet,
                members_of=lambda _: (),
                clock=lambda: 0,
                **NOTHING_ELSE,
            )
        )
        self._stack.push_async_callback(self.provider.stop)
        await self.provider.start()
        refresh: Any = lambda: self.quorum  # noqa: E731
        self.loop = EpochLoop(NODE, PARAMETERS, book, {"sensing": self.provider}, refresh, lambda: 0, 0.01)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def find_fleet(self, fleet: Hash) -> LiveFleet:
        assert fleet == FLEET.fleet
        return LiveFleet(FLEET.root, FLEET.count)

    async def report(self, first: int, last: int) -> None:
        opened = self.provider._inbox.current
        readings = np.zeros((last - first, 32), np.uint8)
        rows = sign_reports(KEYS[first:last], OpenEpoch(*opened), readings, DOMAIN)
        assert (await self.provider._inbox.take(rows)).new == last - first

    def sent(self, kind: str) -> list[int]:
        return [len(batch.table) for batch in self.quorum.batches if batch.header.kind == kind]


def test_lists_go_out_until_they_are_in_and_reports_as_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epochs, "ROWS_AT_ONCE", 3)

    async def scenario() -> None:
        async with Looping(tmp_path) as running:
            await running.provider._roster.add(FLEET.fleet, DEVICES)
            await running.loop.step()
            assert running.sent(ENROLMENT) == [3, 3, 1]
            running.quorum.batches = []  # the members lost it: no certificate was in a manifest
            running.quorum.settle()
            await running.loop.step()
            assert running.sent(ENROLMENT) == [3, 3, 1]
            assert running.quorum.settle() == [GOOD] * 7
            await running.loop.step()
            assert running.sent(ENROLMENT) == []

            await running.report(0, 2)
            await running.loop.step()
            assert running.sent(REPORT) == [2]
            await running.report(2, 6)
            await running.loop.step()  # whole batches at once, the rest in its time
            assert running.sent(REPORT) == [2, 3]
            running.loop._gathered_at = 0.0
            running.quorum.failing = Unavailable("the members are away")
            with pytest.raises(Unavailable):
                await running.loop.step()
            running.quorum.failing = None
            await running.loop.step()
            assert running.sent(REPORT) == [2, 3, 1]
            await running.loop.step()
            assert running.sent(REPORT) == [2, 3, 1]
            assert sorted(running.quorum.settle()) == [GOOD] * 6 + [SILENT]
            rewards = running.world.settlements[-1].rewards
            assert [(row.service, row.measure, row.subsidy) for row in rewards] == [("sensing", 6, 10**20)]

            await running.loop.step()
            running.loop._gathered_at = 0.0
            await running.loop.step()
            assert running.sent(REPORT) == []  # the next epoch starts from nothing
            assert (await running.provider.gather({}))[REPORT] == Table.of(DeviceReport)

    asyncio.run(scenario())
