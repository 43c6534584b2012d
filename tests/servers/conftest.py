"""The servers that these tests share: each starts once, when the first test asks for it, and is looked for first.

What a machine lacks is reported as not run, never as passed; with CI=true that is a failure (tests/conftest.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.servers import postgres_server
from tests.servers.postgres_server import PostgresServer

_numbers = count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL server."""
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


@pytest.fixture
def database_url(postgres: PostgresServer) -> str:
    """An empty database of this test's own."""
    return postgres.create(f"test_{next(_numbers)}")
