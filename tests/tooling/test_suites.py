"""The runner must fail on a failing command, on an overrun budget, and never on a suite without tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from scripts import suites
from scripts.suites import Suite


def run(monkeypatch: pytest.MonkeyPatch, budget: int, *commands: list[str]) -> list[str]:
    def get_commands() -> Iterator[list[str]]:
        yield from commands

    monkeypatch.setitem(suites.SUITES, "example", Suite(budget, get_commands))
    monkeypatch.setattr(suites, "SLOW", 1.0)
    return suites.run_suite("example")


def exit_with(code: int, *words: str) -> list[str]:
    return [sys.executable, "-c", f"raise SystemExit({code})", *words]


def test_success_has_no_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, 60, exit_with(0), exit_with(0)) == []


def test_every_failing_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = run(monkeypatch, 60, exit_with(1), exit_with(0), exit_with(3))
    assert [fault.split(" from ")[0] for fault in faults] == ["example: exit 1", "example: exit 3"]


def test_an_overrun_budget_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert any("of a budget of 0 s" in fault for fault in run(monkeypatch, 0, exit_with(0)))


def test_no_tests_is_said_and_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, 60, exit_with(suites.NO_TESTS, "pytest")) == []
    assert "0 passed, 0 failed" in capsys.readouterr().out


def test_the_exit_code_for_no_tests_counts_for_pytest_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(run(monkeypatch, 60, exit_with(suites.NO_TESTS))) == 1


def test_an_unknown_suite_is_a_usage_error() -> None:
    assert suites.main(["nothing"]) == 2
    assert suites.main([]) == 2
