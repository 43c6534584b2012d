"""Reservations from the client's side: numbered, each replacing the last, kept before they are sent.

A crash in between leads to the same one being sent again. Of two devices that sign one number, the one that came first
at the members counts: the loser reads it from them, helps it to its certificate, and signs the next number on top.
Where neither can get one any more, both are void with the epoch. Invariant: what `reserve` lets pass is covered by
credits at the last committed report; otherwise InsufficientCredits says how many are missing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

import msgspec

from freehold.market.quorum import Held, Quorum
from freehold.market.view import ClientView, read_view
from freehold.protocol.batches import (
    MARKET_KINDS,
    RESERVATION,
    SENDER_FIELDS,
    Kinds,
    decode_batch,
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
)
from freehold.protocol.keys import Key, check_signed_by
from freehold.protocol.messages import Lock, Reservation
from freehold.protocol.parameters import Parameters
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain
from freehold.protocol.units import ONE, Hash
from freehold.protocol.verdicts import RESERVATION_GAP

RESERVATION_SECONDS = 86400
REPEATS = 3
PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0, 4.0, 8.0, 8.0, 8.0)  # seconds, until the epoch of a tie is over
JITTER = 0.5  # of a pause: it is drawn from that long to half as long again


class KeptReservation(NamedTuple):
    """A signed reservation; `held` is None while no quorum is known to hold it."""

    reservation: Reservation
    held: Held | None

    def caps(self) -> dict[Hash, int]:
        """Its locks by lease."""
        return {lock.lease: lock.amount for lock in self.reservation.locks}


class Want(NamedTuple):
    """Caps that a lease should be locked for: at least `minimum`, and `comfortable` where credits allow it."""

    minimum: int
    comfortable: int


class ReservationBook(Protocol):
    """Where a client keeps its last reservation. Writes are durable when they return."""

    async def reservation(self) -> KeptReservation | None:
        """The last one kept."""

    async def keep_reservation(self, kept: KeptReservation | None) -> None:
        """Replace the last one."""

    def exclusive(self, name: str) -> AbstractAsyncContextManager[None]:
        """Only one task of one process of this account is inside at a time."""


class Reservations:
    """The reservations of one account on one network."""

    def __init__(
        self,
        key: Key,
        domain: Domain,
        parameters: Parameters,
        quorum: Quorum,
        book: ReservationBook,
        clock: Callable[[], float],
    ) -> None:
        self._key = key
        self._domain = domain
        self._parameters = parameters
        self._quorum = quorum
        self._book = book
        self._clock = clock

    async def caps(self, view: ClientView) -> dict[Hash, int]:
        """The locks that count now, by lease."""
        caps, _ = self._baseline(view, await self._book.reservation())
        return {key: amount for key, amount in caps.items() if not self._is_over(view, key)}

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
                    view = await read_view(self._quorum, self._key.address)
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
        tried.clear()  # nobody lied: what comes next is shown to one member first again
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


def format_credits(amount: int) -> str:
    """An amount of credits (1e18 base units each) in decimals, rounded up to a millionth."""
    micro = -(-amount * 10**6 // ONE)
    return f"{micro // 10**6}.{micro % 10**6:06d}"
