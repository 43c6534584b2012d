"""Buckets, their listings and their configuration through the gateway; what expires."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from freehold.gateway.expiry import Expiry
from tests.gateway.gateway_world import World, path_of, play

NAMES = ["a", "a/1", "a/2", "b", "b/x/1", "z", "ä", "日本"]
DAY = 86_400


async def fill(world: World) -> None:
    await world.send("PUT", "/bucket-1")
    for name in NAMES:
        await world.send("PUT", path_of("bucket-1", name), data=b"x")


def test_buckets_are_made_found_listed_and_removed(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        made = await world.send("PUT", "/bucket-1")
        assert (made.status, made.headers["Location"]) == (200, "/bucket-1")
        await world.send("PUT", "/another.bucket")
        listed = await world.send("GET", "/")
        assert listed.all("Buckets/Bucket/Name") == ["another.bucket", "bucket-1"]
        assert listed.find("Owner/ID") == "1" * 40
        paged = await world.send("GET", "/", "max-buckets=1")
        assert (paged.all("Buckets/Bucket/Name"), paged.find("ContinuationToken")) == (
            ["another.bucket"],
            "another.bucket",
        )
        rest = await world.send("GET", "/", "continuation-token=another.bucket")
        assert rest.all("Buckets/Bucket/Name") == ["bucket-1"]
        head = await world.send("HEAD", "/bucket-1")
        assert (head.status, head.headers["x-amz-bucket-region"]) == (200, "us-east-1")
        assert (await world.send("HEAD", "/none-there")).status == 404
        assert (await world.send("GET", "/bucket-1", "location")).all(".") == [""]
        assert (await world.send("GET", "/bucket-1", "acl")).find(
            "AccessControlList/Grant/Permission"
        ) == "FULL_CONTROL"
        await world.send("PUT", "/bucket-1/k", data=b"x")
        full = await world.send("DELETE", "/bucket-1")
        assert (full.status, full.code) == (409, "BucketNotEmpty")
        await world.send("DELETE", "/bucket-1/k")
        assert (await world.send("DELETE", "/bucket-1")).status == 204
        gone = await world.send("DELETE", "/bucket-1")
        assert (gone.status, gone.code) == (404, "NoSuchBucket")

    play(tmp_path, scene)


@pytest.mark.parametrize(
    "name",
    ["ab", "a" * 64, "Upper", "under_score", "-a-", "a..b", "192.168.0.1", "xn--a", "a b", "ä-bucket", "b-s3alias"],
)
def test_illegal_bucket_names(tmp_path: Path, name: str) -> None:
    async def scene(world: World) -> None:
        answer = await world.send("PUT", path_of(name, "").rstrip("/").replace(" ", "%20").replace("ä", "%C3%A4"))
        assert (answer.status, answer.code) == (400, "InvalidBucketName")

    play(tmp_path, scene)


def test_a_bucket_of_another_region_is_refused(tmp_path: Path) -> None:
    body = b"<CreateBucketConfiguration><LocationConstraint>eu-west-1</LocationConstraint></CreateBucketConfiguration>"

    async def scene(world: World) -> None:
        answer = await world.send("PUT", "/bucket-1", data=body)
        assert answer.status == 400
        assert "us-east-1" in answer.find("Message")

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("query", "keys", "prefixes"),
    [
        ("", NAMES, []),
        ("prefix=a", ["a", "a/1", "a/2"], []),
        ("delimiter=%2F", ["a", "b", "z", "ä", "日本"], ["a/", "b/"]),
        ("prefix=b/&delimiter=/", [], ["b/x/"]),
        ("delimiter=/&marker=a/&start-after=a/", ["b", "z", "ä", "日本"], ["b/"]),
        ("max-keys=0", [], []),
        ("prefix=none", [], []),
    ],
)
@pytest.mark.parametrize("way", ["", "list-type=2"])
def test_listings(tmp_path: Path, way: str, query: str, keys: list[str], prefixes: list[str]) -> None:
    async def scene(world: World) -> None:
        await fill(world)
        answer = await world.send("GET", "/bucket-1", "&".join(filter(None, sorted([way, *query.split("&")]))))
        assert (answer.all("Contents/Key"), answer.all("CommonPrefixes/Prefix")) == (keys, prefixes)
        assert answer.find("IsTruncated") == "false"
        if way:
            assert answer.find("KeyCount") == str(len(keys) + len(prefixes))

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("query", "way"), [("", 1), ("", 2), ("delimiter=%2F", 1), ("delimiter=%2F", 2), ("versions", 3)]
)
def test_pages_hold_everything_once_in_order(tmp_path: Path, query: str, way: int) -> None:
    async def scene(world: World) -> None:
        await fill(world)
        found, more, pages = [], "", 0
        while True:
            parts = ["max-keys=1", query, more, "list-type=2" if way == 2 else ""]
            answer = await world.send("GET", "/bucket-1", "&".join(filter(None, parts)))
            found += answer.all("Contents/Key") + answer.all("Version/Key") + answer.all("CommonPrefixes/Prefix")
            pages += 1
            if answer.find("IsTruncated") == "false":
                break
            if way == 1:
                more = "marker=" + "".join(f"%{byte:02X}" for byte in (answer.find("NextMarker") or found[-1]).encode())
            elif way == 2:
                more = "continuation-token=" + answer.find("NextContinuationToken").replace("=", "%3D")
            else:
                key = "".join(f"%{byte:02X}" for byte in answer.find("NextKeyMarker").encode())
                more = f"key-marker={key}&version-id-marker={answer.find('NextVersionIdMarker')}"
        expected = ["a", "a/", "b", "b/", "z", "ä", "日本"] if query.startswith("delimiter") else NAMES
        assert (found, pages) == (expected, len(expected))

    play(tmp_path, scene)


@pytest.mark.parametrize(
    "query",
    ["max-keys=x", "max-keys=-1", "list-type=2&continuation-token=%ff", "list-type=2&continuation-token=abc",
     "encoding-type=base64", "versions&version-id-marker=1"],
)  # fmt: skip
def test_listings_that_ask_wrongly(tmp_path: Path, query: str) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        answer = await world.send("GET", "/bucket-1", query)
        assert (answer.status, answer.code in ("InvalidArgument", "InvalidURI")) == (400, True)

    play(tmp_path, scene)


@pytest.mark.parametrize(
    "name", ["versioning", "object-lock", "cors", "lifecycle", "policy", "tagging", "ownershipControls"]
)
@pytest.mark.parametrize(
    "body", [b"", b"<", b"<Other/>", b"<a>" * 500, b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', b"\xff\xfe"]
)
def test_malformed_configurations_change_nothing(tmp_path: Path, name: str, body: bytes) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        before = (await world.devices[0].root.read()).buckets["bucket-1"]
        answer = await world.send("PUT", "/bucket-1", name, data=body)
        assert (answer.status, answer.code in ("MalformedXML", "MissingRequestBodyError", "MalformedPolicy")) == (
            400,
            True,
        )
        assert (await world.devices[0].root.read()).buckets["bucket-1"] == before

    play(tmp_path, scene)


def test_tags_and_ownership_of_a_bucket(tmp_path: Path) -> None:
    tags = b"<Tagging><TagSet><Tag><Key>a</Key><Value>1</Value></Tag></TagSet></Tagging>"
    owner = b"<OwnershipControls><Rule><ObjectOwnership>%s</ObjectOwnership></Rule></OwnershipControls>"

    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        assert (await world.send("GET", "/bucket-1", "tagging")).code == "NoSuchTagSet"
        assert (await world.send("PUT", "/bucket-1", "tagging", data=tags)).status == 204
        assert (await world.send("GET", "/bucket-1", "tagging")).find("TagSet/Tag/Value") == "1"
        assert (await world.send("DELETE", "/bucket-1", "tagging")).status == 204
        shown = await world.send("GET", "/bucket-1", "ownershipControls")
        assert shown.find("Rule/ObjectOwnership") == "BucketOwnerEnforced"
        same = await world.send("PUT", "/bucket-1", "ownershipControls", data=owner % b"BucketOwnerEnforced")
        assert same.status == 200
        other = await world.send("PUT", "/bucket-1", "ownershipControls", data=owner % b"ObjectWriter")
        assert other.status == 501
        assert (await world.send("PUT", "/bucket-1", "acl", {"x-amz-acl": "private"})).status == 200
        shown = await world.send("GET", "/bucket-1", "acl")
        assert (await world.send("PUT", "/bucket-1", "acl", data=shown.body)).status == 200  # as s3cmd does
        others = await world.send("PUT", "/bucket-1", "acl", data=shown.body.replace(b"1" * 40, b"2" * 40))
        assert (others.status, others.code) == (400, "AccessControlListNotSupported")
        assert (await world.send("PUT", "/bucket-1", "acl")).code == "MalformedACLError"
        public = await world.send("PUT", "/bucket-1", "acl", {"x-amz-acl": "public-read"})
        assert (public.status, public.code) == (400, "AccessControlListNotSupported")

    play(tmp_path, scene)


def test_what_rules_say_expires_once_whoever_looks(tmp_path: Path) -> None:
    what = "<ID>r</ID><Status>Enabled</Status><Filter><Prefix>tmp/</Prefix></Filter>"
    what += "<Expiration><Days>1</Days></Expiration>"
    abort = "AbortIncompleteMultipartUpload"
    aborts = f"<{abort}><DaysAfterInitiation>1</DaysAfterInitiation></{abort}>"
    rules = f"<LifecycleConfiguration><Rule>{what}{aborts}</Rule></LifecycleConfiguration>".encode()

    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        assert (await world.send("GET", "/bucket-1", "lifecycle")).code == "NoSuchLifecycleConfiguration"
        assert (await world.send("PUT", "/bucket-1", "lifecycle", data=rules)).status == 200
        assert (await world.send("GET", "/bucket-1", "lifecycle")).find("Rule/Expiration/Days") == "1"
        for key in ("tmp/1", "tmp/2", "keep"):
            await world.send("PUT", f"/bucket-1/{key}", data=b"x")
        await world.send("POST", "/bucket-1/tmp/3", "uploads")
        assert 'rule-id="r"' in (await world.send("HEAD", "/bucket-1/tmp/1")).headers["x-amz-expiration"]
        two = [Expiry(world.tenants, 1, clock=lambda: world.net.now) for _ in range(2)]
        await asyncio.gather(*(expiry.look() for expiry in two))
        assert sum(expiry.removed for expiry in two) == 0
        world.net.now += 2 * DAY
        await asyncio.gather(*(expiry.look() for expiry in two))
        assert sum(expiry.removed for expiry in two) == 3
        assert (await world.send("GET", "/bucket-1")).all("Contents/Key") == ["keep"]
        assert (await world.send("GET", "/bucket-1", "uploads")).all("Upload") == []
        assert (await world.send("DELETE", "/bucket-1", "lifecycle")).status == 204

    play(tmp_path, scene)
