"""TLS over real sockets: a peer is who has the certificate with its fingerprint, and nobody else is asked anything."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from freehold.net import limits
from freehold.net.client import Dial, Peer
from freehold.net.server import Server, make_app, ok, read_body, serve, unbuffered
from freehold.net.tls import (
    RENEW_DAYS,
    Certificate,
    choose_certificate,
    client_context,
    ensure_certificate,
    fingerprint_of,
    load_certificate,
)
from freehold.protocol.errors import InvalidInput, Unavailable, WrongCertificate
from freehold.protocol.units import ZERO_HASH, Hash
from tests.conftest import SLOW

DEADLINE = 20.0 * SLOW
PIECE = 256 << 10
BODY = bytes(range(256)) * (20 << 10)  # 5 MiB


class Site:
    """A server that counts what it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.broken = False
        self.server: Server

    async def hello(self, _: web.Request) -> web.Response:
        self.asked += 1
        return ok("hello")

    async def echo(self, request: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(body=await read_body(request, len(BODY)))

    async def talk(self, request: web.Request) -> web.WebSocketResponse:
        self.asked += 1
        socket = web.WebSocketResponse(protocols=["chat"])
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """BODY, drained after each piece; `asked` counts those that the system has taken."""
        response = web.StreamResponse()
        response.content_length = len(BODY)
        await response.prepare(request)
        try:
            with unbuffered(request):
                for at in range(0, len(BODY), PIECE):
                    await response.write(BODY[at : at + PIECE])
                    await request.writer.drain()
                    self.asked += 1
        except (ConnectionError, asyncio.CancelledError):
            self.broken = True
            raise
        return response

    @property
    def port(self) -> int:
        return int(self.server.url.rpartition(":")[2])


@asynccontextmanager
async def site(certificate: Certificate | None, port: int = 0) -> AsyncIterator[Site]:
    it = Site()
    routes = [
        web.get("/hello", it.hello),
        web.put("/echo", it.echo),
        web.get("/stream", it.stream),
        web.get("/talk", it.talk),
    ]
    app = make_app(routes, ready=lambda: (True, ""), metrics=lambda: "")
    it.server = await serve(app, "127.0.0.1", port, tls=certificate)
    try:
        yield it
    finally:
        await it.server.stop()


def run(certificate: Certificate | None, use: Callable[[Site, Dial], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(DEADLINE), site(certificate) as it, Dial() as dial:
            await use(it, dial)

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return ensure_certificate(tmp_path / "a")


@pytest.fixture
def other(tmp_path: Path) -> Certificate:
    return ensure_certificate(tmp_path / "b")


async def pieces() -> AsyncIterator[bytes]:
    for at in range(0, len(BODY), 100_000):
        yield BODY[at : at + 100_000]


async def echo(peer: Peer) -> bytes:
    async with peer.request("PUT", "/echo", data=pieces()) as response:
        return await response.read()


def test_the_right_pin_connects_once_and_carries_bodies_both_ways(certificate: Certificate) -> None:
    async def use(it: Site, dial: Dial) -> None:
        assert it.server.url.startswith("https://127.0.0.1:")
        assert it.server.fingerprint == certificate.fingerprint == await dial.fingerprint_at(it.server.url)
        await until(lambda: it.server.connections.count == 0)
        for _ in range(3):
            peer = dial.peer(it.server.url, Hash(bytes(certificate.fingerprint)))  # an equal one is the same
            assert await peer.get_json("/hello") == "hello"
            assert await echo(peer) == BODY
        assert it.server.connections.count == 1

    run(certificate, use)


def test_websockets_are_pinned_too(certificate: Certificate, other: Certificate) -> None:
    async def use(it: Site, dial: Dial) -> None:
        good, bad = (dial.peer(it.server.url, one.fingerprint) for one in (certificate, other))
        async with good.websocket("/talk", headers={}, protocols=["chat"], limit=1000) as socket:
            await socket.send_str("you")
            assert (await socket.receive_str(), socket.protocol) == ("you", "chat")
        with pytest.raises(WrongCertificate):
            async with bad.websocket("/talk", headers={}, protocols=[], limit=1000):
                pass
        with pytest.raises(aiohttp.WSServerHandshakeError):
            async with good.websocket("/hello", headers={}, protocols=[], limit=1000):
                pass
        assert it.asked == 2

    run(certificate, use)


def test_a_wrong_pin_says_both_fingerprints_and_sends_nothing(certificate: Certificate, other: Certificate) -> None:
    async def use(it: Site, dial: Dial) -> None:
        peer = dial.peer(it.server.url, other.fingerprint)
        for _ in range(2):
            with pytest.raises(WrongCertificate, match=f"{certificate.fingerprint}, not {other.fingerprint}") as caught:
                await peer.get_json("/hello")
            assert not caught.value.retryable
            assert caught.value.details["shown"] == str(certificate.fingerprint)
            assert caught.value.details["expected"] == str(other.fingerprint)
        with pytest.raises(WrongCertificate):
            await echo(peer)
        assert it.asked == 0

    run(certificate, use)


def test_somebody_in_between_with_another_certificate_learns_nothing(
    certificate: Certificate, other: Certificate
) -> None:
    heard: list[bytes] = []

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, note: bool) -> None:
        try:
            while data := await source.read(65536):
                if note:
                    heard.append(data)
                sink.write(data)
        finally:
            sink.transport.abort()

    async def use(it: Site, dial: Dial) -> None:
        relays: list[asyncio.Task[object]] = []

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            inward, outward = await asyncio.open_connection("127.0.0.1", it.port, ssl=context)
            relays.extend(asyncio.create_task(p) for p in (pump(reader, outward, True), pump(inward, writer, False)))

        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(other.certificate, other.key)
        between = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context)
        url = f"https://127.0.0.1:{between.sockets[0].getsockname()[1]}"
        # It does relay for whoever trusts it, so that what follows is not for want of an answer.
        assert await dial.peer(url, other.fingerprint).get_json("/hello") == "hello"
        heard.clear()
        with pytest.raises(WrongCertificate):
            await dial.peer(url, certificate.fingerprint).post_json("/hello", {"secret": 1})
        await until(lambda: len(relays) == 4 and all(task.done() for task in relays[2:]))
        assert heard == []
        assert it.asked == 1
        between.close()
        for task in relays:
            task.cancel()
        await asyncio.gather(*relays, return_exceptions=True)

    run(certificate, use)


def test_a_peer_with_a_certificate_is_never_spoken_to_over_http(certificate: Certificate) -> None:
    async def use(it: Site, dial: Dial) -> None:
        plain = f"http://127.0.0.1:{it.port}"
        with pytest.raises(WrongCertificate, match="over https"):
            await dial.peer(plain, certificate.fingerprint).get_json("/hello")
        assert it.asked == 0

    run(None, use)


def test_https_and_http_do_not_answer_each_other(certificate: Certificate) -> None:
    async def to_https(it: Site, dial: Dial) -> None:
        with pytest.raises(Unavailable) as caught:
            await dial.peer(f"http://127.0.0.1:{it.port}").get_json("/hello")
        assert type(caught.value) is Unavailable
        assert it.asked == 0
        await until(lambda: it.server.connections.count == 0)

    async def to_http(it: Site, dial: Dial) -> None:
        with pytest.raises(Unavailable):
            await dial.peer(f"https://127.0.0.1:{it.port}", certificate.fingerprint).get_json("/hello")
        with pytest.raises(Unavailable, match="shows no certificate"):
            await dial.fingerprint_at(f"https://127.0.0.1:{it.port}")
        assert await dial.fingerprint_at(it.server.url) == ZERO_HASH
        assert it.asked == 0

    run(certificate, to_https)
    run(None, to_http)


def test_without_a_pin_nothing_is_sent_over_https(certificate: Certificate) -> None:
    async def use(it: Site, dial: Dial) -> None:
        with pytest.raises(WrongCertificate, match="no known certificate"):
            await dial.peer(it.server.url).get_json("/hello")
        assert it.asked == 0
        assert it.server.connections.count == 0

    run(certificate, use)


@pytest.mark.parametrize("is_tls", [False, True])
def test_drains_wait_for_the_reader_and_end_with_it(certificate: Certificate, is_tls: bool) -> None:
    async def use(it: Site, dial: Dial) -> None:
        peer, pieces = dial.peer(it.server.url, it.server.fingerprint), len(BODY) // PIECE
        assert await peer.get_bytes("/stream") == BODY
        assert it.asked == pieces
        assert await peer.get_json("/hello") == "hello"  # over the same connection
        assert it.server.connections.count == 1
        it.asked = 0
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.setblocking(False)
        await asyncio.get_running_loop().sock_connect(slow, ("127.0.0.1", it.port))
        context = client_context() if is_tls else None
        name = "127.0.0.1" if is_tls else None
        reader, writer = await asyncio.open_connection(sock=slow, ssl=context, server_hostname=name, limit=4096)
        writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.read(100)
        assert it.asked < pieces
        writer.transport.abort()
        await until(lambda: it.broken)
        assert it.asked < pieces

    run(certificate if is_tls else None, use)


class Renewing:
    """A pin whose owner changes its certificate."""

    def __init__(self, first: Hash, then: Hash) -> None:
        self.known, self.then = first, then
        self.learned = 0

    async def fingerprint(self, wrong: Hash = ZERO_HASH) -> Hash:
        if wrong == self.known:
            self.learned += 1
            self.known = self.then
        return self.known


def test_a_new_certificate_is_learned_once_and_the_body_still_arrives_whole(
    certificate: Certificate, other: Certificate
) -> None:
    async def main() -> None:
        async with asyncio.timeout(DEADLINE), Dial() as dial:
            pin = Renewing(certificate.fingerprint, other.fingerprint)
            async with site(certificate) as before:
                peer, port = dial.peer(before.server.url, pin), before.port
                assert await peer.get_json("/hello") == "hello"
            async with site(other, port):
                assert await echo(peer) == BODY
                assert await peer.get_json("/hello") == "hello"
                assert pin.learned == 1
            # Where its owner says something else than what is shown, it stays an error.
            lying = Renewing(other.fingerprint, Hash(b"x" * 32))
            async with site(certificate, port) as after:
                with pytest.raises(WrongCertificate, match="78787878"):
                    await dial.peer(after.server.url, lying).get_json("/hello")
                assert after.asked == 0

    asyncio.run(main())


def make_expired(folder: Path) -> Certificate:
    key, then = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC) - timedelta(days=400)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "elsewhere.example")])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(then).not_valid_after(then + timedelta(days=1)).sign(key, hashes.SHA256())
    )  # fmt: skip
    certificate, secret = folder / "own.pem", folder / "own-key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return load_certificate(certificate, secret)


def test_dates_and_names_do_not_matter_where_the_fingerprint_is_right(tmp_path: Path) -> None:
    async def use(it: Site, dial: Dial) -> None:
        assert await dial.peer(it.server.url, it.server.fingerprint).get_json("/hello") == "hello"

    run(make_expired(tmp_path), use)


def test_other_programs_take_the_certificate_as_a_bundle(certificate: Certificate) -> None:
    async def use(it: Site, _: Dial) -> None:
        context = ssl.create_default_context(cafile=str(certificate.certificate))
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        for host in ("127.0.0.1", "localhost"):
            _, writer = await asyncio.open_connection("127.0.0.1", it.port, ssl=context, server_hostname=host)
            writer.close()
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", it.port, ssl=context, server_hostname="example.org")

    run(certificate, use)


def test_connections_count_from_before_their_handshake(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(it: Site, dial: Dial) -> None:
        it.server.connections._per_address = 3
        opened = [socket.create_connection(("127.0.0.1", it.port)) for _ in range(3)]
        await until(lambda: it.server.connections.count == 3)
        with pytest.raises(Unavailable):
            await dial.peer(it.server.url, certificate.fingerprint).get_json("/hello")
        opened[0].sendall(b"GET / HTTP/1.1\r\n\r\n")  # no handshake: that one is over
        opened[1].close()
        await until(lambda: it.server.connections.count == 1)
        assert await dial.peer(it.server.url, certificate.fingerprint).get_json("/hello") == "hello"
        for one in opened:
            one.close()
        await until(lambda: it.server.connections.count == 1)  # the peer's own, which is kept
        # Whoever says nothing has HANDSHAKE_SECONDS.
        monkeypatch.setattr(limits, "HANDSHAKE_SECONDS", 0.05)
        with socket.create_connection(("127.0.0.1", it.port)):
            await until(lambda: it.server.connections.count == 2)
            await until(lambda: it.server.connections.count == 1)

    run(certificate, use)


def test_a_certificate_is_kept_and_its_key_is_the_owners_alone(tmp_path: Path) -> None:
    made = ensure_certificate(tmp_path)
    assert made.key.stat().st_mode & 0o777 == 0o600
    assert ensure_certificate(tmp_path) == made
    key = made.key.read_bytes()
    named = ensure_certificate(tmp_path, ["s3.example.org", "10.0.0.7"])
    assert named.fingerprint != made.fingerprint
    assert ensure_certificate(tmp_path, ["10.0.0.7"]) == named == ensure_certificate(tmp_path)
    named.certificate.unlink()  # as after a stop between the two files
    assert ensure_certificate(tmp_path).fingerprint not in (made.fingerprint, named.fingerprint)
    assert made.key.read_bytes() == key
    der = ssl.PEM_cert_to_DER_cert(made.certificate.read_text())
    assert fingerprint_of(der) == ensure_certificate(tmp_path).fingerprint
    with pytest.raises(InvalidInput, match="name"):
        ensure_certificate(tmp_path, ["ü.example"])


def test_one_that_ends_soon_or_is_of_another_key_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.net.tls.VALID_DAYS", RENEW_DAYS - 1)
    ending = ensure_certificate(tmp_path)
    monkeypatch.undo()
    lasting = ensure_certificate(tmp_path)
    assert lasting.fingerprint != ending.fingerprint
    lasting.certificate.write_bytes(ensure_certificate(tmp_path / "other").certificate.read_bytes())
    assert ensure_certificate(tmp_path).fingerprint != lasting.fingerprint


def test_an_operators_own_files_must_belong_together(
    tmp_path: Path, certificate: Certificate, other: Certificate
) -> None:
    own = make_expired(tmp_path)
    assert choose_certificate(True, own.certificate, own.key, tmp_path / "unused") == own
    assert not (tmp_path / "unused").exists()
    assert choose_certificate(False, None, None, tmp_path) is None
    assert choose_certificate(True, None, None, certificate.key.parent) == certificate
    for pair in ((certificate.certificate, other.key), (tmp_path / "missing", other.key), (other.key, other.key)):
        with pytest.raises(InvalidInput):
            load_certificate(*pair)
    for tls, path, key in ((True, own.certificate, None), (True, None, own.key), (False, own.certificate, own.key)):
        with pytest.raises(InvalidInput, match="together"):
            choose_certificate(tls, path, key, tmp_path)
