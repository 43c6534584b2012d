"""What leaving members dealt of the segments that this node keeps, beside the segments' records.

    GET  /v1/storage/records?member=&from_epoch=&after=      which records are here, for a member of the set that ends
    POST /v1/storage/{lease}/records/{hash}/resharings       keep a resharing
    GET  /v1/storage/{lease}/records/{hash}/resharings       those kept, for whoever repairs

A set is dealt to only when it begins, and only by a member of the set before it: so what somebody can leave here is
bounded by how often members change. Invariant: what is kept was signed by such a member, for a box that the record or
an earlier resharing has; it goes with the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from freehold.net.server import ok, read_json
from freehold.protocol.errors import InvalidInput, MalformedMessage, NotFound, Refused, WrongSignature
from freehold.protocol.typed import keccak
from freehold.protocol.units import ZERO_HASH, Address, Hash
from freehold.services.seam import ProviderContext, Sql
from freehold.services.storage.receiving import parse_hash
from freehold.services.storage.resharing import Resharing
from freehold.services.storage.segment_record import SegmentRecord
from freehold.services.storage.terms import NAME

AT_ONCE = 1000  # records in one answer
PER_RECORD = 4096  # resharings: seven members' boxes, dealt on a few times

MIGRATION = """
    CREATE TABLE resharings (
        lease BLOB NOT NULL, record BLOB NOT NULL, box BLOB NOT NULL, member BLOB NOT NULL, from_epoch INTEGER NOT NULL,
        body BLOB NOT NULL, PRIMARY KEY (lease, record, box, member, from_epoch)
    ) WITHOUT ROWID;
    CREATE TRIGGER resharings_end AFTER DELETE ON records BEGIN
        DELETE FROM resharings WHERE lease = OLD.lease AND record = OLD.hash;
    END;
"""


class Reshared:
    """The resharings at one node, over the lists' database."""

    def __init__(self, context: ProviderContext, sql: Sql) -> None:
        self._context = context
        self._sql = sql

    def routes(self) -> Sequence[web.RouteDef]:
        """Its part of the node's HTTP API."""
        path = f"/v1/{NAME}/{{lease}}/records/{{hash}}/resharings"
        return [
            web.get(f"/v1/{NAME}/records", self._list_records),
            web.post(path, self._keep),
            web.get(path, self._show),
        ]

    async def _list_records(self, request: web.Request) -> web.Response:
        member = Address(request.query.get("member", ""))
        from_epoch, after = request.query.get("from_epoch", ""), request.query.get("after", f"{ZERO_HASH}-{ZERO_HASH}")
        if not from_epoch.isascii() or not from_epoch.isdigit() or not 0 < len(from_epoch) < 19:
            raise MalformedMessage("?from_epoch= must be a number")
        self._check_ends(member, int(from_epoch))
        self._context.authenticate(member, request.headers, request.method, request.raw_path, ZERO_HASH)
        lease, _, digest = after.partition("-")
        place = (parse_hash(lease), parse_hash(digest))
        query = (
            "SELECT lease, hash FROM records WHERE named = 1 AND (lease, hash) > (?, ?) ORDER BY lease, hash LIMIT ?"
        )
        rows = await self._sql.read(lambda c: c.execute(query, (*place, AT_ONCE)).fetchall())
        return ok([{"lease": str(Hash(row[0])), "record": str(Hash(row[1]))} for row in rows])

    async def _keep(self, request: web.Request) -> web.Response:
        lease, digest = parse_hash(request.match_info["lease"]), parse_hash(request.match_info["hash"])
        dealt = Resharing.from_json((await read_json(request)).get("resharing"))
        if dealt.record != digest:
            raise InvalidInput("the resharing is for another record")
        self._check_ends(dealt.member, dealt.from_epoch)
        if tuple(dealt.members) != tuple(self._context.members_of(dealt.from_epoch)):
            raise Refused(f"the members from epoch {dealt.from_epoch} on are others", epoch=dealt.from_epoch)
        dealt.check(self._context.domain)
        await self._sql.write(lambda c: _keep(c, lease, dealt))
        return ok({}, status=201)

    async def _show(self, request: web.Request) -> web.Response:
        lease, digest = parse_hash(request.match_info["lease"]), parse_hash(request.match_info["hash"])
        bodies = await self._sql.read(lambda c: _bodies(c, lease, digest))
        return ok([Resharing.from_bytes(body).to_json() for body in bodies])

    def _check_ends(self, member: Address, from_epoch: int) -> None:
        """Refused unless a set begins with this epoch; WrongSignature unless the member is of the one before it."""
        before, after = (tuple(self._context.members_of(epoch)) for epoch in (from_epoch - 1, from_epoch))
        if before == after:
            raise Refused(f"the members do not change with epoch {from_epoch}", epoch=from_epoch)
        if member not in before:
            raise WrongSignature(f"{member} is no member of the set before epoch {from_epoch}")


def _bodies(c: Any, lease: Hash, digest: Hash) -> list[bytes]:
    query = "SELECT body FROM resharings WHERE lease = ? AND record = ? ORDER BY from_epoch, member, box"
    return [row[0] for row in c.execute(query, (lease, digest))]


def _keep(c: Any, lease: Hash, dealt: Resharing) -> None:
    row = c.execute("SELECT body FROM records WHERE lease = ? AND hash = ?", (lease, dealt.record)).fetchone()
    if row is None:
        raise NotFound(f"segment record {dealt.record} is not here")
    kept = [Resharing.from_bytes(body) for body in _bodies(c, lease, dealt.record)]
    boxes = {keccak(box) for box in SegmentRecord.from_bytes(row[0]).sealed}
    boxes |= {keccak(box) for other in kept for box in other.boxes}
    if dealt.box not in boxes:
        raise InvalidInput("neither the record nor a resharing of it has the box that was dealt")
    if len(kept) >= PER_RECORD:
        raise Refused(f"{PER_RECORD} resharings of this record are here already")
    c.execute(
        "INSERT OR IGNORE INTO resharings (lease, record, box, member, from_epoch, body) VALUES (?, ?, ?, ?, ?, ?)",
        (lease, dealt.record, dealt.box, dealt.member, dealt.from_epoch, dealt.to_bytes()),
    )
