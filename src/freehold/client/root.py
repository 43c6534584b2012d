"""The account's root: one sealed head that says which buckets there are, how each is set up, and who has access keys.

It is found and opened with the account's seed alone, so twelve words bring everything back. It is small, is replaced
as a whole, and changes by compare-and-set: whoever loses a race applies the change to the newer root. Invariants: a
read with `max_age` 0 sees every change acknowledged before it; bytes that are not exactly a root are Corrupt, and one
sealed by another account's seed is WrongPassphrase, never an empty list of buckets.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import msgspec

from freehold.client.heads import Head, Heads
from freehold.client.lifecycle import Rule
from freehold.client.sealing import Sealer
from freehold.client.secrets import derive_secret, head_name
from freehold.protocol.errors import Conflict, Corrupt
from freehold.services.storage.client_objects import Code

ENABLED = "Enabled"
SUSPENDED = "Suspended"
ATTEMPTS = 30
LONGEST_PAUSE = 0.5  # seconds between attempts

_IDENTITY = b"root"
_KIND = b"root"
_VERSION = 1


class BucketRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A bucket: its random id (16 bytes), when it was made (unix ms), its code, and how it is set up.

    `documents` are configurations verbatim, by S3's subresource; `default_retention` is (mode, days).
    """

    id: bytes
    created: int
    code: Code
    versioning: str = ""
    object_lock: bool = False
    default_retention: tuple[str, int] | None = None
    lifecycle: tuple[Rule, ...] = ()
    documents: dict[str, bytes] = {}


class AccessKey(msgspec.Struct, frozen=True, kw_only=True):
    """An S3 access key of this account. `grant` is what it may do, "" for everything; `expires` is 0 for never."""

    id: str
    secret: str
    label: str
    created: int
    grant: str = ""
    expires: int = 0


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What an access grant that this account gave is for; the token is not kept. Unix seconds, 0 for never."""

    path: str
    operations: tuple[str, ...]
    created: int
    expires: int
    label: str = ""


class ServicePlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where a service of this account runs now: the node, its endpoint, the lease and order it runs under, and what
    the node wants to see of whoever asks for it. `job` is the client's own name for it."""

    node: str
    endpoint: str
    lease: str
    order: str
    token: str
    job: str
    since: int  # unix seconds


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """Buckets by name, access keys by id; grants by revocation id in hex: revoked until when (unix time), and given;
    services by their ids."""

    buckets: dict[str, BucketRecord] = {}
    access_keys: dict[str, AccessKey] = {}
    revoked: dict[str, int] = {}
    shares: dict[str, Share] = {}
    services: dict[str, ServicePlace] = {}

    def with_bucket(self, name: str, record: BucketRecord | None) -> Root:
        """The root with another record for a bucket; None: without it."""
        buckets = {other: kept for other, kept in self.buckets.items() if other != name}
        if record is not None:
            buckets[name] = record
        return msgspec.structs.replace(self, buckets=buckets)


class AccountRoot:
    """The root of one account, as of now or of a moment ago."""

    def __init__(self, heads: Heads, seed: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        self._heads = heads
        self._name = head_name(seed, _IDENTITY)
        self._sealer = Sealer(derive_secret(seed, "root"), self._name)
        self._clock = clock
        self._turn = asyncio.Lock()
        self._began = float("-inf")  # when the read began that `_head` and `_root` are from
        self._head: Head | None = None
        self._root = Root()

    async def read(self, max_age: float = 0) -> Root:
        """The root as it stood at most `max_age` seconds before this call."""
        asked = self._clock()
        if max_age and self._began >= asked - max_age:
            return self._root
        async with self._turn:  # calls that overlap share a read, but none takes one that began before it
            if self._began <= asked:
                await self._load()
            return self._root

    async def change(self, change: Callable[[Root], Root]) -> Root:
        """Apply a change to the newest root; it runs again where another writer came first. What it raises goes on."""
        for attempt in range(ATTEMPTS):
            async with self._turn:
                await self._load()
                new = change(self._root)
                if new == self._root:
                    return new
                head = Head((self._head.version if self._head else 0) + 1, self._seal(new))
                began = self._clock()
                try:
                    await self._heads.compare_and_set(self._name, self._head, head)
                except Conflict:
                    pass
                else:
                    self._head, self._root, self._began = head, new, began
                    return new
            await asyncio.sleep(random.uniform(0, min(LONGEST_PAUSE, 0.01 * 2**attempt)))
        raise Conflict("the account's root is being changed by other writers all the time")

    async def _load(self) -> None:
        began = self._clock()
        head = await self._heads.read(self._name)
        if head != self._head or head is None:
            self._root = self._open(head) if head is not None else Root()
        self._head, self._began = head, began

    def _seal(self, root: Root) -> bytes:
        return self._sealer.seal(_KIND, encode_root(root))

    def _open(self, head: Head) -> Root:
        return decode_root(self._sealer.open(_KIND, head.base))


def encode_root(root: Root) -> bytes:
    """The root as it is sealed."""
    return msgspec.msgpack.encode((_VERSION, root))


def decode_root(data: bytes) -> Root:
    """The root behind `encode_root`'s form; Corrupt."""
    try:
        version, root = msgspec.msgpack.decode(data, type=tuple[int, Root])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"not an account's root: {error}") from None
    if version != _VERSION:
        raise Corrupt(f"root version {version} is not {_VERSION}")
    return root
