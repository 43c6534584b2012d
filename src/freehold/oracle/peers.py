"""The other members, by HTTP: messages go out through bounded queues, and nothing waits for a slow peer.

A message that does not arrive is sent again by the state machine, not here. Where the members are, and with which
certificates, is what the network file says now: it is read again whenever a peer does not answer. Each request is
signed for its recipient, so that a member knows whose it is before it reads the body.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache

from freehold.market.network import MemberRecord
from freehold.net.auth import authorize
from freehold.net.client import Dial, Peer
from freehold.oracle.checks import PeerMessage
from freehold.protocol.batches import BATCH_LIMIT
from freehold.protocol.errors import FreeholdError, Unavailable
from freehold.protocol.keys import Key
from freehold.protocol.typed import Domain, canonical_json, keccak
from freehold.protocol.units import Address, Hash

BODY_HEADER = "Freehold-Body"  # keccak of the body, which the request's signature covers
MESSAGES_PATH = "/v1/messages"

log = logging.getLogger(__name__)

QUEUE = 256  # messages that wait for one peer; the oldest go first
SEND_SECONDS = 10.0
FETCH_SECONDS = 60.0
BUNDLE_LIMIT = 2**30


@lru_cache(maxsize=64)
def encode_message(message: PeerMessage) -> tuple[bytes, Hash]:
    """A message as `server.parse_message` takes it, and its hash; once for all the peers that it goes to."""
    data = canonical_json({"type": type(message).__name__, "message": message.to_json()})
    return data, keccak(data)


class Peers:
    """`key` signs the requests; `members` gives the members as the network file names them now."""

    def __init__(
        self,
        dial: Dial,
        key: Key,
        domain: Domain,
        members: Callable[[], Mapping[Address, MemberRecord]],
    ) -> None:
        self._dial, self._key, self._domain, self._read_members = dial, key, domain, members
        self._members = dict(members())
        self._queues: dict[Address, deque[PeerMessage]] = {}
        self._waiting: dict[Address, asyncio.Event] = {}
        self._met: asyncio.Queue[Address] = asyncio.Queue()
        self.failing: dict[Address, str] = {}

    def send(self, member: Address, message: PeerMessage) -> None:
        """Queue a message for a peer."""
        if member not in self._queues:
            self._queues[member], self._waiting[member] = deque(maxlen=QUEUE), asyncio.Event()
            self._met.put_nowait(member)
        self._queues[member].append(message)
        self._waiting[member].set()

    async def run(self) -> None:
        """Deliver what is queued, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                member = await self._met.get()
                group.create_task(self._deliver(member), name=f"to {member}")

    async def _deliver(self, member: Address) -> None:
        queue, waiting = self._queues[member], self._waiting[member]
        while True:
            await waiting.wait()
            waiting.clear()
            while queue:
                message = queue.popleft()
                try:
                    async with asyncio.timeout(SEND_SECONDS):
                        await self._post(member, message)
                    self._recovered(member)
                except (FreeholdError, TimeoutError) as error:
                    self._failed(member, error)

    async def _post(self, member: Address, message: PeerMessage) -> None:
        data, body = encode_message(message)
        now, nonce = int(time.time()), Hash(os.urandom(32))
        headers = authorize(self._key, "POST", MESSAGES_PATH, body, member, self._domain, now, nonce)
        await self._peer(member).post_bytes(MESSAGES_PATH, data, headers | {BODY_HEADER: str(body)})

    async def fetch_batch(self, member: Address, subject: Hash) -> bytes:
        """A batch's bytes from one peer. FreeholdError."""
        return await self._fetch(member, f"/v1/batches/{subject}", BATCH_LIMIT)

    async def fetch_bundle(self, member: Address, epoch: int) -> bytes:
        """A bundle's bytes from one peer. FreeholdError."""
        return await self._fetch(member, f"/v1/bundles/{epoch}", BUNDLE_LIMIT)

    async def _fetch(self, member: Address, path: str, limit: int) -> bytes:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                return await self._peer(member).get_bytes(path, limit)
        except TimeoutError:
            error = Unavailable(f"member {member} took more than {FETCH_SECONDS:.0f} s for {path}")
            self._failed(member, error)
            raise error from None
        except Unavailable as error:
            self._failed(member, error)
            raise

    def _peer(self, member: Address) -> Peer:
        record = self._members.get(member)
        if record is None or not record.url:
            raise Unavailable(f"the network file names no address of member {member}")
        return self._dial.peer(record.url, record.fingerprint)

    def _failed(self, member: Address, error: Exception) -> None:
        if isinstance(error, FreeholdError) and not isinstance(error, Unavailable):
            log.info("member %s refuses a message: %s", member, error.message)
            return
        if member not in self.failing:
            log.warning("member %s does not answer: %s", member, error)
        self.failing[member] = str(error) or type(error).__name__
        self._members = dict(self._read_members())

    def _recovered(self, member: Address) -> None:
        if self.failing.pop(member, None) is not None:
            log.info("member %s answers again", member)
