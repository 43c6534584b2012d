"""Heads as local files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from freehold.client.heads import Head, LocalHeads
from freehold.protocol.errors import Corrupt
from tests.client.heads_conformance import NAME, HeadsConformance, Make


class TestLocalHeads(HeadsConformance):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Make:
        return lambda: LocalHeads(tmp_path / "heads")


def test_a_file_that_is_no_head_is_corrupt(tmp_path: Path) -> None:
    heads = LocalHeads(tmp_path)
    asyncio.run(heads.compare_and_set(NAME, None, Head(1, b"one")))
    (tmp_path / f"{NAME}.head").write_bytes(b"\xc1")
    with pytest.raises(Corrupt):
        asyncio.run(heads.read(NAME))
