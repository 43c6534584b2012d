"""What a process keeps, opened where its configuration says: beside it by default, elsewhere by address."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from freehold.protocol.errors import InvalidInput
from freehold.store.blob_store import BlobStore
from freehold.store.blobs import Blobs
from freehold.store.group_commit import GroupCommit
from freehold.store.sql import Database


def open_database(address: str | None, path: Path, schema: str, migrations: Sequence[str]) -> GroupCommit:
    """The file at `path`, or the `schema` of the PostgreSQL database at `postgresql://...`, which this process then has
    for itself. InvalidInput, Unavailable."""
    if address is None:
        return Database(path, migrations)
    if not address.startswith("postgresql://"):
        raise InvalidInput("a database's address begins with postgresql://")
    from freehold.store.postgres import Postgres

    return Postgres(address, schema, migrations, exclusive=True)


def open_blobs(address: str | None, directory: Path, allowance_bytes: int) -> BlobStore:
    """The blobs in `directory`, or in the bucket at `s3://BUCKET/PREFIX`. InvalidInput, Unavailable."""
    if address is None:
        return Blobs(directory, allowance_bytes)
    from freehold.store.bucket import Bucket

    return Bucket(address, allowance_bytes)
