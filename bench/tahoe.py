"""Tahoe-LAFS 1.20, the Python peer: one introducer, eight storage nodes and a client, with 3 of 6 and happy 6.

It is installed from its own lock into an environment of its own under bench/.cache (netifaces is compiled there, so a
C compiler must be found). The file goes in and out through the client's web API, as its users' programs do it. Tahoe
stores equal files once, so every round has a grid of its own.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from bench.children import Children
from bench.environments import install
from bench.rates import Rates

NODES, K, N, HAPPY = 8, 3, 6, 6
PIECE = 1 << 18
DEADLINE = 60.0  # seconds for the grid to come up


def rates(path: Path) -> Rates:
    """One round over `path` (which stands on the disk that the nodes use), on a grid of its own."""
    program = install("tahoe", builder="setuptools") / "tahoe"
    with tempfile.TemporaryDirectory(dir=path.parent) as home, Children() as children:
        port = start_grid(program, Path(home), children)
        return _round(path, port)


def load(home: Path, size: int, count: int, parallel: int) -> Rates:
    """`count` different objects of `size` bytes in and out, `parallel` at once, on a grid of its own below `home`."""
    program = install("tahoe", builder="setuptools") / "tahoe"
    draw = random.Random(size)
    bodies = [draw.randbytes(size) for _ in range(count)]
    with tempfile.TemporaryDirectory(dir=home) as name, Children() as children, ThreadPoolExecutor(parallel) as pool:
        port = start_grid(program, Path(name), children)
        start = time.perf_counter()
        capabilities = list(pool.map(lambda data: _request(port, "PUT", "/uri", iter([data]), size).decode(), bodies))
        uploaded = time.perf_counter()
        back = list(pool.map(lambda capability: _request(port, "GET", f"/uri/{capability}"), capabilities))
        downloaded = time.perf_counter()
    if back != bodies:
        raise RuntimeError("what came back is not what went in")
    return Rates(size * count / (uploaded - start), size * count / (downloaded - uploaded))


def start_grid(program: Path, home: Path, children: Children) -> int:
    """Start every process; the client's web port, once all nodes are connected to it."""
    log = home / "grid.log"
    names = ["introducer", *(f"node{i}" for i in range(NODES)), "client"]
    listen = {
        name: f"--port=tcp:{port}:interface=127.0.0.1"
        for name, port in zip(names, _free_ports(len(names)), strict=True)
    }

    def create(kind: str, name: str, *options: str) -> None:
        port = listen[name].split(":")[1]
        command = [str(program), kind, "--listen=tcp", listen[name], f"--location=tcp:127.0.0.1:{port}"]
        with log.open("a") as output:
            subprocess.run([*command, *options, str(home / name)], check=True, stdout=output, stderr=output)

    def run(name: str) -> None:
        children.start([str(program), "run", "--allow-stdin-close", str(home / name)], log, piped=False)

    create("create-introducer", "introducer")
    run("introducer")
    introducer = _await_text(home / "introducer" / "private" / "introducer.furl", "pb://.+")
    for name in names[1:-1]:
        create("create-node", name, f"--introducer={introducer}", "--webport=none", f"--nickname={name}")
        run(name)
    shares = [f"--shares-needed={K}", f"--shares-happy={HAPPY}", f"--shares-total={N}"]
    web = "--webport=tcp:0:interface=127.0.0.1"
    with log.open("a") as output:
        command = [str(program), "create-client", f"--introducer={introducer}", web, *shares, str(home / "client")]
        subprocess.run(command, check=True, stdout=output, stderr=output)
    run("client")
    port = int(_await_text(home / "client" / "node.url", r"http://127\.0\.0\.1:(\d+)/"))
    _await_nodes(port)
    return port


def _round(path: Path, port: int) -> Rates:
    size = path.stat().st_size
    start = time.perf_counter()
    capability = _request(port, "PUT", "/uri", _body(path), size).decode()
    uploaded = time.perf_counter()
    back = path.with_suffix(".back")
    try:
        with back.open("wb") as target:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", f"/uri/{capability}")
            response = connection.getresponse()
            while piece := response.read(PIECE):
                target.write(piece)
            connection.close()
        downloaded = time.perf_counter()
        if _digest(back) != _digest(path):
            raise RuntimeError("what came back is not what went in")
    finally:
        back.unlink(missing_ok=True)
    return Rates(size / (uploaded - start), size / (downloaded - uploaded))


def _request(port: int, method: str, target: str, body: Iterator[bytes] | None = None, size: int = 0) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request(method, target, body=body, headers={"Content-Length": str(size)} if body else {})
    response = connection.getresponse()
    data = response.read()
    connection.close()
    if response.status not in (200, 201):
        raise RuntimeError(f"{method} {target} gave {response.status}: {data[:500]!r}")
    return data


def _body(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago: Tahoe must be told its port before it binds, so that 0 will not do."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _await_text(path: Path, pattern: str) -> str:
    """What `pattern` finds in a file (its group, if it has one) once the file holds it."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        found = re.search(pattern, path.read_text()) if path.exists() else None
        if found:
            return found[found.re.groups]
        time.sleep(0.05)
    raise RuntimeError(f"{path.name} did not appear")


def _await_nodes(port: int) -> None:
    deadline = time.monotonic() + DEADLINE
    connected = 0
    while time.monotonic() < deadline:
        servers = json.loads(_request(port, "GET", "/?t=json"))["servers"]
        connected = sum((server["connection_status"] or "").lower().startswith("connected") for server in servers)
        if connected == NODES:
            return
        time.sleep(0.1)
    raise RuntimeError(f"{connected} of {NODES} Tahoe nodes connected")
