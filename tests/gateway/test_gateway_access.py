"""Who may do what: signatures, keys, grants, policies, presigned URLs, forms, CORS, two accounts, limits."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import msgspec
import pytest

from freehold.client import access_keys
from freehold.client.grants import GrantKey
from freehold.gateway.tenants import make_own_key
from freehold.gateway.wire.post_form import sign_form
from freehold.gateway.wire.sigv4 import ALGORITHM, Scope
from freehold.protocol.units import Address
from tests.gateway.gateway_world import REGION, SEEDS, World, play

ACCOUNT = Address("0x" + "a1" * 20)


def policy(*statements: dict[str, object]) -> bytes:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)}).encode()


def allow(action: str, resource: str, effect: str = "Allow", **more: object) -> dict[str, object]:
    return {"Effect": effect, "Principal": "*", "Action": action, "Resource": f"arn:aws:s3:::{resource}", **more}


def test_signatures_that_do_not_hold_say_what_was_expected(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        wrong = msgspec.structs.replace(world.key, secret="x" * 40)
        answer = await world.send("GET", "/", key=wrong)
        assert (answer.status, answer.code) == (403, "SignatureDoesNotMatch")
        assert answer.find("StringToSign").startswith(ALGORITHM)
        assert answer.find("CanonicalRequest").startswith("GET\n/\n")
        region = await world.send("GET", "/", region="eu-west-1")
        assert (region.status, region.code, region.find("Region")) == (400, "AuthorizationHeaderMalformed", REGION)
        for age in (1000, -1000):
            skewed = await world.send("GET", "/", age=age)
            assert (skewed.status, skewed.code) == (403, "RequestTimeTooSkewed")
            assert skewed.find("ServerTime")
        unknown = await world.send("GET", "/", key=msgspec.structs.replace(world.key, id="FH" + "A" * 18))
        assert (unknown.status, unknown.code) == (403, "InvalidAccessKeyId")
        token = await world.send("GET", "/", headers={"x-amz-security-token": "t"})
        assert (token.status, token.code) == (400, "InvalidToken")
        nobody = await world.send_as_is("GET", "/")
        assert (nobody.status, nobody.code) == (403, "AccessDenied")

    play(tmp_path, scene)


def test_keys_come_and_go_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.gateway.tenants.FRESH_SECONDS", 0.0)
    monkeypatch.setattr("freehold.gateway.tenants.LOOK_SECONDS", 0.0)

    async def scene(world: World) -> None:
        assert (await world.send("GET", "/")).status == 200
        elsewhere = world.net.device("elsewhere", SEEDS[0])
        new = await access_keys.new(elsewhere.root, "new")
        assert (await world.send("GET", "/", key=new)).status == 200
        await access_keys.remove(elsewhere.root, new.id)
        assert (await world.send("GET", "/", key=new)).code == "InvalidAccessKeyId"
        short = await access_keys.new(elsewhere.root, "short", expires=int(world.net.now) + 60)
        assert (await world.send("GET", "/", key=short)).status == 200
        world.net.now += 61
        assert (await world.send("GET", "/", key=short)).code == "InvalidAccessKeyId"

    play(tmp_path, scene)


def test_a_gateways_own_key_needs_nothing_of_the_network(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        keys = [tenant.own_key for tenant in world.tenants]
        assert [key == make_own_key(seed, "local") for key, seed in zip(keys, SEEDS, strict=True)] == [True, True]
        assert keys[0] != make_own_key(SEEDS[0], "other")
        for key in keys:
            assert (await world.send("PUT", "/bucket-1", key=key)).status == 200
        other = make_own_key(SEEDS[0], "other")
        assert (await world.send("GET", "/", key=other)).code == "InvalidAccessKeyId"

    play(tmp_path, scene, label="local")


def test_unknown_keys_do_not_make_the_network_busy(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("GET", "/")
        reads = 0
        read = world.net.heads.read

        async def count(name: str) -> object:
            nonlocal reads
            reads += 1
            return await read(name)

        world.net.heads.read = count  # type: ignore[method-assign, assignment]
        for number in range(20):
            unknown = msgspec.structs.replace(world.key, id=f"FH{number:018}")
            assert (await world.send("GET", "/", key=unknown)).code == "InvalidAccessKeyId"
        assert reads <= 4

    play(tmp_path, scene)


def test_a_key_with_a_grant_does_what_it_covers(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        for key in ("in/a", "out"):
            await world.send("PUT", f"/bucket-1/{key}", data=b"x")
        token = GrantKey(SEEDS[0]).issue(ACCOUNT, ("read", "list", "write"), bucket="bucket-1", prefix="in/")
        root = world.devices[0].root
        key = await access_keys.new(root, "granted", token)
        await asyncio.sleep(0)
        tenant = next(iter(world.tenants))
        await tenant.root(0)
        world.tenants._looked = 0.0  # the key is new: look at once
        for method, path, query, status in (
            ("GET", "/bucket-1/in/a", "", 200),
            ("PUT", "/bucket-1/in/b", "", 200),
            ("GET", "/bucket-1", "prefix=in%2F", 200),
            ("GET", "/bucket-1", "", 403),
            ("GET", "/bucket-1/out", "", 403),
            ("PUT", "/bucket-1/out", "", 403),
            ("DELETE", "/bucket-1/in/a", "", 403),
            ("GET", "/bucket-1", "policy", 403),
            ("PUT", "/bucket-2", "", 403),
            ("GET", "/", "", 403),
        ):
            answer = await world.send(method, path, query, key=key)
            assert answer.status == status, (method, path, query, answer.body)
        source = {"x-amz-copy-source": "/bucket-1/out"}
        assert (await world.send("PUT", "/bucket-1/in/c", headers=source, key=key)).status == 403
        lister = await access_keys.new(root, "lister", GrantKey(SEEDS[0]).issue(ACCOUNT, ("list",)))
        world.tenants._looked = 0.0
        assert (await world.send("GET", "/", key=lister)).all("Buckets/Bucket/Name") == ["bucket-1"]
        assert (await world.send("PUT", "/bucket-2", key=lister)).status == 403
        both = b"<Delete><Object><Key>in/a</Key></Object><Object><Key>out</Key></Object></Delete>"
        outcome = await world.send("POST", "/bucket-1", "delete", data=both, key=key)
        assert outcome.all("Error/Code") == ["AccessDenied", "AccessDenied"]

    play(tmp_path, scene)


def test_only_a_policy_lets_nobody_in_and_a_denial_counts_for_all(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        for key in ("public/a", "private"):
            await world.send("PUT", f"/bucket-1/{key}", data=b"x")
        assert (await world.send_as_is("GET", "/bucket-1/public/a")).status == 403
        document = policy(
            allow("s3:GetObject", "bucket-1/public/*"),
            allow("s3:ListBucket", "bucket-1", Condition={"StringEquals": {"s3:prefix": "public/"}}),
            allow("s3:DeleteObject", "bucket-1/private", "Deny"),
        )
        assert (await world.send("PUT", "/bucket-1", "policy", data=document)).status == 204
        assert (await world.send("GET", "/bucket-1", "policy")).body == document
        assert (await world.send("GET", "/bucket-1", "policyStatus")).find("IsPublic") == "true"
        for method, path, query, status in (
            ("GET", "/bucket-1/public/a", "", 200),
            ("HEAD", "/bucket-1/public/a", "", 200),
            ("GET", "/bucket-1/private", "", 403),
            ("PUT", "/bucket-1/public/a", "", 403),
            ("GET", "/bucket-1", "prefix=public/", 200),
            ("GET", "/bucket-1", "", 403),
            ("GET", "/bucket-1", "policy", 403),
            ("GET", "/bucket-1/public/a", "response-content-type=text/html", 400),
        ):
            assert (await world.send_as_is(method, path, query)).status == status, (method, path, query)
        assert (await world.send("DELETE", "/bucket-1/private")).status == 403
        lock_out = policy(allow("s3:*", "bucket-1", "Deny"), allow("s3:*", "bucket-1/*", "Deny"))
        assert (await world.send("PUT", "/bucket-1", "policy", data=lock_out)).status == 204
        assert (await world.send("GET", "/bucket-1/private")).status == 403
        assert (await world.send("DELETE", "/bucket-1", "policy")).status == 204
        assert (await world.send("GET", "/bucket-1/private")).status == 200
        for wrong, code in (
            (b"{", "MalformedPolicy"),
            (b"x" * 20_481, "PolicyTooLarge"),
            (b"", "MissingRequestBodyError"),
        ):
            assert (await world.send("PUT", "/bucket-1", "policy", data=wrong)).code == code
        assert (await world.send("GET", "/bucket-1", "policy")).code == "NoSuchBucketPolicy"

    play(tmp_path, scene)


def test_accounts_have_their_own_buckets_of_the_same_names(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        for key, data in ((world.key, b"one"), (world.other, b"two")):
            assert (await world.send("PUT", "/bucket-1", key=key)).status == 200
            await world.send("PUT", "/bucket-1/k", data=data, key=key)
        assert (await world.send("GET", "/bucket-1/k")).body == b"one"
        assert (await world.send("GET", "/bucket-1/k", key=world.other)).body == b"two"
        again = await world.send("PUT", "/bucket-1")
        assert (again.status, again.code) == (409, "BucketAlreadyOwnedByYou")
        await world.send("PUT", "/bucket-2")
        await world.send("PUT", "/bucket-2/k", data=b"mine")
        assert (await world.send("GET", "/bucket-2/k", key=world.other)).code == "NoSuchBucket"
        await world.send("PUT", "/bucket-2", "policy", data=policy(allow("s3:GetObject", "bucket-2/*")))
        assert (await world.send("GET", "/bucket-2/k", key=world.other)).body == b"mine"
        assert (await world.send("PUT", "/bucket-2/k", key=world.other)).status == 403
        assert (await world.send("GET", "/", key=world.other)).all("Buckets/Bucket/Name") == ["bucket-1"]

    play(tmp_path, scene)


def test_presigned_urls_hold_for_what_they_say(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        path, _, query = world.presign("PUT", "/bucket-1/k%20%2B").partition("?")
        assert (await world.send_as_is("PUT", path, query, data=b"hello")).status == 200
        assert (await world.send_as_is("GET", path, query)).code == "SignatureDoesNotMatch"
        more = [("response-content-type", "text/plain"), ("response-content-disposition", 'attachment; filename="ä"')]
        path, _, query = world.presign("GET", "/bucket-1/k%20%2B", 60, more).partition("?")
        got = await world.send_as_is("GET", path, query)
        assert (got.status, got.body, got.headers["Content-Type"]) == (200, b"hello", "text/plain")
        world.net.now += 61
        late = await world.send_as_is("GET", path, query)
        assert (late.status, late.code) == (403, "AccessDenied")
        assert "expired" in late.find("Message")

    play(tmp_path, scene)


def form(world: World, conditions: list[object], age: int = 0, **fields: str) -> aiohttp.FormData:
    now = datetime.fromtimestamp(world.net.now, UTC)
    stamp = f"{now:%Y%m%dT%H%M%SZ}"
    scope = Scope(stamp[:8], REGION)
    ends = datetime.fromtimestamp(world.net.now + 60 - age, UTC)
    signed = {"x-amz-algorithm": ALGORITHM, "x-amz-credential": f"{world.key.id}/{scope}", "x-amz-date": stamp}
    conditions = [*conditions, *({name: value} for name, value in signed.items()), {"bucket": "bucket-1"}]
    document = json.dumps({"expiration": f"{ends:%Y-%m-%dT%H:%M:%SZ}", "conditions": conditions}).encode()
    text, signature = sign_form(document, world.key.secret, scope)
    made = aiohttp.FormData()
    for name, value in {**fields, **signed, "policy": text, "x-amz-signature": signature}.items():
        made.add_field(name, value)
    return made


def test_forms_upload_what_their_policy_allows(tmp_path: Path) -> None:
    anything = [["starts-with", "$key", "up/"], ["content-length-range", 1, 100_000], {"success_action_status": "201"}]

    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        for fields, age, data, status, code in (
            ({"key": "up/${filename}", "success_action_status": "201"}, 0, b"y" * 90_000, 201, ""),
            ({"key": "up/b", "success_action_status": "201"}, 0, b"y" * 100_001, 400, "EntityTooLarge"),
            ({"key": "up/b", "success_action_status": "201"}, 0, b"", 400, "EntityTooSmall"),
            ({"key": "down/b", "success_action_status": "201"}, 0, b"y", 403, "AccessDenied"),
            ({"key": "up/b", "success_action_status": "201", "x-amz-meta-a": "1"}, 0, b"y", 403, "AccessDenied"),
            ({"key": "up/b", "success_action_status": "201"}, 61, b"y", 403, "AccessDenied"),
            ({"success_action_status": "201"}, 0, b"y", 400, "UserKeyMustBeSpecified"),
        ):
            body = form(world, anything, age, **fields)
            body.add_field("file", data, filename="a.txt")
            answer = await world.send_as_is("POST", "/bucket-1", data=body)
            assert (answer.status, answer.code) == (status, code), (fields, answer.body)
        assert (await world.send("GET", "/bucket-1")).all("Contents/Key") == ["up/a.txt"]
        assert (await world.send("GET", "/bucket-1/up/a.txt")).body == b"y" * 90_000
        nobody = aiohttp.FormData({"key": "up/c"})
        nobody.add_field("file", b"y", filename="a")
        assert (await world.send_as_is("POST", "/bucket-1", data=nobody)).status == 403
        await world.send("PUT", "/bucket-1", "policy", data=policy(allow("s3:PutObject", "bucket-1/up/c")))
        nobody = aiohttp.FormData({"key": "up/c"})
        nobody.add_field("file", b"y", filename="a")
        assert (await world.send_as_is("POST", "/bucket-1", data=nobody)).status == 204
        plain = await world.send_as_is("POST", "/bucket-1", headers={"content-type": "text/plain"}, data=b"x")
        assert (plain.status, plain.code) == (412, "PreconditionFailed")
        broken = {"content-type": "multipart/form-data; boundary=b"}
        for data in (b"x", b"--b\r\n\r\n", b'--b\r\nContent-Disposition: form-data; name="key"\r\n\r\nk\r\n--b--\r\n'):
            answer = await world.send_as_is("POST", "/bucket-1", headers=broken, data=data)
            assert (answer.status, answer.code in ("MalformedPOSTRequest", "InvalidArgument")) == (400, True), data

    play(tmp_path, scene)


def test_browsers_of_other_origins_are_answered_by_the_rules(tmp_path: Path) -> None:
    origin = "<AllowedOrigin>https://*.example</AllowedOrigin><AllowedMethod>PUT</AllowedMethod>"
    more = "<AllowedHeader>x-amz-*</AllowedHeader><ExposeHeader>ETag</ExposeHeader><MaxAgeSeconds>60</MaxAgeSeconds>"
    rules = f"<CORSConfiguration><CORSRule>{origin}{more}</CORSRule></CORSConfiguration>".encode()
    ask = {"origin": "https://a.example", "access-control-request-method": "PUT"}

    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        assert (await world.send_as_is("OPTIONS", "/bucket-1/k", headers=ask)).code == "AccessForbidden"
        assert (await world.send("GET", "/bucket-1", "cors")).code == "NoSuchCORSConfiguration"
        assert (await world.send("PUT", "/bucket-1", "cors", data=rules)).status == 200
        headers = {**ask, "access-control-request-headers": "X-Amz-Date"}
        answer = await world.send_as_is("OPTIONS", "/bucket-1/k", headers=headers)
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, "https://a.example")
        assert answer.headers["Access-Control-Max-Age"] == "60"
        put = await world.send("PUT", "/bucket-1/k", headers={"origin": "https://a.example"}, data=b"x")
        assert put.headers["Access-Control-Expose-Headers"] == "ETag"
        failed = await world.send("PUT", "/bucket-1/k", headers={"origin": "https://a.example", "content-md5": "x"})
        assert failed.headers["Access-Control-Allow-Origin"] == "https://a.example"
        other = await world.send("PUT", "/bucket-1/k", headers={"origin": "https://b.other"}, data=b"x")
        assert "Access-Control-Allow-Origin" not in other.headers
        presigned, _, query = world.presign("PUT", "/bucket-1/k").partition("?")
        assert (await world.send_as_is("OPTIONS", presigned, query, ask)).status == 200

    play(tmp_path, scene)


def test_buckets_are_hosts_below_the_domain(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket.1")
        for host in ("bucket.1.s3.test", "BUCKET.1.S3.test:80"):
            assert (await world.send("PUT", "/a//b", headers={"host": host}, data=b"x")).status == 200
        assert (await world.send("GET", "/", headers={"host": "bucket.1.s3.test"})).all("Contents/Key") == ["a//b"]
        assert (await world.send("GET", "/bucket.1/a//b", headers={"host": "s3.test"})).body == b"x"

    play(tmp_path, scene, domain="s3.test")


def test_too_much_at_once_is_slowed_down(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        gate = asyncio.Event()
        read = world.net.heads.read

        async def wait(name: str) -> object:
            await gate.wait()
            return await read(name)

        world.net.heads.read = wait  # type: ignore[method-assign, assignment]
        waiting = [asyncio.create_task(world.send("GET", "/")) for _ in range(2)]
        await world.wait_until(lambda: world.gateway.running == 2)
        slow = await world.send("GET", "/")
        assert (slow.status, slow.code, slow.headers["Retry-After"]) == (503, "SlowDown", "1")
        gate.set()
        assert [answer.status for answer in await asyncio.gather(*waiting)] == [200, 200]

    play(tmp_path, scene, requests=2, per_address=2)
