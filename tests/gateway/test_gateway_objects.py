"""Objects through the gateway: bytes, ranges, conditions, metadata, keys, versions, tags, locks, copies, deletes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tests.gateway.gateway_world import World, path_of, play

BIG = os.urandom(200_000)  # several segments, and more than is read as a whole
KEYS = [
    "a/../b",
    "a//b",
    ".",
    "..",
    "/",
    "//",
    "a/",
    "+",
    "%",
    "%2F",
    "a b",
    "é",
    "日本/🎉",
    "?x=1",
    "#",
    "&=;",
    "\x01\x7f",
    "e\u0301",
    "~!*'()",
]
VERSIONING = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"


def test_bytes_come_back_whole_and_in_ranges(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        for key, data in (("none", b""), ("small", b"hello"), ("big", BIG)):
            put = await world.send("PUT", f"/bucket-1/{key}", data=data)
            assert put.status == 200
            assert put.headers["ETag"] == f'"{hashlib.md5(data).hexdigest()}"'
            got = await world.send("GET", f"/bucket-1/{key}")
            assert (got.status, got.body, got.headers["ETag"]) == (200, data, put.headers["ETag"])
            assert got.headers["Accept-Ranges"] == "bytes"
            assert got.headers["Content-Type"] == "binary/octet-stream"
            head = await world.send("HEAD", f"/bucket-1/{key}")
            assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(data)))
        for text, start, end in (
            ("0-0", 0, 1),
            ("5-", 5, 200_000),
            ("-7", 199_993, 200_000),
            ("65535-131073", 65535, 131074),
        ):
            part = await world.send("GET", "/bucket-1/big", headers={"range": f"bytes={text}"})
            assert (part.status, part.body) == (206, BIG[start:end])
            assert part.headers["Content-Range"] == f"bytes {start}-{end - 1}/200000"
        beyond = await world.send("GET", "/bucket-1/small", headers={"range": "bytes=5-"})
        assert (beyond.status, beyond.code, beyond.find("ActualObjectSize")) == (416, "InvalidRange", "5")
        assert beyond.headers["Content-Range"] == "bytes */5"

    play(tmp_path, scene)


def test_every_legal_key_names_its_own_object(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        for key in [*KEYS, "k" * 1024]:
            assert (await world.send("PUT", path_of("bucket-1", key), data=key.encode())).status == 200, key
        for key in KEYS:
            assert (await world.send("GET", path_of("bucket-1", key))).body == key.encode()
        listed = await world.send("GET", "/bucket-1", "encoding-type=url&list-type=2")
        assert sorted(listed.all("Contents/Size")) == sorted(str(len(k.encode())) for k in [*KEYS, "k" * 1024])
        long = await world.send("PUT", "/bucket-1/" + "k" * 1025)
        assert (long.status, long.code) == (400, "KeyTooLongError")
        broken = await world.send("PUT", "/bucket-1/%ff%fe")
        assert (broken.status, broken.code) == (400, "InvalidURI")

    play(tmp_path, scene)


def test_conditions_hold_for_reads_and_writes(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        etag = (await world.send("PUT", "/bucket-1/k", data=b"one")).headers["ETag"]
        same = await world.send("GET", "/bucket-1/k", headers={"if-none-match": etag})
        assert (same.status, same.body, same.headers["ETag"]) == (304, b"", etag)
        assert (await world.send("HEAD", "/bucket-1/k", headers={"if-match": '"no"'})).status == 412
        for headers, status in (
            ({"if-none-match": "*"}, 412),
            ({"if-match": '"no"'}, 412),
            ({"if-match": etag}, 200),
            ({"if-none-match": '"x"'}, 501),
        ):
            answer = await world.send("PUT", "/bucket-1/k", headers=headers, data=b"two")
            assert answer.status == status, headers
        assert (await world.send("PUT", "/bucket-1/new", headers={"if-none-match": "*"}, data=b"1")).status == 200
        gone = await world.send("PUT", "/bucket-1/gone", headers={"if-match": etag}, data=b"1")
        assert (gone.status, gone.code) == (404, "NoSuchKey")
        wrong = await world.send("DELETE", "/bucket-1/k", headers={"if-match": etag})
        assert (wrong.status, wrong.code) == (412, "PreconditionFailed")
        assert (await world.send("GET", "/bucket-1/k")).body == b"two"

    play(tmp_path, scene)


def test_headers_and_metadata_come_back(tmp_path: Path) -> None:
    sent = {
        "content-type": "text/plain; charset=utf-8", "cache-control": "no-cache",
        "content-encoding": "gzip,aws-chunked",
        "content-disposition": 'attachment; filename="x"', "content-language": "de", "expires": "soon",
        "x-amz-meta-a": "1", "x-amz-meta-b-c": "zwei", "x-amz-storage-class": "STANDARD", "x-amz-acl": "private",
        "x-amz-server-side-encryption": "AES256",
    }  # fmt: skip

    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        assert (await world.send("PUT", "/bucket-1/k", headers=sent, data=b"x")).status == 200
        got = await world.send("GET", "/bucket-1/k")
        for name in ("content-type", "cache-control", "content-disposition", "content-language", "expires"):
            assert got.headers[name] == sent[name]
        assert got.headers["content-encoding"] == "gzip"
        assert (got.headers["x-amz-meta-a"], got.headers["x-amz-meta-b-c"]) == ("1", "zwei")
        changed = await world.send(
            "GET", "/bucket-1/k", "response-content-type=image%2Fpng&response-content-disposition=inline"
        )
        assert (changed.headers["content-type"], changed.headers["content-disposition"]) == ("image/png", "inline")
        assert changed.headers.getall("Cache-Control") == ["no-cache"]  # type: ignore[attr-defined]
        large = await world.send("PUT", "/bucket-1/k", headers={"x-amz-meta-a": "x" * 2048}, data=b"x")
        assert (large.status, large.code) == (400, "MetadataTooLarge")

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"x-amz-acl": "public-read"}, 400, "AccessControlListNotSupported"),
        ({"x-amz-grant-read": "id=1"}, 400, "AccessControlListNotSupported"),
        ({"x-amz-server-side-encryption": "aws:kms"}, 501, "NotImplemented"),
        ({"x-amz-server-side-encryption-customer-algorithm": "AES256"}, 501, "NotImplemented"),
        ({"x-amz-storage-class": "GLACIER"}, 400, "InvalidStorageClass"),
        ({"x-amz-write-offset-bytes": "5"}, 501, "NotImplemented"),
        ({"x-amz-object-lock-legal-hold": "ON"}, 400, "InvalidRequest"),
        ({"x-amz-tagging": "a=1&a=2"}, 400, "InvalidTag"),
        ({"content-md5": "nonsense"}, 400, "InvalidDigest"),
    ],
)
def test_what_a_put_may_not_ask_for(tmp_path: Path, headers: dict[str, str], status: int, code: str) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        answer = await world.send("PUT", "/bucket-1/k", headers=headers, data=b"x")
        assert (answer.status, answer.code) == (status, code)
        assert (await world.send("GET", "/bucket-1/k")).status == 404

    play(tmp_path, scene)


def test_versions_and_delete_markers(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        assert "x-amz-version-id" not in (await world.send("PUT", "/bucket-1/k", data=b"null")).headers
        assert (await world.send("PUT", "/bucket-1", "versioning", data=VERSIONING)).status == 200
        assert (await world.send("GET", "/bucket-1", "versioning")).find("Status") == "Enabled"
        first = (await world.send("PUT", "/bucket-1/k", data=b"1")).headers["x-amz-version-id"]
        second = (await world.send("PUT", "/bucket-1/k", data=b"2")).headers["x-amz-version-id"]
        assert (await world.send("GET", "/bucket-1/k", f"versionId={first}")).body == b"1"
        assert (await world.send("GET", "/bucket-1/k", "versionId=null")).body == b"null"
        removed = await world.send("DELETE", "/bucket-1/k")
        marker = removed.headers["x-amz-version-id"]
        assert (removed.status, removed.headers["x-amz-delete-marker"]) == (204, "true")
        hidden = await world.send("GET", "/bucket-1/k")
        assert (hidden.status, hidden.code, hidden.headers["x-amz-delete-marker"]) == (404, "NoSuchKey", "true")
        asked = await world.send("GET", "/bucket-1/k", f"versionId={marker}")
        assert (asked.status, asked.code, asked.headers["Allow"]) == (405, "MethodNotAllowed", "DELETE")
        assert asked.headers["Last-Modified"]
        listed = await world.send("GET", "/bucket-1", "versions")
        assert listed.all("Version/VersionId") == [second, first, "null"]
        assert listed.all("DeleteMarker/VersionId") == [marker]
        back = await world.send("DELETE", "/bucket-1/k", f"versionId={marker}")
        assert (back.headers["x-amz-delete-marker"], back.headers["x-amz-version-id"]) == ("true", marker)
        assert (await world.send("GET", "/bucket-1/k")).body == b"2"
        empty = await world.send("GET", "/bucket-1/k", "versionId=")
        assert (empty.status, empty.code) == (400, "InvalidArgument")
        unknown = await world.send("GET", "/bucket-1/k", "versionId=" + first[::-1])
        assert (unknown.status, unknown.code) in [(404, "NoSuchVersion"), (400, "InvalidArgument")]

    play(tmp_path, scene)


def test_tags_come_back_and_are_counted(tmp_path: Path) -> None:
    document = b"<Tagging><TagSet><Tag><Key>b</Key><Value>2</Value></Tag></TagSet></Tagging>"

    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        await world.send("PUT", "/bucket-1/k", headers={"x-amz-tagging": "a=1&c=%20d"}, data=b"x")
        assert (await world.send("HEAD", "/bucket-1/k")).headers["x-amz-tagging-count"] == "2"
        assert (await world.send("GET", "/bucket-1/k", "tagging")).all("TagSet/Tag/Value") == ["1", " d"]
        assert (await world.send("PUT", "/bucket-1/k", "tagging", data=document)).status == 200
        assert (await world.send("GET", "/bucket-1/k", "tagging")).all("TagSet/Tag/Key") == ["b"]
        assert (await world.send("DELETE", "/bucket-1/k", "tagging")).status == 204
        assert "x-amz-tagging-count" not in (await world.send("HEAD", "/bucket-1/k")).headers

    play(tmp_path, scene)


def test_a_lock_holds_and_governance_is_passed_over_by_who_says_so(tmp_path: Path) -> None:
    until = "2023-11-20T00:00:00Z"
    lock = {"x-amz-object-lock-mode": "GOVERNANCE", "x-amz-object-lock-retain-until-date": until}

    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1", headers={"x-amz-bucket-object-lock-enabled": "true"})
        version = (await world.send("PUT", "/bucket-1/k", headers=lock, data=b"x")).headers["x-amz-version-id"]
        head = await world.send("HEAD", "/bucket-1/k")
        assert head.headers["x-amz-object-lock-mode"] == "GOVERNANCE"
        assert head.headers["x-amz-object-lock-retain-until-date"] == "2023-11-20T00:00:00.000Z"
        refused = await world.send("DELETE", "/bucket-1/k", f"versionId={version}")
        assert (refused.status, refused.code) == (403, "AccessDenied")
        hold = b"<LegalHold><Status>ON</Status></LegalHold>"
        assert (await world.send("PUT", "/bucket-1/k", "legal-hold", data=hold)).status == 200
        assert (await world.send("GET", "/bucket-1/k", "legal-hold")).find("Status") == "ON"
        bypass = {"x-amz-bypass-governance-retention": "true"}
        assert (await world.send("DELETE", "/bucket-1/k", f"versionId={version}", bypass)).status == 403
        await world.send("PUT", "/bucket-1/k", "legal-hold", data=hold.replace(b"ON", b"OFF"))
        assert (await world.send("GET", "/bucket-1/k", "retention")).find("Mode") == "GOVERNANCE"
        assert (await world.send("DELETE", "/bucket-1/k", f"versionId={version}", bypass)).status == 204
        past = {**lock, "x-amz-object-lock-retain-until-date": "2020-01-01T00:00:00Z"}
        assert (await world.send("PUT", "/bucket-1/k", headers=past, data=b"x")).code == "InvalidArgument"
        rule = "<Rule><DefaultRetention><Mode>COMPLIANCE</Mode><Days>1</Days></DefaultRetention></Rule>"
        enabled = "<ObjectLockEnabled>Enabled</ObjectLockEnabled>"
        default = f"<ObjectLockConfiguration>{enabled}{rule}</ObjectLockConfiguration>".encode()
        assert (await world.send("PUT", "/bucket-1", "object-lock", data=default)).status == 200
        kept = (await world.send("PUT", "/bucket-1/d", data=b"x")).headers["x-amz-version-id"]
        assert (await world.send("DELETE", "/bucket-1/d", f"versionId={kept}", bypass)).status == 403
        world.net.now += 86_400
        assert (await world.send("DELETE", "/bucket-1/d", f"versionId={kept}")).status == 204

    play(tmp_path, scene)


def test_copies_take_metadata_or_get_their_own(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        for bucket in ("bucket-1", "bucket-2"):
            await world.send("PUT", f"/{bucket}")
        headers = {"content-type": "text/css", "x-amz-meta-a": "1", "x-amz-tagging": "t=1"}
        await world.send("PUT", "/bucket-1/from%20%C3%A9", headers=headers, data=BIG)
        source = {"x-amz-copy-source": "/bucket-1/from%20%C3%A9"}
        made = await world.send("PUT", "/bucket-2/to", headers=source)
        assert (made.status, made.find("ETag")) == (200, f'"{hashlib.md5(BIG).hexdigest()}"')
        got = await world.send("GET", "/bucket-2/to")
        assert (got.body, got.headers["Content-Type"], got.headers["x-amz-meta-a"]) == (BIG, "text/css", "1")
        assert got.headers["x-amz-tagging-count"] == "1"
        replaced = {
            **source, "x-amz-metadata-directive": "REPLACE", "x-amz-tagging-directive": "REPLACE",
            "content-type": "text/html", "x-amz-meta-b": "2",
        }  # fmt: skip
        await world.send("PUT", "/bucket-2/to", headers=replaced)
        head = await world.send("HEAD", "/bucket-2/to")
        assert (head.headers["Content-Type"], head.headers["x-amz-meta-b"]) == ("text/html", "2")
        assert "x-amz-meta-a" not in head.headers
        assert "x-amz-tagging-count" not in head.headers
        for headers, status, code in (
            ({"x-amz-copy-source": "bucket-2/to"}, 400, "InvalidRequest"),
            ({"x-amz-copy-source": "bucket-2/none"}, 404, "NoSuchKey"),
            ({"x-amz-copy-source": "none/to"}, 404, "NoSuchBucket"),
            ({"x-amz-copy-source": "to"}, 400, "InvalidArgument"),
            ({**source, "x-amz-copy-source-if-match": "no"}, 412, "PreconditionFailed"),
            ({**source, "x-amz-metadata-directive": "MAYBE"}, 400, "InvalidArgument"),
        ):
            answer = await world.send("PUT", "/bucket-2/to", headers=headers)
            assert (answer.status, answer.code) == (status, code), headers
        itself = {"x-amz-copy-source": "bucket-2/to", "x-amz-metadata-directive": "REPLACE", "x-amz-meta-c": "3"}
        assert (await world.send("PUT", "/bucket-2/to", headers=itself)).status == 200
        assert (await world.send("HEAD", "/bucket-2/to")).headers["x-amz-meta-c"] == "3"

    play(tmp_path, scene)


def test_many_are_deleted_at_once(tmp_path: Path) -> None:
    keys = ["a", "b/ä&<>", "not there"]
    body = "".join(f"<Object><Key>{key.replace('&', '&amp;').replace('<', '&lt;')}</Key></Object>" for key in keys)

    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        for key in keys[:2]:
            await world.send("PUT", path_of("bucket-1", key), data=b"x")
        answer = await world.send("POST", "/bucket-1", "delete", data=f"<Delete>{body}</Delete>".encode())
        assert (answer.status, answer.all("Deleted/Key")) == (200, keys)
        quiet = await world.send(
            "POST", "/bucket-1", "delete", data=f"<Delete><Quiet>true</Quiet>{body}</Delete>".encode()
        )
        assert quiet.all("Deleted/Key") == []
        assert (await world.send("GET", "/bucket-1")).all("Contents/Key") == []
        many = "<Object><Key>k</Key></Object>" * 1001
        for data in (f"<Delete>{many}</Delete>", "<Delete>", "", "<Delete/>", "<Remove/>"):
            wrong = await world.send("POST", "/bucket-1", "delete", data=data.encode())
            assert (wrong.status, wrong.code) in [(400, "MalformedXML"), (400, "MissingRequestBodyError")], data[:20]

    play(tmp_path, scene)


def test_attributes_are_those_asked_for(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        await world.send(
            "PUT",
            "/bucket-1/k",
            headers={"x-amz-sdk-checksum-algorithm": "CRC32", "x-amz-checksum-crc32": "NhCmhg=="},
            data=b"hello",
        )
        asked = {"x-amz-object-attributes": "ETag,ObjectSize, Checksum"}
        answer = await world.send("GET", "/bucket-1/k", "attributes", asked)
        assert (answer.find("ObjectSize"), answer.find("Checksum/ChecksumCRC32")) == ("5", "NhCmhg==")
        assert answer.all("StorageClass") == []
        wrong = await world.send("GET", "/bucket-1/k", "attributes", {"x-amz-object-attributes": "Colour"})
        assert (wrong.status, wrong.code) == (400, "InvalidArgument")
        enabled = await world.send("GET", "/bucket-1/k", headers={"x-amz-checksum-mode": "ENABLED"})
        assert (enabled.headers["x-amz-checksum-crc32"], enabled.headers["x-amz-checksum-type"]) == (
            "NhCmhg==",
            "FULL_OBJECT",
        )

    play(tmp_path, scene)
