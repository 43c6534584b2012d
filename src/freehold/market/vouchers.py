"""Vouchers as the client signs them: cumulative a lease, never lower than what was signed, kept before they are sent.

    amount = max(signed before, received + asked for and not yet answered)

What was prepaid and never arrived is thereby used by the next request. A node may name a higher debt than the client
knows of (an answer was lost, or another device of this account was served): `agree` takes it up to what this account
has signed, on whatever device (the node shows its last voucher), and, once a lease and session, up to one answer more,
which is all that a node serves ahead. From then on only later requests add to it: which of those in flight the node
has counted already is unknown, and to sign too little costs one more question, too much costs credits.

Invariant: the amount in the book is at least that of any voucher that left this machine.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from freehold.protocol.errors import InsufficientCredits, MalformedMessage
from freehold.protocol.keys import Key, is_signed_by
from freehold.protocol.messages import Voucher
from freehold.protocol.typed import Domain
from freehold.protocol.units import Hash, check_amount

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class VoucherBook(Protocol):
    """Where signed amounts are kept."""

    async def voucher(self, lease: Hash) -> int:
        """The highest amount signed for a lease; 0 for none."""

    async def raise_voucher(self, lease: Hash, amount: int) -> int:
        """Keep `amount` unless a higher one is kept; returns the highest. Durable when it returns."""


@dataclass
class _Tab:
    signed: int
    received: int
    asked: int = 0
    round: int = 0  # grows when a node's debt is taken over: what was asked for before is in it, or is asked again
    trusted: bool = False  # a debt above what was signed was taken over already
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass
class Ask:
    """One request in flight: set `received` to the credits that its answer was worth."""

    voucher: Voucher
    received: int = 0


class Agreement(NamedTuple):
    """`helps`: the next voucher is higher than the one sent; `is_rival`: another device of this account has paid."""

    helps: bool
    is_rival: bool


class Vouchers:
    """All vouchers of one account. `caps` are the locks: more than its lock a lease never pays."""

    def __init__(self, key: Key, domain: Domain, book: VoucherBook) -> None:
        self._key = key
        self._domain = domain
        self._book = book
        self._tabs: dict[Hash, _Tab] = {}
        self._opening: defaultdict[Hash, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.caps: dict[Hash, int] = {}

    async def signed(self, lease: Hash) -> int:
        """The highest amount signed for a lease."""
        return (await self._tab(lease)).signed

    @asynccontextmanager
    async def ask(self, lease: Hash, cost: int) -> AsyncIterator[Ask]:
        """A voucher that covers one more answer worth `cost` credits.

        InsufficientCredits if that is more than the lease's lock, where the lock is known.
        """
        tab = await self._tab(lease)
        async with tab.lock:
            amount = check_amount(max(tab.signed, tab.received + tab.asked + cost))
            cap = self.caps.get(lease)
            if cap is not None and amount > cap:
                missing = amount - cap
                raise InsufficientCredits(
                    f"this lease is locked for {cap} and would owe {amount}", missing=str(missing), lease=str(lease)
                )
            if amount > tab.signed:
                tab.signed = max(amount, await self._book.raise_voucher(lease, amount))
            tab.asked += cost
            round = tab.round
            ask = Ask(self._sign(lease, tab.signed))
        try:
            yield ask
        finally:
            if tab.round == round:
                tab.asked -= cost
                tab.received += ask.received

    async def agree(self, lease: Hash, details: dict[str, Any], ahead: int, sent: int = 0) -> Agreement:
        """Take over what a node says is owed, and the last voucher it shows, as far as they can be true.

        `ahead` is the worth of one answer, `sent` the amount of the voucher that the node did not take.
        """
        tab = await self._tab(lease)
        shown, owed = self._own_voucher(lease, details.get("voucher")), _amount(details.get("owed"))
        async with tab.lock:
            is_rival = shown > tab.signed
            if shown > tab.signed:
                tab.signed = max(shown, await self._book.raise_voucher(lease, shown))
            if owed is not None:
                above = owed > tab.signed and ahead > 0 and not tab.trusted
                tab.trusted |= above
                known = min(owed, tab.signed + (ahead if above else 0))
                if known > tab.received:
                    tab.received, tab.asked, tab.round = known, 0, tab.round + 1
            return Agreement(max(tab.signed, tab.received + tab.asked + ahead) > sent, is_rival)

    async def start(self, lease: Hash, details: dict[str, Any]) -> None:
        """At the start of a session nothing is in flight: what a node says is owed may also be less than prepaid."""
        await self.agree(lease, details, 0)
        tab = await self._tab(lease)
        owed = _amount(details.get("owed"))
        async with tab.lock:
            if owed is not None and not tab.asked:
                tab.received = min(tab.received, owed)

    async def _tab(self, lease: Hash) -> _Tab:
        async with self._opening[lease]:
            if lease not in self._tabs:
                signed = await self._book.voucher(lease)
                self._tabs[lease] = _Tab(signed, signed)
            return self._tabs[lease]

    def _sign(self, lease: Hash, amount: int) -> Voucher:
        voucher = Voucher(lease=lease, amount=amount)
        return msgspec.structs.replace(voucher, client_signature=self._key.sign(voucher, self._domain))

    def _own_voucher(self, lease: Hash, value: object) -> int:
        if value is None:
            return 0
        try:
            voucher = Voucher.from_json(value)
        except MalformedMessage:
            return 0
        good = voucher.lease == lease and is_signed_by(
            voucher, voucher.client_signature, self._key.address, self._domain
        )
        return voucher.amount if good else 0


def _amount(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 40:
        return int(value)
    return value if type(value) is int and value >= 0 else None
