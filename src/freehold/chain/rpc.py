"""JSON-RPC to one chain, through one RPC end or several: typed answers, typed errors, bounded retries.

What is proven and what is trusted:

    one end          That a header's fields have its hash (where the chain's hashes are of the fields), that headers
                     hang together, that events are of the blocks that were read, and that none of them contradicts
                     its block's bloom. Trusted: that this is the chain that the others see, and that no event was
                     left out which the bloom cannot tell.
    n ends, a quorum of n // 2 + 1
                     Also that a quorum gives the same header for a number, the same events for a range, the same
                     fate of a transaction. Trusted: that no quorum of ends lies alike. With two ends both must
                     answer, so a third is what lets one of them fail.

Contract reads, balances and codes are taken from what answers, unless the ends contradict each other. Gas estimates
and what has no method here are taken from one end: the chain itself checks what follows from them.

What cannot be done twice is never sent twice: only reads, and a raw transaction (which has one hash and one nonce),
are retried after a transport error. Reverts arrive as `Reverted` with the contract's own words.

Invariant: before its first answer an end of a client with a `chain_id` has named the same one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Self, TypeVar

from freehold.chain.agreement import Endpoints
from freehold.chain.endpoint import is_repeatable
from freehold.chain.errors import BadAnswer, ChainError, Reverted, RpcRefused
from freehold.chain.headers import BLOOM_BYTES, is_hash_of_fields, may_contain
from freehold.chain.wire import (
    Header,
    Log,
    block_parameter,
    hexadecimal,
    parse_header,
    parse_log,
    parse_logs,
    quantity,
    unhex,
)
from freehold.protocol.errors import InvalidInput
from freehold.protocol.units import Hash

__all__ = ["Header", "Log", "Rpc", "hexadecimal", "is_repeatable", "parse_header", "parse_log", "quantity", "unhex"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Calls = Sequence[tuple[str, Sequence[Any]]]
LOG_RANGE = 2_000  # blocks asked for at once; public RPC ends allow between 500 and 10,000
HEADS = 3  # tries of a read at the newest block, which may be undone before it is read
QUERIES = 50  # in one request


class Rpc:
    """A client of one chain; `async with Rpc(url, chain_id=...) as rpc`.

    `url` is one RPC end's, or several separated by spaces, the preferred first. `timeout` is seconds for each attempt;
    `attempts` bounds the tries of a repeatable call, which wait `pause`, 2 x `pause`, ... seconds in between.
    `hashes_fields` says whether this chain's block hashes are the keccak of the header; None until one was seen.
    """

    def __init__(
        self, url: str, *, chain_id: int | None = None, timeout: float = 10.0, attempts: int = 4, pause: float = 0.1
    ) -> None:
        urls = list(dict.fromkeys(url.split()))
        if not urls:
            raise InvalidInput("no RPC address")
        self.url = " ".join(urls)
        self.hashes_fields: bool | None = None
        self._ends = Endpoints(urls, chain_id=chain_id, timeout=timeout, attempts=attempts, pause=pause)
        self._known: int | None = None
        self._genesis: Hash | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._ends.close()

    @property
    def quorum(self) -> int:
        """How many of the ends must agree."""
        return self._ends.quorum

    @property
    def failures(self) -> dict[str, str]:
        """The RPC ends that did not answer last, and why."""
        return {end.url: end.failure for end in self._ends.all if end.failure}

    async def chain_id(self) -> int:
        """The chain's id. WrongChain, naming both, if it is not the one expected."""
        if self._known is None:
            self._known = (
                await self._ends.agree([("eth_chainId", [])], lambda results: quantity(results[0]), enough=1)
            )[0]
        return self._known

    async def genesis(self) -> Hash:
        """The hash of the chain's first block: two chains may have the same id."""
        if self._genesis is None:
            header = await self.header(0)
            if header is None:
                raise ChainError(f"{self.url}: the chain has no first block")
            self._genesis = header.hash
        return self._genesis

    async def call(self, method: str, params: Sequence[Any] = ()) -> Any:
        """The `result` of one JSON-RPC call, from whichever end answers."""
        return (await self.batch([(method, params)]))[0]

    async def batch(self, calls: Calls) -> list[Any]:
        """The results of several calls in one request to one end, in their order; the first failure is raised."""
        return await self._ends.ask(calls) if calls else []

    async def agree(self, calls: Calls, read: Callable[[list[Any]], T], *, attempts: int | None = None) -> T:
        """What a quorum of the ends' results read to. Disagreement; ChainError where too few answer."""
        return (await self._ends.agree(calls, read, attempts=attempts))[0]

    async def survey(self, calls: Calls, read: Callable[[list[Any]], T]) -> list[T]:
        """What the results of each end that answers read to: for numbers that may differ a little."""
        return await self._ends.survey(calls, read)

    async def header(self, block: int | str = "latest") -> Header | None:
        """The header of a block number or tag, agreed on; None where there is no such block.

        For a tag ("latest", "safe", "finalized") it is the newest block that a quorum has reached.
        """
        if isinstance(block, str):
            reached = await self._reached([("eth_getBlockByNumber", [block, False])], _read_number)
            if reached is None:
                return None
            block = reached
        return (await self.headers(block, block))[0]

    async def headers(self, first: int, last: int) -> list[Header | None]:
        """The headers of `first` to `last`, both included, agreed on; None for those that are not there yet."""
        numbers = range(first, last + 1)
        verdicts: list[bool | None] = []

        def read(results: list[Any]) -> tuple[Header | None, ...]:
            found = tuple(self._read_header(n, block, verdicts) for n, block in zip(numbers, results, strict=True))
            for before, after in pairwise(found):
                if before is not None and after is not None and after.parent_hash != before.hash:
                    raise BadAnswer(f"block {after.number} does not follow the block {before.number} that came with it")
            return found

        agreed = await self._ends.agree([("eth_getBlockByNumber", [hex(n), False]) for n in numbers], read)
        if self.hashes_fields is None and verdicts:
            self.hashes_fields = True in verdicts
            if not self.hashes_fields:
                log.info("%s: block hashes here are not of the header's fields, so no header proves itself", self.url)
        return list(agreed[0])

    def _read_header(self, number: int, block: Any, verdicts: list[bool | None]) -> Header | None:
        header = parse_header(block)
        if header is None:
            return None
        if header.number != number:
            raise BadAnswer(f"block {header.number} where {number} was asked for")
        verdict = is_hash_of_fields(block)
        if self.hashes_fields and verdict is None:
            log.warning("%s: block %d has header fields that this release does not know", self.url, number)
        if self.hashes_fields and verdict is False:
            raise BadAnswer(f"block {number} has the hash {header.hash}, and its fields have another")
        verdicts.append(verdict)
        return header

    async def block_number(self) -> int:
        """The newest block that a quorum has reached; of fewer ends, where fewer answer."""
        reached = await self._reached([("eth_blockNumber", [])], lambda results: quantity(results[0]))
        if reached is None:
            raise ChainError(f"{self.url}: the chain has no blocks")
        return reached

    async def _reached(self, calls: Calls, read: Callable[[list[Any]], int | None]) -> int | None:
        """The highest number that a quorum has reached: one end that is ahead, or claims to be, does not count."""
        values = await self._ends.survey(calls, read)
        numbers = sorted((number for number in values if number is not None), reverse=True)
        needed = min(self._ends.quorum, len(values))
        return numbers[needed - 1] if len(numbers) >= needed else None

    async def heads(self) -> dict[str, int]:
        """The newest block of each end that answers, by its address."""
        tasks = {end.url: asyncio.create_task(end.request([("eth_blockNumber", [])])) for end in self._ends.all}
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        return {
            url: quantity(task.result()[0])
            for url, task in tasks.items()
            if not task.cancelled() and task.exception() is None
        }

    async def balance(self, account: bytes) -> int:
        """Wei of the chain's own coin."""
        return quantity(await self._read_state("eth_getBalance", hexadecimal(account), "latest"))

    async def code(self, contract: bytes) -> bytes:
        return unhex(await self._read_state("eth_getCode", hexadecimal(contract), "latest"))

    async def eth_call(
        self, to: bytes, data: bytes, *, sender: bytes | None = None, block: int | str = "latest"
    ) -> bytes:
        """What a contract answers, without a transaction."""
        request = {"to": hexadecimal(to), "data": hexadecimal(data)}
        if sender is not None:
            request["from"] = hexadecimal(sender)
        return unhex(await self._read_state("eth_call", request, block))

    async def _read_state(self, method: str, subject: Any, block: int | str) -> Any:
        """State at a block, by whoever answers, unless they contradict each other. "latest": a quorum's."""
        if block == "latest" and len(self._ends.all) > 1:
            return await self._read_newest_state(method, subject)
        return await self._read_state_at(method, subject, block)

    async def _read_newest_state(self, method: str, subject: Any) -> Any:
        """Of one block from every end, since answers of different blocks do not compare; of another if it is undone."""
        for _ in range(HEADS - 1):
            try:
                return await self._read_state_at(method, subject, await self.block_number())
            except Reverted:
                raise
            except RpcRefused:
                continue
        return await self._read_state_at(method, subject, await self.block_number())

    async def _read_state_at(self, method: str, subject: Any, block: int | str) -> Any:
        calls = [(method, [subject, block_parameter(block)])]
        return (await self._ends.agree(calls, lambda results: _text(results[0]), enough=1))[0]

    async def get_logs(
        self, first: int, last: int, addresses: Sequence[bytes], topics: Sequence[Any] = ()
    ) -> list[Log]:
        """Every event of `addresses` in the blocks `first` to `last`, both included, in the chain's order; agreed on.

        The range is asked for in pieces, which halve whenever the RPC ends refuse one (too many results, too wide).
        """
        logs: list[Log] = []
        width = LOG_RANGE
        while first <= last:
            until = min(last, first + width - 1)
            query = {"fromBlock": hex(first), "toBlock": hex(until)} | _filter(addresses, topics)
            try:
                logs += await self._agreed_logs([query], range(first, until + 1), addresses)
            except RpcRefused:
                if until == first:
                    raise
                width = (until - first + 1) // 2
                continue
            first = until + 1
        return logs

    async def complete_logs(self, headers: Sequence[Header], logs: list[Log], addresses: Sequence[bytes]) -> list[Log]:
        """`logs`, which are all that was given for the blocks of `headers`, checked against hashes and blooms.

        BadAnswer where an event is of another block, or its block's bloom denies it. Where a bloom admits events of a
        contract that none were given of, that block is asked for by its hash: ends whose index of events lags behind
        their blocks leave out what they will give later.
        """
        by_number = {header.number: header for header in headers}
        for entry in logs:
            header = by_number[entry.block_number]
            if entry.block_hash != header.hash:
                raise BadAnswer(f"the events of block {header.number} are not of the block that was read")
            if self._has_bloom(header) and not all(
                may_contain(header.bloom, i) for i in (entry.address, *entry.topics)
            ):
                raise BadAnswer(
                    f"block {header.number} cannot contain the event {entry.log_index} that was given for it"
                )
        given = {(entry.block_number, entry.address) for entry in logs}
        doubtful = [
            header
            for header in headers
            if self._has_bloom(header)
            and any(may_contain(header.bloom, a) and (header.number, a) not in given for a in addresses)
        ]
        if not doubtful:
            return logs
        again: list[Log] = []
        for at in range(0, len(doubtful), QUERIES):
            some = doubtful[at : at + QUERIES]
            queries = [{"blockHash": hexadecimal(header.hash)} | _filter(addresses, ()) for header in some]
            again += await self._agreed_logs(queries, [header.number for header in some], addresses)
        if {entry for entry in logs if entry.block_number in {header.number for header in doubtful}} - set(again):
            raise BadAnswer("the events of a block differ from one answer to the next")
        merged = {(entry.block_number, entry.log_index): entry for entry in [*logs, *again]}
        if any(by_number[entry.block_number].hash != entry.block_hash for entry in again):
            raise BadAnswer("events came that are not of the block whose hash was asked for")
        return [merged[place] for place in sorted(merged)]

    def _has_bloom(self, header: Header) -> bool:
        """Whether the header's bloom is part of its hash: elsewhere it means what the end wants it to mean."""
        return bool(self.hashes_fields) and len(header.bloom) == BLOOM_BYTES

    async def _agreed_logs(
        self, queries: Sequence[dict[str, Any]], numbers: Sequence[int], addresses: Sequence[bytes]
    ) -> list[Log]:
        allowed, wanted = set(numbers), {bytes(address) for address in addresses}

        def read(results: list[Any]) -> tuple[Log, ...]:
            found = tuple(entry for answer in results for entry in parse_logs(answer))
            for entry in found:
                if entry.block_number not in allowed or bytes(entry.address) not in wanted:
                    raise BadAnswer(
                        f"an event of {entry.address} in block {entry.block_number}, which was not asked for"
                    )
            return found

        return list((await self._ends.agree([("eth_getLogs", [query]) for query in queries], read))[0])

    async def broadcast(self, raw: bytes) -> None:
        """Give a signed transaction to every end; returns once all have answered and any has taken it.

        RpcRefused if all of them refused it; ChainError where that is not known, however often it was tried.
        """
        await self._ends.tell([("eth_sendRawTransaction", [hexadecimal(raw)])])


def _read_number(results: list[Any]) -> int | None:
    header = parse_header(results[0])
    return None if header is None else header.number


def _filter(addresses: Sequence[bytes], topics: Sequence[Any]) -> dict[str, Any]:
    query: dict[str, Any] = {"address": [hexadecimal(address) for address in addresses]}
    return query | ({"topics": list(topics)} if topics else {})


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadAnswer(f"an answer that is no text: {value!r:.100}")
    return value.lower()
