"""SQLite under one writer thread (`group_commit.py`): the default, with nothing to install and nothing to run.

Invariant: once `write` returned, its rows survive a power cut (WAL, synchronous=FULL).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from freehold.protocol.errors import DiskFull
from freehold.store.group_commit import GroupCommit, Work, check_version

__all__ = ["Database", "Work", "migrate"]


class Database(GroupCommit):
    """`migrations[i]` is the SQL script that takes a file from version i to i+1; old entries never change."""

    def __init__(self, path: Path, migrations: Sequence[str]) -> None:
        super().__init__(path.name)
        self.path = path
        self._writer = _connect(path)
        try:
            migrate(self._writer, migrations)
            _sync_directory(path.parent)
        except BaseException:
            self._writer.close()
            raise
        self._reader = _connect(path)
        self._reader.execute("PRAGMA query_only=ON")
        self._start()

    def _begin(self) -> sqlite3.Connection:
        self._writer.execute("BEGIN IMMEDIATE")
        return self._writer

    def _may_go_on(self) -> bool:
        return self._writer.in_transaction

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")

    def _get_reader(self) -> sqlite3.Connection:
        return self._reader

    def _typed(self, error: BaseException) -> BaseException:
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            return DiskFull("the disk is full: the database cannot grow")
        return error

    def _disconnect(self) -> None:
        self._reader.close()
        self._writer.close()


def migrate(connection: sqlite3.Connection, migrations: Sequence[str]) -> None:
    """Bring a database to version `len(migrations)`, one transaction a step. InvalidInput if it is newer than that."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    check_version(version, migrations)
    for step in range(version, len(migrations)):
        try:
            connection.executescript(f"BEGIN IMMEDIATE;\n{migrations[step]};\nPRAGMA user_version={step + 1};\nCOMMIT;")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    return connection


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
