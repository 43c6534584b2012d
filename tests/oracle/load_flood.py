"""A flood as a process of its own: many connections from one address that send again whatever was refused, at once.

    python -m tests.oracle.load_flood URL ADDRESS CLIENTS SECONDS

CLIENTS are indices into load_member.CLIENTS, joined by commas. Prints a line when its batches are made; begins at a
line on stdin; at the end prints {"sent", "accepted": [subject], "refused": {code: count}, "waits": [least, most]}.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter, deque

import aiohttp

from freehold.protocol.batches import CLOSE, encode_batch, make_batch
from freehold.protocol.keys import Key
from freehold.protocol.messages import Close
from freehold.protocol.tables import Table
from freehold.protocol.typed import keccak
from tests.oracle.load_member import CLIENTS
from tests.oracle.simulation import DOMAIN

CONNECTIONS = 100
BATCHES, ROWS = 60, 1000  # of each client
TIMES = 12


def batches_of(key: Key, count: int, rows: int) -> list[tuple[str, bytes]]:
    made = []
    for i in range(count):
        closes = [Close(lease=keccak(key.address + bytes([i]) + row.to_bytes(4))) for row in range(rows)]
        batch = make_batch(CLOSE, Table.of(Close, closes), key, DOMAIN)
        made.append((str(batch.subject), encode_batch(batch)))
    return made


async def flood(url: str, address: str, waiting: deque[tuple[str, bytes]], seconds: float) -> dict[str, object]:
    """Send for `seconds`, and until TIMES what was accepted has been sent; then wait for what is still on its way."""
    accepted: list[str] = []
    refused: Counter[str] = Counter()
    waits: list[int] = []
    sent = 0
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds

    async def send(session: aiohttp.ClientSession) -> None:
        nonlocal sent
        while waiting and (loop.time() < until or sent < TIMES * len(accepted)):
            subject, data = waiting.popleft()
            sent += 1
            async with session.post(f"{url}/v1/batches", data=data) as response:
                answer = await response.json()
            if response.status == 200:
                accepted.append(subject)
                continue
            waiting.append((subject, data))
            refused[f"{response.status} {answer['errors'][0]['code']}"] += 1
            waits.append(int(response.headers["Retry-After"]))

    connector = aiohttp.TCPConnector(limit=CONNECTIONS, local_addr=(address, 0))
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(send(session) for _ in range(CONNECTIONS)))
    return {"sent": sent, "accepted": accepted, "refused": refused, "waits": [min(waits), max(waits)] if waits else []}


def main(url: str, address: str, clients: str, seconds: str) -> None:
    keys = [CLIENTS[int(i)] for i in clients.split(",")]
    made = [batches_of(key, BATCHES, ROWS) for key in keys]
    waiting = deque(batch for each in zip(*made, strict=True) for batch in each)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(asyncio.run(flood(url, address, waiting, float(seconds)))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
