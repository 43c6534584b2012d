"""What builds programs: where it is not installed, its absence has a name and a remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from freehold.protocol.errors import FreeholdError, InvalidInput, NotFound, Unavailable
from freehold.services.compute import toolchain

EXAMPLES = Path(__file__).parents[3] / "examples"


def answer(monkeypatch: pytest.MonkeyPatch, code: int, made: bytes, said: str = "") -> list[list[str]]:
    """Let commands end like this; the list fills with them."""
    commands = []

    def run(command: list[str], *_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if not code:
            Path(command[command.index("-o") + 1]).write_bytes(made)
        return subprocess.CompletedProcess(command, code, "", said)

    monkeypatch.setattr(toolchain, "_run", run)
    monkeypatch.setattr(toolchain, "_need", lambda *_: None)
    monkeypatch.setattr(toolchain, "version", lambda _: "1.0")
    return commands


def test_a_missing_tool_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for action, tool in (
        (lambda: toolchain.python_runner(tmp_path), "componentize-py"),
        (lambda: toolchain.compile_c(EXAMPLES / "mandelbrot.c", tmp_path), "ziglang"),
    ):
        with pytest.raises(toolchain.MissingTool, match=tool) as caught:
            action()
        assert "pip install" in caught.value.advice
        assert not caught.value.retryable
        assert isinstance(FreeholdError.from_json(caught.value.to_json()), toolchain.MissingTool)


def test_the_runner_is_built_once_for_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = answer(monkeypatch, 0, b"runner")
    first = toolchain.python_runner(tmp_path)
    assert toolchain.python_runner(tmp_path) == first
    assert (len(commands), first.read_bytes()) == (1, b"runner")
    monkeypatch.setattr(toolchain, "version", lambda _: "2.0")
    assert toolchain.python_runner(tmp_path) != first
    assert len(list(tmp_path.glob("*.wasm"))) == 1  # the old one is gone


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, 1, b"", "something is wrong")
    with pytest.raises(Unavailable, match="something is wrong"):
        toolchain.python_runner(tmp_path)
    source = tmp_path / "program.c"
    source.write_text("int main() { return x; }")
    with pytest.raises(InvalidInput, match="does not compile"):
        toolchain.compile_c(source, tmp_path)
    with pytest.raises(NotFound, match=r"none\.c"):
        toolchain.compile_c(tmp_path / "none.c", tmp_path)
    assert list(tmp_path.glob("*.wasm")) == []


def test_c_is_compiled_again_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = answer(monkeypatch, 0, b"module")
    source = tmp_path / "program.c"
    source.write_text("int main() { return 0; }")
    first = toolchain.compile_c(source, tmp_path)
    assert toolchain.compile_c(source, tmp_path) == first
    source.write_text("int main() { return 1; }")
    assert toolchain.compile_c(source, tmp_path) != first
    assert len(commands) == 2


@pytest.mark.parametrize(
    ("bound", "said"),
    [
        ("1000000", "78498 primes below 1000000, the last is 999983\n"),
        ("2", "0 primes below 2\n"),
        ("3", "1 primes below 3, the last is 2\n"),
    ],
)
def test_primes_runs_anywhere(bound: str, said: str) -> None:
    ended = subprocess.run([sys.executable, EXAMPLES / "primes.py", bound], capture_output=True, text=True, check=True)
    assert ended.stdout == said
