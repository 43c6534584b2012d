"""SQLite as the database, and the words that both databases share."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from freehold.store.group_commit import Connection, Work
from freehold.store.sql import Database, migrate
from tests.store.sql_conformance import FIRST, Open, SqlConformance


class TestSqlite(SqlConformance):
    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Open:
        def reopen(migrations: Sequence[str]) -> Database:
            return Database(tmp_path / "state.sqlite", migrations)

        return reopen

    @pytest.fixture
    def child(self, tmp_path: Path) -> str:
        return f"""
from pathlib import Path
from freehold.store.sql import Database
def open_database(migrations):
    return Database(Path({str(tmp_path / "state.sqlite")!r}), migrations)
"""

    @pytest.fixture
    def fill(self) -> Work[None]:
        def fill(connection: Connection) -> None:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count={pages + 2}")
            try:
                connection.execute("INSERT INTO t (k, v) VALUES (99, ?)", ("x" * 100_000,))
            finally:
                connection.execute("PRAGMA max_page_count=1000000")

        return fill


def test_a_broken_migration_leaves_the_version_before_it(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "state.sqlite", isolation_level=None)
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, [FIRST, "CREATE TABLE u (k); CREATE TABLE t (again)"])
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("t",)]
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.close()
