"""An RPC end that answers as a test tells it to: what real ones do on bad days."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

# Given (method, params): a result, an Exception for a JSON-RPC error, or a web.Response in place of everything.
Answer = Callable[[str, list[Any]], Any]


class RpcFault(Exception):
    """A JSON-RPC error object."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message} | ({} if data is None else {"data": data})


@asynccontextmanager
async def scripted(answer: Answer) -> AsyncIterator[tuple[str, list[str]]]:
    """(url, methods seen so far). eth_chainId is answered with 1 unless `answer` gives something."""
    seen: list[str] = []

    async def serve(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        replies = []
        for call in body if isinstance(body, list) else [body]:
            seen.append(call["method"])
            reply = {"jsonrpc": "2.0", "id": call["id"]}
            try:
                result = answer(call["method"], call["params"])
            except RpcFault as fault:
                replies.append(reply | {"error": fault.error})
                continue
            if isinstance(result, web.StreamResponse):
                return result
            replies.append(reply | {"result": "0x1" if call["method"] == "eth_chainId" and result is None else result})
        # In any order, as JSON-RPC allows.
        return web.json_response(replies[::-1] if isinstance(body, list) else replies[0])

    app = web.Application()
    app.router.add_post("/", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        yield f"http://127.0.0.1:{port}", seen
    finally:
        await runner.cleanup()
