"""What a client's list at a node has, for a client that lost its own memory: position, root, size and arrival.

    GET /v1/storage/{lease}/entries?start=     at most PAGE entries from that position on, and where to go on

Only the lease's client may ask. The pages are not checked against the list's signed root: a client uses them to find
what nobody names any more, and takes it off by a delta, whose steps are checked. Invariant: a page is bounded, and
paging from 0 to the end shows every entry that stood in the list all the while.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from aiohttp import web

from freehold.net.server import ok
from freehold.protocol.errors import MalformedMessage
from freehold.protocol.typed import parse_json
from freehold.protocol.units import ZERO_HASH, Hash
from freehold.services.seam import ProviderContext, Sql
from freehold.services.storage.list_steps import POSITION_LIMIT
from freehold.services.storage.receiving import check_stream, parse_hash

PAGE = 4096
PAGE_LIMIT = 1 << 20  # bytes of a page
_TIME_LIMIT = 2**48


class Entry(NamedTuple):
    """A shard in a list: `size` in bytes, `arrived` in unix seconds."""

    position: int
    root: Hash
    size: int
    arrived: int


class Listing:
    """Shows lists, for one provider."""

    def __init__(self, context: ProviderContext, sql: Sql) -> None:
        self._context = context
        self._sql = sql

    async def show(self, request: web.Request) -> web.Response:
        """GET .../entries?start="""
        lease, text = parse_hash(request.match_info["lease"]), request.query.get("start", "0")
        standing = await self._context.leases.find(lease)
        check_stream(standing)
        self._context.authenticate(standing.lease.client, request.headers, request.method, request.raw_path, ZERO_HASH)
        if not (text.isascii() and text.isdigit() and int(text[:12]) < POSITION_LIMIT):
            raise MalformedMessage("?start= must be a position")
        query = (
            "SELECT e.position, e.root, e.size, s.arrived FROM entries e LEFT JOIN shards s "
            "ON s.lease = e.lease AND s.root = e.root "
            "WHERE e.lease = ? AND e.to_number IS NULL AND e.position >= ? ORDER BY e.position LIMIT ?"
        )
        rows = await self._sql.read(lambda c: c.execute(query, (lease, int(text), PAGE)).fetchall())
        entries = [[position, root.hex(), size, arrived or 0] for position, root, size, arrived in rows]
        return ok({"entries": entries, "next": rows[-1][0] + 1 if len(rows) == PAGE else None})


def parse_page(body: bytes, start: int) -> tuple[list[Entry], int | None]:
    """The entries of an answer, and where to go on; MalformedMessage unless positions ascend from `start`."""
    value = parse_json(body)
    try:
        rows, following = value["data"]["entries"], value["data"]["next"]
        entries = [_entry(*row) for row in rows]
    except (KeyError, TypeError, ValueError):
        raise MalformedMessage("an answer that holds no entries of a list") from None
    last = start - 1
    for entry in entries:
        if not last < entry.position < POSITION_LIMIT:
            raise MalformedMessage("entries of a list out of order")
        last = entry.position
    if following is not None and (type(following) is not int or not entries or following <= last):
        raise MalformedMessage("a page that does not go on after its last entry")
    return entries, following


def _entry(position: Any, root: Any, size: Any, arrived: Any) -> Entry:
    if not all(type(number) is int and 0 <= number < _TIME_LIMIT for number in (position, size, arrived)):
        raise ValueError
    return Entry(position, Hash(bytes.fromhex(root)), size, arrived)
