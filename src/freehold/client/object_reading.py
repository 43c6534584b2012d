"""Reading an object: pinned to the record that was found, and found anew where that is gone before a byte was given.

Another device may replace an object, and take its shards off the lists, while it is being read here. Invariant: the
bytes of one reading are of one version, whole or not at all.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from freehold.client.bucket_store import Bucket, BucketStore
from freehold.client.bucket_types import ObjectInfo
from freehold.client.errors import ObjectReplaced
from freehold.client.object_versions import Found
from freehold.protocol.errors import FreeholdError, InvalidInput
from freehold.services.storage.client_objects import StoredObject


class Reading:
    """An object that is being read. `info` is settled once the first view came.

    Where its bytes vanish before that, because another device replaced the object, reading starts on what stands there
    now; ObjectReplaced if the range asked for does not fit that.
    """

    def __init__(
        self,
        store: BucketStore,
        find: Callable[[], Awaitable[tuple[Bucket, Found, ObjectInfo]]],
        at: Bucket,
        found: Found,
        info: ObjectInfo,
    ) -> None:
        self._store = store
        self._find = find
        self._at = at
        self._found = found
        self.info = info
        self._stored: StoredObject | None = None

    @property
    def size(self) -> int:
        """Bytes of the object."""
        return self.info.size

    async def read(self, offset: int = 0, length: int | None = None) -> AsyncGenerator[memoryview, None]:
        """The bytes from `offset` on, in order; each view stands until the next is asked for. InvalidInput."""
        end = self.size if length is None else offset + length
        if not 0 <= offset <= end <= self.size:
            raise InvalidInput(f"bytes {offset} to {end} are not within {self.size}", size=self.size)
        began = False
        while True:
            try:
                async with aclosing(self._views(offset, end - offset)) as views:
                    async for view in views:
                        began = True
                        yield view
                return
            except FreeholdError:
                if began or not await self._renew():
                    raise
            if length is None:
                end = self.size
            if not offset <= end <= self.size:
                raise ObjectReplaced(f"{self.info.key!r} was replaced by an object of {self.size} bytes")

    async def _views(self, offset: int, length: int) -> AsyncGenerator[memoryview, None]:
        if not length:
            return
        version = self._found.version
        if not version.stored:
            data = await self._at.table.payload(self._found.value, self._found.place)
            yield memoryview(data)[offset : offset + length]
            return
        if self._stored is None:
            self._stored = await self._store.unpack(version)
        async with aclosing(self._store.vault.read(self._stored, offset, length)) as views:
            async for view in views:
                yield view

    async def _renew(self) -> bool:
        """Whether something else stands there now."""
        at, found, info = await self._find()
        if (found.place, found.value) == (self._found.place, self._found.value):
            return False
        self._at, self._found, self.info, self._stored = at, found, info, None
        return True
