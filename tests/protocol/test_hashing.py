"""Hashes of many rows at once against the plain hash, one row at a time: with and without kernels, with threads."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.protocol import hashing
from freehold.protocol.hashing import Gathered, first_of_equal, keccak_ragged, keccak_rows, spread_over
from freehold.protocol.tables import Table
from freehold.protocol.typed import Message, fields_of, keccak
from freehold.protocol.units import UNSIGNED
from freehold.services.judging import JUDGES
from tests.protocol.test_typed import message_of
from tests.protocol.world import DOMAIN

# Every message that the protocol and the services' judging halves define: JUDGES has imported them.
KINDS = sorted((k for k in Message.__subclasses__() if k.__module__.startswith("freehold.")), key=lambda k: k.__name__)


@contextlib.contextmanager
def kernels_used(used: bool) -> Iterator[None]:
    """Hash by the kernels, or never by them, whatever the number of rows."""
    pays = 1 if used else 2**60
    with patch.object(hashing, "LOADING_PAYS", pays), patch.object(hashing, "KERNEL_PAYS", pays):
        yield


def some_unsigned(rows: list[Message], blank: random.Random) -> list[Message]:
    signatures = [f.name for f in fields_of(type(rows[0])) if f.solidity == "signature"] if rows else []
    changed = []
    for row in rows:
        values = {name: getattr(row, name) for name in row.__struct_fields__}
        changed.append(type(row)(**values | {name: UNSIGNED for name in signatures if blank.random() < 0.4}))
    return changed


ROWS = st.sampled_from(KINDS).flatmap(lambda kind: st.tuples(st.just(kind), st.lists(message_of(kind), max_size=12)))


@given(ROWS, st.randoms(use_true_random=False), st.booleans())
def test_hashes_of_columns_are_those_of_the_messages(
    case: tuple[type[Message], list[Message]], blank: random.Random, kernels: bool
) -> None:
    kind, rows = case
    rows = some_unsigned(rows, blank)
    with kernels_used(kernels):
        table = Table.decode(kind, Table.of(kind, rows).encode())
        assert [h.tobytes() for h in table.struct_hashes] == [row.struct_hash() for row in rows]
        assert [h.tobytes() for h in table.digests(DOMAIN)] == [row.digest(DOMAIN) for row in rows]
        assert list(table.row_hashes) == [row.row_hash() for row in rows]
        assert table.root == Table.of(kind, rows).root


def test_every_service_is_among_the_kinds() -> None:
    assert {kind for judge in JUDGES.values() for kind in judge.kinds.values()} <= set(KINDS)


@settings(max_examples=40)
@given(st.integers(0, 40), st.integers(0, 300), st.integers(0, 2**32), st.booleans())
def test_parts_of_any_width_are_hashed_side_by_side(count: int, width: int, seed: int, kernels: bool) -> None:
    draw = np.random.default_rng(seed)
    cells = draw.integers(0, 256, (count, width), dtype=np.uint8)
    numbers = draw.integers(0, 2**63, count, dtype=np.uint64)
    words = Gathered(draw.integers(0, 256, (3, 5), dtype=np.uint8), draw.integers(0, 3, count))
    with kernels_used(kernels):
        hashes = keccak_rows([b"prefix", cells, numbers, words, b"suffix"], count)
    assert hashes.shape == (count, 32)
    for i in range(count):
        message = cells[i].tobytes() + int(numbers[i]).to_bytes(8) + words.values[words.codes[i]].tobytes()
        assert hashes[i].tobytes() == keccak(b"prefix" + message + b"suffix")


@pytest.mark.parametrize("size", [0, 1, 134, 135, 136, 137, 271, 272, 273])
def test_the_padding_is_right_at_the_edges_of_blocks(size: int) -> None:
    cells = np.arange(size * 9, dtype=np.int64).astype(np.uint8).reshape(9, size)
    with kernels_used(True):
        fixed = keccak_rows([cells], 9)
        ragged = keccak_ragged(cells.reshape(-1), np.arange(1, 10) * size)
    assert [h.tobytes() for h in fixed] == [keccak(cell.tobytes()) for cell in cells]
    assert (fixed == ragged).all()


@given(st.lists(st.binary(max_size=300), max_size=30), st.booleans())
def test_values_of_any_length_are_hashed_each_for_itself(values: list[bytes], kernels: bool) -> None:
    ends = np.cumsum([len(value) for value in values], dtype=np.int64)
    with kernels_used(kernels):
        hashes = keccak_ragged(np.frombuffer(b"".join(values), np.uint8), ends)
    assert [h.tobytes() for h in hashes] == [keccak(value) for value in values]


def test_threads_change_no_hash() -> None:
    count = 3_000
    cells = np.random.default_rng(1).integers(0, 256, (count, 200), dtype=np.uint8)
    ends = np.sort(np.random.default_rng(2).integers(0, cells.size, count))
    with kernels_used(True), patch.object(hashing, "CHUNK_BYTES", 20_000):
        alone = keccak_rows([cells], count), keccak_ragged(cells.reshape(-1), ends)
        with ThreadPoolExecutor(3) as pool, spread_over(pool.map, 3):
            spread = keccak_rows([cells], count), keccak_ragged(cells.reshape(-1), ends)
    assert all((a == b).all() for a, b in zip(alone, spread, strict=True))


def test_a_failure_in_a_thread_is_not_lost() -> None:
    def fail(start: int, stop: int) -> None:
        raise ValueError(f"{start} {stop}")

    with ThreadPoolExecutor(2) as pool, spread_over(pool.map, 2), pytest.raises(ValueError, match="0 "):
        hashing.for_ranges(100, 1, fail)


@given(st.integers(0, 1000), st.integers(0, 50), st.integers(1, 5))
def test_ranges_cover_all_rows_once(count: int, least: int, ways: int) -> None:
    seen: list[int] = []
    with spread_over(map, ways):
        hashing.for_ranges(count, least, lambda start, stop: seen.extend(range(start, stop)))
    assert seen == list(range(count))


def test_few_rows_do_not_load_the_compiler() -> None:
    import subprocess
    import sys

    program = (
        "import sys\n"
        "from freehold.protocol.messages import Close\n"
        "from freehold.protocol.tables import Table\n"
        "from freehold.protocol.typed import keccak\n"
        "rows = [Close(lease=keccak(bytes([i]))) for i in range(200)]\n"
        "Table.decode(Close, Table.of(Close, rows).encode()).root\n"
        "assert 'numba' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_kernels_are_compiled_where_their_code_can_be_kept_nowhere() -> None:
    from freehold.protocol import kernels

    asked = []

    def njit(signature: str, **options: bool) -> Any:
        asked.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: (signature, function)

    with patch.object(kernels, "njit", njit):
        assert kernels._compiled("signature")(len) == ("signature", len)
    assert asked == [{"nogil": True, "cache": True}, {"nogil": True}]


@given(st.lists(st.integers(0, 8), max_size=40), st.booleans())
def test_the_first_of_equal_hashes_is_kept(numbers: list[int], same_prefix: bool) -> None:
    hashes = [bytes(24) + i.to_bytes(8) if same_prefix else keccak(bytes([i])) for i in numbers]
    array = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32)
    expected: dict[Any, int] = {}
    for i, value in enumerate(hashes):
        expected.setdefault(value, i)
    assert first_of_equal(array).tolist() == sorted(expected.values())
