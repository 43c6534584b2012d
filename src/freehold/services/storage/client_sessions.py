"""Nodes under covered leases, kept for as long as their locks are enough: what every transfer of a client shares.

    prepare    nodes to store at: leases opened or found, locks for so many more bytes, shown to the node
    reading    nodes to read from, under leases that are there, or new ones where they were lost for good

Both cost nothing where the sessions that are there suffice. Otherwise one slow way at a time is under way (members are
asked, a reservation made); whoever waited for it looks again. Leases are locked for a while ahead: `days` of keeping
what a node has and gets, and reading it once. Invariant: no node is dealt with before it counts both leases as covered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

from freehold.market.leases import Leases, NodeLeases
from freehold.market.network import Network
from freehold.market.placement import Candidate, Directory, Survey
from freehold.market.quorum import Quorum
from freehold.market.reservations import Want
from freehold.market.view import ClientView
from freehold.market.vouchers import Vouchers
from freehold.net.client import Dial
from freehold.protocol.errors import FreeholdError, NotFound, Unavailable
from freehold.protocol.keys import Key
from freehold.protocol.messages import STREAM, VOUCHER
from freehold.protocol.units import Address, Hash
from freehold.services.storage.client_lists import ListBook
from freehold.services.storage.client_node import StorageNode
from freehold.services.storage.terms import LIST_BYTES_LIMIT, NAME, UNITS_PER_STREAM_PRICE, UNITS_PER_VOUCHER_PRICE

DAYS = 30  # ahead of now, for which a stream's lock is enough at the least
COMFORT = 3  # times that, where credits allow it: so that not every upload needs a reservation
READ_COMFORT = 4
AHEAD = 64 << 20  # bytes a node beyond what is asked for, where credits allow it
SLACK = 10**9  # a billionth of a credit: the cost of each shard is rounded up by itself
DAY = 86400
FRESH_SECONDS = 30.0  # for which a session is taken as it was left
AWAY_SECONDS = 30.0  # for which a node that did not serve is not asked again, while others do; doubles
LONGEST_AWAY = 600.0
PAIR = (STREAM, VOUCHER)  # a lease for what a node keeps, and one for what it sends

T = TypeVar("T")
Evidence = Callable[..., None]
Failures = dict[Address, FreeholdError]


class Context(NamedTuple):
    """What the wiring hands in. `evidence` hears of a node, its signed header, and the root of what came with it."""

    network: Network
    key: Key
    dial: Dial
    quorum: Quorum
    directory: Directory
    leases: Leases
    vouchers: Vouchers
    book: ListBook
    evidence: Evidence
    clock: Callable[[], float]
    days: int = DAYS


def compute_cost(size: int, price: int) -> int:
    """Credits for `size` bytes sent at `price` a tebibyte, rounded up."""
    return -(-size * price // UNITS_PER_VOUCHER_PRICE)


def compute_stream(size: int, seconds: int, price: int) -> int:
    """Credits for keeping `size` bytes for `seconds` at `price` a tebibyte and hour, rounded up."""
    return -(-size * seconds * price // UNITS_PER_STREAM_PRICE)


class _Away(NamedTuple):
    """A node that did not serve, and until when (monotonic seconds) it is left alone."""

    until: float
    seconds: float
    error: FreeholdError


class Sessions:
    """One account's sessions. `survey` says who offers now."""

    def __init__(self, context: Context, survey: Callable[[], Awaitable[Survey]]) -> None:
        self._context = context
        self._survey = survey
        self._nodes: dict[Address, StorageNode] = {}
        self._away: dict[Address, _Away] = {}
        self._changing = asyncio.Lock()

    # To store at

    async def prepare(self, chosen: Sequence[Candidate], each: int) -> tuple[list[StorageNode], Failures]:
        """Sessions that cover `each` more bytes; of the nodes that do not serve, what they answered."""
        found = [self._covering(candidate.node, each) for candidate in chosen]
        if None not in found:
            return [node for node in found if node is not None], {}
        async with self._changing:
            ready = [node for c in chosen if (node := self._covering(c.node, each)) is not None]
            missing = [c for c in chosen if c.node not in {node.address for node in ready}]
            if not missing:
                return ready, {}
            context = self._context
            view = await context.leases.view()
            await self._recover_all(view)
            opened, refused = await attempt({c.node: self._open_pair(c, view) for c in missing})
            await self._refresh(opened.values())
            wants = await self._renewals(view)
            for pair in opened.values():
                wants |= await self._wants(pair, view, each, keep=True)
            covered, refused = await self._cover(opened.values(), wants, refused, view)
            return ready + covered, refused

    def distrust(self, node: StorageNode, error: FreeholdError) -> None:
        """A node failed in a way that a new session may mend: it counts as away for a while."""
        if self._nodes.get(node.address) is node:
            node.room.checked = 0.0
            self._leave(node.address, error)

    def expire(self, node: StorageNode) -> None:
        """What its locks cover must be worked out again."""
        node.room.checked = 0.0

    def _covering(self, address: Address, each: int) -> StorageNode | None:
        node = self._nodes.get(address)
        if node is None or address in self._away or time.monotonic() - node.room.checked > FRESH_SECONDS:
            return None
        return node if node.room.has(each) else None

    async def renew(self) -> None:
        """Lock enough for what is stored, everywhere; InsufficientCredits."""
        leases = self._context.leases
        view = await leases.view()
        await self._refresh(await self._recover_all(view))
        await leases.reserve(await self._renewals(view))

    # To read from

    async def reading(
        self, addresses: Collection[Address], each: int, enough: int
    ) -> tuple[dict[Address, StorageNode], Failures]:
        """Sessions with these nodes under which each may send `each` bytes, and what the others answered.

        Nodes that did not serve a moment ago are not asked again while `enough` others do.
        """
        ready = await self._readable(addresses, each)
        away = self._failures(addresses)
        if len(ready) + len(away) < len(addresses) or len(ready) < enough:
            async with self._changing:
                ready = await self._readable(addresses, each)
                away = self._failures(addresses) if len(ready) >= enough else {}
                missing = [a for a in addresses if a not in ready and a not in away]
                if missing:
                    opened, failures = await self._open(missing, each)
                    ready |= opened
                    away |= failures
        return ready, away

    async def known(self) -> tuple[dict[Address, StorageNode], Failures]:
        """Sessions with every node that this account has a list at, whichever device made it."""
        view = await self._context.leases.view()
        kept = {node for node, mode in await self._context.leases.known(view) if mode == STREAM}
        nodes = {row.node for row in view.leases.values() if row.service == NAME and not row.closed} | kept
        return await self.reading(nodes, 0, len(nodes))

    async def _readable(self, addresses: Collection[Address], each: int) -> dict[Address, StorageNode]:
        ready = {}
        for address in addresses:
            node = self._nodes.get(address)
            if node is None or address in self._away:
                continue
            cap = self._context.vouchers.caps.get(node.leases.voucher_id, 0)
            cost = compute_cost(each, node.leases.voucher.price) + (SLACK if each else 0)
            if not each or await self._context.vouchers.signed(node.leases.voucher_id) + cost <= cap:
                ready[address] = node
        return ready

    def _failures(self, addresses: Collection[Address]) -> Failures:
        now = time.monotonic()
        return {a: self._away[a].error for a in addresses if a in self._away and self._away[a].until > now}

    def _leave(self, address: Address, error: FreeholdError) -> None:
        before = self._away.get(address)
        seconds = min(2 * before.seconds, LONGEST_AWAY) if before else AWAY_SECONDS
        self._away[address] = _Away(time.monotonic() + seconds, seconds, error)

    async def _open(self, addresses: Collection[Address], each: int) -> tuple[dict[Address, StorageNode], Failures]:
        context = self._context
        records = {record.node: record for record in await context.directory.nodes()}
        failures: Failures = {
            node: NotFound(f"node {node} is not registered any more") for node in addresses if node not in records
        }
        view = await context.leases.view()
        found, refused = await attempt(
            {node: context.leases.recover(records[node], PAIR, view) for node in addresses if node in records}
        )
        failures |= refused
        pairs = {node: pair for node, pair in found.items() if pair is not None}
        if len(pairs) < len(found):
            chosen = [c for c in (await self._survey()).candidates if c.node in found and c.node not in pairs]
            opened, refused = await attempt({c.node: self._open_pair(c, view) for c in chosen})
            pairs |= opened
            failures |= refused
        await self._refresh(pairs.values())
        wants: dict[Hash, Want] = {}
        for pair in pairs.values():
            wants |= await self._wants(pair, view, each, keep=False)
        ready, failures = await self._cover(pairs.values(), wants, failures, view)
        failures |= {
            node: Unavailable(f"node {node} offers no storage now")
            for node in addresses
            if node not in failures and node not in pairs
        }
        for node, error in failures.items():
            self._leave(node, error)
        return {node.address: node for node in ready}, failures

    # Leases and locks

    def _open_pair(self, candidate: Candidate, view: ClientView) -> Awaitable[NodeLeases]:
        offer = candidate.offer
        prices = {STREAM: offer.stream_price, VOUCHER: offer.voucher_price}
        return self._context.leases.open(candidate.record, prices, view)

    async def _recover_all(self, view: ClientView) -> list[NodeLeases]:
        """The leases of this account that are open in the state, whichever device made them, of nodes that answer."""
        context = self._context
        nodes = {row.node for row in view.leases.values() if row.service == NAME and not row.closed}
        records = [record for record in await context.directory.nodes() if record.node in nodes]
        found, _ = await attempt({record.node: context.leases.recover(record, PAIR, view) for record in records})
        return [pair for pair in found.values() if pair is not None]

    async def _refresh(self, pairs: Iterable[NodeLeases]) -> None:
        """Learn what other devices of this account have changed and paid at these nodes."""
        context, listed = self._context, list(pairs)
        answers = await context.leases.refresh(listed)
        for pair in listed:
            shown = answers.get(pair.node, {}).get(STREAM, {}).get("delta")
            if shown is not None:
                with suppress(FreeholdError):  # a list that nobody signed is no list; `plan` will say so
                    await context.book.keep_delta(self._at(pair).check_delta(shown))

    def _at(self, pair: NodeLeases) -> StorageNode:
        """The one session under these leases."""
        context, known = self._context, self._nodes.get(pair.node)
        if known is not None and known.leases == pair:
            return known
        return StorageNode(pair, context.dial, context.key, context.network.domain, context.clock)

    async def _renewals(self, view: ClientView) -> dict[Hash, Want]:
        """Locks under which no list lapses within half of `days`."""
        wants = {}
        for (_, mode), lease in (await self._context.leases.known(view)).items():
            key = lease.struct_hash()
            newest = await self._context.book.newest_delta(key) if mode == STREAM else None
            if newest is not None and newest.size:
                stream = compute_stream(newest.size, self._context.days * DAY, lease.price) + SLACK
                settled = view.settled(key)
                wants[key] = Want(settled + stream // 2, settled + COMFORT * stream)
        return wants

    async def _wants(self, pair: NodeLeases, view: ClientView, each: int, *, keep: bool) -> dict[Hash, Want]:
        """Locks that suffice for `each` more bytes at a node; only reading them unless `keep`."""
        held = (await self._held(pair)) + each
        signed = max(await self._context.vouchers.signed(pair.voucher_id), view.settled(pair.voucher_id))
        price = pair.voucher.price
        read = compute_cost(held if keep else each, price) + SLACK
        ahead = compute_cost(AHEAD, price) if each else 0
        wants: dict[Hash, Want] = {pair.voucher_id: Want(signed + read, signed + READ_COMFORT * read + ahead)}
        if keep:
            seconds = self._context.days * DAY
            stream = compute_stream(held, seconds, pair.stream.price) + SLACK
            ahead = compute_stream(AHEAD, seconds, pair.stream.price)
            settled = view.settled(pair.stream_id)
            wants[pair.stream_id] = Want(settled + stream, settled + COMFORT * stream + ahead)
        return wants

    async def _held(self, pair: NodeLeases) -> int:
        newest = await self._context.book.newest_delta(pair.stream_id)
        return (newest.size if newest else 0) + self._at(pair).room.arriving

    async def _cover(
        self, pairs: Iterable[NodeLeases], wants: Mapping[Hash, Want], failures: Failures, view: ClientView
    ) -> tuple[list[StorageNode], Failures]:
        listed = list(pairs)
        refused = await self._context.leases.prepare(listed, wants)
        ready = [self._at(pair) for pair in listed if pair.node not in refused]
        for node in ready:
            await self._measure(node, view)
            self._nodes[node.address] = node
            self._away.pop(node.address, None)
        return ready, failures | refused

    async def _measure(self, node: StorageNode, view: ClientView) -> None:
        """How many bytes the lock of a stream covers for `days`."""
        stream, room = node.leases.stream, node.room
        lease = node.leases.stream_id
        free = self._context.vouchers.caps.get(lease, 0) - view.settled(lease) - SLACK
        rate = self._context.days * DAY * stream.price
        room.limit = max(0, free) * UNITS_PER_STREAM_PRICE // rate if rate else LIST_BYTES_LIMIT
        newest = await self._context.book.newest_delta(lease)
        room.listed = newest.size if newest else 0
        room.checked = time.monotonic()


async def attempt(work: Mapping[Address, Awaitable[T]]) -> tuple[dict[Address, T], Failures]:
    """What each gave, and what each of the others failed with; anything but a FreeholdError is raised."""
    results = dict(zip(work, await asyncio.gather(*work.values(), return_exceptions=True), strict=True))
    good: dict[Address, T] = {}
    bad: Failures = {}
    for node, result in results.items():
        if isinstance(result, FreeholdError):
            bad[node] = result
        elif isinstance(result, TimeoutError):
            bad[node] = Unavailable(f"node {node} did not answer in time")
        elif isinstance(result, BaseException):
            raise result
        else:
            good[node] = result
    return good, bad
