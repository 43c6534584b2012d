"""What a refused request costs a member, beside one signature check in the same run.

The server's processor time for a request of each sort, less that for a bare 404 on the same server and the same kind of
connection (new or kept), in microseconds: what it costs beyond being an HTTP request at all. The ratios divide it by
one signature check (the digest of a Request, and the recovery of who signed it); all but `wrong_signature`, which is
one check, must stay below 1. Slow-loris is counted by byte: each arrives alone.

Requests come from many loopback addresses, each below the number of wasted requests that it has; `wasted_all` is what
an address costs that is over it.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.children import Children
from bench.rates import Figures, Options
from freehold.net.auth import authorize
from freehold.net.limits import CONNECTIONS_PER_ADDRESS, WASTE_BURST
from freehold.oracle.peers import BODY_HEADER, MESSAGES_PATH
from freehold.protocol.batches import BATCH_LIMIT, CLOSE, encode_batch, make_batch
from freehold.protocol.keys import Key, recover
from freehold.protocol.messages import BatchHeader, Close, Request
from freehold.protocol.tables import Table
from freehold.protocol.typed import keccak
from freehold.protocol.units import ZERO_HASH, Hash
from tests.oracle.load_member import CLIENTS
from tests.oracle.simulation import DOMAIN, KEYS

REQUESTS = 600  # of each sort, in each round
PER_ADDRESS = WASTE_BURST // 2
CHECKS = 2_000
LEAST_ROUNDS = 4
ANSWER_SECONDS = 30.0

Costs = dict[str, tuple[float, str]]


class Server:
    """A member's process: where it listens, and the processor time that it has used."""

    def __init__(self, url: str, pid: int) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        self.address = (host, int(port))
        self._tasks = Path(f"/proc/{pid}/task")
        self._addresses = itertools.count(1)

    def seconds(self) -> float:
        """Of all its threads."""
        return sum(int((task / "schedstat").read_text().split()[0]) for task in self._tasks.iterdir()) / 1e9

    def next_source(self) -> str:
        """A loopback address that has not been used."""
        number = next(self._addresses)
        return f"127.{1 + number // 60_000}.{number // 250 % 240}.{1 + number % 250}"

    @contextmanager
    def connect(self, source: str) -> Iterator[socket.socket]:
        with socket.create_connection(self.address, ANSWER_SECONDS, (source, 0)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection


def read_answer(connection: socket.socket) -> int:
    """The status of one answer, its body read; 0 where the connection ends first."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return 0
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length"))
    while len(body) < length:
        body += connection.recv(65536)
    return int(head.split(b" ")[1])


def http(method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: member", *(f"{k}: {v}" for k, v in (headers or {}).items())]
    if not headers or "Content-Length" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def kept(server: Server, request: bytes, status: int) -> float:
    """Seconds of the server for one such request on a connection that is kept."""
    before = server.seconds()
    for _ in range(REQUESTS // PER_ADDRESS):
        with server.connect(server.next_source()) as connection:
            for _ in range(PER_ADDRESS):
                connection.sendall(request)
                expect(read_answer(connection), status)
    return (server.seconds() - before) / REQUESTS


def fresh(server: Server, request: bytes, status: int) -> float:
    """Seconds of the server for one such request on a connection of its own."""
    before = server.seconds()
    source = ""
    for i in range(REQUESTS):
        source = source if i % PER_ADDRESS else server.next_source()
        with server.connect(source) as connection:
            connection.sendall(request)
            expect(read_answer(connection), status)
    return (server.seconds() - before) / REQUESTS


def trickle(server: Server, request: bytes) -> float:
    """Seconds of the server for one byte that comes alone."""
    with server.connect(server.next_source()) as connection:
        before = server.seconds()
        for i in range(len(request)):
            connection.sendall(request[i : i + 1])
            time.sleep(0.0005)  # or the system puts several bytes into one packet
        return (server.seconds() - before) / len(request)


def turned_away(server: Server) -> float:
    """Seconds of the server for one connection more than an address may have."""
    source = server.next_source()
    held = [
        socket.create_connection(server.address, ANSWER_SECONDS, (source, 0)) for _ in range(CONNECTIONS_PER_ADDRESS)
    ]
    try:
        return fresh_from(server, source, 429)
    finally:
        for connection in held:
            connection.close()


def fresh_from(server: Server, source: str, status: int) -> float:
    before = server.seconds()
    for _ in range(REQUESTS):
        with server.connect(source) as connection:
            expect(read_answer(connection), status)
    return (server.seconds() - before) / REQUESTS


def wasted_all(server: Server, request: bytes) -> float:
    """Seconds of the server for a request from an address whose requests have come to nothing too often."""
    with server.connect(server.next_source()) as connection:
        for _ in range(2 * WASTE_BURST):
            connection.sendall(request)
            read_answer(connection)
        before = server.seconds()
        refused = 0
        for _ in range(REQUESTS):
            connection.sendall(request)
            refused += read_answer(connection) == 429
        if refused < REQUESTS * 0.9:
            raise RuntimeError(f"only {refused} of {REQUESTS} were refused for the address")
        return (server.seconds() - before) / REQUESTS


def expect(found: int, wanted: int) -> None:
    if found != wanted:
        raise RuntimeError(f"answered {found} instead of {wanted}")


def signature_check() -> float:
    """Seconds of this processor for one check of a signed request."""
    request = Request(
        method="POST", path="/v1/x", body=ZERO_HASH, recipient=KEYS[0].address, nonce=ZERO_HASH, deadline=9
    )
    signature = KEYS[1].sign(request, DOMAIN)
    before = time.process_time()
    for _ in range(CHECKS):
        recover(request.digest(DOMAIN), signature)
    return (time.process_time() - before) / CHECKS


def signed(key: Key, body: Hash) -> dict[str, str]:
    now, nonce = int(time.time()), Hash(os.urandom(32))
    return authorize(key, "POST", MESSAGES_PATH, body, KEYS[0].address, DOMAIN, now, nonce)


def requests() -> dict[str, tuple[Callable[[Server, bytes, int], float], bytes, int]]:
    """Each sort of refused request: how it is sent, its bytes, and its answer."""
    batch = make_batch(CLOSE, Table.of(Close, [Close(lease=keccak(b"bench"))]), CLIENTS[0], DOMAIN)
    data = encode_batch(batch)
    fields = {name: getattr(batch.header, name) for name in batch.header.__struct_fields__}
    forged = BatchHeader(**fields | {"root": ZERO_HASH}).to_bytes()
    unknown = BatchHeader(**fields | {"kind": "nothing"}).to_bytes()
    body = keccak(b"{}")
    headers = {BODY_HEADER: str(body)}
    headers |= signed(KEYS[1], body)
    stranger = headers | signed(CLIENTS[0], body)
    rows = len(data) - 4 - len(batch.header.to_bytes())
    return {
        "oversized": (fresh, http("POST", "/v1/batches", headers={"Content-Length": str(BATCH_LIMIT + 1)}), 413),
        "no_http": (fresh, b"\x16\x03\x01 hello\r\n\r\n", 400),
        "malformed_batch": (kept, http("POST", "/v1/batches", os.urandom(200)), 400),
        "unknown_kind": (kept, http("POST", "/v1/batches", len(unknown).to_bytes(4) + unknown + bytes(rows)), 400),
        "malformed_certificate": (kept, http("POST", "/v1/certificates", b'{"epoch": 1}'), 400),
        "malformed_json": (kept, http("POST", "/v1/certificates", b"{" * 200), 400),
        "unsigned_message": (kept, http("POST", MESSAGES_PATH, b"{}"), 401),
        "replayed_message": (kept, http("POST", MESSAGES_PATH, b"{}", headers), 409),
        "replayed_batch": (kept, http("POST", "/v1/batches", data), 200),
        "wrong_signature": (kept, http("POST", "/v1/batches", len(forged).to_bytes(4) + forged + bytes(rows)), 401),
        "wrong_member": (kept, http("POST", MESSAGES_PATH, b"{}", stranger), 401),
    }


def measure_once(server: Server) -> Costs:
    """By sort: the seconds of one request, and the bare 404 that it is compared with ("" for none)."""
    nothing = http("GET", "/nothing")
    costs = {
        "bare_kept": (kept(server, nothing, 400), ""),
        "bare_fresh": (fresh(server, nothing, 400), ""),
        "signature_check": (signature_check(), ""),
    }
    for name, (send, request, status) in requests().items():
        if name.startswith("replayed"):  # the first is no replay
            with server.connect(server.next_source()) as connection:
                connection.sendall(request)
                read_answer(connection)
        costs[name] = send(server, request, status), f"bare_{send.__name__}"
    costs["wasted_all"] = wasted_all(server, nothing), "bare_kept"
    costs["turned_away"] = turned_away(server), "bare_fresh"
    costs["slow_header_byte"] = trickle(server, b"GET / HTTP/1.1\r\nX: " + b"x" * 1000), ""
    costs["slow_body_byte"] = trickle(server, http("POST", "/v1/batches", b"\x00\x00\x0f\x00" + b"x" * 1000)[:-1]), ""
    return costs


def measure(options: Options) -> tuple[Figures, Figures]:
    """The least of several rounds: what else the machine does can only add."""
    with TemporaryDirectory(dir=options.work) as directory, Children() as children:
        home = Path(directory)
        child = children.start([sys.executable, "-m", "tests.oracle.load_member", str(home), "0"], home / "log")
        server = Server(children.ready_line(child), child.pid)
        rounds = [measure_once(server) for _ in range(max(LEAST_ROUNDS, options.rounds))]
    least = {name: min(each[name][0] for each in rounds) for name in rounds[0]}
    over = {name: least[name] - least.get(bare, 0.0) for name, (_, bare) in rounds[0].items()}
    check = least["signature_check"]
    ratios = {name: cost / check for name, cost in over.items() if not name.startswith(("bare", "signature"))}
    return (
        {f"{name}_us": round(seconds * 1e6, 1) for name, seconds in over.items()},
        {name: round(ratio, 3) for name, ratio in ratios.items()},
    )
