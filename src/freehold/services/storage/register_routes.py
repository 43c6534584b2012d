"""Registers over HTTP, as msgpack (`register_values.py`).

    GET  /v1/storage/registers/{account}                                  the account's groups
    GET  /v1/storage/registers/{account}/{group}                          a group's registers
    GET  /v1/storage/registers/{account}/{group}/{name}?counter=&proposer=&chain=&parts=
    POST /v1/storage/registers/{account}/{group}/{name}/prepare?lease=
    POST /v1/storage/registers/{account}/{group}/{name}/accept?lease=

Reads are public: what stands in a register is sealed. A change is signed by the account, and taken under a lease that
it has here and that its lock covers. Cheap checks come first, the signature before anything is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from aiohttp import web

from freehold.net.server import read_body
from freehold.protocol.errors import MalformedMessage, Refused
from freehold.protocol.units import Address, Hash
from freehold.services.seam import ProviderContext
from freehold.services.storage.receiving import check_covered, parse_hash
from freehold.services.storage.register_values import (
    BODY_LIMIT,
    COUNTER_LIMIT,
    Accepted,
    Known,
    Place,
    Prepare,
    decode,
)
from freehold.services.storage.registers import Registers
from freehold.services.storage.terms import NAME

PREPARE_LIMIT = 1024  # bytes


class RegisterRoutes:
    """The node's HTTP end for registers."""

    def __init__(self, context: ProviderContext, registers: Registers) -> None:
        self._context = context
        self._registers = registers

    def routes(self) -> Sequence[web.RouteDef]:
        """Its part of the node's HTTP API."""
        base = f"/v1/{NAME}/registers/{{account}}"
        return [
            web.get(base, self._groups, allow_head=False),
            web.get(f"{base}/{{group}}", self._list, allow_head=False),
            web.get(f"{base}/{{group}}/{{name}}", self._show, allow_head=False),
            web.post(f"{base}/{{group}}/{{name}}/prepare", self._prepare),
            web.post(f"{base}/{{group}}/{{name}}/accept", self._accept),
        ]

    async def _groups(self, request: web.Request) -> web.Response:
        return _packed(await self._registers.groups(_account(request)))

    async def _list(self, request: web.Request) -> web.Response:
        return _packed(await self._registers.entries(_account(request), parse_hash(request.match_info["group"])))

    async def _show(self, request: web.Request) -> web.Response:
        return _packed(await self._registers.show(_place(request), _known(request)))

    async def _prepare(self, request: web.Request) -> web.Response:
        place = _place(request)
        lease = await self._check_lease(request, place, 0)
        wanted = decode(await read_body(request, PREPARE_LIMIT), Prepare)
        wanted.check(place, self._context.domain)
        return _packed(await asyncio.shield(self._registers.prepare(place, wanted, lease)))

    async def _accept(self, request: web.Request) -> web.Response:
        place = _place(request)
        lease = await self._check_lease(request, place, request.content_length or BODY_LIMIT)
        proposal = decode(await read_body(request, BODY_LIMIT), Accepted)
        proposal.check(place, self._context.domain)
        return _packed(await asyncio.shield(self._registers.accept(place, proposal, lease)))

    async def _check_lease(self, request: web.Request, place: Place, size: int) -> Hash:
        lease = parse_hash(request.query.get("lease", ""))
        standing = await self._context.leases.find(lease)
        if standing.lease.client != place.account:
            raise Refused("this lease is another account's")
        kept = await self._registers.bytes_of(place.account)
        check_covered(standing, kept + size, self._context.parameters.epoch_length)
        return lease


def _packed(value: object) -> web.Response:
    return web.Response(body=msgspec.msgpack.encode(value), content_type="application/octet-stream")


def _account(request: web.Request) -> Address:
    return Address(request.match_info["account"])


def _place(request: web.Request) -> Place:
    name = request.match_info["name"]
    if len(name) != 32 or name != name.lower():
        raise MalformedMessage("a register's name has 32 lower-case hexadecimal digits")
    return Place(_account(request), parse_hash(request.match_info["group"]), _unhex(name))


def _known(request: web.Request) -> Known:
    query = request.query
    counter = query.get("counter", "0")
    if not (counter.isascii() and counter.isdigit() and len(counter) <= 19 and int(counter) < COUNTER_LIMIT):
        raise MalformedMessage("?counter= must be a number")
    proposer, chain = _unhex(query.get("proposer", "")), _unhex(query.get("chain", ""))
    return Known(int(counter), proposer or bytes(8), chain, query.get("parts", "1") == "1")


def _unhex(text: str) -> bytes:
    if len(text) > 64:
        raise MalformedMessage("more hexadecimal digits than anything has here")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise MalformedMessage("not hexadecimal") from None
