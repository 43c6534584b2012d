"""Lifecycle: what a bucket's rules say has had its time goes, now and then, one bucket after the other.

Each gateway does this for every account that it serves. That several do it at once is harmless: what is due is decided
by each bucket's table when the change is committed, and what somebody else has taken is no longer there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from freehold.gateway.tenants import Tenant
from freehold.protocol.errors import FreeholdError

log = logging.getLogger(__name__)


class Expiry:
    """Looks at all buckets every `pause` seconds. `removed`: versions, markers and uploads so far."""

    def __init__(self, tenants: Iterable[Tenant], pause: float, clock: Callable[[], float] = time.time) -> None:
        self._tenants = tuple(tenants)
        self._pause = pause
        self._clock = clock
        self.removed = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._pause)

    async def look(self) -> None:
        """Once over all buckets; what cannot be done now is done at the next look."""
        for tenant in self._tenants:
            try:
                root = await tenant.root()
            except FreeholdError as error:
                log.warning("the buckets of %s cannot be looked at: %s", tenant.owner, error.message)
                continue
            for name, record in root.buckets.items():
                if any(rule.enabled for rule in record.lifecycle):
                    await self._expire(tenant, name)

    async def _expire(self, tenant: Tenant, name: str) -> None:
        try:
            count = await tenant.objects.expire(name, int(self._clock() * 1000))
        except FreeholdError as error:
            log.warning("nothing expires in a bucket of %s now: %s", tenant.owner, error.message)
            return
        except Exception:
            log.exception("lifecycle of a bucket of %s failed", tenant.owner)  # requests are served all the same
            return
        if count:
            self.removed += count
            log.info("%d expired in a bucket of %s", count, tenant.owner)
