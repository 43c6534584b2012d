"""PostgreSQL under one writer thread (`group_commit.py`): a database by URL, for those who outgrow a file.

    postgresql://user@host:port/database      whatever libpq takes; PGPASSWORD or ~/.pgpass for the secret

The tables stand in a schema of their own, made at the first start. Writers of several processes take turns, as on a
file of SQLite: each transaction begins with the schema's advisory lock, and then sees all that was committed before.

Invariant: once `write` returned, its rows survive the server's power cut: a server that runs without fsync is refused,
and synchronous_commit is never off. A server that restarts is waited for, PATIENCE seconds; a write that it cut off
says Unavailable, and only then is it not known whether it took place.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, TypeVar

from freehold.protocol.errors import DiskFull, InvalidInput, Unavailable
from freehold.store.group_commit import Connection, Cursor, GroupCommit, Work, check_version

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.pq import TransactionStatus
except ImportError:
    raise InvalidInput("PostgreSQL needs psycopg", hint="Install freehold[postgresql].") from None

T = TypeVar("T")

PATIENCE = 30.0  # seconds for a server to come back
LOCK_SECONDS = 30  # how long one writer waits for another, as for a file of SQLite
_PAUSE = 0.1  # seconds between two attempts to reach it
_DEFAULTS = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "tcp_user_timeout": 30_000}
_QUOTED = re.compile(r"('(?:[^']|'')*')")
_TYPES = {"BLOB": "BYTEA", "INTEGER": "BIGINT"}
_GONE = ("08", "57P")  # SQLSTATE: the connection failed; the server stops, or has not started yet
_LOCK_TIMEOUT = "55P03"


class Postgres(GroupCommit):
    """`migrations` as for SQLite (`sql.py`); `schema` is a plain name. InvalidInput, Unavailable.

    An `exclusive` one is the only one that writes: another waits, and is then Unavailable. So of two processes that
    were started with one configuration the second says nothing that contradicts the first.
    """

    def __init__(self, url: str, schema: str, migrations: Sequence[str], *, exclusive: bool = False) -> None:
        super().__init__(schema)
        self._url, self._schema = url, schema
        self._take_turn = f"SELECT pg_advisory_xact_lock({_lock_of(schema)})"
        self._own = f"SELECT pg_advisory_lock({_lock_of(f'{schema} is owned')})" if exclusive else None
        try:
            self._writer = self._connect_writer()
        except psycopg.Error as error:
            raise self._typed(error) from error
        try:
            self._check_server()
            self._migrate(migrations)
            self._reader = self._connect(read_only=True)
        except BaseException:
            self._writer.close()
            raise
        self._start()

    # -- transactions ---------------------------------------------------------------------------------------------

    def _begin(self) -> Connection:
        begin = f"BEGIN; {self._take_turn}"
        try:
            self._writer.execute(begin)
        except psycopg.Error:
            if not self._writer.closed:
                raise
            self._writer = self._again(self._connect_writer)
            self._writer.execute(begin)
        return Portable(self._writer)

    def _may_go_on(self) -> bool:
        return self._writer.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)

    def _roll_back(self) -> None:
        if not self._writer.closed and self._writer.info.transaction_status != TransactionStatus.IDLE:
            try:
                self._writer.execute("ROLLBACK")
            except psycopg.Error:
                self._writer.close()

    def _get_reader(self) -> Connection:
        if self._reader.closed:
            self._reader = self._again(lambda: self._connect(read_only=True))
        return Portable(self._reader)

    def _read(self, work: Work[T]) -> T:
        try:
            return super()._read(work)
        except Unavailable:
            if not self._reader.closed:
                raise
        return super()._read(work)  # the connection was lost: a read may run again

    def _typed(self, error: BaseException) -> BaseException:
        if isinstance(error, psycopg.errors.DiskFull):
            return DiskFull("the disk of the PostgreSQL server is full")
        if isinstance(error, psycopg.OperationalError):
            state = error.sqlstate
            if state == _LOCK_TIMEOUT:
                return Unavailable("another process has this database", hint="Run one process for each database.")
            if state is None or state.startswith(_GONE):
                return Unavailable(f"PostgreSQL: {str(error).strip()}", hint="Check the database's URL and the server.")
        return error

    def _disconnect(self) -> None:
        self._reader.close()
        self._writer.close()

    # -- connections ----------------------------------------------------------------------------------------------

    def _connect(self, *, read_only: bool = False) -> psycopg.Connection[Any]:
        try:
            given = conninfo_to_dict(self._url)
        except psycopg.ProgrammingError as error:
            raise InvalidInput(f"the database's URL is none that PostgreSQL knows: {error}") from None
        wanted = _DEFAULTS | given | {"application_name": f"freehold-{self._schema}", "client_encoding": "utf8"}
        connection = psycopg.connect(**wanted, autocommit=True)
        try:
            settings = {"search_path": f'"{self._schema}"', "lock_timeout": f"{LOCK_SECONDS}s"}
            if connection.execute("SHOW synchronous_commit").fetchone() == ("off",):
                settings["synchronous_commit"] = "on"
            if read_only:
                settings["default_transaction_read_only"] = "on"
            for name, value in settings.items():
                connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect_writer(self) -> psycopg.Connection[Any]:
        connection = self._connect()
        if self._own is not None:
            try:
                connection.execute(self._own)
            except BaseException:
                connection.close()
                raise
        return connection

    def _again(self, connect: Callable[[], psycopg.Connection[Any]]) -> psycopg.Connection[Any]:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return connect()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_PAUSE)

    def _check_server(self) -> None:
        if self._writer.execute("SHOW fsync").fetchone() != ("on",):
            raise InvalidInput(
                "the PostgreSQL server runs with fsync off: what it acknowledges may be lost",
                hint="Set fsync = on in its postgresql.conf.",
            )

    # -- migrations -----------------------------------------------------------------------------------------------

    def _migrate(self, migrations: Sequence[str]) -> None:
        connection = self._writer
        with connection.transaction():
            connection.execute(self._take_turn)
            if connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (self._schema,)).fetchone() is None:
                connection.execute(f'CREATE SCHEMA "{self._schema}"')
            connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")
            check_version(self._version(), migrations)
        for step in range(len(migrations)):
            with connection.transaction():
                connection.execute(self._take_turn)
                if self._version() == step:
                    connection.execute(translate_types(migrations[step]))
                    connection.execute("DELETE FROM schema_version")
                    connection.execute("INSERT INTO schema_version VALUES (%s)", (step + 1,))

    def _version(self) -> int:
        row = self._writer.execute("SELECT version FROM schema_version").fetchone()
        return 0 if row is None else int(row[0])


class Portable:
    """A connection that takes SQL as it is written for both databases."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Cursor:
        """One statement. What fails raises psycopg's errors, which have the names of the DB-API, as sqlite3's do."""
        cursor: Cursor
        if parameters:
            cursor = self._connection.execute(translate_parameters(sql), parameters)
        else:
            cursor = self._connection.execute(sql)
        return cursor

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> None:
        """One statement for each of many rows, sent without waiting for each answer."""
        with self._connection.cursor() as cursor:
            cursor.executemany(translate_parameters(sql), parameters)


def _lock_of(name: str) -> int:
    return int.from_bytes(sha256(name.encode()).digest()[:8], signed=True)


@lru_cache(1024)
def translate_parameters(sql: str) -> str:
    """`?` outside quoted text becomes `%s`, and every `%` `%%`."""
    parts = _QUOTED.split(sql.replace("%", "%%"))
    return "".join(part if at % 2 else part.replace("?", "%s") for at, part in enumerate(parts))


def translate_types(sql: str) -> str:
    """The column types of a migration by PostgreSQL's names."""
    names = re.compile(r"\b(" + "|".join(_TYPES) + r")\b")
    parts = _QUOTED.split(sql)
    return "".join(part if at % 2 else names.sub(lambda m: _TYPES[m[1]], part) for at, part in enumerate(parts))
