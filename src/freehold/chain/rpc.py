"""JSON-RPC to one chain: typed answers, typed errors, bounded retries.

What cannot be done twice is never sent twice: only reads, and a raw transaction (which has one hash and one nonce),
are retried after a transport error. Reverts arrive as `Reverted` with the contract's own words.

Invariant: before its first answer a client with a `chain_id` has seen the RPC end name the same one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import aiohttp

from freehold.chain.errors import ChainError, Reverted, RpcRefused, WrongChain
from freehold.chain.reverts import decode_revert
from freehold.protocol.units import Address, Hash

NOT_REPEATABLE = frozenset({"eth_sendTransaction", "eth_newFilter", "eth_newBlockFilter", "eth_getFilterChanges"})
REPEATABLE_NAMESPACES = ("eth_", "net_", "web3_", "txpool_")
BUSY = frozenset({429, 502, 503, 504})  # HTTP status: the request was not taken, or its answer lost on the way
REVERTED = 3  # the JSON-RPC code of geth and anvil for a revert
LOG_RANGE = 2_000  # blocks asked for at once; public RPC ends allow between 500 and 10,000


class Header(NamedTuple):
    """A block's header, as far as the protocol reads it. `timestamp` is in seconds."""

    number: int
    hash: Hash
    parent_hash: Hash
    timestamp: int


class Log(NamedTuple):
    """One event as the chain stores it; `log_index` counts within the block."""

    address: Address
    topics: tuple[bytes, ...]
    data: bytes
    block_number: int
    block_hash: Hash
    transaction_hash: Hash
    log_index: int


class Rpc:
    """A client of one RPC end; `async with Rpc(url, chain_id=...) as rpc`.

    `timeout` is seconds for each attempt; `attempts` bounds the tries of a repeatable call, which wait
    `pause`, 2 x `pause`, ... seconds in between.
    """

    def __init__(
        self, url: str, *, chain_id: int | None = None, timeout: float = 10.0, attempts: int = 4, pause: float = 0.1
    ) -> None:
        self.url = url
        self._expected = chain_id
        self._known: int | None = None
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._attempts = attempts
        self._pause = pause
        self._session: aiohttp.ClientSession | None = None
        self._ids = itertools.count(1)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def chain_id(self) -> int:
        """The chain's id. WrongChain, naming both, if it is not the one expected."""
        if self._known is None:
            known = quantity((await self._request([("eth_chainId", [])]))[0])
            if self._expected is not None and known != self._expected:
                raise WrongChain(
                    f"{self.url} serves chain {known}, the network file names chain {self._expected}",
                    served=known,
                    expected=self._expected,
                )
            self._known = known
        return self._known

    async def call(self, method: str, params: Sequence[Any] = ()) -> Any:
        """The `result` of one JSON-RPC call."""
        return (await self.batch([(method, params)]))[0]

    async def batch(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """The results of several calls in one request, in their order; the first failure is raised."""
        await self.chain_id()
        return await self._request(calls) if calls else []

    async def header(self, block: int | str = "latest") -> Header | None:
        """The header of a block number or tag; None where the RPC end has no such block."""
        return parse_header(await self.call("eth_getBlockByNumber", [block_parameter(block), False]))

    async def headers(self, first: int, last: int) -> list[Header | None]:
        """The headers of `first` to `last`, both included, in one request."""
        numbers = range(first, last + 1)
        return [
            parse_header(answer)
            for answer in await self.batch([("eth_getBlockByNumber", [hex(number), False]) for number in numbers])
        ]

    async def block_number(self) -> int:
        return quantity(await self.call("eth_blockNumber"))

    async def balance(self, account: bytes) -> int:
        """Wei of the chain's own coin."""
        return quantity(await self.call("eth_getBalance", [hexadecimal(account), "latest"]))

    async def code(self, contract: bytes) -> bytes:
        return unhex(await self.call("eth_getCode", [hexadecimal(contract), "latest"]))

    async def eth_call(
        self, to: bytes, data: bytes, *, sender: bytes | None = None, block: int | str = "latest"
    ) -> bytes:
        """What a contract answers, without a transaction."""
        request = {"to": hexadecimal(to), "data": hexadecimal(data)}
        if sender is not None:
            request["from"] = hexadecimal(sender)
        return unhex(await self.call("eth_call", [request, block_parameter(block)]))

    async def get_logs(
        self, first: int, last: int, addresses: Sequence[bytes], topics: Sequence[Any] = ()
    ) -> list[Log]:
        """Every event of `addresses` in the blocks `first` to `last`, both included, in the chain's order.

        The range is asked for in pieces, which halve whenever the RPC end refuses one (too many results, too wide).
        """
        logs: list[Log] = []
        width = LOG_RANGE
        while first <= last:
            until = min(last, first + width - 1)
            query: dict[str, Any] = {
                "fromBlock": hex(first),
                "toBlock": hex(until),
                "address": [hexadecimal(address) for address in addresses],
            }
            if topics:
                query["topics"] = list(topics)
            try:
                found = await self.call("eth_getLogs", [query])
            except RpcRefused:
                if until == first:
                    raise
                width = (until - first + 1) // 2
                continue
            logs += [parse_log(entry) for entry in found]
            first = until + 1
        logs.sort(key=lambda log: (log.block_number, log.log_index))
        return logs

    async def _request(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        repeatable = all(is_repeatable(method) for method, _ in calls)
        attempts = self._attempts if repeatable else 1
        for attempt in range(attempts):
            try:
                return await self._post(calls)
            except ChainError as error:
                if not error.retryable or attempt == attempts - 1:
                    raise
            await asyncio.sleep(self._pause * 2**attempt)
        raise ChainError(f"{self.url}: no attempt was allowed")

    async def _post(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        ids = [next(self._ids) for _ in calls]
        body = [
            {"jsonrpc": "2.0", "id": number, "method": method, "params": list(params)}
            for number, (method, params) in zip(ids, calls, strict=True)
        ]
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        names = calls[0][0] if len(calls) == 1 else f"{len(calls)} calls ({calls[0][0]}, ...)"
        try:
            async with self._session.post(self.url, json=body[0] if len(body) == 1 else body) as response:
                raw = await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            what = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            raise ChainError(f"{self.url}: {names}: {what}") from error
        return _results(self.url, names, status, raw, ids)


def _results(url: str, names: str, status: int, raw: bytes, ids: list[int]) -> list[Any]:
    try:
        answer = json.loads(raw)
    except ValueError:
        answer = None
    if status in BUSY or (answer is None and status >= 500):
        raise ChainError(f"{url}: {names}: HTTP {status}", http_status=status)
    if isinstance(answer, dict):  # one call, or one error for all of a batch
        answer = [answer | {"id": ids[0]}]
    if not isinstance(answer, list):
        raise RpcRefused(f"{url}: {names}: HTTP {status}, and no JSON-RPC answer", http_status=status)
    by_id = {entry.get("id"): entry for entry in answer if isinstance(entry, dict)}
    first = by_id.get(ids[0], {})
    if "error" not in first and any(number not in by_id for number in ids):
        raise ChainError(f"{url}: {names}: {len(by_id)} answers to {len(ids)} calls")
    results = []
    for number in ids:
        entry = by_id[number]
        if entry.get("error") is not None:
            raise _refusal(names, entry["error"])
        if "result" not in entry:
            raise RpcRefused(f"{url}: {names}: an answer with neither result nor error")
        results.append(entry["result"])
    return results


def _refusal(names: str, error: Any) -> RpcRefused:
    if not isinstance(error, Mapping):
        return RpcRefused(f"{names}: {error}")
    code, message, data = error.get("code"), str(error.get("message", "")), error.get("data")
    if isinstance(data, Mapping):
        data = data.get("data")
    if code == REVERTED or (isinstance(data, str) and data.startswith("0x") and len(data) >= 10):
        raw = unhex(data) if isinstance(data, str) else b""
        reason = decode_revert(raw)
        return Reverted(f"reverted: {reason or message}", rpc_code=code, reason=reason, data=hexadecimal(raw))
    return RpcRefused(f"{names}: {message}", rpc_code=code)


def is_repeatable(method: str) -> bool:
    """Whether sending the same request twice has the effect of sending it once."""
    return method.startswith(REPEATABLE_NAMESPACES) and method not in NOT_REPEATABLE


def quantity(value: Any) -> int:
    """The integer behind a JSON-RPC quantity."""
    try:
        return int(value, 16)
    except (TypeError, ValueError):
        raise RpcRefused(f"not a quantity: {value!r}") from None


def unhex(value: Any) -> bytes:
    """The bytes behind JSON-RPC data."""
    try:
        return bytes.fromhex(value.removeprefix("0x"))
    except (AttributeError, ValueError):
        raise RpcRefused(f"not hexadecimal data: {value!r}") from None


def hexadecimal(value: bytes) -> str:
    """`bytes.hex` by its own name, so that an Address or Hash gives the same spelling."""
    return "0x" + bytes(value).hex()


def block_parameter(block: int | str) -> str:
    return block if isinstance(block, str) else hex(block)


def parse_header(answer: Any) -> Header | None:
    if answer is None:
        return None
    return Header(
        quantity(answer["number"]),
        Hash(unhex(answer["hash"])),
        Hash(unhex(answer["parentHash"])),
        quantity(answer["timestamp"]),
    )


def parse_log(entry: Mapping[str, Any]) -> Log:
    return Log(
        Address(unhex(entry["address"])),
        tuple(unhex(topic) for topic in entry["topics"]),
        unhex(entry["data"]),
        quantity(entry["blockNumber"]),
        Hash(unhex(entry["blockHash"])),
        Hash(unhex(entry["transactionHash"])),
        quantity(entry["logIndex"]),
    )
