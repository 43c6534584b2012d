"""The SDK: one object through which CLI, gateway and notebooks use a network as one account.

    async with Freehold(network, account) as freehold:
        await freehold.put(Path("photo.raw"), "fh://demo/photo.raw")
        await freehold.get("fh://demo/photo.raw", Path("back.raw"))

`__aenter__` is the client's wiring function: what is started there is closed in the opposite order. Invariant: `put`
returns only when n nodes have the object on disk and in lists that they signed, which a quorum holds within the epoch;
under the name that `get` was given there is never half a file.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing, closing, suppress
from pathlib import Path
from typing import NamedTuple, Self

from freehold.chain.journal import Journal
from freehold.chain.rpc import Rpc
from freehold.client.account import Account, get_account_dir, get_home
from freehold.client.book import Book
from freehold.client.bucket_types import BucketInfo, DeleteWhat, ObjectInfo
from freehold.client.buckets import DEFAULT_CODE, Buckets
from freehold.client.errors import BucketExists, BucketNotFound, KeyNotFound
from freehold.client.evidence import EvidenceFolder
from freehold.client.heads import Heads
from freehold.client.jobs import Jobs
from freehold.client.jobs_tools import LocalTools
from freehold.client.money import Balance, Claimed, Money
from freehold.client.node_heads import NodeHeads
from freehold.client.paths import ObjectPath, parse_path
from freehold.client.vault import Vault
from freehold.market.directory import ChainDirectory
from freehold.market.leases import Leases
from freehold.market.network import Network
from freehold.market.placement import Directory, Survey
from freehold.market.quorum import Quorum
from freehold.market.vouchers import Vouchers
from freehold.net.client import Dial
from freehold.protocol.errors import FreeholdError, InvalidInput, NotFound
from freehold.protocol.state import State
from freehold.protocol.units import Address, Hash
from freehold.services.compute.client import ComputeClient
from freehold.services.compute.client import Context as ComputeContext
from freehold.services.storage.client import DAYS, Context, Estimate, StorageClient
from freehold.services.storage.client_objects import Code
from freehold.services.storage.client_seats import StorageSeats
from freehold.services.storage.client_sources import FileSource
from freehold.store.disk import RealFile

Progress = Callable[[int, int], None]  # bytes done, bytes in all
Path_ = ObjectPath | str


REMOVE_AT_ONCE = 1000
GARBAGE_AT_ONCE = 10_000


class Swept(NamedTuple):
    """Shards that nothing named, found at the nodes; and what those nodes answered that take them off later."""

    found: int
    failed: dict[Address, FreeholdError]


class CreditState(NamedTuple):
    """Credits (base units) at the last report: bought, spent, and promised by locks beyond what is settled."""

    epoch: int
    paid_in: int
    spent: int
    reserved: int

    @property
    def free(self) -> int:
        """What new reservations may promise."""
        return self.paid_in - self.spent - self.reserved


class LeaseInfo(NamedTuple):
    """A lease: `lock` and `settled` are credits (base units), `lapsed` and `closed` epochs, 0 for not."""

    lease: Hash
    operator: Address | None
    node: Address
    service: str
    mode: int
    settled: int
    lapsed: int
    closed: int
    lock: int


class Freehold:
    """One account on one network; `async with`. `directory` and `heads` replace the usual ones."""

    def __init__(
        self,
        network: Network,
        account: Account,
        *,
        home: Path | None = None,
        days: int = DAYS,
        directory: Directory | None = None,
        heads: Heads | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.network = network
        self.account = account
        self.folder = get_account_dir(home or get_home(), network.domain, account.address)
        self._days = days
        self._given = directory, heads
        self._clock = clock
        self._stack = AsyncExitStack()
        self.heads: Heads

    async def __aenter__(self) -> Self:
        network, key = self.network, self.account.key
        async with AsyncExitStack() as stack:
            book = self._book = Book(self.folder)
            stack.callback(book.close)
            rpc = await stack.enter_async_context(Rpc(network.rpc_url, chain_id=network.chain_id))
            dial = await stack.enter_async_context(Dial(connections_per_peer=32))
            self.quorum = Quorum(dial, network.members, network.domain)
            self.directory = self._given[0] or ChainDirectory(network, rpc)
            self.evidence = EvidenceFolder(self.folder / "evidence")
            vouchers = Vouchers(key, network.domain, book)

            def leases(service: str) -> Leases:
                """All services' leases stand in one book, under one reservation."""
                return Leases(
                    key, network.domain, network.parameters, self.quorum, dial, book, vouchers, self._clock, service
                )

            self._leases = leases("storage")
            context = Context(
                network=network,
                key=key,
                dial=dial,
                quorum=self.quorum,
                directory=self.directory,
                leases=self._leases,
                vouchers=vouchers,
                book=book,
                evidence=self.evidence.keep,
                clock=self._clock,
                days=self._days,
            )
            self.storage = StorageClient(context)
            stack.push_async_callback(self.storage.close)
            self.vault = Vault(self.storage, book)
            if self._given[1] is not None:
                self.heads = self._given[1]
            else:
                seats = StorageSeats(context, self.storage, self.storage.sessions)
                self.heads = kept = NodeHeads(key, network.domain, seats)
                stack.push_async_callback(kept.stop)
            self.compute = ComputeClient(
                ComputeContext(
                    network=network,
                    key=key,
                    dial=dial,
                    quorum=self.quorum,
                    directory=self.directory,
                    leases=leases("compute"),
                    book=book,
                    clock=self._clock,
                )
            )
            stack.push_async_callback(self.compute.close)
            self.objects = Buckets(self.heads, self.vault, self.account.seed, self.folder / "tables", clock=self._clock)
            stack.push_async_callback(self.objects.aclose)
            self.jobs = Jobs(
                self.account.address,
                self.account.seed,
                network.parameters,
                self.compute,
                self,
                self.objects.root,
                self.folder / "jobs",
                LocalTools(get_home() / "tools"),
                self._clock,
            )
            stack.callback(self.jobs.close)
            self.money = Money(network, rpc, self.quorum, key, Journal(self.folder / "transactions.json"))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    # Objects

    async def put(self, local: Path, path: Path_, progress: Progress | None = None) -> ObjectInfo:
        """Store a file; its bucket is made if it is not there.

        Raises SourceChanged, InsufficientCredits, InsufficientOperators, and nothing is recorded.
        """
        where = _object(path)
        try:
            return await self._put(local, where, progress)
        except BucketNotFound:
            with suppress(BucketExists):
                await self.objects.create_bucket(where.bucket)
        return await self._put(local, where, progress)

    async def _put(self, local: Path, where: ObjectPath, progress: Progress | None) -> ObjectInfo:
        source = await asyncio.to_thread(FileSource, local)
        try:
            return await self.objects.put(where.bucket, where.key, source, progress=_add_up(progress, source.size))
        finally:
            source.close()

    async def get(self, path: Path_, local: Path, progress: Progress | None = None) -> int:
        """Read an object into a file, or into a directory under the object's own name; the bytes written."""
        where = _object(path)
        if await asyncio.to_thread(local.is_dir):
            local = local / where.name
        reading = await self.objects.open(where.bucket, where.key)
        report = _add_up(progress, reading.size)
        temporary = local.with_name(f".{local.name}.{secrets.token_hex(4)}.part")
        try:
            with closing(_create(temporary)) as file:
                async with aclosing(reading.read()) as views:
                    async for view in views:
                        await asyncio.to_thread(file.write, view)
                        if report is not None:
                            report(len(view))
                await asyncio.to_thread(file.sync)
            await asyncio.to_thread(temporary.replace, local)
        finally:
            temporary.unlink(missing_ok=True)
        return reading.size

    async def read(self, path: Path_, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """An object's bytes from `offset`, in order; only the segments that hold them are fetched."""
        where = _object(path)
        reading = await self.objects.open(where.bucket, where.key)
        async with aclosing(reading.read(offset, length)) as views:
            async for view in views:
                yield bytes(view)

    async def walk(self, path: Path_) -> AsyncGenerator[ObjectInfo, None]:
        """The objects at and below a path, in order, page by page. "dir" and "dir/" mean dir and what is in it."""
        where = _parse(path)
        if where.key and not where.key.endswith("/"):
            with suppress(KeyNotFound):
                yield await self.objects.head(where.bucket, where.key)
            where = where.below("/")
        after: str | None = ""
        while after is not None:
            page = await self.objects.list(where.bucket, where.key, after=after)
            for info in page.entries:
                yield info
            after = page.next

    async def ls(self, path: Path_) -> list[ObjectInfo]:
        """The objects at and below a path."""
        return [info async for info in self.walk(path)]

    async def stat(self, path: Path_) -> ObjectInfo:
        """One object; NotFound."""
        where = _object(path)
        return await self.objects.head(where.bucket, where.key)

    async def rm(self, *paths: Path_) -> dict[Address, FreeholdError]:
        """Remove objects of one bucket. Nodes that did not answer (they are returned) forget their shards later.

        NotFound for one that is not there; the others are then removed.
        """
        places = [_object(path) for path in paths]
        if len({where.bucket for where in places}) > 1:
            raise InvalidInput("objects of one bucket are removed at once")
        for at in range(0, len(places), REMOVE_AT_ONCE):
            some = places[at : at + REMOVE_AT_ONCE]
            what = [DeleteWhat(where.key, None, "*") for where in some]
            for outcome in await self.objects.delete(some[0].bucket, what):
                if isinstance(outcome, FreeholdError):
                    raise outcome
        await self.objects.quiet()
        await self.objects.sweep()
        return await self.vault.collect()

    # Buckets

    async def mb(self, bucket: str, k: int = 3, n: int = 6) -> None:
        """Make an empty bucket whose objects are coded k of n."""
        await self.objects.create_bucket(_bucket(bucket), Code(k, n))

    async def rb(self, bucket: str) -> None:
        """Remove an empty bucket."""
        await self.objects.delete_bucket(_bucket(bucket))

    async def buckets(self) -> list[BucketInfo]:
        """All buckets of this account."""
        return await self.objects.buckets()

    async def sweep(self, older_than: float | None = None) -> Swept:
        """Bring heads to where they should be, and take off the nodes' lists what transfers left that ended halfway.

        With `older_than` (seconds) also what lost machines left: whatever nodes have listed for longer than that.
        That reads every record of the account, and must exceed what any other device's transfer takes.
        """
        await self.heads.maintain()
        await self.objects.sweep()
        found = await self.objects.audit(older_than) if older_than is not None else 0
        return Swept(found, await self.vault.collect())

    async def maintain(self) -> None:
        """What long-running clients do now and then: tables tidy, heads to where they should be, garbage away."""
        await self.objects.maintain()
        await self.sweep()

    async def estimate(self, size: int, path: Path_) -> Estimate:
        """What storing `size` bytes at a path would cost, by the offers of now."""
        try:
            code = (await self.objects.bucket(_parse(path).bucket)).code
        except BucketNotFound:
            code = DEFAULT_CODE
        return await self.storage.estimate(size, code.k, code.n)

    async def survey(self) -> Survey:
        """Who offers storage now, and why the others do not."""
        return await self.storage.survey()

    # Money

    async def credits(self) -> CreditState:
        """Credits at the last report."""
        view = await self._leases.view()
        caps = await self._leases.caps()
        reserved = sum(max(0, amount - view.settled(lease)) for lease, amount in caps.items())
        return CreditState(view.epoch, view.client.paid_in, view.client.spent, reserved)

    async def renew(self) -> None:
        """Lock enough credits for everything that is stored. Every upload does it too."""
        await self.storage.renew()

    async def leases(self) -> list[LeaseInfo]:
        """This account's leases that the last report has, and those that it has not yet."""
        view, caps = await self._leases.view(), await self._leases.caps()
        operators = {record.node: record.operator for record in await self.directory.nodes()}
        rows = {key: (r.node, r.service, r.mode, r.settled, r.lapsed, r.closed) for key, r in view.leases.items()}
        for kept in await self._leases.kept():
            lease = kept.lease
            rows.setdefault(lease.struct_hash(), (lease.node, lease.service, lease.mode, 0, 0, 0))
        return [LeaseInfo(key, operators.get(row[0]), *row, lock=caps.get(key, 0)) for key, row in sorted(rows.items())]

    async def close_leases(self, who: Address) -> list[Hash]:
        """End every lease with a node or with all nodes of an operator; which ones. NotFound if there is none.

        The nodes then delete what they keep for this account: objects lose those shards.
        """
        nodes = {info.node for info in await self.leases() if who in (info.node, info.operator) and not info.closed}
        if not nodes:
            raise NotFound(f"this account has no open lease with {who}")
        closed = await self._leases.close(nodes)
        for node in nodes:  # what was to come off their lists goes with the lists
            while gone := await self._book.garbage(node, GARBAGE_AT_ONCE):
                await self._book.collected(gone)
        return closed

    async def balance(self, address: Address | None = None) -> Balance:
        """Tokens, credits ever bought, and coins for transactions."""
        return await self.money.balance(address)

    async def buy_credits(self, tokens: int) -> int:
        """Burn tokens for credits; they count from the next report on."""
        return await self.money.buy(tokens)

    async def claim(self, account: Address | None = None, kept: State | None = None) -> Claimed:
        """Bring an account's earnings to its payout address; `kept`: the active state, where no member answers."""
        return await self.money.claim(account, kept)


def _parse(path: Path_) -> ObjectPath:
    return parse_path(path) if isinstance(path, str) else path


def _object(path: Path_) -> ObjectPath:
    where = _parse(path)
    if not where.key:
        raise InvalidInput(f"{where} names a bucket, not an object")
    return where


def _bucket(text: str) -> str:
    path = parse_path(text if "://" in text else f"fh://{text}")
    if path.key:
        raise InvalidInput(f"{text} names an object, not a bucket")
    return path.bucket


def _add_up(progress: Progress | None, total: int) -> Callable[[int], None] | None:
    if progress is None:
        return None
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return add


def _create(path: Path) -> RealFile:
    try:
        return RealFile(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    except FileNotFoundError:
        raise NotFound(f"there is no directory {path.parent}") from None
    except OSError as error:
        raise InvalidInput(f"{path.parent} cannot be written to: {error.strerror}") from None
