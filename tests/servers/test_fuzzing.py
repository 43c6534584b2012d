"""The parsers of S3's requests under atheris, guided by what they cover, for seconds each; `make fuzz` takes longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SLOW

SECONDS = 4
PARSERS = ["s3_request", "s3_chunks", "s3_policy", "s3_form", "s3_lifecycle"]


@pytest.mark.parametrize("name", PARSERS)
def test_no_bytes_break_a_parser(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="not run: atheris has wheels for Linux on x86-64 only")
    found, seeds = tmp_path / "found", tmp_path / "seeds"
    found.mkdir()
    seeds.mkdir()
    command = [sys.executable, "-m", "tests.fuzz.run_atheris", name, str(SECONDS), str(found), str(seeds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50 * SLOW, check=False)
    broken = {path.name: path.read_bytes() for path in found.iterdir()}
    assert (done.returncode, broken) == (0, {}), done.stderr[-3000:]
    assert "seed corpus: files: " in done.stderr
