"""What keeps buckets tidy: lifecycle rules, tables' own upkeep, and garbage of transfers that ended halfway.

A shipment or an intent whose process is gone is settled by looking: what a record names stays, the rest is garbage. The
look comes after the list of what was abandoned, and behind a fence: a commit of before is seen, or never comes about.
Invariant: nothing becomes garbage that a record or a table of the account names, or may name yet.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress

from freehold.client.bucket_store import Bucket
from freehold.client.bucket_types import DeleteWhat
from freehold.client.bucket_uploads import BucketUploads, drop_upload
from freehold.client.errors import BucketNotFound, ObjectLocked
from freehold.client.object_expiry import DueVersion, find_due_uploads, find_due_versions
from freehold.client.object_lists import is_newest
from freehold.client.object_records import OBJECTS, PARTS, Part, decode, decode_version
from freehold.client.object_versions import Outcome, check_lock, delete_one
from freehold.client.table import View
from freehold.client.table_records import FIRST, Changes, Key
from freehold.protocol.errors import FreeholdError
from freehold.services.storage.client_objects import ListedShard, StoredObject, decode_object

EXPIRE_AT_ONCE = 500  # versions in one commit
TAIL_BYTES = 64 << 10  # in a head, that are worth objects of their own
FEW_RUNS = 4  # that are not worth writing pages anew


class BucketUpkeep(BucketUploads):
    """The third of `Buckets` that nobody waits for."""

    async def expire(self, bucket: str, now: int) -> int:
        """Apply the bucket's lifecycle rules as of `now` (unix ms); how many versions and uploads went."""

        async def expire(at: Bucket) -> int:
            rules = at.record.lifecycle
            if not rules:
                return 0
            view, due, count = await at.view(), list[DueVersion](), 0
            async with aclosing(find_due_versions(view, rules, now)) as found:
                async for one in found:
                    due.append(one)
                    if len(due) == EXPIRE_AT_ONCE:
                        count += await self._expire(at, due, now)
                        due = []
            count += await self._expire(at, due, now) if due else 0
            for place in await find_due_uploads(view, rules, now):
                count += await self._drop_upload(at, place)
            return count

        return await self._in(bucket, expire)

    async def maintain(self, at_least: int = TAIL_BYTES, more_than: int = FEW_RUNS) -> None:
        """`Table.maintain` for all buckets; what one failed with is raised once the others are done."""
        failed: FreeholdError | None = None
        for name in sorted((await self.root.read()).buckets):
            try:
                await self._maintain(name, at_least, more_than)
            except FreeholdError as error:
                failed = error
        if failed is not None:
            raise failed

    async def sweep(self) -> None:
        """Settle what shipments and intents of processes left that are gone."""
        abandoned = await self.vault.abandoned()
        if not abandoned:
            return
        root = await self.root.read()
        tables = {self._table_name(record.id): name for name, record in root.buckets.items()}
        for label, shards in abandoned.items():
            wanted, named = set(shards), set[ListedShard]()
            if label in tables:
                async with aclosing(self._named(tables[label])) as objects:
                    async for stored in objects:
                        named |= wanted.intersection(stored.shards())
            await self.vault.settle(label, shards, named)

    async def audit(self, older_than: float) -> int:
        """Make garbage of what nodes have listed for so many seconds and no bucket names; how many shards."""
        named: set[int] = set()  # hashes, as there may be millions: where two are the same, garbage stays
        for name in sorted((await self.root.read()).buckets):
            async with aclosing(self._named(name)) as objects:
                async for stored in objects:
                    named.update(map(hash, stored.shards()))
        return await self.vault.audit(lambda shard: hash(shard) in named, older_than)

    async def _maintain(self, name: str, at_least: int, more_than: int) -> None:
        async def maintain(at: Bucket) -> None:
            await at.table.maintain(at_least, more_than)

        with suppress(BucketNotFound):  # deleted meanwhile
            await self._in(name, maintain)

    async def _named(self, bucket: str) -> AsyncGenerator[StoredObject, None]:
        """Every object that a bucket's records and its table name; nothing where the bucket is gone."""

        async def look(at: Bucket) -> tuple[View, Sequence[StoredObject]]:
            return await at.fence(), await at.table.own_objects()

        while True:
            try:
                view, own = await self._in(bucket, look)
            except BucketNotFound:
                return
            number = view.number
            for stored in own:
                yield stored
            async with aclosing(view.scan(FIRST)) as rows:
                async for place, value in rows:
                    if place[0] == OBJECTS:
                        for stored in await self._objects(decode_version(value.meta)):
                            yield stored
                    elif place[0] == PARTS:
                        yield decode_object(decode(value.meta, Part).stored)
            if view.number == number:  # a scan that goes on with a newer head may miss what has moved
                return

    async def _expire(self, at: Bucket, due: Sequence[DueVersion], now: int) -> int:
        """One commit of what is due and still is what it was; how much."""
        count = 0

        async def change(view: View) -> Changes:
            nonlocal count
            count, whole = 0, Outcome({}, {})
            for one in due:
                value = await view.get(one.place)
                if value is None or decode_version(value.meta) != one.version:
                    continue
                if one.expires:
                    if not await is_newest(view, one.place):
                        continue
                    what = DeleteWhat(one.place[1].decode())
                    outcome, _ = await delete_one(view, at.record, at.ids, what, self._now(), bypass=False)
                    whole.put.update(outcome.put)
                    whole.dropped.update(outcome.dropped)
                else:
                    try:
                        check_lock(one.version, now, bypass=False)
                    except ObjectLocked:
                        continue
                    whole.dropped[one.place] = one.version
                count += 1
            return await self._changes(whole)

        await at.commit(change)
        return count

    async def _drop_upload(self, at: Bucket, place: Key) -> int:
        there = False

        async def change(view: View) -> Changes:
            nonlocal there
            there = await view.get(place) is not None
            return await drop_upload(view, place) if there else Changes()

        await at.commit(change)
        return int(there)
