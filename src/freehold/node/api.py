"""What a node answers about offers, leases and reservations; the services' own routes come from their providers.

    GET  /v1/offers            signed offers
    POST /v1/leases            the node signs a lease that the client signed, if it is at its offer; with `ended`, a
                               list of leases: and if the client has no other open one of this kind beside them
    GET  /v1/leases/{id}       the lease, its newest delta, the last voucher, what is owed
    POST /v1/reservations      a reservation that a quorum certified and holds: its leases are covered from now on

Invariant: whatever the node signs here it has checked itself, and keeps before it answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web

from freehold.net.server import ok, read_json
from freehold.node.book import Book
from freehold.node.offers import Offers
from freehold.protocol.batches import MARKET_KINDS, RESERVATION, SENDER_FIELDS, Kinds, decode_batch
from freehold.protocol.certificates import check_certificate, quorum
from freehold.protocol.errors import DeadlineExpired, InvalidInput, MalformedMessage, Refused, WrongSignature
from freehold.protocol.keys import Key, check_signed_by, is_signed_by
from freehold.protocol.messages import Certificate, Holding, Lease
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address, Hash, Signature
from freehold.services.seam import HostedProvider

DEADLINE_SECONDS = 60 * 86400  # the furthest ahead that a lease's deadline may lie
ENDED_LIMIT = 1000  # leases that one request names
RESERVATION_LIMIT = 16 * 2**20  # bytes of JSON: a client may lock for many leases


class Api:
    """The node's own HTTP routes."""

    def __init__(
        self,
        key: Key,
        domain: Domain,
        members_of: Callable[[int], Sequence[Address]],
        book: Book,
        offers: Offers,
        providers: Mapping[str, HostedProvider],
        clock: Callable[[], int],
    ) -> None:
        self._key = key
        self._domain = domain
        self._members_of = members_of
        self._book = book
        self._offers = offers
        self._providers = providers
        self._clock = clock

    def routes(self) -> list[web.RouteDef]:
        """These routes and those of every provider."""
        own = [
            web.get("/v1/offers", self._show_offers),
            web.post("/v1/leases", self._sign_lease),
            web.get("/v1/leases/{lease}", self._show_lease),
            web.post("/v1/reservations", self._take_reservation),
        ]
        return own + [route for provider in self._providers.values() for route in provider.routes()]

    async def _show_offers(self, _: web.Request) -> web.Response:
        return ok([offer.to_json() for offer in self._offers.current()])

    async def _sign_lease(self, request: web.Request) -> web.Response:
        body = await read_json(request)
        lease, ended = Lease.from_json(body.get("lease")), _parse_ended(body)
        now = self._clock()
        if lease.node != self._key.address:
            raise Refused(f"the lease is for {lease.node}, this is {self._key.address}")
        if lease.client == lease.node:
            raise Refused("a node is not its own client")
        if lease.deadline <= now:
            raise DeadlineExpired(f"the lease's deadline passed {now - lease.deadline} s ago")
        if lease.deadline > now + DEADLINE_SECONDS:
            raise InvalidInput(f"the lease's deadline is more than {DEADLINE_SECONDS} s ahead")
        self._offers.check_price(lease)
        check_signed_by(lease, lease.client_signature, lease.client, self._domain)
        signed = msgspec.structs.replace(lease, node_signature=self._key.sign(lease, self._domain))
        return ok({"lease": (await self._book.sign(signed, now, ended)).to_json()})

    async def _show_lease(self, request: web.Request) -> web.Response:
        text = request.match_info["lease"]
        if not text.startswith("0x"):
            raise MalformedMessage("a lease's id is 0x and 64 hexadecimal digits")
        entry = await self._book.entry(Hash(text))
        provider = self._providers.get(entry.lease.service)
        facts = await provider.describe(entry.lease.struct_hash()) if provider else {}
        state = entry.state
        return ok(
            {
                "lease": entry.lease.to_json(),
                "voucher": entry.voucher.to_json() if entry.voucher else None,
                "owed": str(entry.owed),
                "covered": entry.is_covered,
                "state": {
                    "lock": str(entry.lock),
                    "settled": str(entry.settled),
                    "epoch": await self._book.committed_epoch(),
                    "lapsed": state.lapsed if state else 0,
                    "closed": state.closed if state else 0,
                },
                **facts,
            }
        )

    async def _take_reservation(self, request: web.Request) -> web.Response:
        body = await read_json(request, RESERVATION_LIMIT)
        try:
            data = bytes.fromhex(body["batch"].removeprefix("0x"))
            certificate = Certificate.from_json(body["certificate"])
            epoch = body.get("epoch", certificate.epoch)
            holdings = {Address(h["member"]): Signature(h["signature"]) for h in body["holdings"]}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise MalformedMessage("a reservation comes with batch, certificate and holdings") from None
        batch = decode_batch(data, Kinds({RESERVATION: MARKET_KINDS[RESERVATION]}, SENDER_FIELDS), self._domain)
        if certificate.subject != batch.subject:
            raise InvalidInput("the certificate is for another batch")
        if epoch != certificate.epoch:
            raise Refused(
                "a reservation counts only in the epoch that its certificate names; this one missed it",
                hint="Sign it again for the open epoch.",
            )
        check_certificate(certificate, self._members_of(certificate.epoch), self._domain)
        self._check_held(certificate, holdings)
        reservation = batch.table.rows[0]
        check_signed_by(reservation, reservation.client_signature, reservation.client, self._domain)
        return ok({"leases": await self._book.cover(reservation)})

    def _check_held(self, certificate: Certificate, holdings: Mapping[Address, Signature]) -> None:
        """WrongSignature unless Q members hold the certificate in its epoch: then it is in that epoch's manifest."""
        holding = Holding(epoch=certificate.epoch, subject=certificate.subject)
        members = self._members_of(certificate.epoch)
        held = sum(
            is_signed_by(holding, holdings[member], member, self._domain) for member in members if member in holdings
        )
        needed = quorum(len(members))
        if held < needed:
            raise WrongSignature(f"{held} members hold the certificate, {needed} must", held=held, needed=needed)


def _parse_ended(body: Mapping[str, Any]) -> frozenset[Hash] | None:
    """Which leases the client takes to be over; None if it does not mind others beside the new one."""
    value = body.get("ended")
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > ENDED_LIMIT:
        raise MalformedMessage(f"'ended' is a list of at most {ENDED_LIMIT} leases")
    return frozenset(Hash(key) for key in value)
