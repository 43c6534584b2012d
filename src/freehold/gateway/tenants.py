"""Whose request it is: access keys to accounts, buckets to accounts, grants to accounts.

Access keys stand in each account's root, on the network. A root is read again when it is older than FRESH_SECONDS and
somebody asks: so a key that was removed stops, and a new one works, within about two seconds. A key that nobody has
heard of is looked for at once, though not more often than every LOOK_SECONDS: unknown keys cost the network nothing.

Invariant: an account is found by what its root says now, never by what a request says of it.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Callable, Container, Iterator, Sequence
from typing import NamedTuple

from freehold.client.access_keys import PREFIX
from freehold.client.buckets import Buckets
from freehold.client.grants import GrantKey, Grants
from freehold.client.root import AccessKey, AccountRoot, BucketRecord, Root
from freehold.client.secrets import derive_secret
from freehold.gateway.wire.errors import S3Error
from freehold.protocol.errors import FreeholdError

log = logging.getLogger(__name__)

FRESH_SECONDS = 1.5
LOOK_SECONDS = 1.0  # between two looks for keys that are not known


class Tenant:
    """One account that the gateway serves. `owner` is how answers name it; `seed` is the account's.

    With a `label` the gateway itself accepts one key more, made of seed and label: it is the same at every start, needs
    nothing of the network, and goes when the gateway is told of no label.
    """

    def __init__(self, objects: Buckets, owner: str, seed: bytes, label: str = "") -> None:
        self.objects = objects
        self.accounts: AccountRoot = objects.root
        self.owner = owner
        self.grant_key: bytes = GrantKey(seed).public_key
        self.grants = Grants(self.grant_key)
        self.own_key = make_own_key(seed, label) if label else None

    def key_in(self, root: Root, access_key: str) -> AccessKey | None:
        """The account's access key of this id, as of `root`."""
        own = self.own_key
        if own is not None and own.id == access_key:
            return own
        found = root.access_keys.get(access_key)
        return found if found is not None and found.id == access_key else None

    async def root(self, max_age: float | None = None) -> Root:
        """The account's root, at most so many seconds old (FRESH_SECONDS)."""
        return await self.accounts.read(FRESH_SECONDS if max_age is None else max_age)

    async def revoked(self) -> Container[str]:
        """Revocation ids of grants that no longer count."""
        return (await self.root()).revoked

    async def bucket(self, name: str) -> BucketRecord | None:
        """The record of a bucket; of one that seems not to be there by a read of now."""
        record = (await self.root()).buckets.get(name)
        return record if record is not None else (await self.root(0)).buckets.get(name)


class Caller(NamedTuple):
    """Who asks: an account by one of its access keys."""

    tenant: Tenant
    key: AccessKey


class Tenants:
    """All accounts of a gateway, in the order of its configuration."""

    def __init__(self, tenants: Sequence[Tenant], clock: Callable[[], float] = time.time) -> None:
        self._tenants = tuple(tenants)
        self._clock = clock
        own = ((tenant.own_key, tenant) for tenant in tenants)
        self._owners = {key.id: tenant for key, tenant in own if key}  # access key id: whose it was when last seen
        self.contested: set[str] = set()  # ids that several accounts have as theirs
        self._looking: asyncio.Task[None] | None = None
        self._looked = 0.0

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._tenants)

    async def find(self, access_key: str) -> Caller:
        """Whose key it is. S3Error InvalidAccessKeyId."""
        tenant = self._owners.get(access_key)
        if tenant is None:
            await self._look()
            tenant = self._owners.get(access_key)
        key = None if tenant is None else tenant.key_in(await tenant.root(), access_key)
        if tenant is None or key is None or (key.expires and key.expires <= self._clock()):
            self._owners.pop(access_key, None)
            raise S3Error("InvalidAccessKeyId", AWSAccessKeyId=access_key)
        return Caller(tenant, key)

    async def of_bucket(self, name: str) -> tuple[Tenant, BucketRecord] | None:
        """The first account with a bucket of this name."""
        for tenant in self._tenants:
            record = (await tenant.root()).buckets.get(name)
            if record is not None:
                return tenant, record
        return None

    def by_grant_key(self, public_key: bytes) -> Tenant | None:
        """The account whose grants are signed by this key."""
        return next((tenant for tenant in self._tenants if tenant.grant_key == public_key), None)

    async def _look(self) -> None:
        """Read every account's keys, together with whoever else asks now."""
        if self._looking is None or self._looking.done():
            now = time.monotonic()
            if self._looked and now - self._looked < LOOK_SECONDS:
                return
            self._looked = now
            self._looking = asyncio.create_task(self._read_keys(), name="access keys")
        await asyncio.shield(self._looking)

    async def _read_keys(self) -> None:
        owners = dict(self._owners)  # an id that is known stays whose it was: accounts write what they like into roots
        for tenant, root in zip(self._tenants, await asyncio.gather(*map(_read, self._tenants)), strict=True):
            for key in () if root is None else root.access_keys:
                if owners.setdefault(key, tenant) is not tenant:
                    self.contested.add(key)
        self._owners |= owners


def make_own_key(seed: bytes, label: str) -> AccessKey:
    """The access key that a gateway's configuration gives an account: 90 bits of id, 200 of secret."""
    parts = (derive_secret(seed, f"gateway/access-key/{part}", label.encode()) for part in ("id", "secret"))
    id_, secret = (base64.b32encode(part).decode() for part in parts)
    return AccessKey(id=f"{PREFIX}{id_[:18]}", secret=secret[:40], label=label, created=0)


async def _read(tenant: Tenant) -> Root | None:
    try:
        return await tenant.root(0)
    except FreeholdError as error:
        log.warning("the access keys of %s cannot be read: %s", tenant.owner, error.message)
        return None
