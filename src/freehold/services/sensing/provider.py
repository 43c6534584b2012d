"""Sensing at a node: takes its operator's devices' reports, and hands them on as the evidence of their epoch.

    GET  /v1/sensing/open                       what a device signs: epoch and beacon
    POST /v1/sensing/reports                    {"reports": [..]}: one, or as many as fit
    POST /v1/sensing/tables                     the same as a table (`protocol/tables.py`)
    PUT  /v1/sensing/fleets/{fleet}             a fleet's list, as a table of FleetDevice; checked against its root
    GET  /v1/sensing/fleets/{fleet}             how many devices it has, and how many have reported
    GET  /v1/sensing/fleets/{fleet}/devices     the list: whoever asks checks it against the root

Nobody has to say who they are: a list is right by its root on chain, a report by its device's signature. What costs a
signature check or a hash of a whole list is bounded by the places that there are for it.

Invariant: a report that was answered for is on disk, and goes out until its epoch is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from aiohttp import web

from freehold.net.limits import Places
from freehold.net.server import ok, read_body, read_json, sender_address
from freehold.protocol.errors import Conflict, MalformedMessage, NotFound, Refused, Unavailable
from freehold.protocol.fleets import FleetDevice
from freehold.protocol.messages import Lease
from freehold.protocol.service import Context
from freehold.protocol.state import LeaseState
from freehold.protocol.tables import Table
from freehold.protocol.units import Address, Hash
from freehold.protocol.verdicts import KNOWN
from freehold.services.seam import ProviderContext
from freehold.services.sensing.inbox import REPORTS, Inbox, refusal
from freehold.services.sensing.roster import FLEETS, Roster
from freehold.services.sensing.terms import ENROLMENT, NAME, REPORT, DeviceReport, DeviceState

log = logging.getLogger(__name__)

MIGRATIONS = (FLEETS + REPORTS,)
FLEET_LIMIT = 32 * 2**20  # bytes of a fleet's list: 280,000 devices
TABLE_LIMIT = 4 * 2**20  # bytes of reports in one request: 26,000
LISTS_AT_ONCE, TABLES_AT_ONCE = 2, 8


class SensingProvider:
    """The working half of sensing at a node (`services/seam.py`)."""

    name = NAME
    is_leased: ClassVar[bool] = False

    def __init__(self, context: ProviderContext) -> None:
        self._context = context
        self._sql = context.open_sql(MIGRATIONS)
        self._roster = Roster(self._sql)
        self._inbox = Inbox(self._sql, self._roster, context.domain)
        self._lists = Places(LISTS_AT_ONCE, LISTS_AT_ONCE)
        self._tables = Places(TABLES_AT_ONCE, TABLES_AT_ONCE // 2)
        self._epoch = 0
        self._reports = 0

    async def start(self) -> None:
        """Take up the fleets and reports that are on disk."""
        await self._roster.load()
        await self._inbox.load()

    async def stop(self) -> None:
        """Close; what was answered for is on disk."""
        await asyncio.to_thread(self._sql.close)

    def routes(self) -> Sequence[web.RouteDef]:
        """The node's HTTP API for devices and their operators."""
        base = f"/v1/{NAME}"
        return [
            web.get(f"{base}/open", self._show_open),
            web.post(f"{base}/reports", self._take_reports),
            web.post(f"{base}/tables", self._take_table),
            web.put(f"{base}/fleets/{{fleet}}", self._take_fleet),
            web.get(f"{base}/fleets/{{fleet}}", self._show_fleet),
            web.get(f"{base}/fleets/{{fleet}}/devices", self._show_devices),
        ]

    async def prove(self, context: Context) -> Mapping[str, Table[Any]]:
        """Devices answer, not the node: from now on their reports are taken for this epoch (`gather`)."""
        self._epoch = context.epoch
        await self._inbox.open(context.epoch, context.beacon)
        return {}

    async def collect(self) -> Mapping[str, Table[Any]]:
        """The lists of fleets that the committed state does not have, some in each epoch."""
        return {ENROLMENT: self._roster.enrolments(self._epoch, self._context.key.address)}

    async def gather(self, already: Mapping[str, int]) -> Mapping[str, Table[Any]]:
        """The reports that came in since."""
        return {REPORT: self._inbox.gather(already.get(REPORT, 0))}

    async def watched(self) -> Sequence[Address]:
        """Devices that show whether a fleet has been enrolled."""
        return self._roster.watched(self._epoch)

    def capacity(self) -> int:
        """Nothing is leased."""
        return 0

    async def commit(
        self,
        epoch: int,
        rows: Table[DeviceState],
        leases: Mapping[Hash, LeaseState],  # noqa: ARG002
    ) -> None:
        """Fleets with a device in the state have come in; those that the chain has retired go."""
        for fleet in sorted({row.fleet for row in rows} & set(self._roster.fleets)):
            await self._roster.enrol(fleet, epoch)
            log.info("fleet %s is enrolled: its devices' reports count from epoch %d on", fleet, epoch + 1)
        for fleet in list(self._roster.fleets):
            try:
                await self._context.find_fleet(fleet)
            except Unavailable as error:
                log.warning("the chain was not asked about fleet %s: %s", fleet, error.message)
            except Refused as error:
                log.info("fleet %s goes: %s", fleet, error.message)
                await self._roster.drop(fleet)
                self._inbox.mark()

    async def tidy(self) -> None:
        """Nothing is left over."""

    def agreed_price(self, lease: Lease) -> int | None:  # noqa: ARG002
        """None: the list price."""
        return None

    async def describe(self, lease: Hash) -> Mapping[str, Any]:  # noqa: ARG002
        """There are no leases."""
        return {}

    def metrics(self) -> Mapping[str, int]:
        """Figures of now; the counter since the start."""
        return {
            "fleets": len(self._roster.fleets),
            "devices": len(self._roster.devices),
            "reported": self._inbox.count,
            "reports_total": self._reports,
        }

    async def _show_open(self, _: web.Request) -> web.Response:
        opened = self._inbox.current
        return ok(
            {
                "epoch": opened.epoch,
                "beacon": str(opened.beacon),
                "devices": len(self._roster.devices),
                "reported": self._inbox.count,
            }
        )

    async def _take_reports(self, request: web.Request) -> web.Response:
        given = (await read_json(request)).get("reports")
        if not isinstance(given, list) or not given:
            raise MalformedMessage("the body has a list 'reports' of at least one")
        return await self._take(Table.of(DeviceReport, [DeviceReport.from_json(row) for row in given]))

    async def _take_table(self, request: web.Request) -> web.Response:
        with self._tables.take(sender_address(request)):
            reports = Table.decode(DeviceReport, await read_body(request, TABLE_LIMIT))
            if not len(reports):
                raise MalformedMessage("the table has no rows")
            return await self._take(reports)

    async def _take(self, reports: Table[DeviceReport]) -> web.Response:
        taken = await self._inbox.take(reports)
        self._reports += taken.new
        known = taken.others.pop(KNOWN, 0)
        if not taken.new and not known:
            raise refusal(taken.others)
        facts = {"taken": taken.new, "known": known, "refused": dict(taken.others)}
        return ok({"epoch": self._inbox.current.epoch, **facts})

    async def _take_fleet(self, request: web.Request) -> web.Response:
        fleet = _parse_fleet(request)
        with self._lists.take(sender_address(request)):
            if fleet not in self._roster.fleets:
                live = await self._context.find_fleet(fleet)
                body = await read_body(request, FLEET_LIMIT)
                devices = await asyncio.to_thread(_read_list, body)
                if len(devices) != live.devices or devices.root != live.root:
                    raise Conflict(
                        f"these {len(devices)} devices are not those that fleet {fleet} commits to",
                        hint="Send the list that it was registered with, in the same order.",
                        root=str(live.root),
                        count=live.devices,
                    )
                await self._roster.add(fleet, devices)
                self._inbox.mark()
                log.info("fleet %s: %d devices", fleet, len(devices))
        return ok(self._describe(fleet))

    async def _show_fleet(self, request: web.Request) -> web.Response:
        return ok(self._describe(_parse_fleet(request)))

    def _describe(self, fleet: Hash) -> dict[str, Any]:
        entry = self._roster.fleets.get(fleet)
        if entry is None:
            raise NotFound(f"fleet {fleet} is not here", hint="Its operator sends it with `freehold fleet register`.")
        return {
            "fleet": str(fleet),
            "count": len(entry.devices),
            "enrolled": entry.enrolled,
            "reported": self._inbox.count_of(entry.devices),
        }

    async def _show_devices(self, request: web.Request) -> web.Response:
        entry = self._roster.fleets.get(fleet := _parse_fleet(request))
        if entry is None:
            raise NotFound(f"fleet {fleet} is not here")
        with self._lists.take(sender_address(request)):
            body = await asyncio.to_thread(entry.devices.encode)
            return web.Response(body=body, content_type="application/octet-stream")


def _read_list(body: bytes) -> Table[FleetDevice]:
    """A fleet's list, its root computed: in a thread."""
    devices = Table.decode(FleetDevice, body)
    _ = devices.root
    return devices


def _parse_fleet(request: web.Request) -> Hash:
    text = request.match_info["fleet"]
    if not text.startswith("0x"):
        raise MalformedMessage("a fleet's id is 0x and 64 hexadecimal digits")
    return Hash(text)
