"""What is committed is what the sources give: artifacts, and the gas table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import compile_contracts, gas_table
from tests.contracts.world import ORDER


def test_artifacts_are_those_of_the_sources() -> None:
    assert compile_contracts.find_differences(compile_contracts.compile_all(), compile_contracts.ARTIFACTS) == []


def test_a_changed_a_missing_and_a_stray_artifact_are_named(tmp_path: Path) -> None:
    (tmp_path / "Changed.json").write_text("{}")
    (tmp_path / "Stray.json").write_text("{}")
    built = {"Changed.json": "{ }", "Missing.json": "{}"}
    found = compile_contracts.find_differences(built, tmp_path)
    assert found == ["Changed.json", "Missing.json", "Stray.json"]


@pytest.mark.parametrize("name", ORDER)
def test_an_artifact_fits_the_code_size_limit(name: str) -> None:
    artifact = json.loads((compile_contracts.ARTIFACTS / f"{name}.json").read_text())
    assert artifact["name"] == name
    assert artifact["evm_version"] == compile_contracts.DEFAULT_EVM_VERSION
    assert 0 < len(artifact["bytecode"]) // 2 < 24_576


def test_contracts_compile_for_an_older_chain() -> None:
    built = compile_contracts.compile_contract(compile_contracts.CONTRACTS / "Ledger.vy", "cancun")
    assert built["evm_version"] == "cancun"


def test_the_gas_table_is_measured_and_within_its_ceilings() -> None:
    assert gas_table.find_problems(gas_table.measure_all(), gas_table.TABLE.read_text()) == []


@pytest.mark.parametrize(
    ("gas", "ceiling", "problems"), [(1_000, 0, 0), (1_010, 1_010, 0), (1_020, 0, 1), (980, 0, 1), (1_005, 1_004, 1)]
)
def test_a_drifted_or_exceeded_figure_is_a_problem(gas: int, ceiling: int, problems: int) -> None:
    row = gas_table.Row("A.b", "first", 1_000)
    written = gas_table.render([row])
    assert len(gas_table.find_problems([row._replace(gas=gas, ceiling=ceiling)], written)) == problems
    assert len(gas_table.find_problems([row, row._replace(case="later")], written)) == 1
    assert len(gas_table.find_problems([], written)) == 1
