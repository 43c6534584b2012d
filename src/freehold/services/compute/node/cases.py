"""What an accused node shows to the referees of a case: the task, its inputs, the state before a step, its result.

    GET /v1/compute/cases/{case}/task?referee=ADDRESS             signed by that referee
    GET /v1/compute/cases/{case}/blobs/{sha256}?referee=ADDRESS

Who sits over whom stands in the committed state. Invariant: nothing is shown of a task but to whoever that state has
seated in a case about it, and only what a run of it needs or gave. A node that shows nothing cannot be found right.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiohttp import web

from freehold.net.server import ok
from freehold.protocol.errors import NotFound
from freehold.protocol.units import ZERO_HASH, Address, Hash
from freehold.services.compute.node.api import ComputeApi, name_of
from freehold.services.compute.node.blobs import Blobs
from freehold.services.compute.node.orders import Entry, Orders
from freehold.services.compute.node.orders_checks import needed_of, parse_key
from freehold.services.compute.tasks import Task, decode_result, decode_task
from freehold.services.compute.terms import SEAT, WorkState
from freehold.services.seam import ProviderContext


class Cases:
    """The cases that name one node as accused."""

    def __init__(self, context: ProviderContext, orders: Orders, blobs: Blobs, api: ComputeApi) -> None:
        self._context, self._orders, self._blobs, self._api = context, orders, blobs, api
        self._seats: dict[tuple[Hash, Address], WorkState] = {}  # by case and referee

    def learn(self, rows: Iterable[WorkState]) -> None:
        """Take over the committed state."""
        own = self._context.key.address
        self._seats = {(row.id, row.node): row for row in rows if row.role == SEAT and own in (row.first, row.second)}

    def routes(self, base: str) -> list[web.RouteDef]:
        """Below `base`."""
        return [
            web.get(f"{base}/cases/{{case}}/task", self._show_task),
            web.get(f"{base}/cases/{{case}}/blobs/{{sha256}}", self._show_blob),
        ]

    async def _find(self, request: web.Request) -> tuple[WorkState, Entry, Task]:
        """The seat of who asks, and the order that the case is about. NotFound, WrongSignature."""
        case = parse_key(request.match_info["case"], "a case")
        seat = self._seats.get((case, Address(request.query.get("referee", ""))))
        if seat is None:
            raise NotFound(f"no such referee sits in case {case}, as far as this node knows", case=str(case))
        self._context.authenticate(seat.node, request.headers, request.method, request.raw_path, ZERO_HASH)
        own = seat.first_order if seat.first == self._context.key.address else seat.second_order
        entry = await self._orders.find(own)
        if entry is None or entry.receipt is None or entry.ending is None:
            raise NotFound(f"the order {own} is not here", case=str(case))
        return seat, entry, decode_task(await self._orders.task(entry.order.task))

    async def _show_task(self, request: web.Request) -> web.Response:
        seat, entry, task = await self._find(request)
        assert entry.ending is not None
        assert entry.receipt is not None
        shown: dict[str, Any] = {
            "task": task.encode().decode(),
            "inputs": [list(one) for one in entry.ending.inputs],
            "state": _state_before(seat, entry),
            "receipt": entry.receipt.to_json(),
            "result": entry.ending.result,
            "stop": entry.ending.stop,
        }
        return ok(shown)

    async def _show_blob(self, request: web.Request) -> web.StreamResponse:
        seat, entry, task = await self._find(request)
        assert entry.ending is not None
        result, sha256 = decode_result(entry.ending.result.encode()), name_of(request)
        shown = {
            *needed_of(task),
            *(digest for _, digest in entry.ending.inputs),
            *(one.sha256 for one in (result.stdout, *result.files)),
            _state_before(seat, entry),
        }
        if sha256 not in shown:
            raise NotFound(f"blob {sha256} is no part of this case", sha256=sha256)
        return await self._api.send_blob(request, None, sha256)


def _state_before(seat: WorkState, entry: Entry) -> str | None:
    """The SHA-256 of the state before the step that is run again; None for the first, and for a whole task."""
    assert entry.ending is not None
    index = seat.step - 2
    return entry.ending.steps[index] if 0 <= index < len(entry.ending.steps) else None
