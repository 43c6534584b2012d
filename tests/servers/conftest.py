"""The servers that these tests share: each starts once, when the first test asks for it, and is looked for first.

What a machine lacks is reported as not run, never as passed; with CI=true that is a failure (tests/conftest.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest

from tests.end_to_end.network import running, wait_for
from tests.servers import postgres_server, s3_server
from tests.servers.postgres_server import PostgresServer
from tests.servers.s3_programs import S3Account
from tests.servers.s3_server import S3Server

_numbers = count()


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL server, ended with the block."""
    pytest.importorskip("psycopg", reason="not run: psycopg is not installed (make test-servers installs it)")
    programs = postgres_server.find_programs()
    if programs is None:
        pytest.skip(postgres_server.MISSING)
    server = PostgresServer(programs)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def mortal_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of the test's own: after a kill it looks at every file of every database."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def database_url(postgres: PostgresServer) -> str:
    """An empty database of this test's own."""
    return postgres.create(f"test_{next(_numbers)}")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running S3 server."""
    pytest.importorskip("boto3", reason="not run: boto3 is not installed (make test-servers installs it)")
    program = s3_server.find_program()
    if program is None:
        pytest.skip(s3_server.MISSING)
    server = S3Server(program, tmp_path_factory.mktemp("s3"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def bucket_url(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket of this test's own; the environment says how to reach it."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    name = f"test-{next(_numbers)}"
    s3.create_bucket(name)
    return f"s3://{name}/some/prefix"


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Account]:
    """The S3 gateway of a local network with four members and eight nodes."""
    with running(tmp_path_factory.mktemp("network")) as network:
        wait_for(lambda: network.reported() >= 2, "reports count the client's credits")
        s3 = network.info["s3"]
        yield S3Account(s3["endpoint"], s3["access_key"], s3["secret"], s3["region"])
