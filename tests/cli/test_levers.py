"""What the governor may change of the parameters, and what contracts have fixed."""

from __future__ import annotations

from typing import Any

import pytest

from freehold.cli.parameters import FIXED, KEPT, change
from freehold.protocol.errors import FreeholdError, InvalidInput
from freehold.protocol.parameters import Parameters
from freehold.protocol.typed import fields_of
from tests.protocol.world import PARAMETERS


def test_what_is_named_changes_and_the_rest_stays() -> None:
    after = change(PARAMETERS, {"tau": 1, "minimum_bond": "5"})
    assert (after.tau, after.minimum_bond) == (1, 5)
    assert after.to_json() | {"tau": PARAMETERS.tau, "minimum_bond": str(PARAMETERS.minimum_bond)} == (
        PARAMETERS.to_json()
    )
    assert change(PARAMETERS, PARAMETERS.to_json()) == PARAMETERS


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tua": 1}, "no parameter 'tua'"),
        ({"tau": 1_000_000}, "tau"),
        ({"tau": "much"}, "tau"),
        ({"member_share": 600_000, "coverage_share": 600_000}, "whole schedule"),
        ({"claim_epochs": 1}, "claim_epochs is fixed"),
    ],
)
def test_what_cannot_be_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(FreeholdError, match=said):
        change(PARAMETERS, changes)


@pytest.mark.parametrize("name", FIXED)
def test_what_contracts_go_by_is_not_changed(name: str) -> None:
    value = PARAMETERS.to_json()[name]
    with pytest.raises(InvalidInput, match=f"{name} is fixed"):
        change(PARAMETERS, {name: str(int(value) + 1) if isinstance(value, str) else value + 1})


def test_every_fixed_parameter_is_one() -> None:
    assert {*FIXED, *KEPT} <= {field.name for field in fields_of(Parameters)}
    assert not set(FIXED) & set(KEPT)
