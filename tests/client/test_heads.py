"""Heads as local files."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.client.bucket_heads import Head, LocalHeads
from freehold.protocol.errors import WrongPassphrase
from tests.client.heads_conformance import HeadsConformance, Make

SEED = b"s" * 32


class TestLocalHeads(HeadsConformance):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Make:
        return lambda: LocalHeads(tmp_path / "heads", SEED)


def test_another_seed_opens_nothing_not_even_an_empty_list(tmp_path: Path) -> None:
    LocalHeads(tmp_path, SEED)
    with pytest.raises(WrongPassphrase):
        LocalHeads(tmp_path, b"t" * 32)


def test_a_head_of_another_bucket_or_a_changed_one_does_not_open(tmp_path: Path) -> None:
    heads = LocalHeads(tmp_path, SEED)
    heads.compare_and_set("demo", None, Head(1, b"one"))
    (tmp_path / "other.head").write_bytes((tmp_path / "demo.head").read_bytes())
    with pytest.raises(WrongPassphrase):
        heads.read("other")
    raw = (tmp_path / "demo.head").read_bytes()
    for at in range(len(raw)):
        (tmp_path / "demo.head").write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises(WrongPassphrase):
            heads.read("demo")
    (tmp_path / "demo.head").write_bytes(raw[:5])
    with pytest.raises(WrongPassphrase):
        heads.read("demo")


def test_files_say_nothing_of_what_is_in_them(tmp_path: Path) -> None:
    LocalHeads(tmp_path, SEED).compare_and_set("demo", None, Head(1, b"a plain text that is not to be seen"))
    assert b"plain text" not in (tmp_path / "demo.head").read_bytes()
