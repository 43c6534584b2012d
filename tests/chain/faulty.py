"""An RPC end that stands before a real one and misbehaves as a test tells it to: answers late, not at all, or lies."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

Call = dict[str, Any]
# Changes the answers to some calls in place, or returns something to say in place of them all.
Fault = Callable[[list[Call], list[Call]], web.StreamResponse | str | None]


class FaultyEnd:
    """Forwards to `target`, and lets `fault` have its way with what comes back. `url` is where it listens."""

    def __init__(self, target: str) -> None:
        self.target, self.url = target, ""
        self.hits = 0
        self._fault: Fault | None = None
        self._changed = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None

    @property
    def fault(self) -> Fault | None:
        """What is done to answers; whoever hangs by the last one is let go when it changes."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        self._fault = fault
        self._changed.set()
        self._changed = asyncio.Event()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        calls = body if isinstance(body, list) else [body]
        fault = self.fault
        if fault is hang:
            self.hits += 1
            await self._changed.wait()
        answers = await self._forward(calls)
        before = copy.deepcopy(answers)
        said = fault(calls, answers) if fault is not None else None
        self.hits += said is not None or answers != before
        if said == RESET:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if isinstance(said, str):
            return web.Response(text=said, content_type="application/json")
        if said is not None:
            return said
        return web.json_response(answers if isinstance(body, list) else answers[0])

    async def _forward(self, calls: list[Call]) -> list[Call]:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        async with self._session.post(self.target, json=calls) as response:
            answers: list[Call] = await response.json()
        return sorted(answers, key=lambda answer: int(answer["id"]))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


@asynccontextmanager
async def faulty_end(target: str) -> AsyncIterator[FaultyEnd]:
    end = FaultyEnd(target)
    app = web.Application()
    app.router.add_post("/", end.serve)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        end.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield end
    finally:
        await runner.cleanup()
        await end.close()


RESET = "reset the connection"


def hang(calls: list[Call], answers: list[Call]) -> None:
    """Never answer; `serve` looks for this one."""


def replace_all(said: str) -> Fault:
    return lambda calls, answers: said


def status(code: int, **headers: str) -> Fault:
    return lambda calls, answers: web.Response(status=code, text="busy", headers=headers)


def cut_off(calls: list[Call], answers: list[Call]) -> str:
    text = json.dumps(answers if len(answers) > 1 else answers[0])
    return text[: len(text) // 2]


def change(method: str, how: Callable[[Any], Any]) -> Fault:
    """Pass the results of one method through `how`."""

    def fault(calls: list[Call], answers: list[Call]) -> None:
        for call, answer in zip(calls, answers, strict=True):
            if call["method"] == method and answer.get("result") is not None:
                answer["result"] = how(answer["result"])

    return fault


def set_field(method: str, **fields: Any) -> Fault:
    return change(method, lambda result: result | fields if result else result)


def each_log(**fields: Any) -> Fault:
    return change("eth_getLogs", lambda logs: [entry | fields for entry in logs])


def refuse_all(calls: list[Call], answers: list[Call]) -> None:
    for answer in answers:
        answer.pop("result", None)
        answer["error"] = {"code": -32603, "message": "internal error"}


HASH = "0x" + "ab" * 32
BLOCK = "eth_getBlockByNumber"

# What can be told from one end alone: its own answers cannot be.
SELF_EVIDENT: dict[str, Fault] = {
    "hangs": hang,
    "500": status(500),
    "503": status(503),
    "429": status(429, **{"Retry-After": "0"}),
    "page": replace_all("<html>we are being upgraded</html>"),
    "reset": replace_all(RESET),
    "cut off": cut_off,
    "nested": replace_all("[" * 200_000),
    "nothing": replace_all("[]"),
    "refusals": refuse_all,
    "a chain of its own": change("eth_chainId", lambda _: "0x1"),
    "no fields": change(BLOCK, lambda _: {}),
    "another number": set_field(BLOCK, number="0x7"),
    "another hash": set_field(BLOCK, hash=HASH),
    "another parent": set_field(BLOCK, parentHash=HASH),
    "another time": set_field(BLOCK, timestamp="0x7"),
    "another bloom": set_field(BLOCK, logsBloom="0x" + "00" * 256),
    "no number": change(BLOCK, lambda block: block | {"number": None}),
    "events that are none": change("eth_getLogs", lambda logs: ["0x"]),
    "events of another block": each_log(blockHash=HASH),
    "events of elsewhere": each_log(address="0x" + "77" * 20),
    "events of another kind": each_log(topics=["0x" + "77" * 32]),
    "events twice": change("eth_getLogs", lambda logs: [*logs, *logs]),
    "events undone": each_log(removed=True),
}
# What only other ends, or other answers, give away.
PLAUSIBLE: dict[str, Fault] = {
    "head too high": change("eth_blockNumber", lambda head: hex(int(head, 16) + 10**9)),
    "head too low": change("eth_blockNumber", lambda head: hex(max(0, int(head, 16) - 5))),
    "stuck": change("eth_blockNumber", lambda head: "0x2"),
    "no blocks": change(BLOCK, lambda block: None),
    "no events": change("eth_getLogs", lambda logs: []),
    "an event left out": change("eth_getLogs", lambda logs: logs[1:]),
    "events of other content": each_log(data="0x" + "77" * 32),
}
FAULTS = SELF_EVIDENT | PLAUSIBLE
