"""The machine's own limit: the work of a PUT and a GET with nothing else around it.

Eight processes of a few lines stand for the nodes: each hashes the tree of what it gets, writes and syncs it, and
hashes it again when it serves it. The client runs the storage service's own codec on segments of a file, three of them
in flight, and sends and takes the same bodies over the same loopback. No leases, no signatures, no chain.

    python -m bench.bare node DIRECTORY          prints its port
    python -m bench.bare client FILE PORT...     prints {"upload": B/s, "download": B/s, "memory": bytes}
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import closing
from io import FileIO
from pathlib import Path

import aiohttp
from aiohttp import web

from bench.children import Children
from bench.rates import Rates
from freehold.services.storage import codec, shard_tree
from freehold.services.storage.codec import SEGMENT_BYTES, SegmentKeys, VerifiedShard, Workspace
from freehold.services.storage.segment_record import SegmentRecord
from freehold.store.disk import File, RealDisk

NODES, K, N = 8, 3, 6
IN_FLIGHT = 3
PIECE = 256 << 10
BUFFER = 1 << 20


def rates(path: Path) -> Rates:
    """One round over `path`, with nodes and client in processes of their own."""
    with tempfile.TemporaryDirectory(dir=path.parent) as name, Children() as children:
        home = Path(name)
        commands = [[sys.executable, "-m", "bench.bare", "node", str(home / str(i))] for i in range(NODES)]
        nodes = [children.start(command, home / "nodes.log") for command in commands]
        ports = [children.ready_line(node) for node in nodes]
        client = children.start([sys.executable, "-m", "bench.bare", "client", str(path), *ports], home / "client.log")
        found = json.loads(children.ready_line(client))
        client.wait()
    return Rates(found["upload"], found["download"], found["memory"])


class Node:
    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._disk, self._count = directory, RealDisk(), 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = self._directory / request.path.rpartition("/")[2]
        return await (self._put(request, path) if request.method == "PUT" else self._get(request, path))

    async def _put(self, request: web.BaseRequest, path: Path) -> web.Response:
        self._count += 1
        new = path.with_suffix(f".{self._count}")
        file, hasher = self._disk.create(new), shard_tree.ShardHasher()
        async for chunk in request.content.iter_any():
            hasher.update(chunk)
            file.write(chunk)
        root = hasher.root()
        await asyncio.to_thread(file.sync)
        file.close()
        self._disk.rename(new, path)
        return web.Response(text=root.hex())

    async def _get(self, request: web.BaseRequest, path: Path) -> web.StreamResponse:
        data, root = await asyncio.to_thread(self._read, path)
        response = web.StreamResponse(headers={"Content-Length": str(len(data)), "Root": root.hex()})
        await response.prepare(request)
        view = memoryview(data)
        for at in range(0, len(data), PIECE):
            await response.write(view[at : at + PIECE])
        await response.write_eof()
        return response

    def _read(self, path: Path) -> tuple[bytes, bytes]:
        data = self._disk.read(path, 0, self._disk.size(path))
        return data, shard_tree.root(data)


async def serve(directory: Path) -> None:
    runner = web.ServerRunner(web.Server(Node(directory).handle, read_bufsize=BUFFER))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


class Client:
    def __init__(self, session: aiohttp.ClientSession, ports: list[str]) -> None:
        self._session, self._ports = session, ports
        self._segments: list[tuple[SegmentRecord, SegmentKeys, int]] = []

    async def upload(self, source: FileIO) -> None:
        """Encode segment after segment, while those before it are on their way."""
        spaces: asyncio.Queue[Workspace] = asyncio.Queue()
        for _ in range(IN_FLIGHT):
            spaces.put_nowait(Workspace())
        async with asyncio.TaskGroup() as group:
            while True:
                space = await spaces.get()
                plain = space.take("plaintext", SEGMENT_BYTES)
                size = await asyncio.to_thread(source.readinto, plain)
                if not size:
                    return
                keys = SegmentKeys.random()
                encoded = await asyncio.to_thread(codec.encode_segment, plain[:size], keys, K, N, space)
                group.create_task(self._send(len(self._segments), encoded, space, spaces))
                self._segments.append((encoded.record(), keys, size))

    async def download(self, target: File) -> None:
        """Fetch segments ahead, decode and write them in their order."""
        arriving = [asyncio.create_task(self._fetch(i)) for i in range(min(IN_FLIGHT, len(self._segments)))]
        space = Workspace()
        for i in range(len(self._segments)):
            shards = await arriving.pop(0)
            if i + IN_FLIGHT < len(self._segments):
                arriving.append(asyncio.create_task(self._fetch(i + IN_FLIGHT)))
            await asyncio.to_thread(self._decode, i, shards, space, target)
        await asyncio.to_thread(target.sync)

    async def _send(
        self, i: int, encoded: codec.EncodedSegment, space: Workspace, spaces: asyncio.Queue[Workspace]
    ) -> None:
        async with asyncio.TaskGroup() as group:
            for j, shard in enumerate(encoded.shards):
                group.create_task(self._put(i, j, shard, encoded.roots[j]))
        spaces.put_nowait(space)

    async def _put(self, i: int, j: int, shard: memoryview, root: bytes) -> None:
        headers = {"Content-Length": str(len(shard))}
        async with self._session.put(self._url(i, j), data=pieces(shard), headers=headers) as response:
            if await response.text() != root.hex():
                raise RuntimeError(f"node {j} hashed something else")

    async def _fetch(self, i: int) -> list[VerifiedShard]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._get(i, j)) for j in range(K)]
        return [task.result() for task in tasks]

    async def _get(self, i: int, j: int) -> VerifiedShard:
        async with self._session.get(self._url(i, j)) as response:
            data = await response.read()
        return await asyncio.to_thread(codec.verify_shard, self._segments[i][0], j, data)

    def _decode(self, i: int, shards: list[VerifiedShard], space: Workspace, target: File) -> None:
        record, keys, size = self._segments[i]
        target.write(codec.decode_verified(record, shards, size, keys, space))

    def _url(self, i: int, j: int) -> str:
        return f"http://127.0.0.1:{self._ports[(i + j) % len(self._ports)]}/{i}-{j}"


async def pieces(shard: memoryview) -> AsyncIterator[memoryview]:
    for at in range(0, len(shard), PIECE):
        yield shard[at : at + PIECE]


def measure(path: Path, ports: list[str]) -> dict[str, float]:
    size = path.stat().st_size
    back = path.with_suffix(".back")
    try:
        with path.open("rb", buffering=0) as source, closing(RealDisk().create(back)) as target:
            upload, download = asyncio.run(transfer(source, target, ports))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if digest(back) != digest(path):
            raise RuntimeError("what came back is not what went in")
    finally:
        back.unlink(missing_ok=True)
    return {"upload": size / upload, "download": size / download, "memory": memory}


async def transfer(source: FileIO, target: File, ports: list[str]) -> tuple[float, float]:
    """Seconds up and seconds down."""
    async with aiohttp.ClientSession(read_bufsize=BUFFER, connector=aiohttp.TCPConnector(limit=0)) as session:
        client = Client(session, ports)
        start = time.perf_counter()
        await client.upload(source)
        uploaded = time.perf_counter()
        await client.download(target)
        return uploaded - start, time.perf_counter() - uploaded


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    what, where, *ports = sys.argv[1:]
    if what == "node":
        asyncio.run(serve(Path(where)))
    else:
        print(json.dumps(measure(Path(where), ports)), flush=True)


if __name__ == "__main__":
    main()
