"""`freehold share` and `freehold key`: what they grant, what is kept of it, and what needs no wallet or network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from freehold.cli import client as cli_client
from freehold.client.account import Account
from freehold.client.errors import AccessDenied
from freehold.client.grants import GrantKey, Grants, describe
from freehold.client.heads import LocalHeads
from freehold.client.root import AccountRoot, Root
from tests.cli.runner import Outcome, invoke
from tests.gateway.share_world import Objects

GATEWAY = "http://127.0.0.1:7"
ACCOUNT = Account.of_secret(b"\x01" * 32)
DAY = 86_400


class Bench:
    """An account whose objects are in memory and whose root is in files, and the commands on it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.objects: Any = Objects()
        for key in ("k", "photos/a.jpg", "photos/b.jpg"):
            self.objects.add("b-1", key, b"data")

    def run(self, *arguments: str, **environment: str) -> Outcome:
        return invoke(self.home, *arguments, FREEHOLD_GATEWAY=GATEWAY, **environment)

    def data(self, *arguments: str) -> Any:
        return self.run(*arguments, "--json").data

    @property
    def account_root(self) -> AccountRoot:
        return AccountRoot(LocalHeads(self.home / "heads"), ACCOUNT.seed)

    def root(self) -> Root:
        return asyncio.run(self.account_root.read())

    def allows(self, token: str, operation: str, key: str, bucket: str = "b-1", days: float = 0) -> bool:
        judge = Grants(GrantKey(ACCOUNT.seed).public_key)
        try:
            judge.check(token, operation, bucket, key, time.time() + days * DAY, self.root().revoked)
        except AccessDenied:
            return False
        return True


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench(tmp_path)

    @asynccontextmanager
    async def open_client(program: Any, wallet: str | None = None) -> AsyncIterator[Any]:
        bench.objects.root = bench.account_root
        yield SimpleNamespace(account=ACCOUNT, objects=bench.objects)

    monkeypatch.setattr(cli_client, "open_client", open_client)
    return bench


def test_a_link_to_an_object(bench: Bench) -> None:
    shared = bench.data("share", "fh://b-1/k", "--expires", "2d", "--label", "for Ann")
    assert shared["url"] == f"{GATEWAY}/-/share/{shared['token']}/b-1/k"
    assert shared["operations"] == ["read"]
    assert abs(shared["expires"] - time.time() - 2 * DAY) < 100
    token = shared["token"]
    assert bench.allows(token, "read", "k")
    assert not bench.allows(token, "read", "k2")
    assert not bench.allows(token, "write", "k")
    assert not bench.allows(token, "read", "k", days=2.1)
    (row,) = bench.data("share", "list")
    assert (row["id"], row["path"], row["label"]) == (shared["ids"][0], "fh://b-1/k", "for Ann")


@pytest.mark.parametrize("path", ["fh://b-1/photos", "fh://b-1/photos/"])
def test_a_link_to_a_folder(bench: Bench, path: str) -> None:
    shared = bench.data("share", path)
    assert shared["url"].endswith("/b-1/photos/")
    token = shared["token"]
    assert bench.allows(token, "read", "photos/a.jpg")
    assert bench.allows(token, "list", "photos/")
    assert not bench.allows(token, "read", "photosynthesis")
    assert abs(shared["expires"] - time.time() - 7 * DAY) < 100


@pytest.mark.parametrize(
    ("flags", "operations"),
    [
        (["--write"], ["read", "list", "write"]),
        (["--delete", "--no-list"], ["read", "delete"]),
        (["--write-only"], ["write"]),
    ],
)
def test_what_else_is_allowed(bench: Bench, flags: list[str], operations: list[str]) -> None:
    assert bench.data("share", *flags, "--expires", "never", "fh://b-1/in/")["operations"] == operations
    (row,) = bench.data("share", "list")
    assert (row["path"], row["operations"], row["expires"]) == ("fh://b-1/in/*", operations, None)


def test_only_the_link_goes_to_stdout(bench: Bench) -> None:
    shared = bench.run("share", "fh://b-1/k")
    assert shared.code == 0
    assert shared.stdout.startswith(f"{GATEWAY}/-/share/fhg_")
    assert shared.stdout.count("\n") == 1
    assert "to read fh://b-1/k, until" in shared.stderr


def test_the_gateway_of_a_local_network_is_found_beside_it(bench: Bench) -> None:
    local = bench.home / "local"
    local.mkdir()
    (local / "gateway.json").write_text('{"url": "http://127.0.0.1:9"}')
    found = invoke(bench.home, "share", "fh://b-1/k")
    assert found.stdout.startswith("http://127.0.0.1:9/-/share/")
    named = invoke(bench.home, "share", "fh://b-1/k", "--gateway", "https://s3.example/")
    assert named.stdout.startswith("https://s3.example/-/share/")
    (local / "gateway.json").unlink()
    alone = invoke(bench.home, "share", "fh://b-1/k")
    assert alone.stdout.startswith("fhg_")
    assert "--gateway" in alone.stderr
    (local / "gateway.json").write_text("{}")
    assert invoke(bench.home, "share", "fh://b-1/k").code == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["share", "fh://b-1/nothing"], "key_not_found"),
        (["share", "fh://b-2/"], "bucket_not_found"),
        (["share", "fh://B/k"], "invalid_input"),
        (["share", "k"], "usage"),
        (["share", "fh://b-1/k", "--expires", "soon"], "usage"),
        (["share", "fh://b-1/k", "--expires", "0d"], "usage"),
        (["share", "fh://b-1/k", "--write-only", "--write"], "usage"),
        (["share", "revoke", "fhg_x"], "access_denied"),
        (["share", "revoke", "0123456789ab"], "not_found"),
        (["share", "show", "fhg_x"], "access_denied"),
        (["key", "remove", "FHX"], "not_found"),
        (["key", "new", "--prefix", "p"], "usage"),
        (["key", "new", "--bucket", "b-2"], "bucket_not_found"),
    ],
    ids=" ".join,
)
def test_what_is_refused(bench: Bench, arguments: list[str], code: str) -> None:
    assert bench.run(*arguments, "--json").error["code"] == code
    assert bench.root() == Root()


def test_links_are_narrowed_and_shown_without_wallet_or_network(bench: Bench, tmp_path: Path) -> None:
    shared = bench.data("share", "fh://b-1/photos/", "--write")
    bare = tmp_path / "elsewhere"
    arguments = ["share", "narrow", shared["url"], "--object", "photos/a.jpg", "--read-only", "--expires", "12h"]
    narrowed = invoke(bare, *arguments, "--json").data
    assert narrowed["url"] == f"{GATEWAY}/-/share/{narrowed['token']}/b-1/photos/a.jpg"
    assert bench.allows(narrowed["token"], "read", "photos/a.jpg")
    assert not bench.allows(narrowed["token"], "read", "photos/b.jpg")
    assert not bench.allows(narrowed["token"], "write", "photos/a.jpg")
    assert not bench.allows(narrowed["token"], "read", "photos/a.jpg", days=0.6)
    below = invoke(bare, "share", "narrow", shared["token"], "--prefix", "fh://b-1/photos/b", "--json").data
    assert (below["path"], below["url"]) == ("fh://b-1/photos/b*", "")
    wider = invoke(bare, "share", "narrow", narrowed["token"], "--prefix", "photos/", "--json")
    assert wider.error["code"] == "invalid_input"
    shown = invoke(bare, "share", "show", narrowed["url"])
    assert "fh://b-1/photos/a.jpg of 0x" in shown.stdout
    assert "allows to read and list" in shown.stdout
    assert invoke(bare, "share", "show", narrowed["token"], "--json").data["expired"] is False


def test_revoking_by_link_by_id_and_all_of_it(bench: Bench) -> None:
    first, second = bench.data("share", "fh://b-1/k"), bench.data("share", "fh://b-1/photos")
    child = bench.data("share", "narrow", second["url"], "--prefix", "photos/a")
    bench.data("share", "revoke", child["url"])
    assert not bench.allows(child["token"], "read", "photos/a.jpg")
    assert bench.allows(second["token"], "read", "photos/a.jpg")
    other = bench.data("share", "narrow", second["url"], "--prefix", "photos/b")
    assert bench.data("share", "revoke", other["token"], "--all")["id"] == describe(second["token"]).ids[0]
    assert not bench.allows(second["token"], "read", "photos/a.jpg")
    listed = bench.run("share", "list").stdout
    id_ = listed.splitlines()[1].split()[0]
    assert first["ids"][0].startswith(id_)
    assert "revoked fh://b-1/k" in bench.run("share", "revoke", id_).stdout
    assert not bench.allows(first["token"], "read", "k")
    assert bench.data("share", "list") == []


def test_keys_are_made_shown_and_removed(bench: Bench) -> None:
    whole = bench.data("key", "new", "--label", "laptop")
    assert whole["endpoint"] == GATEWAY
    part = bench.data("key", "new", "--read-only", "--bucket", "b-1", "--prefix", "photos/", "--expires", "30d")
    kept = bench.root().access_keys
    assert (kept[whole["id"]].secret, kept[whole["id"]].grant) == (whole["secret"], "")
    grant = kept[part["id"]].grant
    assert bench.allows(grant, "read", "photos/a.jpg")
    assert not bench.allows(grant, "write", "photos/a.jpg")
    assert not bench.allows(grant, "read", "k")
    assert not bench.allows(grant, "read", "photos/a.jpg", days=31)
    assert kept[part["id"]].expires == describe(grant).expires
    listed = bench.data("key", "list")
    assert {row["id"]: row["path"] for row in listed} == {whole["id"]: "everything", part["id"]: "fh://b-1/photos/*"}
    assert "secret" not in bench.run("key", "list", "--json").stdout
    text = bench.run("key", "new").stdout
    assert [line.partition("=")[0] for line in text.splitlines()] == [
        "export AWS_ACCESS_KEY_ID",
        "export AWS_SECRET_ACCESS_KEY",
        "export AWS_ENDPOINT_URL",
    ]
    assert bench.data("key", "remove", part["id"])["id"] == part["id"]
    assert part["id"] not in bench.root().access_keys


def test_a_read_only_key_of_every_bucket(bench: Bench) -> None:
    made = bench.data("key", "new", "--read-only")
    grant = bench.root().access_keys[made["id"]].grant
    assert bench.allows(grant, "list", "", bucket="")
    assert bench.allows(grant, "read", "x", bucket="any")
    assert not bench.allows(grant, "write", "x", bucket="any")
