"""A member's HTTP interface.

    POST /v1/batches                            a batch -> this member's Acknowledgement, after fsync
    POST /v1/certificates                       a certificate -> this member's Holding, after fsync
    GET  /v1/batches/{subject}                  the batch's bytes
    POST /v1/messages                           member to member; signed for this member, else not read
    GET  /v1/status  /v1/open                   where this member stands; what is open to evidence
    GET  /v1/reports?from=E  /v1/reports/{E}    committed reports
    GET  /v1/bundles/{E}?attempt=A              all that epoch E's report follows from; of a void one, as evidence
    GET  /v1/states/{E}                         the whole state after E, for who settles it again
    GET  /v1/state/{E}/nodes/{node}             rows of the state after E, each with its proof
    GET  /v1/state/{E}/clients/{client}
    GET  /v1/accounts/{address}?epoch=E         an account with its proof against the report of E

Evidence is judged in the order of what that costs: the sender's address, the batch's header, what its sender may still
send, one signature, and only then the body is let in (`admission.py`). Who sends what is here already is answered from
memory. Whoever is refused for want of room is told when to come back.

Answers that other parties compare between members (all but status, open, and a report's signers) depend on committed
epochs alone, so honest members give the same words.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from freehold.net.auth import Guard
from freehold.net.limits import Places, Room
from freehold.net.server import GRACE_SECONDS, LEAST_RATE, ok, read_body, read_head, sender_address
from freehold.oracle.admission import Admission, units_of
from freehold.oracle.checks import PeerMessage
from freehold.oracle.effects import Signed
from freehold.oracle.engine import Engine
from freehold.oracle.events import BatchReceived, CertificateReceived, MessageReceived
from freehold.oracle.member import Member
from freehold.oracle.peers import BODY_HEADER
from freehold.oracle.quotas import Standing
from freehold.oracle.status import Status
from freehold.oracle.store import Store, Stored, Summary
from freehold.oracle.views import Views
from freehold.protocol.batches import BATCH_LIMIT, decode_batch, decode_header, header_size
from freehold.protocol.errors import InvalidInput, MalformedMessage, Overloaded, WrongSignature
from freehold.protocol.keys import check_signed_by
from freehold.protocol.messages import Certificate, Manifest, Observation, Seal, ViewChange, Vote
from freehold.protocol.typed import keccak, parse_json
from freehold.protocol.units import Address, Hash

MESSAGES: dict[str, type[Observation] | type[Manifest] | type[ViewChange] | type[Seal] | type[Vote]] = {
    kind.__name__: kind for kind in (Observation, Manifest, ViewChange, Seal, Vote)
}
MESSAGE_LIMIT = 32 * 2**20  # a manifest with Q observations of all certificates
MEMBER_ROOM = 2 * MESSAGE_LIMIT  # bytes of one member's messages that are here at once
INCOMING_LIMIT = 64 * 2**20  # bytes of everybody else's bodies that are here at once
KNOWN_LIMIT = 32 * 2**20  # of them of senders that are not bonded
STRANGE_LIMIT = 8 * 2**20  # of them of senders with nothing at stake
ANSWERED = 20_000  # answers of the open epoch that are remembered
LONGEST_EPOCH = 86_400  # seconds that anybody is told to stay away for a quota
SENDING = 32  # blobs that are sent at once
SENDING_TO_ADDRESS = 8  # of them to one address
LISTING, LISTING_TO_ADDRESS = 16, 8  # lists of reports that are put together at once
SMALL = 64 * 2**10  # bytes of JSON that are parsed at once; more is parsed in a thread
REPORTS_LIMIT = 1000  # in one answer


class Peers:
    """Who are members now, or will be: only they send messages."""

    def __init__(self, member: Member) -> None:
        self._member = member

    def __contains__(self, sender: object) -> bool:
        return sender in self._member.peers


class Api:
    """The handlers of one member. What members send has room that nobody else can take."""

    def __init__(self, engine: Engine, store: Store, status: Status, clock: Callable[[], float] = time.time) -> None:
        self._engine, self._store, self._status = engine, store, status
        self._views = Views(store)
        setup = engine.member.setup
        self._guard = Guard(setup.key.address, setup.domain, clock, Peers(engine.member))
        self._rooms: defaultdict[Address, Room] = defaultdict(lambda: Room(MEMBER_ROOM, share_of_address=1))
        self._incoming = Room(INCOMING_LIMIT)
        known = Room(KNOWN_LIMIT, self._incoming)
        strange = Room(STRANGE_LIMIT, known)
        self._arriving = {Standing.BONDED: self._incoming, Standing.KNOWN: known, Standing.STRANGE: strange}
        self.admission = Admission()
        self._answered: OrderedDict[Hash, Signed] = OrderedDict()
        self._clock = clock
        self._places = Places(SENDING, SENDING_TO_ADDRESS)
        self._lists = Places(LISTING, LISTING_TO_ADDRESS)

    def routes(self) -> list[web.RouteDef]:
        """For `net.server.make_app`."""
        return [
            web.post("/v1/batches", self.post_batch),
            web.get("/v1/batches/{subject}", self.get_batch),
            web.post("/v1/certificates", self.post_certificate),
            web.post("/v1/messages", self.post_message),
            web.get("/v1/status", self.get_status),
            web.get("/v1/open", self.get_open),
            web.get("/v1/reports", self.get_reports),
            web.get("/v1/reports/{epoch}", self.get_report),
            web.get("/v1/bundles/{epoch}", self.get_bundle),
            web.get("/v1/states/{epoch}", self.get_state),
            web.get("/v1/state/{epoch}/nodes/{address}", self.get_node),
            web.get("/v1/state/{epoch}/clients/{address}", self.get_client),
            web.get("/v1/accounts/{address}", self.get_account),
        ]

    async def post_batch(self, request: web.Request) -> web.Response:
        member, address = self._engine.member, sender_address(request)
        self._status.batches += 1
        head = await read_head(request, 4, BATCH_LIMIT)
        head += await read_head(request, header_size(head) - 4, BATCH_LIMIT)
        answered = self._known_answer(head)
        if answered is not None:
            return ok(self._signed(answered))
        header = decode_header(head, self._store.kinds)
        standing = member.standing_of(header.sender)
        units = units_of(header.count, request.content_length or len(head))
        with self._until_next_epoch():
            member.gathering.check_quota(header, request.content_length or len(head), member.epoch)
        self.admission.check(address, standing, units)
        check_signed_by(header, header.sender_signature, header.sender, member.setup.domain)
        with self._arriving[standing].share(address) as share:
            data = await read_body(request, BATCH_LIMIT, share, head)
            with self.admission.admit(address, standing, units_of(header.count, len(data))):
                async with self.admission.turn(standing):
                    batch = await asyncio.to_thread(decode_batch, data, self._store.kinds, member.setup.domain)
                # What others have sent and what is not on disk yet is part of `used`, beside this batch.
                self._store.check_room(self._incoming.used, is_bonded=standing is Standing.BONDED)
                with self._until_next_epoch():
                    signed = await self._engine.ask(lambda reply: BatchReceived(batch, data, reply))
        return ok(self._signed(self._remember(head, signed)))

    async def post_certificate(self, request: web.Request) -> web.Response:
        with self._incoming.share(sender_address(request)) as share:
            data = await read_body(request, SMALL, share)
            self._status.certificates += 1
            answered = self._known_answer(data)
            if answered is not None:
                return ok(self._signed(answered))
            certificate = Certificate.from_bytes(data)
            with self._until_next_epoch():
                signed = await self._engine.ask(lambda reply: CertificateReceived(certificate, reply))
        return ok(self._signed(self._remember(data, signed)))

    def _known_answer(self, said: bytes) -> Signed | None:
        """What was answered to the same bytes in this epoch: sent again, they cost no signature, and no disk."""
        signed = self._answered.get(keccak(said))
        return signed if signed is not None and signed.epoch == self._engine.member.epoch else None

    def _remember(self, said: bytes, signed: Signed) -> Signed:
        self._answered[keccak(said)] = signed
        if len(self._answered) > ANSWERED:
            self._answered.popitem(last=False)
        return signed

    @contextmanager
    def _until_next_epoch(self) -> Iterator[None]:
        """Who has used up what one epoch allows is told to come back when it is over."""
        try:
            yield
        except Overloaded as error:
            if "retry_after" not in error.details:
                left = self._engine.member.chain.anchor_time - int(self._clock())
                error.details["retry_after"] = max(1, min(LONGEST_EPOCH, left))
            raise

    def _signed(self, signed: Signed) -> dict[str, Any]:
        return {
            "epoch": signed.epoch,
            "subject": str(signed.subject),
            "member": str(self._engine.member.setup.key.address),
            "signature": str(signed.signature),
            "members": [str(one) for one in self._engine.member.members_of(signed.epoch)],
        }

    async def get_batch(self, request: web.Request) -> web.StreamResponse:
        subject = Hash(request.match_info["subject"])
        return await self._send(request, lambda: self._store.open_batch(subject))

    async def post_message(self, request: web.Request) -> web.Response:
        if BODY_HEADER not in request.headers:
            raise WrongSignature("the request is not signed")
        body = Hash(request.headers[BODY_HEADER])
        sender = self._guard.check(request.headers, "POST", request.path_qs, body)
        with self._rooms[sender].share() as share:
            data = await read_body(request, MESSAGE_LIMIT, share)
            if len(data) > SMALL:
                message = await asyncio.to_thread(parse_signed, data, body)
            else:
                message = parse_signed(data, body)
            self._status.messages += 1
            self._engine.handle(MessageReceived(message))
        return ok({})

    async def _send(self, request: web.Request, open_blob: Callable[[], Awaitable[Stored]]) -> web.StreamResponse:
        """A blob as it is read: memory holds one piece of it for each who fetches it, and nobody waits for the slow."""
        with self._places.take(sender_address(request)):
            stored = await open_blob()
            response = web.StreamResponse()
            response.content_type, response.content_length = "application/octet-stream", stored.size
            await response.prepare(request)
            async for piece in stored.pieces():
                try:
                    async with asyncio.timeout(GRACE_SECONDS + len(piece) / LEAST_RATE):
                        await response.write(piece)
                except TimeoutError:
                    raise ConnectionResetError("the reader is too slow") from None
            await response.write_eof()
        return response

    async def get_status(self, _: web.Request) -> web.Response:
        return ok(self._status.to_json())

    async def get_open(self, _: web.Request) -> web.Response:
        """The epoch after the last one that is durable here; its beacon is null until its block is final."""
        last, member = self._store.last, self._engine.member
        chain, epoch = member.chain, last.report.epoch + 1 if last else 1
        is_current = chain.epoch == epoch
        block, beacon = chain.beacon, member.beacon
        return ok(
            {
                "epoch": epoch,
                "attempt": chain.attempt_of(epoch),
                "beacon": str(beacon) if is_current and beacon else None,
                "beacon_block": block.number if is_current and block else None,
                "report": last.report.to_json() if last else None,
                "signers": last.signers if last else 0,
                "signatures": f"0x{last.signatures.hex()}" if last else "0x",
                "anchor_time": chain.anchor_time if is_current else None,
                "parameters": chain.parameters_of(epoch).to_json(),
                "membership": [one.to_json() for one in chain.membership],
            }
        )

    async def get_reports(self, request: web.Request) -> web.Response:
        first = _number(request.query.get("from", "1"), "from")
        with self._lists.take(sender_address(request)):
            summaries = await self._store.summaries(first, REPORTS_LIMIT)
        return ok(
            [{"report": s.report.to_json(), "verdicts": dict(s.verdicts), "payments": s.payments} for s in summaries]
        )

    async def get_report(self, request: web.Request) -> web.Response:
        summary = await self._store.summary(_number(request.match_info["epoch"], "the epoch"))
        return ok(_report_json(summary))

    async def get_bundle(self, request: web.Request) -> web.StreamResponse:
        epoch = _number(request.match_info["epoch"], "the epoch")
        attempt = _number(request.query["attempt"], "the attempt") if "attempt" in request.query else None
        return await self._send(request, lambda: self._store.open_bundle(epoch, attempt))

    async def get_state(self, request: web.Request) -> web.StreamResponse:
        """The state after an epoch as this member has it, in one piece (`store.encode_state`)."""
        epoch = _number(request.match_info["epoch"], "the epoch")
        return await self._send(request, lambda: self._store.open_state(epoch))

    async def get_node(self, request: web.Request) -> web.Response:
        epoch = _number(request.match_info["epoch"], "the epoch")
        return ok(await self._views.node(epoch, Address(request.match_info["address"])))

    async def get_client(self, request: web.Request) -> web.Response:
        epoch = _number(request.match_info["epoch"], "the epoch")
        return ok(await self._views.client(epoch, Address(request.match_info["address"])))

    async def get_account(self, request: web.Request) -> web.Response:
        epoch = _number(request.query.get("epoch", str(self._engine.member.committed.epoch)), "epoch")
        return ok(await self._views.account(epoch, Address(request.match_info["address"])))


def parse_signed(data: bytes, body: Hash) -> PeerMessage:
    """A member's message whose bytes have the hash that was signed. WrongSignature, MalformedMessage."""
    if keccak(data) != body:
        raise WrongSignature("the body is not the one that was signed")
    return parse_message(data)


def parse_message(data: bytes) -> PeerMessage:
    """A member's message: {"type": its class, "message": its fields}. MalformedMessage."""
    value = parse_json(data)
    kind = MESSAGES.get(str(value.get("type"))) if isinstance(value, dict) else None
    if kind is None:
        raise MalformedMessage(f"a message is an object with a type, one of {', '.join(MESSAGES)}")
    return kind.from_json(value.get("message"))


def _number(text: str, what: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidInput(f"{what} must be a number, not {text[:40]!r}")
    return int(text)


def _report_json(summary: Summary) -> dict[str, Any]:
    value: dict[str, Any] = {
        "report": summary.report.to_json(),
        "signers": summary.signers,
        "signatures": f"0x{summary.signatures.hex()}",
    }
    return value | ({"transaction": summary.transaction} if summary.transaction else {})
