"""Sensing at a node: which lists and reports it takes, that they survive it, and what it hands on."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.net.client import Dial, Peer
from freehold.net.server import make_app, serve
from freehold.node.book import MIGRATIONS, Book
from freehold.protocol.errors import (
    Conflict,
    EpochClosed,
    FreeholdError,
    MalformedMessage,
    NotFound,
    Refused,
    Unavailable,
    WrongSignature,
)
from freehold.protocol.fleets import FleetDevice
from freehold.protocol.keys import Key
from freehold.protocol.service import Context
from freehold.protocol.tables import Table
from freehold.protocol.typed import keccak
from freehold.protocol.units import Address, Hash
from freehold.protocol.verdicts import GOOD, KNOWN, WRONG_EPOCH, WRONG_SIGNATURE
from freehold.services.seam import LiveFleet, ProviderContext
from freehold.services.sensing import roster
from freehold.services.sensing.device import OpenEpoch, derive_keys, read_open, send_reports, sign_devices, sign_reports
from freehold.services.sensing.provider import SensingProvider
from freehold.services.sensing.score import SensingJudge
from freehold.services.sensing.terms import ENROLMENT, REPORT, UNKNOWN_DEVICE, DeviceReport, DeviceState
from freehold.store.blobs import Blobs
from freehold.store.sql import Database
from tests.protocol.world import DOMAIN, PARAMETERS, key
from tests.services.contexts import NOTHING_ELSE
from tests.services.sensing_world import context_of, fleet_of

NODE = key(11)
OWNER = Address(bytes(19) + b"\x07")
KEYS = list(derive_keys(b"secret", 10))
DEVICES = sign_devices(KEYS, OWNER, 5, DOMAIN)
FLEET = Hash(keccak(bytes([1])))
JUDGE = SensingJudge()
PARTS = ((0, 6), (6, 9), (9, 10))  # fleets of six, three and one


def opened_epoch(epoch: int = 7) -> Context:
    return context_of([], [], epoch=epoch)._replace(beacon=keccak(b"beacon" + bytes([epoch])))


class Sensing:
    """A provider on a port of its own, and the chain's fleets as a table."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.chain: dict[Hash, LiveFleet | FreeholdError] = {FLEET: LiveFleet(DEVICES.root, len(DEVICES))}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Sensing:
        stack = self._stack
        database = Database(self.directory / "node.sqlite", MIGRATIONS)
        stack.callback(database.close)
        self.provider = SensingProvider(
            ProviderContext(
                key=NODE,
                domain=DOMAIN,
                parameters=PARAMETERS,
                leases=Book(database, DOMAIN),
                files=Blobs(self.directory / "sensing", 0),
                open_sql=lambda migrations: Database(self.directory / "sensing.sqlite", migrations),
                authenticate=lambda *_: None,
                find_fleet=self.find_fleet,
                members_of=lambda _: (),
                clock=lambda: 0,
                **NOTHING_ELSE,
            )
        )
        stack.push_async_callback(self.provider.stop)
        await self.provider.start()
        app = make_app(self.provider.routes(), ready=lambda: (True, ""), metrics=lambda: "")
        server = await serve(app, "127.0.0.1", 0)
        stack.push_async_callback(server.stop)
        self.peer: Peer = (await stack.enter_async_context(Dial())).peer(server.url)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def find_fleet(self, fleet: Hash) -> LiveFleet:
        found = self.chain.get(fleet) or NotFound("the chain has no such fleet")
        if isinstance(found, FreeholdError):
            raise found
        return found

    async def put(self, devices: Table[FleetDevice] = DEVICES, fleet: Hash = FLEET) -> Any:
        async with self.peer.request("PUT", f"/v1/sensing/fleets/{fleet}", data=devices.encode()) as response:
            return (await response.json())["data"]

    async def post(self, *reports: DeviceReport) -> Any:
        return await self.peer.post_json("/v1/sensing/reports", {"reports": [row.to_json() for row in reports]})

    async def gathered(self, already: int = 0) -> Table[DeviceReport]:
        return (await self.provider.gather({REPORT: already}))[REPORT]


def reports_of(context: Context, keys: list[Key] = KEYS) -> Table[DeviceReport]:
    readings = np.zeros((len(keys), 32), np.uint8)
    return sign_reports(keys, OpenEpoch(context.epoch, context.beacon), readings, DOMAIN)


def test_a_fleet_reports_through_its_node_and_is_judged_good(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Sensing(tmp_path) as world:
            assert (await world.put())["count"] == 10
            evidence = await world.provider.collect()
            context = opened_epoch()
            assert await world.provider.prove(context) == {}
            assert await read_open(world.peer) == (7, context.beacon)
            sent = await send_reports(world.peer, reports_of(context))
            assert (sent.new, sent.known, sent.refused) == (10, 0, {})
            evidence |= await world.provider.gather({})
            fleet = fleet_of(1, list(DEVICES))
            first = context._replace(fleets=(fleet,))
            told = JUDGE.judge(JUDGE.obligations(first), evidence, first)
            state, *_ = JUDGE.fold(evidence, told, first)
            assert [row.owner for row in state] == [OWNER] * 10
            second = first._replace(state=state)
            verdicts = JUDGE.judge(JUDGE.obligations(second), evidence, second)
            assert [v.reason for v in verdicts if v.kind == REPORT] == [GOOD] * 10
            shown = await world.peer.get_json(f"/v1/sensing/fleets/{FLEET}")
            assert shown == {"fleet": str(FLEET), "count": 10, "enrolled": 0, "reported": 10}

    asyncio.run(scenario())


def test_only_the_list_behind_a_live_root_is_taken(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Sensing(tmp_path) as world:
            with pytest.raises(NotFound):
                await world.put(fleet=Hash(bytes(31) + b"\x09"))
            for wrong in (DEVICES.take([0, 1]), DEVICES.take([1, 0, *range(2, 10)])):
                with pytest.raises(Conflict) as refused:
                    await world.put(wrong)
                assert refused.value.details["root"] == str(DEVICES.root)
            world.chain[FLEET] = Refused("it is another operator's")
            with pytest.raises(Refused, match="another"):
                await world.put()
            with pytest.raises(NotFound):
                await world.peer.get_bytes(f"/v1/sensing/fleets/{FLEET}/devices")
            assert world.provider.metrics()["fleets"] == 0
            world.chain[FLEET] = LiveFleet(DEVICES.root, 10)
            await world.put()
            assert (
                Table.decode(FleetDevice, await world.peer.get_bytes(f"/v1/sensing/fleets/{FLEET}/devices")).root
                == DEVICES.root
            )

    asyncio.run(scenario())


def test_each_wrong_report_is_refused_with_its_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Sensing(tmp_path) as world:
            with pytest.raises(Unavailable):
                await read_open(world.peer)
            await world.put()
            context = opened_epoch()
            await world.provider.prove(context)
            good = reports_of(context)
            stranger = reports_of(context, [key(77)])
            early = reports_of(opened_epoch(6))
            forged = Table.from_columns(DeviceReport, {**good.columns, "reading": np.ones((10, 32), np.uint8)}, 10)
            for rows, error in ((stranger, NotFound), (early, EpochClosed), (forged, WrongSignature)):
                with pytest.raises(error):
                    await send_reports(world.peer, rows)
                with pytest.raises(error):
                    await world.post(rows.row(0))
            for body in ({"reports": []}, {"reports": {}}, {}):
                with pytest.raises(MalformedMessage):
                    await world.peer.post_json("/v1/sensing/reports", body)
            mixed = [good.row(0), good.row(0), stranger.row(0), early.row(1), forged.row(2)]
            answer = await world.post(*mixed)
            assert answer == {
                "epoch": 7,
                "taken": 1,
                "known": 1,
                "refused": {UNKNOWN_DEVICE: 1, WRONG_EPOCH: 1, WRONG_SIGNATURE: 1},
            }
            assert list(await world.gathered()) == [good.row(0)]

    asyncio.run(scenario())


def test_a_device_counts_once_however_often_it_sends(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Sensing(tmp_path) as world:
            await world.put()
            context = opened_epoch()
            await world.provider.prove(context)
            reports = reports_of(context)
            answers = await asyncio.gather(*(world.post(*reports.take([0, 1, 2])) for _ in range(6)))
            assert sum(answer["taken"] for answer in answers) == 3
            assert all(answer["taken"] + answer["known"] == 3 for answer in answers)
            assert len(await world.gathered()) == 3
            other = Table.from_columns(DeviceReport, {**reports.columns, "reading": np.ones((10, 32), np.uint8)}, 10)
            assert (await send_reports(world.peer, other.take([0, 1])))[:2] == (0, 2)

    asyncio.run(scenario())


def test_what_was_taken_survives_a_restart_until_its_epoch_is_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        context = opened_epoch()
        reports = reports_of(context)
        async with Sensing(tmp_path) as world:
            await world.put()
            await world.provider.prove(context)
            await world.post(reports.row(4))
            await send_reports(world.peer, reports.take([7, 8]))
        async with Sensing(tmp_path) as world:
            with pytest.raises(Unavailable):
                await world.post(reports.row(5))
            await world.provider.prove(context)
            assert list(await world.gathered()) == [reports.row(i) for i in (4, 7, 8)]
            assert (await send_reports(world.peer, reports))[:2] == (7, 3)
            assert len(await world.gathered(already=3)) == 7
            assert len(await world.gathered(already=10)) == 0
            await world.provider.prove(opened_epoch(8))
            assert len(await world.gathered()) == 0
            with pytest.raises(EpochClosed):
                await world.post(reports.row(5))
        async with Sensing(tmp_path) as world:
            await world.provider.prove(context)
            assert len(await world.gathered()) == 0

    asyncio.run(scenario())


def test_a_list_is_sent_until_the_committed_state_has_it_and_goes_when_retired(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Sensing(tmp_path) as world:
            await world.put()
            watched = list(await world.provider.watched())
            assert 0 < len(watched) <= 4
            nothing = Table.of(DeviceState)
            await world.provider.commit(7, nothing, {})
            assert len((await world.provider.collect())[ENROLMENT]) == 10
            row = DeviceState(device=watched[0], fleet=FLEET, index=0, owner=OWNER, place=5, since=8)
            await world.provider.commit(8, Table.of(DeviceState, [row]), {})
        async with Sensing(tmp_path) as world:
            assert len((await world.provider.collect())[ENROLMENT]) == 0
            assert list(await world.provider.watched()) == []
            world.chain[FLEET] = Unavailable("the chain does not answer")
            await world.provider.commit(9, nothing, {})
            assert world.provider.metrics()["devices"] == 10
            world.chain[FLEET] = Refused("retired")
            await world.provider.commit(10, nothing, {})
            assert world.provider.metrics()["devices"] == 0
            context = opened_epoch(11)
            await world.provider.prove(context)
            with pytest.raises(NotFound):
                await send_reports(world.peer, reports_of(context))

    asyncio.run(scenario())


def test_one_key_in_two_fleets_reports_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Sensing(tmp_path) as world:
            other, part = Hash(keccak(bytes([2]))), DEVICES.take([3, 4])
            world.chain[other] = LiveFleet(part.root, 2)
            await world.put()
            context = opened_epoch()
            await world.provider.prove(context)
            await send_reports(world.peer, reports_of(context).take([3]))
            await world.put(part, other)  # in the middle of the epoch: who has reported is still known
            assert (await send_reports(world.peer, reports_of(context)))[:2] == (9, 1)
            assert len(await world.gathered()) == 10
            assert (await world.peer.get_json(f"/v1/sensing/fleets/{other}"))["reported"] == 2
            twice = JUDGE.judge(
                JUDGE.obligations(context),
                {ENROLMENT: (await world.provider.collect())[ENROLMENT], REPORT: Table.of(DeviceReport)},
                context._replace(fleets=(fleet_of(1, list(DEVICES)), fleet_of(2, list(part)))),
            )
            assert sorted(v.reason for v in twice) == [GOOD] * 10 + [KNOWN] * 2

    asyncio.run(scenario())


def test_fleets_are_enrolled_some_at_a_time_each_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "ENROLLED_AT_ONCE", 5)

    async def scenario() -> None:
        async with Sensing(tmp_path) as world:
            parts = {Hash(keccak(bytes([i + 1]))): DEVICES.take(range(*ends)) for i, ends in enumerate(PARTS)}
            for fleet, devices in parts.items():
                world.chain[fleet] = LiveFleet(devices.root, len(devices))
                await world.put(devices, fleet)
            sent = []
            for epoch in (6, 7, 8):
                await world.provider.prove(opened_epoch(epoch))
                rows = (await world.provider.collect())[ENROLMENT]
                sent.append([row.fleet for row in rows])
                for fleet in set(sent[-1]):
                    assert sent[-1].count(fleet) == len(parts[fleet])
            fleets = list(parts)
            assert [list(dict.fromkeys(names)) for names in sent] == [[fleets[0]], [fleets[1], fleets[2]], [fleets[2]]]

    asyncio.run(scenario())
