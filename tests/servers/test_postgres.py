"""PostgreSQL as the database: all that SQLite does, and what a server adds: it may be killed, and it may be wrong."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import pytest

from freehold.protocol.errors import InvalidInput, Unavailable
from freehold.store.group_commit import Connection, Work
from tests.servers.postgres_server import PostgresServer
from tests.servers.processes import DEADLINE, wait_until
from tests.store.sql_conformance import FIRST, Open, SqlConformance, insert, keys

pytest.importorskip("psycopg", reason="not run: psycopg is not installed (make test-servers installs it)")

from freehold.store.postgres import Postgres, translate_parameters, translate_types


class TestPostgres(SqlConformance):
    @pytest.fixture
    def reopen(self, database_url: str) -> Open:
        def reopen(migrations: Sequence[str]) -> Postgres:
            return Postgres(database_url, "state", migrations)

        return reopen

    @pytest.fixture
    def child(self, database_url: str) -> str:
        return f"""
from freehold.store.postgres import Postgres
def open_database(migrations):
    return Postgres({database_url!r}, "state", migrations)
"""

    @pytest.fixture
    def fill(self) -> Work[None]:
        """What the server says when its disk is full, said by the server."""

        def fill(connection: Connection) -> None:
            connection.execute("DO $$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = 'disk_full'; END $$")

        return fill


def test_a_server_killed_while_it_writes_keeps_what_was_acknowledged(mortal_postgres: PostgresServer) -> None:
    server = mortal_postgres
    database = Postgres(server.url(), "state", [FIRST])
    numbers, acknowledged, lost = itertools.count(), [], []
    stopping, progress = threading.Event(), threading.Event()

    def note(k: int, future: Future[int]) -> None:
        if future.exception() is None:
            acknowledged.append(k)
            progress.set()
        else:
            lost.append(future.exception())

    def write() -> None:
        while not stopping.is_set():
            group = [(k, database.submit(insert(k))) for k in itertools.islice(numbers, 5)]
            for k, future in group:
                future.exception()  # waits
                note(k, future)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for _ in range(3):
        assert progress.wait(DEADLINE)
        server.kill()
        server.restart()
        progress.clear()
        assert progress.wait(DEADLINE)  # the same object goes on
    stopping.set()
    for writer in writers:
        writer.join()
    kept = database.submit(keys).result()
    assert asyncio.run(database.read(keys)) == kept
    database.close()
    assert {type(error) for error in lost} <= {Unavailable}
    assert set(acknowledged) <= set(kept)
    assert len(kept) <= len(acknowledged) + len(lost)


def test_a_transaction_that_the_server_cuts_off_is_unavailable_and_leaves_nothing(
    postgres: PostgresServer, database_url: str
) -> None:
    database = Postgres(database_url, "state", [FIRST])

    def cut_off(connection: Connection) -> None:
        insert(1)(connection)
        pid = connection.execute("SELECT pg_backend_pid()").fetchone()[0]
        postgres.execute(f"SELECT pg_terminate_backend({pid})")
        insert(2)(connection)

    with pytest.raises(Unavailable):
        database.submit(cut_off).result()
    assert database.submit(keys).result() == []

    def cut_off_reading(connection: Connection) -> list[int]:
        pid = connection.execute("SELECT pg_backend_pid()").fetchone()[0]
        if pid not in seen:
            seen.append(pid)
            if len(seen) == 1:
                postgres.execute(f"SELECT pg_terminate_backend({pid})")
        return keys(connection)

    seen: list[int] = []
    assert asyncio.run(database.read(cut_off_reading)) == []
    assert len(seen) == 2
    database.close()


def test_one_database_holds_several_schemas_apart(database_url: str) -> None:
    first, second = (Postgres(database_url, name, [FIRST]) for name in ("one", "two"))
    first.submit(insert(1)).result()
    assert second.submit(keys).result() == []
    first.close()
    second.close()


def test_of_two_that_want_a_database_for_themselves_one_gets_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freehold.store.postgres.LOCK_SECONDS", 1)
    first = Postgres(database_url, "state", [FIRST], exclusive=True)
    with pytest.raises(Unavailable, match="another process"):
        Postgres(database_url, "state", [FIRST], exclusive=True)
    assert first.submit(insert(1)).result() == 1
    first.close()
    second = Postgres(database_url, "state", [FIRST], exclusive=True)
    assert second.submit(keys).result() == [1]
    second.close()


def test_one_whose_database_was_taken_over_writes_nothing_more(
    postgres: PostgresServer, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freehold.store.postgres.LOCK_SECONDS", 1)
    monkeypatch.setattr("freehold.store.postgres.PATIENCE", 0)
    first = Postgres(database_url, "state", [FIRST], exclusive=True)
    pid = first.submit(lambda c: c.execute("SELECT pg_backend_pid()").fetchone()[0]).result()
    postgres.execute(f"SELECT pg_terminate_backend({pid})")
    second = Postgres(database_url, "state", [FIRST], exclusive=True)
    with pytest.raises(Unavailable, match="another process"):
        first.submit(insert(1)).result()
    assert second.submit(keys).result() == []
    second.close()
    assert first.submit(insert(1)).result() == 1
    first.close()


@pytest.fixture
def configure(postgres: PostgresServer) -> Iterator[Callable[[str, str], None]]:
    """Changes a setting of the server for one test."""
    changed: list[str] = []

    def configure(name: str, value: str) -> None:
        changed.append(name)
        postgres.execute(f"ALTER SYSTEM SET {name} = {value}")
        postgres.execute("SELECT pg_reload_conf()")
        wait_until(lambda: postgres.show(name) == value, f"{name} is {value}")

    yield configure
    for name in changed:
        postgres.execute(f"ALTER SYSTEM RESET {name}")
        postgres.execute("SELECT pg_reload_conf()")
        wait_until(lambda name=name: postgres.show(name) == "on", f"{name} is on again")


def test_a_server_that_may_lose_what_it_acknowledged_is_refused(
    database_url: str, configure: Callable[[str, str], None]
) -> None:
    configure("fsync", "off")
    with pytest.raises(InvalidInput, match="fsync off"):
        Postgres(database_url, "state", [FIRST])


def test_a_commit_waits_for_the_disk_whatever_the_server_prefers(
    database_url: str, configure: Callable[[str, str], None]
) -> None:
    configure("synchronous_commit", "off")
    database = Postgres(database_url, "state", [FIRST])
    setting = database.submit(lambda c: c.execute("SHOW synchronous_commit").fetchone()).result()
    database.close()
    assert setting == ("on",)


@pytest.mark.parametrize(("url", "kind"), [("postgresql://a b", InvalidInput), ("?", InvalidInput)])
def test_a_url_that_is_none(url: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        Postgres(url, "state", [FIRST])


def test_a_wrong_password_is_told_at_once_and_without_it(postgres: PostgresServer) -> None:
    url = postgres.url().replace(postgres.url().split(":")[2].split("@")[0], "not-the-secret")
    with pytest.raises(Unavailable, match="password") as caught:
        Postgres(url, "state", [FIRST])
    assert "not-the-secret" not in caught.value.message


@pytest.mark.parametrize(
    ("sql", "translated"),
    [
        ("SELECT ?", "SELECT %s"),
        ("SELECT '?', 'it''s ?', ? % 5", "SELECT '?', 'it''s ?', %s %% 5"),
        ("SELECT '%'", "SELECT '%%'"),
    ],
)
def test_parameters_are_translated_outside_quotes(sql: str, translated: str) -> None:
    assert translate_parameters(sql) == translated


def test_types_are_translated_outside_quotes() -> None:
    sql = "CREATE TABLE t (k INTEGER, BLOBS TEXT DEFAULT 'BLOB', b BLOB)"
    assert translate_types(sql) == "CREATE TABLE t (k BIGINT, BLOBS TEXT DEFAULT 'BLOB', b BYTEA)"
