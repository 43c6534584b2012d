"""One node as a client of storage sees it: signed requests for shards, plans and deltas.

A PUT is signed over the shard's root, which the coder has just computed, so nothing is hashed twice; the body goes out
in pieces of the coder's own buffer. A GET fills a buffer that the caller gives and checks the node's signed header
before the first byte. Invariant: what a method returns was signed by this node, or is checked by the caller against
roots that the client made itself.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from freehold.market.leases import NodeLeases
from freehold.net.auth import authorize
from freehold.net.client import Dial
from freehold.protocol.errors import Corrupt, InvalidInput, MalformedMessage, WrongSignature
from freehold.protocol.keys import Key, is_signed_by
from freehold.protocol.messages import Voucher
from freehold.protocol.typed import Domain, canonical_json, keccak, parse_json
from freehold.protocol.units import ZERO_HASH, Address, Hash
from freehold.services.storage.client_objects import ListedShard
from freehold.services.storage.list_steps import Step, apply_steps, follow
from freehold.services.storage.listing import PAGE_LIMIT, Entry, parse_page
from freehold.services.storage.terms import Delta, Served, ShardEntry

VOUCHER_HEADER, PREPAID_HEADER, SERVED_HEADER = "Freehold-Voucher", "Freehold-Prepaid", "Freehold-Served"
PLAN_LIMIT = 16 * 2**20  # bytes of an answer: 4,096 steps, each with its siblings

_PIECE = 256 << 10  # bytes handed to the transport at once
_BYTES = "application/octet-stream"

ANSWER_BYTES = 4096


@dataclass
class Room:
    """What the locks of a node's leases allow, in bytes: `limit` kept at once; `listed` are, `arriving` will be.

    `checked` is when this was last worked out (monotonic seconds).
    """

    limit: int = 0
    listed: int = 0
    arriving: int = 0
    checked: float = 0.0

    def has(self, size: int) -> bool:
        """Whether so many more bytes are covered."""
        return self.listed + self.arriving + size <= self.limit


class StorageNode:
    """A node under two leases of this client."""

    def __init__(self, leases: NodeLeases, dial: Dial, key: Key, domain: Domain, clock: Callable[[], float]) -> None:
        self.leases = leases
        self.room = Room()
        self._peer = leases.peer(dial, domain, clock)
        self._ahead: tuple[int, Step] | None = None  # after which delta, and what the next addition takes
        self._key = key
        self._domain = domain
        self._clock = clock

    @property
    def address(self) -> Address:
        """The node's address."""
        return self.leases.node

    async def put_shard(self, index: int, root: Hash, record: bytes, shard: memoryview) -> None:
        """Store a shard durably; the buffer must stand until this returns."""
        path = f"/v1/storage/{self.leases.stream_id}/shards/{root}?index={index}&size={len(shard)}"
        prefix = len(record).to_bytes(4) + record
        headers = self._sign("PUT", path, root) | {
            "Content-Length": str(len(prefix) + len(shard)),
            "Content-Type": _BYTES,
        }
        async with self._peer.request("PUT", path, headers=headers, data=_pieces(prefix, shard)) as response:
            await response.content.read(ANSWER_BYTES)  # a longer answer costs its node the connection

    async def get_shard(
        self, root: Hash, buffer: memoryview, voucher: Voucher, got: Callable[[int], None], *, is_prepaid: bool = True
    ) -> Served:
        """Fill the buffer with a shard of exactly its length; `got` hears of each piece's bytes as they arrive.

        `is_prepaid`: Conflict unless vouchers cover this answer too, so that with several devices at one lease nothing
        is owed that none of them signed. Returns the node's signed header. Corrupt where the length is another,
        WrongSignature where it is not signed.
        """
        path = f"/v1/storage/{self.leases.stream_id}/shards/{root}"
        headers = self._sign("GET", path, ZERO_HASH) | {VOUCHER_HEADER: voucher.to_bytes().decode()}
        if is_prepaid:
            headers[PREPAID_HEADER] = "1"
        async with self._peer.request("GET", path, headers=headers) as response:
            served = self._check_served(response.headers.get(SERVED_HEADER), root)
            at = 0
            async for chunk in response.content.iter_any():
                if at + len(chunk) > len(buffer):
                    raise Corrupt(f"{self._peer.url} sent more than the {len(buffer)} bytes of shard {root}")
                buffer[at : at + len(chunk)] = chunk
                at += len(chunk)
                got(len(chunk))
        if at != len(buffer):
            raise Corrupt(f"{self._peer.url} sent {at} of the {len(buffer)} bytes of shard {root}")
        return served

    def _check_served(self, header: str | None, root: Hash) -> Served:
        if header is None:
            raise WrongSignature(f"{self._peer.url} did not sign what it serves")
        served = Served.from_json(parse_json(header.encode()))
        if served.shard != root or served.lease not in (self.leases.stream_id, self.leases.voucher_id):
            raise WrongSignature(f"{self._peer.url} signed for another shard")
        if not is_signed_by(served, served.node_signature, self.address, self._domain):
            raise WrongSignature(f"{self._peer.url} did not sign what it serves")
        return served

    async def plan(
        self, add: Sequence[ShardEntry], remove: Sequence[ListedShard], newest: Delta | None
    ) -> tuple[Delta, list[int]]:
        """The next delta, signed by the client, and the positions that the additions take. The node is asked only where
        its last answer does not tell.

        Corrupt where the node's plan does not follow from the newest delta, or shows an older list than `newest`, which
        the client has seen both sides sign. InvalidInput, with the position, where a removal is of something else.
        """
        foreseen, self._ahead = self._ahead, None
        if foreseen is not None and newest is not None and foreseen[0] == newest.number and not remove:
            with suppress(Corrupt):
                steps = follow(foreseen[1], newest.count, add)
                if steps is not None:
                    return self._sign_next(newest, add, [], steps), [step.position for step in steps]
        positions = [shard.position for shard in remove]
        path = f"/v1/storage/{self.leases.stream_id}/plan"
        body = canonical_json({"add": [entry.to_json() for entry in add], "remove": positions})
        answer = await self._peer.post_bytes(path, body, self._sign("POST", path, keccak(body)), PLAN_LIMIT)
        try:
            shown = self.check_delta(answer["delta"], newest) if answer["delta"] is not None else None
            steps = [Step.from_json(step) for step in answer["steps"]]
        except (KeyError, TypeError):
            raise MalformedMessage(f"{self._peer.url} answered with something else than a plan") from None
        if newest is not None and (shown is None or shown.number < newest.number):
            raise Corrupt(f"{self._peer.url} shows an older list than the one both signed as number {newest.number}")
        signed = self._sign_next(shown, add, positions, steps)
        for shard, step in zip(remove, steps, strict=False):
            if step.old is None or step.old.root != shard.root:
                raise InvalidInput(
                    f"{self._peer.url} has another shard at position {shard.position}", position=shard.position
                )
        return signed, [step.position for step in steps[len(remove) :]]

    def _sign_next(
        self, before: Delta | None, add: Sequence[ShardEntry], remove: Sequence[int], steps: Sequence[Step]
    ) -> Delta:
        root, count = apply_steps(before, add, remove, steps)
        delta = Delta(
            lease=self.leases.stream_id,
            number=(before.number if before else 0) + 1,
            root=Hash(root.hash + b"\x00"),
            count=count,
            size=root.sums[0],
        )
        return msgspec.structs.replace(delta, client_signature=self._key.sign(delta, self._domain))

    async def change(self, delta: Delta, add: Sequence[ShardEntry], remove: Sequence[ListedShard]) -> Delta:
        """The delta as both signed it, durable at the node. Conflict where another one came first."""
        body = {
            "delta": delta.to_json(),
            "add": [entry.to_json() for entry in add],
            "remove": [shard.position for shard in remove],
        }
        answer = await self._peer.post_json(f"/v1/storage/{self.leases.stream_id}/deltas", body)
        if not isinstance(answer, dict):
            raise MalformedMessage(f"{self._peer.url} answered with something else than a delta")
        signed = self.check_delta(answer.get("delta"), delta)
        if signed.struct_hash() != delta.struct_hash():
            raise WrongSignature(f"{self._peer.url} signed another delta")
        with suppress(MalformedMessage):
            self._ahead = (signed.number, Step.from_json(answer["next"])) if answer.get("next") else None
        return signed

    async def list_entries(self, start: int) -> tuple[list[Entry], int | None]:
        """What the node says that the newest list has from position `start` on, and where the next page starts."""
        path = f"/v1/storage/{self.leases.stream_id}/entries?start={start}"
        async with self._peer.request("GET", path, headers=self._sign("GET", path, ZERO_HASH)) as response:
            body = await response.content.read(PAGE_LIMIT)
            while len(body) < PAGE_LIMIT and (more := await response.content.read(PAGE_LIMIT - len(body))):
                body += more
        return parse_page(body, start)

    def check_delta(self, value: Any, known: Delta | None = None) -> Delta:
        """A delta of this lease that both signed; WrongSignature for any other. Of `known`, the client has made or
        checked what signatures it has."""
        delta = Delta.from_json(value)
        if known is not None and delta == known and known.node_signature:
            return delta
        is_ours = known is not None and msgspec.structs.replace(delta, node_signature=known.node_signature) == known
        ours = is_ours or is_signed_by(delta, delta.client_signature, self._key.address, self._domain)
        if delta.lease != self.leases.stream_id or not ours:
            raise WrongSignature(f"{self._peer.url} shows a delta that this client did not sign")
        if not is_signed_by(delta, delta.node_signature, self.address, self._domain):
            raise WrongSignature(f"{self._peer.url} shows a delta that it did not sign")
        return delta

    def _sign(self, method: str, path: str, body: Hash) -> dict[str, str]:
        nonce = Hash(secrets.token_bytes(32))
        return authorize(self._key, method, path, body, self.address, self._domain, int(self._clock()), nonce)


async def _pieces(prefix: bytes, shard: memoryview) -> AsyncIterator[bytes | memoryview]:
    yield prefix
    for at in range(0, len(shard), _PIECE):
        yield shard[at : at + _PIECE]
