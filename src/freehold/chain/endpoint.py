"""One RPC end: a request and its answer, and how well the end has been doing.

Invariant: before its first answer an end with an expected chain id has named that one; and no answer, however long,
slow or malformed, costs more than `timeout` seconds and `MAX_BODY` bytes.
"""

from __future__ import annotations

import email.utils
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from freehold.chain.errors import BadAnswer, ChainError, Reverted, RpcRefused, WrongChain
from freehold.chain.reverts import decode_revert
from freehold.chain.wire import hexadecimal, quantity, unhex
from freehold.protocol.typed import is_deep

NOT_REPEATABLE = frozenset({"eth_sendTransaction", "eth_newFilter", "eth_newBlockFilter", "eth_getFilterChanges"})
REPEATABLE_NAMESPACES = ("eth_", "net_", "web3_", "txpool_")
BUSY = frozenset({429, 502, 503, 504})  # HTTP status: the request was not taken, or its answer lost on the way
REVERTED = 3  # the JSON-RPC code of geth and anvil for a revert
SILENT_REVERT = "execution reverted"  # all that geth says, under a code for anything, of a revert without any data
RATE_LIMITED = frozenset({429, -32005})  # JSON-RPC codes; eth_getLogs means "too many results" by the second
MAX_BODY = 64 * 2**20  # bytes
FIRST_REST, LONGEST_REST = 0.5, 30.0  # seconds that an end which failed is asked last; doubling
LONGEST_RETRY_AFTER = 300.0  # seconds


class Endpoint:
    """A client of one RPC end at `url`; `timeout` is seconds for a whole answer.

    `failure` is why it did not answer last, empty if it did.
    """

    def __init__(self, url: str, *, chain_id: int | None, timeout: float) -> None:
        self.url = url
        self.failure = ""
        self._expected = chain_id
        self._known: int | None = None
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._session: aiohttp.ClientSession | None = None
        self._ids = itertools.count(1)
        self._failures = 0
        self._rests_until = 0.0

    def __repr__(self) -> str:
        return f"Endpoint({self.url})"

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @property
    def rests(self) -> float:
        """Seconds for which this end should be left alone: it failed, or asked for it. 0 if it is well."""
        return max(0.0, self._rests_until - time.monotonic())

    def note_failure(self, failure: str, pause: float = 0.0) -> None:
        """Leave the end alone for a while: twice as long each time, and for `pause` seconds at least."""
        self.failure = failure
        self._failures += 1
        rest = max(min(FIRST_REST * 2 ** min(self._failures - 1, 10), LONGEST_REST), pause)
        self._rests_until = time.monotonic() + rest

    async def chain_id(self) -> int:
        """The chain's id. WrongChain, naming both, if it is not the one expected."""
        if self._known is None:
            known = quantity((await self._post([("eth_chainId", [])]))[0])
            if self._expected is not None and known != self._expected:
                raise WrongChain(
                    f"{self.url} serves chain {known}, the network file names chain {self._expected}",
                    served=known,
                    expected=self._expected,
                )
            self._known = known
        return self._known

    async def request(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """The results of the calls, in their order; the first failure is raised. One attempt."""
        try:
            await self.chain_id()
            results = await self._post(calls) if calls else []
        except RpcRefused:
            raise  # it answered: that is no reason to leave it alone
        except (ChainError, WrongChain) as error:
            self.note_failure(error.message, error.details.get("retry_after", 0.0))
            raise
        self.failure, self._failures, self._rests_until = "", 0, 0.0
        return results

    async def _post(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        ids = [next(self._ids) for _ in calls]
        body = [
            {"jsonrpc": "2.0", "id": number, "method": method, "params": list(params)}
            for number, (method, params) in zip(ids, calls, strict=True)
        ]
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        names = calls[0][0] if len(calls) == 1 else f"{len(calls)} calls ({calls[0][0]}, ...)"
        # What is not asked of public ends (anvil's own state, say) comes from a chain of ours, and may be long.
        limit = MAX_BODY if all(method.startswith(REPEATABLE_NAMESPACES) for method, _ in calls) else None
        try:
            async with self._session.post(self.url, json=body[0] if len(body) == 1 else body) as response:
                raw = await _read(response, limit)
                status, pause = response.status, parse_retry_after(response.headers.get("Retry-After"))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            what = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            raise ChainError(f"{self.url}: {names}: {what}") from error
        if raw is None:
            raise BadAnswer(f"{self.url}: {names}: an answer longer than {limit} bytes")
        return _results(f"{self.url}: {names}", status, raw, ids, pause, is_logs=calls[0][0] == "eth_getLogs")


async def _read(response: aiohttp.ClientResponse, limit: int | None) -> bytes | None:
    """The body; None if it is longer than `limit`."""
    if limit is None:
        return await response.read()
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > limit:
            return None
    return bytes(body)


def parse_retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3: a number, or a date); 0 for none."""
    if not value:
        return 0.0
    try:
        seconds = float(value) if value.strip().isdigit() else email.utils.mktime_tz(_date(value)) - time.time()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER)


def _date(value: str) -> Any:
    date = email.utils.parsedate_tz(value)
    if date is None:
        raise ValueError(f"not a date: {value}")
    return date


def _results(where: str, status: int, raw: bytes, ids: list[int], pause: float, *, is_logs: bool) -> list[Any]:
    try:
        answer = None if is_deep(raw) else json.loads(raw)
    except (ValueError, RecursionError):
        answer = None
    if status in BUSY or (answer is None and status >= 500):
        raise ChainError(f"{where}: HTTP {status}", http_status=status, retry_after=pause)
    if answer is None and status == 200:  # cut off, or a page that somebody put in between
        raise BadAnswer(f"{where}: no JSON but {raw[:40]!r}")
    if isinstance(answer, dict):  # one call, or one error for all of a batch
        answer = [answer | {"id": ids[0]}]
    if not isinstance(answer, list):
        raise RpcRefused(f"{where}: HTTP {status}, and no JSON-RPC answer", http_status=status)
    by_id = {entry.get("id"): entry for entry in answer if isinstance(entry, dict) and _is_id(entry.get("id"))}
    first = by_id.get(ids[0], {})
    if first.get("error") is None and any(number not in by_id for number in ids):
        raise BadAnswer(f"{where}: {len(by_id)} answers to {len(ids)} calls")
    results = []
    for number in ids:
        entry = by_id[number]
        if entry.get("error") is not None:
            raise _refusal(where, entry["error"], pause, is_logs)
        if "result" not in entry:
            raise RpcRefused(f"{where}: an answer with neither result nor error")
        results.append(entry["result"])
    return results


def _is_id(value: Any) -> bool:
    return type(value) is int


def _refusal(where: str, error: Any, pause: float, is_logs: bool) -> ChainError:
    if not isinstance(error, Mapping):
        return RpcRefused(f"{where}: {error}")
    code, message, data = error.get("code"), str(error.get("message", "")), error.get("data")
    if isinstance(data, Mapping):
        data = data.get("data")
    is_data = isinstance(data, str) and data.startswith("0x") and len(data) >= 10
    if code == REVERTED or message == SILENT_REVERT or is_data:
        raw = unhex(data) if isinstance(data, str) else b""
        reason = decode_revert(raw)
        return Reverted(f"reverted: {reason or message}", rpc_code=code, reason=reason, data=hexadecimal(raw))
    if code in RATE_LIMITED and not is_logs:
        return ChainError(f"{where}: {message}", rpc_code=code, retry_after=pause)
    return RpcRefused(f"{where}: {message}", rpc_code=code)


def is_repeatable(method: str) -> bool:
    """Whether sending the same request twice has the effect of sending it once."""
    return method.startswith(REPEATABLE_NAMESPACES) and method not in NOT_REPEATABLE
