"""Whatever arrives, a decoder gives a value or a typed error, soon, and takes no more memory than the bytes pay for.

`make fuzz` runs the same at length, and with atheris where it is installed (`run_atheris.py`). What it finds goes into
corpus/<decoder>/ and is tried here for good.
"""

from __future__ import annotations

import ast
import os
import random
import re
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import freehold
from freehold.protocol.errors import FreeholdError
from tests.conftest import LONG, SLOW
from tests.fuzz.decoders import EXEMPT, Decoder, all_decoders
from tests.fuzz.mutations import mutate

CORPUS = Path(__file__).parent / "corpus"
PACKAGE = Path(freehold.__file__).parent
DECODERS = all_decoders()
LOOKS_LIKE_A_DECODER = re.compile(
    r"^_?(decode|from_bytes|from_json|parse|unpack|deserialize|open_share|open_secret)(_|$)"
)
EXAMPLES = int(os.environ.get("FREEHOLD_FUZZ_EXAMPLES", "1000" if LONG["fuzz"] else "12"))
SECONDS = 5.0  # for one input of a few kilobytes: what takes this long grows faster than its input
FIXED_MEMORY, MEMORY_OF_BYTE = 2 << 20, 400


def check(decoder: Decoder, data: bytes) -> object:
    """What it decodes to; None where it is refused with a typed error. Encoded again, it must stay as it is."""
    try:
        value = decoder.decode(data)
    except FreeholdError:
        return None
    if decoder.encode is not None:
        again = decoder.encode(value)
        assert decoder.encode(decoder.decode(again)) == again
    return value


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_what_is_right_decodes_and_is_spelled_again(name: str) -> None:
    decoder = DECODERS[name]
    seeds = decoder.seeds()
    values = [check(decoder, seed) for seed in seeds]
    assert any(value is not None for value in values) or name in NEVER_RIGHT
    if decoder.encode is not None:
        assert [decoder.encode(decoder.decode(seed)) for seed in seeds] == list(seeds)


NEVER_RIGHT = {"account": "", "committed_epoch": "", "s3_acl": ""}


@pytest.mark.parametrize("name", sorted(DECODERS))
@settings(max_examples=EXAMPLES)
@given(seed=st.integers(0, 2**64))
def test_whatever_comes_is_a_value_or_a_typed_error(name: str, seed: int) -> None:
    decoder = DECODERS[name]
    data = mutate(decoder.seeds(), random.Random(seed))
    started = time.process_time()
    tracemalloc.start()
    try:
        check(decoder, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= FIXED_MEMORY + MEMORY_OF_BYTE * len(data), f"{peak} bytes for {len(data)}"
    assert time.process_time() - started < SECONDS * SLOW


def corpus() -> list[Path]:
    return sorted(path for path in CORPUS.rglob("*") if path.is_file() and path.name != "README.md")


@pytest.mark.parametrize("path", corpus(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_once_found_stays_mended(path: Path) -> None:
    check(DECODERS[path.parent.name], path.read_bytes())


def functions(tree: ast.AST, prefix: str) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}.{node.name}")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}.{node.name}"


def test_no_decoder_is_missing() -> None:
    found = {
        name
        for path in PACKAGE.rglob("*.py")
        for name in functions(ast.parse(path.read_text()), ".".join(path.relative_to(PACKAGE).with_suffix("").parts))
        if LOOKS_LIKE_A_DECODER.match(name.rpartition(".")[2]) and not name.startswith("cli.")
    }
    covered = {name for decoder in DECODERS.values() for name in decoder.covers}
    assert found - covered - set(EXEMPT) == set(), "give each a line in decoders.py, or a reason in EXEMPT"
    assert covered - found == set()
    assert set(EXEMPT) - found == set()
