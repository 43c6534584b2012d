"""Shared links: what they show and take, to whom, and that neither names nor shared pages turn against the viewer."""

from __future__ import annotations

import asyncio
import hashlib
import os
from base64 import b64encode
from collections.abc import Awaitable, Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import ClientSession, FormData
from yarl import URL

from freehold.client import shares
from freehold.client.grants import OPERATIONS, GrantKey, describe, narrow
from freehold.gateway import share
from freehold.gateway.tenants import Tenant, Tenants
from freehold.net.limits import Waste
from tests.client.bucket_world import SEED, SEGMENT, Net
from tests.gateway.share_world import ACCOUNT, World, serve

HARD = "<img src=x onerror=alert(1)>\"'& %2F..é\u2028🎉 #?.txt"
HTML = {"Accept": "text/html,*/*"}

Scene = Callable[[World, ClientSession], Awaitable[None]]


def play(scene: Scene, world: World | None = None) -> None:
    async def run() -> None:
        async with (world or World()).serving() as served, ClientSession() as session:
            await scene(served, session)

    asyncio.run(run())


def at(world: World, token: str, key: str = "", query: str = "", bucket: str = "b-1") -> URL:
    return URL(f"{world.url}{token}/{bucket}/{quote(key, safe='')}{query}", encoded=True)


async def fetch(session: ClientSession, url: URL, method: str = "GET", **more: Any) -> tuple[int, Any, bytes]:
    async with session.request(method, url, allow_redirects=False, **more) as answer:
        return answer.status, answer.headers, await answer.read()


class Links(HTMLParser):
    """Every tag, link and text of a page."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: dict[str, str] = {}
        self.text = ""
        self._link = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._link = dict(attrs).get("href") or "" if tag == "a" else ""

    def handle_endtag(self, tag: str) -> None:
        self._link = ""

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._link:
            self.links[data] = self._link


def test_an_object_is_sent_with_its_type_and_cannot_act_in_the_gateways_name() -> None:
    async def scene(world: World, session: ClientSession) -> None:
        world.objects.add("b-1", "page.html", b"<script>alert(1)</script>", "text/html")
        world.objects.add("b-1", "notes.txt", b"x" * 5_500)
        world.objects.add("b-1", "a.pdf", b"%PDF")
        token = world.issue()
        status, headers, body = await fetch(session, at(world, token, "page.html"))
        assert (status, body) == (200, b"<script>alert(1)</script>")
        assert headers["Content-Type"] == "text/html"
        assert headers["Content-Security-Policy"] == "sandbox"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"].startswith("private")
        assert headers["Content-Disposition"] == "inline; filename*=UTF-8''page.html"
        status, headers, body = await fetch(session, at(world, token, "notes.txt"))
        assert (status, body, headers["Content-Type"]) == (200, b"x" * 5_500, "text/plain; charset=utf-8")
        assert headers["Content-Length"] == "5500"
        _, headers, _ = await fetch(session, at(world, token, "notes.txt", "?download"))
        assert headers["Content-Disposition"].startswith("attachment;")
        _, headers, _ = await fetch(session, at(world, token, "a.pdf"))
        assert "Content-Security-Policy" not in headers  # a browser's viewer shows none in a sandbox

    play(scene)


@pytest.mark.parametrize(
    ("asked", "status", "body", "said"),
    [
        ("bytes=0-0", 206, b"0", "bytes 0-0/10"),
        ("bytes=3-", 206, b"3456789", "bytes 3-9/10"),
        ("bytes=-4", 206, b"6789", "bytes 6-9/10"),
        ("bytes=5-99", 206, b"56789", "bytes 5-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=1-2,5-6", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
def test_ranges(asked: str, status: int, body: bytes | None, said: str | None) -> None:
    async def scene(world: World, session: ClientSession) -> None:
        world.objects.add("b-1", "digits", b"0123456789")
        found, headers, got = await fetch(session, at(world, world.issue(), "digits"), headers={"Range": asked})
        assert (found, headers.get("Content-Range")) == (status, said)
        assert body is None or got == body

    play(scene)


def test_head_and_conditions() -> None:
    async def scene(world: World, session: ClientSession) -> None:
        info = world.objects.add("b-1", "digits", b"0123456789")
        url = at(world, world.issue(), "digits")
        status, headers, body = await fetch(session, url, "HEAD")
        assert (status, headers["Content-Length"], body) == (200, "10", b"")
        tag = headers["ETag"]
        assert tag == f'"{info.etag}"'
        assert (await fetch(session, url, headers={"If-None-Match": tag}))[0] == 304
        assert (await fetch(session, url, headers={"If-Match": '"other"'}))[0] == 412
        both = {"Range": "bytes=1-2", "If-Range": '"other"'}
        assert (await fetch(session, url, headers=both))[2] == b"0123456789"

    play(scene)


def test_a_folder_lists_what_is_in_it_and_every_link_works() -> None:
    async def scene(world: World, session: ClientSession) -> None:
        for key in ("p/a.txt", f"p/{HARD}", "p/sub/x", "p/sub/y", "q/other"):
            world.objects.add("b-1", key, key.encode(), "text/plain")
        token = world.issue(prefix="p/")
        status, headers, body = await fetch(session, at(world, token, "p/"))
        assert status == 200
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["Referrer-Policy"] == "no-referrer"
        page = Links(body)
        assert set(page.links) == {"a.txt", HARD, "sub/"}
        assert "img" not in page.tags
        assert "7 B" in page.text
        assert "other" not in page.text
        for name, link in page.links.items():
            status, _, body = await fetch(session, URL(world.url.partition("/-/")[0] + link, encoded=True))
            assert status == 200
            if name != "sub/":
                assert body == f"p/{name}".encode()
            else:
                inner = Links(body)
                assert set(inner.links) == {"x", "y", "← up"}

    play(scene)


def test_pages_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "PAGE_SIZE", 2)

    async def scene(world: World, session: ClientSession) -> None:
        for name in ("a", "b & b", "c", "d/1", "e"):
            world.objects.add("b-1", f"p/{name}", b"")
        seen: list[str] = []
        url = at(world, world.issue(prefix="p/"), "p/")
        for _ in range(3):
            page = Links((await fetch(session, url))[2])
            following = page.links.pop("Next page →", "")
            seen += page.links
            if not following:
                break
            url = URL(world.url.partition("/-/")[0] + following, encoded=True)
        assert sorted(seen) == ["a", "b & b", "c", "d/", "e"]
        assert not following

    play(scene)


def test_the_token_alone_leads_on() -> None:
    async def scene(world: World, session: ClientSession) -> None:
        for what, path in (
            ({"prefix": "a b", "exact": True}, "/b-1/a%20b"),
            ({"prefix": "p/"}, "/b-1/p/"),
            ({"prefix": "p/20"}, "/b-1/p/20?list"),
            ({}, "/b-1/"),
        ):
            token = world.issue(**what)
            for slash in ("", "/"):
                status, headers, _ = await fetch(session, URL(world.url + token + slash))
                assert (status, headers["Location"]) == (302, f"/-/share/{token}{path}")
        world.objects.add("b-1", "p/2024", b"")
        world.objects.add("b-1", "p/19", b"")
        page = Links((await fetch(session, at(world, world.issue(prefix="p/20"), "p/20", "?list")))[2])
        assert set(page.links) == {"2024"}

    play(scene)


@pytest.mark.parametrize("html", [True, False], ids=["html", "json"])
def test_why_not(html: bool) -> None:
    async def scene(world: World, session: ClientSession) -> None:
        world.objects.add("b-1", "p/a", b"secret")
        world.objects.add("b-1", "q", b"secret")
        token = world.issue("read", prefix="p/", expires=2_000_000)
        revoked = narrow(token, prefix="p/a")
        world.dead.add(describe(revoked).ids[-1])
        cases = [
            (token, "q", "GET", 403, "access_denied"),
            (token, "p/", "GET", 403, "access_denied"),
            (token, "p/a", "PUT", 403, "access_denied"),
            (token, "p/a", "DELETE", 403, "access_denied"),
            (token, "p/b", "GET", 404, "key_not_found"),
            (token, "p/a", "PATCH", 405, "method_not_allowed"),
            (narrow(token, expires=999_999), "p/a", "GET", 410, "access_denied"),
            (revoked, "p/a", "GET", 410, "access_denied"),
            (token[:-8], "p/a", "GET", 404, "access_denied"),
            ("nonsense", "p/a", "GET", 404, "access_denied"),
            (GrantKey(b"o" * 32).issue(ACCOUNT, ["read"]), "p/a", "GET", 404, "access_denied"),
        ]
        for given, key, method, expected, code in cases:
            status, headers, body = await fetch(
                session, at(world, given, key), method, headers=HTML if html else {"Accept": "*/*"}
            )
            assert status == expected, (key, method)
            assert b"secret" not in body
            if html:
                assert headers["Content-Type"].startswith("text/html")
                assert Links(body).tags.count("h1") == 1
            else:
                assert f'"code": "{code}"'.encode() in body
        assert world.objects.asked == ["open p/b"]  # nothing else came through to the objects

    play(scene)


def test_putting_and_deleting_where_granted() -> None:
    async def scene(world: World, session: ClientSession) -> None:
        token = world.issue("write", "delete", "read", prefix="in/")
        url = at(world, token, "in/ü.txt")
        status, _, body = await fetch(session, url, "PUT", data=b"y" * 3_333, headers={"Content-Type": "text/x-own"})
        assert status == 201
        assert b'"size": 3333' in body
        info, data = world.objects.kept["b-1", "in/ü.txt"]
        assert (data, info.headers) == (b"y" * 3_333, {"content-type": "text/x-own"})
        assert (await fetch(session, url, "PUT", data=b"z", headers={"If-None-Match": "*"}))[0] == 412
        assert (await fetch(session, at(world, token, "out"), "PUT", data=b"z"))[0] == 403
        assert (await fetch(session, url, "DELETE"))[0] == 204
        assert world.objects.kept == {}

    play(scene)


def test_a_body_is_held_to_the_sha256_that_its_sender_names() -> None:
    """A node that delivers a job's files names it; the object keeps it, so the client need not read what was stored."""

    async def scene(world: World, session: ClientSession) -> None:
        token = world.issue("write", prefix="p/")
        right, wrong = (b64encode(hashlib.sha256(data).digest()).decode() for data in (b"data", b"other"))
        for named, status in ((right, 201), (wrong, 400), ("short", 400)):
            url = at(world, token, f"p/{status}")
            headers = {"x-amz-checksum-sha256": named}
            assert (await fetch(session, url, "PUT", data=b"data", headers=headers))[0] == status
        assert world.objects.digests.checksums == {"SHA256": right}
        assert list(world.objects.kept) == [("b-1", "p/201")]

    play(scene)


def test_a_form_puts_files_below_the_folder() -> None:
    async def scene(world: World, session: ClientSession) -> None:
        token = world.issue("write", "list", prefix="in/")
        url = at(world, token, "in/")
        page = Links((await fetch(session, url))[2])
        assert {"form", "input", "button"} <= set(page.tags)
        form = FormData(quote_fields=False)  # as browsers do
        form.add_field("other", "ignored")
        form.add_field("file", b"one" * 1_000, filename="C:\\x\\one.txt", content_type="text/plain")
        form.add_field("file", b"two", filename="../../two.bin", content_type="image/png")
        status, headers, _ = await fetch(session, url, "POST", data=form)
        assert (status, headers["Location"]) == (303, f"/-/share/{token}/b-1/in/?list")
        kept = {key: data for (_, key), (_, data) in world.objects.kept.items()}
        assert kept == {"in/one.txt": b"one" * 1_000, "in/two.bin": b"two"}
        for wrong, data in ((at(world, token, "in/x"), form_of("a")), (url, FormData({"a": "b"}))):
            assert (await fetch(session, wrong, "POST", data=data))[0] == 400
        box = at(world, narrow(token, operations=["write"]), "in/")  # takes files, shows none
        page = Links((await fetch(session, box))[2])
        assert "form" in page.tags
        assert "one.txt" not in page.text
        reader = world.issue("read", "list", prefix="in/")
        assert "form" not in Links((await fetch(session, at(world, reader, "in/")))[2]).tags
        assert (await fetch(session, at(world, reader, "in/"), "POST", data=form_of("evil")))[0] == 403
        assert len(world.objects.kept) == 2

    play(scene)


def form_of(name: str) -> FormData:
    form = FormData()
    form.add_field("file", b"data", filename=name)
    return form


def test_an_object_that_cannot_be_read_to_its_end_is_cut_off() -> None:
    async def scene(world: World, session: ClientSession) -> None:
        world.objects.add("b-1", "big", b"x" * 5_000)
        world.objects.broken.add("big")
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientConnectionError)):
            await fetch(session, at(world, world.issue(), "big"))

    play(scene)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=", b"x"),
        ("multipart/form-data; boundary=b", b"x" * 1_000),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"X: " + b"y" * 20_000 + b"\r\n\r\n--b--"),
    ],
)
def test_forms_that_cannot_be_read(kind: str, body: bytes) -> None:
    async def scene(world: World, session: ClientSession) -> None:
        url = at(world, world.issue("write", prefix="in/"), "in/")
        assert (await fetch(session, url, "POST", data=body, headers={"Content-Type": kind}))[0] == 400
        assert world.objects.kept == {}

    play(scene)


def test_a_body_that_breaks_off_is_not_stored() -> None:
    async def scene(world: World, session: ClientSession) -> None:
        url = at(world, world.issue("write"), "x")
        _, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(f"PUT {url.raw_path} HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nabc".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await fetch(session, url, "GET"))[0] == 403  # served after it: the gateway goes on
        assert world.objects.kept == {}

    play(scene)


def test_an_object_that_is_replaced_while_it_is_opened_is_sent_as_it_stands_then() -> None:
    async def scene(world: World, session: ClientSession) -> None:
        world.objects.add("b-1", "x", b"old")
        world.objects.replaced["x"] = b"newer"
        status, headers, body = await fetch(session, at(world, world.issue(), "x"))
        assert (status, body, headers["Content-Length"]) == (200, b"newer", "5")
        assert headers["ETag"] == f'"{world.objects.kept["b-1", "x"][0].etag}"'

    play(scene)


def test_who_tries_tokens_at_random_has_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.gateway.share.Waste", partial(Waste, rate=0.5))

    async def scene(world: World, session: ClientSession) -> None:
        world.objects.add("b-1", "x", b"")
        good = at(world, world.issue(), "x")
        assert (await fetch(session, good))[0] == 200
        for number in range(1_000):
            status, headers, _ = await fetch(session, at(world, f"fhg_{number}", "x"))
            if status != 404:
                break
        assert (status, int(headers["Retry-After"]) >= 1) == (429, True)
        assert (await fetch(session, good))[0] == 429

    play(scene)


@pytest.mark.parametrize("path", ["%ff", "a?%ff=%ff", "?" + "&".join("abcdefghijklmnopqrstuvwxyz")])
def test_paths_and_queries_that_cannot_be_read(path: str) -> None:
    async def scene(world: World, session: ClientSession) -> None:
        url = URL(f"{world.url}{world.issue()}/b-1/{path}", encoded=True)
        assert (await fetch(session, url))[0] == 400

    play(scene)


def test_with_real_buckets_accounts_and_revocations(tmp_path: Path) -> None:
    """Everything but the network: what the fake above stands for does the same."""

    async def run() -> None:
        net = Net(tmp_path)
        buckets = net.device()
        await buckets.create_bucket("b-1")
        key, data = GrantKey(SEED), os.urandom(3 * SEGMENT + 7)
        token = key.issue(ACCOUNT, OPERATIONS, bucket="b-1", prefix="p/", expires=int(net.now) + 60)
        async with serve(Tenants([Tenant(buckets, "owner", SEED)]), lambda: net.now) as url, ClientSession() as session:

            async def ask(key: str, method: str = "GET", **more: Any) -> tuple[int, Any, bytes]:
                return await fetch(session, URL(f"{url}{token}/b-1/{quote(key)}", encoded=True), method, **more)

            for name, body in (("p/large", data), ("p/small ü", b"small"), ("p/sub/x", b"x")):
                assert (await ask(name, "PUT", data=body, headers={"Content-Type": "text/x-own"}))[0] == 201
                status, headers, found = await ask(name)
                assert (status, found, headers["Content-Type"]) == (200, body, "text/x-own; charset=utf-8")
            part = (await ask("p/large", headers={"Range": f"bytes={SEGMENT - 5}-{SEGMENT + 4}"}))[2]
            assert part == data[SEGMENT - 5 : SEGMENT + 5]
            assert set(Links((await ask("p/"))[2]).links) == {"large", "small ü", "sub/"}
            assert (await ask("p/large", "PUT", data=b"y", headers={"If-None-Match": "*"}))[0] == 412
            assert (await ask("p/nothing"))[0] == 404
            assert (await ask("p/small ü", "DELETE"))[0] == 204
            assert (await ask("p/small ü"))[0] == 404
            await shares.revoke(buckets.root, key, token, clock=lambda: net.now)
            assert (await ask("p/large"))[0] == 410
        await buckets.aclose()

    asyncio.run(run())
