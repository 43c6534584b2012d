"""What a spec names on this machine: found missing before anything is ordered, at its line and column."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from freehold.client import jobs_sources
from freehold.client.jobs_sources import check_sources
from freehold.client.jobs_spec import parse
from freehold.client.jobs_yaml import SpecError

MISTAKES = [
    # spec, line, column, what the message says, what the hint says
    ("python: prime.py\n", 1, 9, "there is no file", "Did you mean 'primes.py'?"),
    ("c: nowhere/a.c\n", 1, 4, "there is no file", "There is no folder"),
    ("wasm: empty\n", 1, 7, "wasm: ", ""),
    ("wasm: empty\n", 1, 7, "is a folder", ""),
    ("steps:\n- {name: a, script: x}\n- {name: b, program: ./tool}\n", 3, 22, "there is no file", ""),
    ("python: primes.py\nstdin: lines\n", 2, 8, "there is no file", "Did you mean 'lines.txt'?"),
    ("python: primes.py\ninputs:\n  x: lines.text\n", 3, 6, "there is no file", ""),
    ("python: primes.py\ninputs:\n  x: empty\n", 3, 6, "is a folder", 'write "empty/"'),
    ("python: primes.py\ninputs:\n  x/: empty/\n", 3, 7, "there is no file below", ""),
    ("python: primes.py\ninputs:\n  x/: nothing/\n", 3, 7, "there is no folder", ""),
    ("python: primes.py\nmap: {lines: nothing.txt}\n", 2, 14, "there is no file", ""),
    ("python: primes.py\nmap: nothing/\n", 2, 6, "there is no folder", ""),
    ("python: primes.py\ninputs: {x: {base64: '=='}}\n", 2, 22, "not base64", ""),
    ("python: primes.py\ninputs: {x: pipe}\n", 2, 13, "no file that can be read to its end", ""),
    ("python: primes.py\ninputs: {x: large}\n", 2, 13, "at most 1000 as one file", ""),
    ("python: primes.py\noutput: lines.txt\n", 2, 9, "files are to go into a folder", ""),
    ("python: primes.py\noutput: lines.txt/below\n", 2, 9, "files are to go into a folder", ""),
]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name in ("primes.py", "lines.txt"):
        (tmp_path / name).write_text("x\n")
    (tmp_path / "large").write_bytes(bytes(1001))
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("a")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize(("text", "line", "column", "message", "hint"), MISTAKES)
def test_what_is_missing_is_shown_where_it_is_named(
    base: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: int, column: int, message: str, hint: str
) -> None:
    monkeypatch.setattr(jobs_sources, "LARGEST", 1000)
    with pytest.raises(SpecError) as caught:
        check_sources(parse(text.encode(), "job.yaml"), base)
    assert message in caught.value.message
    assert hint in caught.value.advice
    assert caught.value.message.startswith(f"job.yaml:{line}:{column}: ")


def test_what_is_there_is_taken(base: Path) -> None:
    text = """
        python: primes.py
        stdin: lines.txt
        inputs: {a: lines.txt, b: {text: x}, c: "fh://demo/none", d: "https://example.org/x", e/: full/}
        map: {lines: lines.txt}
        output: results/new/
    """
    check_sources(parse(text.encode(), "job.yaml"), base)
    assert not (base / "results").exists()
