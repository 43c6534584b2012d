"""Leases and the reservations that lock credits for them, from the client's side.

    open       two leases with a node: a stream for what it keeps, vouchers for what it sends; both sides sign
    reserve    number s+1 lists every lock of the client; Q members certify and hold it
    register   the leases themselves, as certified evidence
    show       the node sees certificate and holdings, and serves from then on

A reservation is kept before it is sent, so that a crash in between leads to the same one being sent again.

Several devices may use one account, each with a book of its own. A node signs a lease only beside no other open one, so
they come to share leases. Of two reservations of one number the one that came first counts: the loser reads it from the
members, helps it to its certificate, and signs the next number on top. Where neither can get one any more, both are
void with the epoch. Invariant: what `reserve` lets pass is covered by credits at the last committed report; otherwise
InsufficientCredits says how many are missing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

import msgspec

from freehold.market.placement import Candidate
from freehold.market.quorum import Held, Quorum
from freehold.market.view import ClientView, read_view
from freehold.market.vouchers import Vouchers
from freehold.net.client import Dial, Peer
from freehold.protocol.batches import (
    CLOSE,
    LEASE,
    MARKET_KINDS,
    RESERVATION,
    SENDER_FIELDS,
    Kinds,
    decode_batch,
    encode_batch,
    make_batch,
)
from freehold.protocol.errors import (
    Conflict,
    Corrupt,
    EpochClosed,
    FreeholdError,
    InsufficientCredits,
    InvalidInput,
    MalformedMessage,
    NotFound,
    Refused,
    Unavailable,
    WrongSignature,
)
from freehold.protocol.keys import Key, check_signed_by, is_signed_by
from freehold.protocol.messages import STREAM, VOUCHER, Close, Lease, Lock, Reservation
from freehold.protocol.parameters import Parameters
from freehold.protocol.state import NodeRecord
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain
from freehold.protocol.units import ONE, Address, Hash
from freehold.protocol.verdicts import RESERVATION_GAP

LEASE_SECONDS = 30 * 86400  # until when a lease must have come into the state; epochs may stop for a while
RESERVATION_SECONDS = 86400
REPEATS = 3
PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0, 4.0, 8.0, 8.0, 8.0)  # seconds, until the epoch of a tie is over
JITTER = 0.5  # of a pause: it is drawn from that long to half as long again
ANSWER_SECONDS = 4.0  # a node that takes longer to say whether it serves is left out


class KeptLease(NamedTuple):
    """A lease both signed. `certified`: a quorum holds it; `closing`: this client has signed its end."""

    lease: Lease
    certified: bool
    closing: bool = False


class KeptReservation(NamedTuple):
    """A signed reservation; `held` is None while no quorum is known to hold it."""

    reservation: Reservation
    held: Held | None

    def caps(self) -> dict[Hash, int]:
        """Its locks by lease."""
        return {lock.lease: lock.amount for lock in self.reservation.locks}


class LeaseBook(Protocol):
    """Where a client keeps its leases and its last reservation. Writes are durable when they return."""

    async def leases(self) -> Sequence[KeptLease]:
        """All leases, in the order in which they were kept."""

    async def keep_lease(self, lease: Lease) -> None:
        """Keep a new lease."""

    async def mark_certified(self, leases: Sequence[Hash]) -> None:
        """A quorum holds these."""

    async def mark_closing(self, leases: Sequence[Hash]) -> None:
        """These are not used any more: the client is about to sign their end."""

    async def reservation(self) -> KeptReservation | None:
        """The last one kept."""

    async def keep_reservation(self, kept: KeptReservation | None) -> None:
        """Replace the last one."""

    def exclusive(self, name: str) -> AbstractAsyncContextManager[None]:
        """Only one task of one process of this account is inside at a time."""


class NodeLeases(NamedTuple):
    """A client's two leases with a node, and where the node listens."""

    node: Address
    endpoint: str
    stream: Lease
    voucher: Lease

    @property
    def stream_id(self) -> Hash:
        """The id of the lease that is paid for what the node keeps."""
        return self.stream.struct_hash()

    @property
    def voucher_id(self) -> Hash:
        """The id of the lease that is paid for what the node sends."""
        return self.voucher.struct_hash()


class Want(NamedTuple):
    """Caps that a lease should be locked for: at least `minimum`, and `comfortable` where credits allow it."""

    minimum: int
    comfortable: int


class Leases:
    """The leases of one account on one network, for one service."""

    def __init__(
        self,
        key: Key,
        domain: Domain,
        parameters: Parameters,
        quorum: Quorum,
        dial: Dial,
        book: LeaseBook,
        vouchers: Vouchers,
        clock: Callable[[], float],
        service: str,
    ) -> None:
        self._key = key
        self._domain = domain
        self._parameters = parameters
        self._quorum = quorum
        self._dial = dial
        self._book = book
        self._vouchers = vouchers
        self._clock = clock
        self._service = service

    async def view(self) -> ClientView:
        """What the last committed state says of this client."""
        return await read_view(self._quorum, self._key.address)

    async def kept(self) -> Sequence[KeptLease]:
        """The leases in this account's book."""
        return await self._book.leases()

    async def caps(self) -> dict[Hash, int]:
        """The locks that count now, by lease."""
        view = await self.view()
        caps, _ = self._baseline(view, await self._book.reservation())
        return {key: amount for key, amount in caps.items() if not self._is_over(view, key)}

    async def known(self, view: ClientView) -> dict[tuple[Address, int], Lease]:
        """The newest lease that is not closed, by (node, mode); one that lapsed goes on once its lock grows."""
        closed = {key for key, row in view.leases.items() if row.closed}
        return {
            (kept.lease.node, kept.lease.mode): kept.lease
            for kept in await self._book.leases()
            if kept.lease.service == self._service and not kept.closing and kept.lease.struct_hash() not in closed
        }

    async def open(self, candidate: Candidate, view: ClientView) -> NodeLeases:
        """The two leases with a node: those that are there, or new ones at its offer's prices."""
        async with self._book.exclusive(f"open-{candidate.node.hex()}"):
            known = await self.known(view)
            pair = []
            for mode, price in ((STREAM, candidate.offer.stream_price), (VOUCHER, candidate.offer.voucher_price)):
                lease = known.get((candidate.node, mode))
                pair.append(lease or await self._agree(candidate, mode, price, await self._ended(view)))
        return NodeLeases(candidate.node, candidate.record.endpoint, pair[0], pair[1])

    async def recover(self, record: NodeRecord, view: ClientView) -> NodeLeases | None:
        """The two leases with a node that are there; those that only the state knows are read back from the node."""
        known = await self.known(view)
        there = {kept.lease.struct_hash() for kept in await self._book.leases()}
        for key, row in view.leases.items():
            lost = row.node == record.node and row.service == self._service and key not in there
            if lost and not row.closed and (row.node, row.mode) not in known:
                lease = await self._read_back(record.endpoint, key)
                await self._book.keep_lease(lease)
                await self._book.mark_certified([key])
                known[row.node, row.mode] = lease
        stream, voucher = known.get((record.node, STREAM)), known.get((record.node, VOUCHER))
        return NodeLeases(record.node, record.endpoint, stream, voucher) if stream and voucher else None

    async def _read_back(self, endpoint: str, key: Hash) -> Lease:
        async with asyncio.timeout(ANSWER_SECONDS):
            answer = await self._dial.peer(endpoint).get_json(f"/v1/leases/{key}")
        lease = Lease.from_json(answer.get("lease") if isinstance(answer, dict) else None)
        if lease.struct_hash() != key:
            raise Corrupt(f"{endpoint} shows another lease than {key}")
        return lease

    async def _ended(self, view: ClientView) -> set[Hash]:
        """Leases that are closed, or that this book is closing."""
        closing = {kept.lease.struct_hash() for kept in await self._book.leases() if kept.closing}
        return closing | {key for key, row in view.leases.items() if row.closed}

    async def _agree(self, candidate: Candidate, mode: int, price: int, ended: Collection[Hash]) -> Lease:
        """A new lease, or the one that another device of this account has there already."""
        now = self._clock()
        lease = Lease(
            client=self._key.address,
            node=candidate.node,
            service=self._service,
            mode=mode,
            price=price,
            number=int(now * 1000),
            deadline=int(now) + LEASE_SECONDS,
        )
        lease = msgspec.structs.replace(lease, client_signature=self._key.sign(lease, self._domain))
        peer = self._dial.peer(candidate.record.endpoint)
        body = {"lease": lease.to_json(), "ended": [str(key) for key in sorted(ended)]}
        try:
            answer = await peer.post_json("/v1/leases", body)
        except Conflict as error:
            if "lease" not in error.details:
                raise
            return await self._adopt(candidate.node, mode, error.details["lease"])
        signed = Lease.from_json(answer.get("lease") if isinstance(answer, dict) else None)
        if signed.struct_hash() != lease.struct_hash() or not is_signed_by(
            signed, signed.node_signature, candidate.node, self._domain
        ):
            raise WrongSignature(f"{peer.url} did not sign the lease that it was offered")
        lease = msgspec.structs.replace(lease, node_signature=signed.node_signature)
        await self._book.keep_lease(lease)
        return lease

    async def _adopt(self, node: Address, mode: int, value: Any) -> Lease:
        """Keep a lease that another device of this account made."""
        lease = Lease.from_json(value)
        if (lease.client, lease.node, lease.service, lease.mode) != (self._key.address, node, self._service, mode):
            raise Corrupt(f"node {node} shows a lease that is not this account's")
        check_signed_by(lease, lease.client_signature, self._key.address, self._domain)
        check_signed_by(lease, lease.node_signature, node, self._domain)
        await self._book.keep_lease(lease)
        return lease

    async def refresh(self, nodes: Iterable[NodeLeases]) -> dict[Address, Any]:
        """What each node that answers says of the lease for what it keeps; of the other, its voucher is taken over."""
        pairs = list(nodes)
        answers = await asyncio.gather(*(self._refresh(pair) for pair in pairs))
        return {pair.node: answer for pair, answer in zip(pairs, answers, strict=True) if answer is not None}

    async def _refresh(self, pair: NodeLeases) -> Any:
        peer = self._dial.peer(pair.endpoint)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                stream, voucher = await asyncio.gather(
                    *(peer.get_json(f"/v1/leases/{key}") for key in (pair.stream_id, pair.voucher_id))
                )
        except (FreeholdError, TimeoutError):
            return None  # whether it serves is found out by `show`
        if isinstance(voucher, dict):
            await self._vouchers.start(pair.voucher_id, voucher)
        return stream if isinstance(stream, dict) else None

    async def prepare(self, nodes: Sequence[NodeLeases], wants: Mapping[Hash, Want]) -> dict[Address, FreeholdError]:
        """Reserve, register the leases and show the reservation; what each node that does not serve answered."""
        kept = await self.reserve(wants)
        await self.register()
        self._vouchers.caps.update(await self.caps())
        return await self.show(nodes, kept)

    async def register(self) -> None:
        """Certify the leases that no quorum holds yet."""
        fresh = [kept.lease for kept in await self._book.leases() if not kept.certified]
        if fresh:
            await self._quorum.certify(make_batch(LEASE, Table.of(Lease, fresh), self._key, self._domain))
            await self._book.mark_certified([lease.struct_hash() for lease in fresh])

    async def close(self, nodes: Collection[Address]) -> list[Hash]:
        """End every lease with these nodes; which ones. Counts from the report of the open epoch on.

        The nodes may then delete what they keep under them, and `lock_release` reports later the next reservation
        leaves their locks out.
        """
        view = await self.view()
        kept = {k.lease.struct_hash(): k for k in await self._book.leases()}
        ending = {key for key, row in view.leases.items() if row.node in nodes and not row.closed}
        ending |= {key for key, k in kept.items() if k.lease.node in nodes and key not in view.leases}
        unknown = [kept[key].lease for key in sorted(ending) if key not in view.leases]
        await self._book.mark_closing([key for key in ending if key in kept])
        if unknown:  # a lease is closed only once the state has it
            await self._quorum.certify(make_batch(LEASE, Table.of(Lease, unknown), self._key, self._domain))
            await self._book.mark_certified([lease.struct_hash() for lease in unknown])
        if ending:
            rows = [Close(lease=key) for key in sorted(ending)]
            signed = [msgspec.structs.replace(r, client_signature=self._key.sign(r, self._domain)) for r in rows]
            await self._quorum.certify(make_batch(CLOSE, Table.of(Close, signed), self._key, self._domain))
        return sorted(ending)

    async def show(self, nodes: Iterable[NodeLeases], kept: KeptReservation | None) -> dict[Address, FreeholdError]:
        """Show the reservation to each node that does not yet count both leases as covered."""
        pairs = list(nodes)
        value = None
        if kept is not None and kept.held is not None:
            batch = make_batch(RESERVATION, Table.of(Reservation, [kept.reservation]), self._key, self._domain)
            value = {
                "batch": f"0x{encode_batch(batch).hex()}",
                "certificate": kept.held.certificate.to_json(),
                "epoch": kept.held.epoch,
                "holdings": [{"member": str(m), "signature": str(s)} for m, s in kept.held.holdings.items()],
            }
        caps = kept.caps() if kept else {}
        answers = await asyncio.gather(*(self._show(pair, caps, value) for pair in pairs))
        return {pair.node: error for pair, error in zip(pairs, answers, strict=True) if error is not None}

    async def _show(self, pair: NodeLeases, caps: Mapping[Hash, int], value: object) -> FreeholdError | None:
        peer = self._dial.peer(pair.endpoint)
        leases = (pair.stream_id, pair.voucher_id)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answers = [await self._ask(peer, lease) for lease in (pair.stream, pair.voucher)]
                locked = all(_lock_of(a) >= caps.get(key, 0) for key, a in zip(leases, answers, strict=True))
                if value is not None and not locked:
                    await peer.post_json("/v1/reservations", value)
                    answers = [await peer.get_json(f"/v1/leases/{lease}") for lease in leases]
            uncovered = [key for key, answer in zip(leases, answers, strict=True) if not answer["covered"]]
            if uncovered:
                return Refused(f"{peer.url} does not count lease {uncovered[0]} as covered")
            await self._vouchers.start(pair.voucher_id, answers[1])
        except FreeholdError as error:
            return error
        except TimeoutError:
            return Unavailable(f"{peer.url} took more than {ANSWER_SECONDS:.0f} s", url=peer.url)
        except (KeyError, TypeError, ValueError):
            return Refused(f"{peer.url} does not say whether it counts its lease as covered")
        return None

    async def _ask(self, peer: Peer, lease: Lease) -> Any:
        """What a node says of a lease. One that it has forgotten, as nothing covered it for long, it signs again."""
        path = f"/v1/leases/{lease.struct_hash()}"
        try:
            return await peer.get_json(path)
        except NotFound:
            await peer.post_json("/v1/leases", {"lease": lease.to_json()})
            return await peer.get_json(path)

    async def reserve(self, wants: Mapping[Hash, Want]) -> KeptReservation | None:
        """Lock at least what is wanted; the reservation that now counts, None where the state alone covers it.

        Unavailable where this and another device tied, so that neither has a number before the epoch is over.
        """
        async with self._book.exclusive("reservation"):
            kept = await self._book.reservation()
            tried: set[Hash] = set()
            pauses = iter(PAUSES)
            while True:
                try:
                    if kept is not None and kept.held is None:
                        kept = await self._repeat(kept, tried)
                    view = await self.view()
                    caps, number = self._baseline(view, kept)
                    if all(caps.get(lease, 0) >= want.minimum for lease, want in wants.items()):
                        return kept if kept is not None and kept.reservation.number == number else None
                    signed = self._sign(number + 1, self._fit(view, caps, wants))
                    await self._book.keep_reservation(KeptReservation(signed, None))
                    return await self._certify(KeptReservation(signed, None), tried)
                except Conflict as error:
                    kept = await self._follow(error, tried, pauses)
                except Refused as error:
                    # Another device's reservation has been committed since the view was read.
                    if error.details.get("reason") != RESERVATION_GAP or next(pauses, None) is None:
                        raise
                    kept = None

    def _sign(self, number: int, locks: Mapping[Hash, int]) -> Reservation:
        reservation = Reservation(
            client=self._key.address,
            number=number,
            locks=tuple(Lock(lease=key, amount=amount) for key, amount in sorted(locks.items())),
            deadline=int(self._clock()) + RESERVATION_SECONDS,
        )
        return msgspec.structs.replace(reservation, client_signature=self._key.sign(reservation, self._domain))

    async def _follow(self, error: Conflict, tried: set[Hash], pauses: Iterator[float]) -> KeptReservation | None:
        """The reservation of another device that came first, to be helped; None after a pause, where that is no use."""
        rival = await self._find_rival(error, tried)
        kept = KeptReservation(rival, None) if rival is not None else None
        await self._book.keep_reservation(kept)
        if kept is None:
            pause = next(pauses, None)
            if pause is None:
                raise Unavailable(
                    "another device of this account reserves at the same time, and neither has a quorum",
                    hint="Try again once the open epoch has its report: what tied is void then.",
                ) from error
            await asyncio.sleep(pause * (1 + JITTER * random.random()))
        return kept

    async def _find_rival(self, error: Conflict, tried: Collection[Hash]) -> Reservation | None:
        """What members acknowledged instead, if this account signed it and it was not tried yet."""
        try:
            subject = Hash(error.details["subject"])
        except (KeyError, TypeError, MalformedMessage):
            raise error from None
        if subject in tried:
            return None

        def check(data: bytes) -> Reservation:
            kinds = Kinds({RESERVATION: MARKET_KINDS[RESERVATION]}, SENDER_FIELDS)
            batch = decode_batch(data, kinds, self._domain)
            row: Reservation = batch.table.rows[0]
            if batch.subject != subject or row.client != self._key.address:
                raise Corrupt(f"batch {subject} is no reservation of this account")
            check_signed_by(row, row.client_signature, self._key.address, self._domain)
            return row

        try:
            return await self._quorum.first_good(f"/v1/batches/{subject}", check)
        except (Corrupt, InvalidInput, NotFound):
            return None  # a member that named it was lying, or has forgotten it

    async def _repeat(self, kept: KeptReservation, tried: set[Hash]) -> KeptReservation | None:
        """Send a reservation again of which nobody knows whether it was held; None if it is refused for good."""
        try:
            return await self._certify(kept, tried)
        except FreeholdError as error:
            if error.retryable:
                raise
            return None

    async def _certify(self, kept: KeptReservation, tried: set[Hash]) -> KeptReservation:
        batch = make_batch(RESERVATION, Table.of(Reservation, [kept.reservation]), self._key, self._domain)
        is_first = not tried  # a member that lies about what came first must not be asked alone for ever
        tried.add(batch.subject)
        try:
            held = await self._quorum.certify(batch, ask_first=is_first)
            for _ in range(REPEATS):
                if held.epoch == held.certificate.epoch:
                    break
                held = await self._quorum.certify(batch)  # the epoch closed in between: it would not count
            else:
                raise EpochClosed("epochs close faster than a reservation is certified and held")
        except FreeholdError as error:
            if not error.retryable:
                await self._book.keep_reservation(None)
            raise
        kept = KeptReservation(kept.reservation, held)
        await self._book.keep_reservation(kept)
        return kept

    def _baseline(self, view: ClientView, kept: KeptReservation | None) -> tuple[dict[Hash, int], int]:
        """The locks that count, and the number of the last reservation: the kept one while its epoch is open."""
        last = view.client.reservation
        if (
            kept is not None
            and kept.held is not None
            and kept.held.epoch > view.epoch
            and kept.reservation.number > last
        ):
            return kept.caps(), kept.reservation.number
        return {key: lock.amount for key, lock in view.locks.items()}, last

    def _fit(self, view: ClientView, caps: Mapping[Hash, int], wants: Mapping[Hash, Want]) -> dict[Hash, int]:
        base = {key: amount for key, amount in caps.items() if not self._is_over(view, key)}
        have = view.client.paid_in - view.client.spent
        needed = 0
        for choice in ({k: w.comfortable for k, w in wants.items()}, {k: w.minimum for k, w in wants.items()}):
            locks = base | {key: max(base.get(key, 0), amount) for key, amount in choice.items()}
            needed = sum(max(0, amount - view.settled(key)) for key, amount in locks.items())
            if needed <= have:
                return locks
        missing = needed - have
        raise InsufficientCredits(
            f"{format_credits(missing)} credits are missing: {format_credits(needed)} must be reserved,"
            f" {format_credits(have)} are there",
            hint="Buy credits with `freehold credits buy`; they count from the next report on.",
            missing=str(missing),
            needed=str(needed),
            available=str(have),
        )

    def _is_over(self, view: ClientView, key: Hash) -> bool:
        lease = view.leases.get(key)
        return bool(lease and lease.closed and view.epoch >= lease.closed + self._parameters.lock_release)


def _lock_of(answer: Any) -> int:
    return int(answer["state"]["lock"])


def format_credits(amount: int) -> str:
    """An amount of credits (1e18 base units each) in decimals, rounded up to a millionth."""
    micro = -(-amount * 10**6 // ONE)
    return f"{micro // 10**6}.{micro % 10**6:06d}"
