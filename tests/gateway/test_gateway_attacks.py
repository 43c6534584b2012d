"""What somebody who means harm sends: to be taken for another, to get round a policy or a grant, to break answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from freehold.client import access_keys
from freehold.client.grants import GrantKey
from freehold.client.root import AccessKey
from freehold.gateway.bodies import Turns
from freehold.gateway.handlers_objects import WHOLE
from freehold.gateway.process import serve
from freehold.gateway.tenants import Tenant, Tenants
from freehold.protocol.errors import Unavailable
from tests.gateway.gateway_world import SEEDS, Answer, World, play
from tests.gateway.test_gateway_access import ACCOUNT, allow, policy

LOCK = {"x-amz-object-lock-mode": "COMPLIANCE", "x-amz-object-lock-retain-until-date": "2099-01-01T00:00:00Z"}
FILE = (b'Content-Disposition: form-data; name="file"; filename="f"', b"data")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.gateway.tenants.FRESH_SECONDS", 0.0)
    monkeypatch.setattr("freehold.gateway.tenants.LOOK_SECONDS", 0.0)


def test_a_label_of_another_account_is_nobody_to_a_policy(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        await world.send("PUT", "/bucket-1/k", data=b"x")
        only = [allow("s3:GetObject", "bucket-1/*", Principal={"AWS": name}) for name in ("alice", world.other.id)]
        assert (await world.send("PUT", "/bucket-1", "policy", data=policy(only[0]))).status == 204
        alice = await access_keys.new(world.devices[1].root, "alice")
        assert (await world.send("GET", "/bucket-1/k", key=alice)).code == "AccessDenied"
        named = await access_keys.new(world.devices[1].root, world.other.id)
        assert (await world.send("PUT", "/bucket-1", "policy", data=policy(only[1]))).status == 204
        assert (await world.send("GET", "/bucket-1/k", key=named)).code == "AccessDenied"
        assert (await world.send("GET", "/bucket-1/k", key=world.other)).status == 200
        named_so = allow("s3:GetObject", "bucket-1/*", Condition={"StringEquals": {"aws:username": "alice"}})
        assert (await world.send("PUT", "/bucket-1", "policy", data=policy(named_so))).status == 204
        assert (await world.send("GET", "/bucket-1/k", key=alice)).code == "AccessDenied"

    play(tmp_path, scene)


def test_an_account_cannot_take_the_id_of_anothers_key(tmp_path: Path) -> None:
    nobody = "FH" + "A" * 18

    async def scene(world: World) -> None:
        thief = world.devices[0].root

        async def put(id_: str, key: AccessKey) -> None:
            await thief.change(lambda root: msgspec.structs.replace(root, access_keys=root.access_keys | {id_: key}))
            await world.send("GET", "/", key=msgspec.structs.replace(world.key, id=nobody))  # look again

        async def reads(key: AccessKey) -> str:
            answer = await world.send("GET", "/bucket-1/k", key=key)
            return answer.code if answer.status != 200 else ""

        third = Tenant(world.net.device("account2", b"u" * 32), "3" * 40, b"u" * 32)
        world.gateway.tenants = Tenants([*world.tenants, third], clock=lambda: world.net.now)
        friend = await access_keys.new(third.accounts, "friend")
        await world.send("PUT", "/bucket-1", key=world.other)
        await world.send("PUT", "/bucket-1/k", data=b"x", key=world.other)
        only = policy(allow("s3:GetObject", "bucket-1/*", Principal={"AWS": friend.id}))
        assert (await world.send("PUT", "/bucket-1", "policy", data=only, key=world.other)).status == 204
        assert await reads(friend) == ""
        own = msgspec.structs.replace(world.key, id=friend.id)
        await put("FH" + "B" * 18, own)  # an entry that says it is another
        assert await reads(msgspec.structs.replace(own, id="FH" + "B" * 18)) == "InvalidAccessKeyId"
        await put(friend.id, own)
        assert (await reads(own), await reads(friend)) == ("SignatureDoesNotMatch", "AccessDenied")
        started = [*world.tenants, third]  # anew, and the thief is the first that is looked at
        world.gateway.tenants = Tenants(started, clock=lambda: world.net.now)
        assert await reads(own) == "AccessDenied"

    play(tmp_path, scene)


def test_a_policy_sees_the_tags_of_what_is_read(tmp_path: Path) -> None:
    tags = b"<Tagging><TagSet><Tag><Key>Secret</Key><Value>yes</Value></Tag></TagSet></Tagging>"
    secret = {"StringEquals": {"s3:ExistingObjectTag/Secret": "yes"}}
    document = policy(
        allow("s3:GetObject*", "bucket-1/*"), allow("s3:GetObject*", "bucket-1/*", "Deny", Condition=secret)
    )

    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        await world.send("PUT", "/bucket-1", "versioning", data=b"<VersioningConfiguration><Status>Enabled</Status>"
                         b"</VersioningConfiguration>")  # fmt: skip
        old = (await world.send("PUT", "/bucket-1/k", data=b"x")).headers["x-amz-version-id"]
        await world.send("PUT", "/bucket-1/k", "tagging", data=tags)
        await world.send("PUT", "/bucket-1/k", data=b"y")
        assert (await world.send("PUT", "/bucket-1", "policy", data=document)).status == 204
        assert (await world.send_as_is("GET", "/bucket-1/k")).body == b"y"
        assert (await world.send_as_is("GET", "/bucket-1/k", f"versionId={old}")).code == "AccessDenied"
        assert (await world.send_as_is("GET", "/bucket-1/none")).code == "NoSuchKey"
        source = {"x-amz-copy-source": f"/bucket-1/k?versionId={old}"}
        assert (await world.send("PUT", "/bucket-1/c", headers=source)).code == "AccessDenied"

    play(tmp_path, scene)


def test_a_grant_to_write_does_not_lock(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1", headers={"x-amz-bucket-object-lock-enabled": "true"})
        token = GrantKey(SEEDS[0]).issue(ACCOUNT, ("write",), bucket="bucket-1")
        writer = await access_keys.new(world.devices[0].root, "writer", token)
        assert (await world.send("PUT", "/bucket-1/k", key=writer, headers={"x-amz-tagging": "a=b"})).status == 200
        for headers in (LOCK, {"x-amz-object-lock-legal-hold": "ON"}):
            assert (await world.send("PUT", "/bucket-1/k", key=writer, headers=headers)).code == "AccessDenied"
            begun = await world.send("POST", "/bucket-1/k", "uploads", key=writer, headers=headers)
            assert begun.code == "AccessDenied"
            assert (await world.send("PUT", "/bucket-1/own", headers=headers)).status == 200
        everybody = policy(allow("s3:PutObject", "bucket-1/*"))
        assert (await world.send("PUT", "/bucket-1", "policy", data=everybody)).status == 204
        assert (await world.send_as_is("PUT", "/bucket-1/k", headers=LOCK)).code == "AccessDenied"
        assert (await world.send_as_is("PUT", "/bucket-1/k", headers={"x-amz-tagging": "a=b"})).code == "AccessDenied"
        assert (await world.send_as_is("PUT", "/bucket-1/k")).status == 200
        body = aiohttp.FormData({"key": "k", **LOCK})
        body.add_field("file", b"x", filename="f")
        assert (await world.send_as_is("POST", "/bucket-1", data=body)).code == "AccessDenied"

    play(tmp_path, scene)


def test_no_policy_gives_itself_away(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        everything = policy(allow("s3:*", "bucket-1"), allow("s3:*", "bucket-1/*"))
        assert (await world.send("PUT", "/bucket-1", "policy", data=everything)).status == 204
        for method in ("GET", "PUT", "DELETE"):
            data = everything if method == "PUT" else b""
            assert (await world.send_as_is(method, "/bucket-1", "policy", data=data)).code == "AccessDenied", method
            foreign = await world.send(method, "/bucket-1", "policy", data=data, key=world.other)
            assert foreign.code == "AccessDenied", method
        assert (await world.send_as_is("GET", "/bucket-1")).status == 200
        assert (await world.send("GET", "/bucket-1", "policy")).body == everything

    play(tmp_path, scene)


def test_what_fails_inside_is_told_to_the_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        await world.send("PUT", "/bucket-1", "policy", data=policy(allow("s3:GetObject", "bucket-1/*")))

        async def fail(*_: Any) -> None:
            raise Unavailable("http://10.0.0.1 does not answer")

        monkeypatch.setattr(world.devices[0], "open", fail)
        own, other = await world.send("GET", "/bucket-1/k"), await world.send_as_is("GET", "/bucket-1/k")
        assert (own.status, other.status) == (503, 503)
        assert (b"10.0.0.1" in own.body, b"10.0.0.1" in other.body) == (True, False)

    play(tmp_path, scene)


def test_a_bucket_that_is_not_whose_it_should_be_is_left_alone(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        expected = "x-amz-expected-bucket-owner"
        for owner, status in (("1" * 40, 200), ("2" * 40, 403), ("123456789012", 403)):
            assert (await world.send("PUT", "/bucket-1/k", headers={expected: owner})).status == status
            source = {"x-amz-copy-source": "/bucket-1/k", "x-amz-source-expected-bucket-owner": owner}
            assert (await world.send("PUT", "/bucket-1/c", headers=source)).status == status

    play(tmp_path, scene)


def test_a_denial_to_bypass_governance_holds(tmp_path: Path) -> None:
    lock = LOCK | {"x-amz-object-lock-mode": "GOVERNANCE"}
    bypass = {"x-amz-bypass-governance-retention": "true"}

    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1", headers={"x-amz-bucket-object-lock-enabled": "true"})
        version = (await world.send("PUT", "/bucket-1/k", headers=lock)).headers["x-amz-version-id"]
        deny = policy(allow("s3:BypassGovernanceRetention", "bucket-1/*", "Deny"))
        assert (await world.send("PUT", "/bucket-1", "policy", data=deny)).status == 204
        query = f"versionId={version}"
        named = f"<Delete><Object><Key>k</Key><VersionId>{version}</VersionId></Object></Delete>".encode()
        assert (await world.send("DELETE", "/bucket-1/k", query, headers=bypass)).code == "AccessDenied"
        many = await world.send("POST", "/bucket-1", "delete", headers=bypass, data=named)
        assert many.all("Error/Code") == ["AccessDenied"]
        changed = await world.send("PUT", "/bucket-1/k", f"retention&{query}", headers=bypass, data=b"<Retention/>")
        assert changed.code == "AccessDenied"
        assert (await world.send("DELETE", "/bucket-1", "policy")).status == 204
        assert (await world.send("DELETE", "/bucket-1/k", query, headers=bypass)).status == 204

    play(tmp_path, scene)


def test_a_write_to_a_part_is_none_of_the_whole(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        for part in ("acl", "notification", "versioning", "location", "object-lock"):
            answer = await world.send("DELETE", "/bucket-1", part)
            assert (answer.status, answer.code) == (405, "MethodNotAllowed"), part
        await world.send("PUT", "/bucket-1/k", data=b"x")
        for part in ("acl", "retention", "legal-hold", "uploads", "attributes"):
            assert (await world.send("DELETE", "/bucket-1/k", part)).code == "MethodNotAllowed", part
        for part in ("torrent", "attributes", "uploads", "restore"):
            assert (await world.send("PUT", "/bucket-1/k", part, data=b"y")).code == "MethodNotAllowed", part
        assert (await world.send("GET", "/bucket-1/k")).body == b"x"
        assert (await world.send("DELETE", "/bucket-1/k", "x-id=DeleteObject")).status == 204

    play(tmp_path, scene)


def test_nobodys_list_of_deletes_is_not_read(tmp_path: Path) -> None:
    ask = b"POST /bucket-1?delete HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n"

    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        assert (await world.raw(ask, close=False)).startswith(b"HTTP/1.1 403")

    play(tmp_path, scene)


async def post(world: World, *parts: tuple[bytes, bytes]) -> Answer:
    data = b"".join(b"--b\r\n%b\r\n\r\n%b\r\n" % part for part in (*parts, FILE)) + b"--b--\r\n"
    return await world.send_as_is(
        "POST", "/bucket-1", headers={"content-type": "multipart/form-data; boundary=b"}, data=data
    )


def field(name: str, value: bytes, more: bytes = b"") -> tuple[bytes, bytes]:
    return f'Content-Disposition: form-data; name="{name}"'.encode() + more, value


def test_fields_of_forms_are_what_headers_can_be(tmp_path: Path) -> None:
    key = field("key", b"k")
    star = b"Content-Disposition: form-data; name*=utf-8''x-amz-meta-a%0d%0aX-Evil", b"v"

    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        await world.send("PUT", "/bucket-1", "policy", data=policy(allow("s3:*Object", "bucket-1/*")))
        for bad in (
            field("Content-Type", b"a/b\r\nX-Evil: 1"), field("x-amz-meta-a", b"a\nb"),
            field("x-amz-meta-a: b", b"v"), star,
        ):  # fmt: skip
            assert (await post(world, key, bad)).code == "InvalidArgument", bad
        many = b"".join(b"\r\nX-%d: a" % number for number in range(500))
        for bad in (field("key", b"k", many), field("key", b"k", b"\r\nX: " + b"a" * 100_000)):
            answer = await post(world, bad)
            assert (answer.status, answer.code) == (400, "MalformedPOSTRequest")
        assert (await world.send_as_is("GET", "/bucket-1/k")).code == "NoSuchKey"
        assert (await post(world, key, field("x-amz-meta-a", "\u00e4".encode()))).status == 204
        assert (await world.send_as_is("GET", "/bucket-1/k")).body == b"data"

    play(tmp_path, scene)


def test_headers_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    put = b"PUT /bucket-1/k HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nConnection: close\r\n"

    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        await world.send("PUT", "/bucket-1", "policy", data=policy(allow("s3:*Object", "bucket-1/*")))
        for name in (b"\xe4", b"\xc3\xa4"):
            answer = await world.raw(put + b"Content-Disposition: inline; filename=" + name + b"\r\n\r\nx", close=False)
            assert answer.startswith(b"HTTP/1.1 200")
            got = await world.send_as_is("GET", "/bucket-1/k")
            assert got.headers["Content-Disposition"] == "inline; filename=\u00e4"

    play(tmp_path, scene)


def test_an_unknown_kind_of_body_is_no_fault_of_ours(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        await world.send("PUT", "/bucket-1", "policy", data=policy(allow("s3:PutObject", "bucket-1/*")))
        answer = await world.send_as_is(
            "PUT", "/bucket-1/k", headers={"x-amz-content-sha256": "STREAMING-X"}, data=b"x"
        )
        assert (answer.status, answer.code) == (400, "InvalidArgument")

    play(tmp_path, scene)


def test_what_waits_to_be_sent_is_not_in_a_buffer_that_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    write = web.StreamResponse.write

    async def look(self: web.StreamResponse, data: Any) -> None:
        written.append(data)
        await write(self, data)

    monkeypatch.setattr(web.StreamResponse, "write", look)
    data = bytes(range(256)) * 1024 * 3

    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        await world.send("PUT", "/bucket-1/k", data=data)
        assert (await world.send("GET", "/bucket-1/k")).body == data
        assert b"".join(written) == data
        assert all(type(piece) is bytes and len(piece) <= WHOLE for piece in written)

    play(tmp_path, scene)


def test_large_transfers_take_turns(tmp_path: Path) -> None:
    data = bytes(range(256)) * 1024 * 2
    put = b"PUT /bucket-1/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"

    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        await world.send("PUT", "/bucket-1", "policy", data=policy(allow("s3:PutObject", "bucket-1/*")))
        for key, size in (("large", len(data)), ("small", 1000)):
            assert (await world.send("PUT", f"/bucket-1/{key}", data=data[:size])).status == 200
        world.gateway.turns = Turns(count=1, patience=0.01)
        host, _, port = world.host.partition(":")
        _, slow = await asyncio.open_connection(host, int(port))
        slow.write(put)
        await world.wait_until(lambda: world.gateway.turns._free.locked())
        for method in ("GET", "PUT"):
            answer = await world.send(method, "/bucket-1/large", data=data if method == "PUT" else b"")
            assert (answer.status, answer.code, answer.headers["Retry-After"]) == (503, "SlowDown", "1")
        assert (await world.send("GET", "/bucket-1/small")).status == 200
        slow.close()
        await world.wait_until(lambda: not world.gateway.turns._free.locked())
        assert (await world.send("GET", "/bucket-1/large")).body == data

    play(tmp_path, scene)


def test_other_handlers_requests_count_too(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        entered, go_on = asyncio.Event(), asyncio.Event()

        async def page(_: web.BaseRequest) -> web.StreamResponse:
            entered.set()
            await go_on.wait()
            return web.Response(text="page")

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            return await world.gateway.count(request, page)

        async def drain() -> None:
            return None

        url, stop = await serve(handle, drain, world.config, None)
        async with aiohttp.ClientSession() as session:
            first = asyncio.create_task(session.get(url))
            await entered.wait()
            assert world.gateway.running == 1
            async with session.get(url) as second:
                assert second.status == 503
            closing = asyncio.create_task(world.gateway.close(60))
            await asyncio.sleep(0)
            assert not closing.done()
            go_on.set()
            async with await first as answer:
                assert await answer.text() == "page"
            await closing
        await stop()

    play(tmp_path, scene, requests=1)
