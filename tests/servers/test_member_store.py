"""A member's disk past its machine: rows in PostgreSQL, blobs in an S3 bucket."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.oracle.store import BUNDLES, Store
from tests.oracle.simulation import DOMAIN
from tests.oracle.store_conformance import ALLOWANCE, OpenStore, StoreConformance, world

__all__ = ["world"]


class TestServers(StoreConformance):
    @pytest.fixture
    def open_store(self, tmp_path: Path, database_url: str, bucket_url: str) -> OpenStore:
        def open_store(allowance: int = ALLOWANCE, epochs: int = 2, fewest: int = BUNDLES) -> Store:
            store = Store(tmp_path, allowance, epochs, DOMAIN, {}, fewest, database_url, bucket_url)
            assert list(tmp_path.iterdir()) == []
            return store

        return open_store
