"""The member's disk in a directory: SQLite and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.oracle.store import BUNDLES, Store, decode_state, encode_state
from freehold.protocol.errors import Corrupt
from tests.oracle.simulation import DOMAIN, World
from tests.oracle.store_conformance import ALLOWANCE, OpenStore, StoreConformance, commits, world

__all__ = ["world"]


class TestDirectory(StoreConformance):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        def open_store(allowance: int = ALLOWANCE, epochs: int = 2, fewest: int = BUNDLES) -> Store:
            return Store(tmp_path, allowance, epochs, DOMAIN, {}, fewest)

        return open_store


def test_a_state_keeps_its_words_and_damage_is_told(world: World) -> None:
    state = commits(world)[-1].settlement.state
    data = encode_state(state)
    assert decode_state(data, {}) == state
    for cut in (data[:3], data[:40], data[:-1], b"\xff" + data[1:]):
        with pytest.raises(Corrupt):
            decode_state(cut, {})
