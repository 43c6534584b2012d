"""Storage's working half at a client: who to deal with, at what cost, and the way up and down.

    estimate   what keeping and reading back so many bytes would cost, by the offers of now
    ship       a fleet of n nodes of distinct operators under covered leases, to send a change of a bucket to
    open       the nodes that hold an object, under covered leases, to read it from
    renew      lock more credits for what is stored, before a list lapses
    collect    take what no index names off the nodes' lists

Leases are locked for a while ahead: `days` of keeping what a node has and gets, and reading it once. Invariant: no
node is dealt with before it counts both of its leases as covered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

from freehold.market.leases import Leases, NodeLeases
from freehold.market.network import Network
from freehold.market.placement import Candidate, Directory, Survey, Terms, choose, survey
from freehold.market.quorum import Quorum
from freehold.market.reservations import Want
from freehold.market.view import ClientView
from freehold.market.vouchers import Vouchers
from freehold.net.client import Dial
from freehold.protocol.errors import FreeholdError, NotFound, Unavailable
from freehold.protocol.keys import Key
from freehold.protocol.messages import STREAM
from freehold.protocol.units import Address, Hash
from freehold.services.storage.client_fleet import Fleet
from freehold.services.storage.client_lists import ListBook, certify_deltas, change_list
from freehold.services.storage.client_node import StorageNode
from freehold.services.storage.codec import shard_size
from freehold.services.storage.download import Downloader, Evidence, compute_cost
from freehold.services.storage.terms import NAME, UNITS_PER_STREAM_PRICE
from freehold.services.storage.upload import MemberKeys, Shipment

DAYS = 30  # ahead of now, for which a stream's lock is enough at the least
COMFORT = 3  # times that, where credits allow it: so that not every upload needs a reservation
READ_COMFORT = 4
SLACK = 10**9  # a billionth of a credit: the cost of each shard is rounded up by itself
DAY = 86400
INDEX_ALLOWANCE = 1 << 20  # bytes a node, for the indexes that follow the objects

T = TypeVar("T")


class Context(NamedTuple):
    """What the wiring hands in."""

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


class Estimate(NamedTuple):
    """Credits (base units): keeping `stored_bytes` in all (coding included) a while, and reading the data back once."""

    stored_bytes: int
    operators: int
    per_hour: int
    per_day: int
    per_30_days: int
    read_once: int


def compute_stream(size: int, seconds: int, price: int) -> int:
    """Credits for keeping `size` bytes for `seconds` at `price` a tebibyte and hour, rounded up."""
    return -(-size * seconds * price // UNITS_PER_STREAM_PRICE)


def compute_shard_bytes(size: int, k: int, segment_size: int) -> int:
    """Bytes that each of the n nodes stores of an object of `size` bytes."""
    whole, rest = divmod(size, segment_size)
    return whole * shard_size(segment_size, k) + (shard_size(rest, k) if rest else 0)


class StorageClient:
    """One account's storage on one network."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._segment_size = context.network.parameters.segment_size
        self._members = MemberKeys([member.public_key for member in context.network.members])

    async def survey(self, capacity: int = 0) -> Survey:
        """Who offers storage now, and why the others do not."""
        context = self._context
        terms = Terms(
            NAME,
            context.network.domain,
            int(context.clock()),
            context.network.parameters.minimum_bond,
            capacity,
        )
        return await survey(await context.directory.nodes(), context.dial, terms)

    async def estimate(self, size: int, k: int, n: int) -> Estimate:
        """What an object of `size` bytes would cost; InsufficientOperators where it cannot be placed."""
        each = compute_shard_bytes(size, k, self._segment_size)
        candidates = (await self.survey(each)).candidates
        chosen = choose(candidates, n)
        streams = [candidate.offer.stream_price for candidate in chosen]
        reads = sorted((candidate.offer.voucher_price for candidate in chosen), reverse=True)[:k]
        return Estimate(
            stored_bytes=n * each,
            operators=len({candidate.record.operator for candidate in candidates}),
            per_hour=sum(compute_stream(each, 3600, price) for price in streams),
            per_day=sum(compute_stream(each, DAY, price) for price in streams),
            per_30_days=sum(compute_stream(each, 30 * DAY, price) for price in streams),
            read_once=sum(compute_cost(each, price) for price in reads),
        )

    async def ship(self, id: str, code: tuple[int, int], size: int) -> Shipment:
        """A shipment for about `size` bytes in a code (k, n), to n nodes that serve; `id` names it in the book.

        Raises InsufficientOperators (who is missing, and why), InsufficientCredits (how many are missing).
        """
        k, n = code
        each = compute_shard_bytes(size, k, self._segment_size) + INDEX_ALLOWANCE
        found = await self.survey(each)
        context = self._context

        async def prepare(chosen: Sequence[Candidate]) -> tuple[list[StorageNode], dict[Address, FreeholdError]]:
            return await self._prepare(chosen, each)

        fleet = Fleet(found.candidates, n, prepare)
        fleet.failed |= {node: Unavailable(reason) for node, reason in found.refusals.items()}
        await fleet.assemble()
        return Shipment(
            id,
            fleet,
            code,
            self._segment_size,
            context.key,
            context.quorum,
            self._members,
            context.book,
        )

    async def open(self, nodes: Collection[Address], each: int) -> Downloader:
        """A downloader over those of the nodes that serve; `each` is the bytes that any one may have to send."""
        ready, failures = await self._sessions(nodes, each)
        downloader = Downloader(ready, self._context.vouchers, self._context.evidence)
        downloader.failures |= failures
        return downloader

    async def collect(self) -> dict[Address, FreeholdError]:
        """Take garbage off every list that has some; what the nodes that could not answered."""
        book = self._context.book
        ready, failures = await self._sessions(await book.garbage_nodes(), 0)

        async def clean(node: StorageNode) -> None:
            try:
                while await book.garbage(node.address):
                    await change_list(node, [], book, "")
            except FreeholdError as error:
                failures[node.address] = error

        await asyncio.gather(*(clean(node) for node in ready.values()))
        await certify_deltas(self._context.key, self._context.quorum, book)
        return failures

    async def _prepare(
        self, chosen: Sequence[Candidate], each: int
    ) -> tuple[list[StorageNode], dict[Address, FreeholdError]]:
        leases = self._context.leases
        view = await leases.view()
        await self._recover_all(view)
        opened, refused = await _attempt({c.node: leases.open(c, view) for c in chosen})
        await self._refresh(opened.values())
        wants = await self._renewals(view)
        for pair in opened.values():
            wants |= await self._wants(pair, view, each, keep=True)
        return await self._cover(opened.values(), wants, refused)

    async def renew(self) -> None:
        """Lock enough for what is stored, everywhere. Every upload does it too; InsufficientCredits."""
        leases = self._context.leases
        view = await leases.view()
        await self._refresh(await self._recover_all(view))
        await leases.reserve(await self._renewals(view))

    async def _recover_all(self, view: ClientView) -> list[NodeLeases]:
        """The leases of this account that are open in the state, whichever device made them, of nodes that answer."""
        context = self._context
        nodes = {row.node for row in view.leases.values() if row.service == NAME and not row.closed}
        records = [record for record in await context.directory.nodes() if record.node in nodes]
        found, _ = await _attempt({record.node: context.leases.recover(record, view) for record in records})
        return [pair for pair in found.values() if pair is not None]

    async def _refresh(self, pairs: Iterable[NodeLeases]) -> None:
        """Learn what other devices of this account have changed and paid at these nodes."""
        context, listed = self._context, list(pairs)
        answers = await context.leases.refresh(listed)
        for pair in listed:
            shown = answers.get(pair.node, {}).get("delta")
            if shown is not None:
                with suppress(FreeholdError):  # a list that nobody signed is no list; `plan` will say so
                    await context.book.keep_delta(self._at(pair).check_delta(shown))

    def _at(self, pair: NodeLeases) -> StorageNode:
        context = self._context
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

    async def _sessions(
        self, nodes: Collection[Address], each: int
    ) -> tuple[dict[Address, StorageNode], dict[Address, FreeholdError]]:
        """The nodes under leases that are there already, or under new ones where they were lost for good."""
        context = self._context
        records = {record.node: record for record in await context.directory.nodes()}
        failures: dict[Address, FreeholdError] = {
            node: NotFound(f"node {node} is not registered any more") for node in nodes if node not in records
        }
        view = await context.leases.view()
        found, refused = await _attempt(
            {node: context.leases.recover(records[node], view) for node in nodes if node in records}
        )
        failures |= refused
        pairs = {node: pair for node, pair in found.items() if pair is not None}
        if len(pairs) < len(found):
            chosen = [c for c in (await self.survey()).candidates if c.node in found and c.node not in pairs]
            opened, refused = await _attempt({c.node: context.leases.open(c, view) for c in chosen})
            pairs |= opened
            failures |= refused
        await self._refresh(pairs.values())
        wants: dict[Hash, Want] = {}
        for pair in pairs.values():
            wants |= await self._wants(pair, view, each, keep=False)
        ready, failures = await self._cover(pairs.values(), wants, failures)
        return {node.address: node for node in ready}, failures

    async def _wants(self, pair: NodeLeases, view: ClientView, each: int, *, keep: bool) -> dict[Hash, Want]:
        """Locks that suffice for `each` more bytes at a node; only reading them unless `keep`."""
        newest = await self._context.book.newest_delta(pair.stream_id)
        held = (newest.size if newest else 0) + each
        signed = max(await self._context.vouchers.signed(pair.voucher_id), view.settled(pair.voucher_id))
        read = compute_cost(held if keep else each, pair.voucher.price) + SLACK
        wants: dict[Hash, Want] = {pair.voucher_id: Want(signed + read, signed + READ_COMFORT * read)}
        if keep:
            stream = compute_stream(held, self._context.days * DAY, pair.stream.price)
            settled = view.settled(pair.stream_id)
            wants[pair.stream_id] = Want(settled + stream + SLACK, settled + COMFORT * (stream + SLACK))
        return wants

    async def _cover(
        self, pairs: Iterable[NodeLeases], wants: Mapping[Hash, Want], failures: dict[Address, FreeholdError]
    ) -> tuple[list[StorageNode], dict[Address, FreeholdError]]:
        listed = list(pairs)
        refused = await self._context.leases.prepare(listed, wants)
        return [self._at(pair) for pair in listed if pair.node not in refused], failures | refused


async def _attempt(
    work: Mapping[Address, Awaitable[T]],
) -> tuple[dict[Address, T], dict[Address, FreeholdError]]:
    """What each gave, and what each of the others failed with; anything but a FreeholdError is raised."""
    results = dict(zip(work, await asyncio.gather(*work.values(), return_exceptions=True), strict=True))
    good: dict[Address, T] = {}
    bad: dict[Address, FreeholdError] = {}
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
