"""Unmodified S3 programs against the gateway of a real network: what people would move with, and then live on."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.servers.s3_programs import REMOTE, Programs, S3Account, make_tree, read_tree

pytestmark = pytest.mark.timeout(600)

_numbers = count()


@pytest.fixture(scope="module")
def programs(gateway: S3Account, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(gateway, tmp_path_factory.mktemp("programs"))


@pytest.fixture
def bucket(programs: Programs) -> Iterator[str]:
    """An empty bucket of this test's own."""
    name = f"programs-{next(_numbers)}"
    client = programs.account.client()
    client.create_bucket(Bucket=name)
    yield name
    client.close()


@pytest.fixture
def tree(tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path / "tree"
    return folder, make_tree(folder)


def test_aws_syncs_a_tree_both_ways(
    programs: Programs, bucket: str, tree: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    folder, contents = tree
    programs.aws("s3", "sync", str(folder), f"s3://{bucket}/tree", "--quiet")
    listed = programs.aws("s3", "ls", "--recursive", f"s3://{bucket}/tree/")
    assert len(listed.splitlines()) == len(contents)
    assert "PRE folder/" in programs.aws("s3", "ls", f"s3://{bucket}/tree/")
    programs.aws("s3", "sync", f"s3://{bucket}/tree", str(tmp_path / "back"), "--quiet")
    assert read_tree(tmp_path / "back") == contents
    assert programs.aws("s3", "sync", str(folder), f"s3://{bucket}/tree") == ""  # nothing is left to do

    (folder / "small.txt").unlink()
    programs.aws("s3", "sync", str(folder), f"s3://{bucket}/tree", "--delete", "--quiet")
    assert "small.txt" not in programs.aws("s3", "ls", f"s3://{bucket}/tree/")


def test_aws_copies_moves_and_removes(programs: Programs, bucket: str, tree: tuple[Path, dict[str, bytes]]) -> None:
    folder, contents = tree
    programs.aws("s3", "mb", f"s3://{bucket}-second")
    programs.aws("s3", "cp", str(folder / "large.bin"), f"s3://{bucket}/large.bin", "--quiet")
    programs.aws("s3", "cp", f"s3://{bucket}/large.bin", f"s3://{bucket}-second/copy.bin", "--quiet")
    programs.aws("s3", "mv", f"s3://{bucket}/large.bin", f"s3://{bucket}/moved.bin", "--quiet")
    assert programs.aws("s3", "ls", f"s3://{bucket}/").split()[-1] == "moved.bin"
    for source in (f"s3://{bucket}/moved.bin", f"s3://{bucket}-second/copy.bin"):
        programs.aws("s3", "cp", source, str(folder / "back"), "--quiet")
        assert (folder / "back").read_bytes() == contents["large.bin"]
    url = programs.aws("s3", "presign", f"s3://{bucket}/moved.bin", "--expires-in", "60").strip()
    with urllib.request.urlopen(url, timeout=60) as response:
        assert response.read() == contents["large.bin"]
    assert "BucketNotEmpty" in programs.aws("s3", "rb", f"s3://{bucket}-second", code=1)
    programs.aws("s3", "rb", "--force", f"s3://{bucket}-second")
    assert f"{bucket}-second" not in programs.aws("s3", "ls")


def test_aws_sends_parts_in_any_order(programs: Programs, bucket: str, tmp_path: Path) -> None:
    def api(*arguments: str) -> dict[str, object]:
        return dict(json.loads(programs.aws("s3api", *arguments, "--bucket", bucket, "--output", "json") or "{}"))

    parts = {1: b"a" * (5 << 20), 2: b"b" * (5 << 20), 3: b"the end"}
    upload = str(api("create-multipart-upload", "--key", "parts")["UploadId"])
    where = ("--key", "parts", "--upload-id", upload)
    tags = {}
    for number, data in [(3, b"first try"), (1, parts[1]), (3, parts[3]), (2, parts[2])]:
        path = tmp_path / "part"
        path.write_bytes(data)
        tags[number] = api("upload-part", *where, "--part-number", str(number), "--body", str(path))["ETag"]
    listed = api("list-parts", *where)["Parts"]
    assert isinstance(listed, list)
    assert [(part["PartNumber"], part["Size"]) for part in listed] == [(n, len(parts[n])) for n in (1, 2, 3)]
    wanted = json.dumps({"Parts": [{"PartNumber": n, "ETag": tags[n]} for n in (1, 2, 3)]})
    done = api("complete-multipart-upload", *where, "--multipart-upload", wanted)
    assert str(done["ETag"]).endswith('-3"')
    api("get-object", "--key", "parts", str(tmp_path / "whole"))
    assert (tmp_path / "whole").read_bytes() == b"".join(parts[n] for n in (1, 2, 3))

    upload = str(api("create-multipart-upload", "--key", "given-up")["UploadId"])
    api("abort-multipart-upload", "--key", "given-up", "--upload-id", upload)
    assert not api("list-multipart-uploads").get("Uploads")
    gone = ("s3api", "list-parts", "--bucket", bucket, "--key", "given-up", "--upload-id", upload)
    assert "NoSuchUpload" in programs.aws(*gone, code=254)


def test_rclone_copies_checks_and_purges(
    programs: Programs, bucket: str, tree: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    folder, contents = tree
    there, chunks = f"{REMOTE}:{bucket}/tree", ("--s3-chunk-size", "5M", "--s3-upload-cutoff", "5M")
    programs.rclone("copy", str(folder), there, *chunks)
    programs.rclone("check", str(folder), there)
    assert sorted(programs.rclone("lsf", "-R", "--files-only", there).splitlines()) == sorted(contents)
    assert programs.rclone("cat", "--offset", "4", "--count", "4", f"{there}/small.txt") == "line"
    programs.rclone("moveto", f"{there}/large.bin", f"{there}/folder/larger.bin")
    programs.rclone("copy", there, str(tmp_path / "back"))
    moved = contents | {"folder/larger.bin": contents["large.bin"]}
    del moved["large.bin"]
    assert read_tree(tmp_path / "back") == moved
    (folder / "small.txt").write_bytes(b"changed")
    programs.rclone("sync", str(folder), there, *chunks)
    programs.rclone("check", str(folder), there)
    programs.rclone("purge", there)
    assert programs.rclone("lsf", "-R", f"{REMOTE}:{bucket}") == ""


def test_s3cmd_puts_lists_and_syncs(
    programs: Programs, bucket: str, tree: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    folder, contents = tree
    programs.s3cmd("mb", f"s3://{bucket}-cmd")
    assert f"s3://{bucket}-cmd" in programs.s3cmd("ls")
    programs.s3cmd("put", "--multipart-chunk-size-mb=5", str(folder / "large.bin"), f"s3://{bucket}/large.bin")
    programs.s3cmd("put", "--add-header=x-amz-meta-colour:blue", str(folder / "small.txt"), f"s3://{bucket}/small")
    assert "x-amz-meta-colour: blue" in programs.s3cmd("info", f"s3://{bucket}/small")
    programs.s3cmd("get", "--force", f"s3://{bucket}/large.bin", str(tmp_path / "large"))
    assert (tmp_path / "large").read_bytes() == contents["large.bin"]
    programs.s3cmd("cp", f"s3://{bucket}/small", f"s3://{bucket}/copy")
    programs.s3cmd("sync", f"{folder}/", f"s3://{bucket}/tree/")
    programs.s3cmd("sync", f"s3://{bucket}/tree/", f"{tmp_path}/back/")
    assert read_tree(tmp_path / "back") == contents
    programs.s3cmd("del", "--recursive", "--force", f"s3://{bucket}")
    assert programs.s3cmd("ls", "--recursive", f"s3://{bucket}") == ""
    programs.s3cmd("rb", f"s3://{bucket}-cmd")


def test_restic_backs_up_and_restores(
    programs: Programs, bucket: str, tree: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    folder, contents = tree
    programs.restic(bucket, "init")
    programs.restic(bucket, "backup", str(folder))
    (folder / "small.txt").write_bytes(b"a second state")
    programs.restic(bucket, "backup", str(folder))
    snapshots = json.loads(programs.restic(bucket, "snapshots", "--json"))
    assert len(snapshots) == 2
    programs.restic(bucket, "check", "--read-data")
    programs.restic(bucket, "forget", "--keep-last", "1", "--prune")
    programs.restic(bucket, "restore", "latest", "--target", str(tmp_path / "back"))
    restored = tmp_path / "back" / folder.relative_to("/")
    assert read_tree(restored) == contents | {"small.txt": b"a second state"}
    programs.restic(bucket, "check", "--read-data")
