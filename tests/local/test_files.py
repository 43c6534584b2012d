"""A local network's directory: one supervisor at a time, settings that stay, ports that are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from freehold.local.files import LocalFiles
from freehold.local.parameters import DEFAULT, LocalSettings
from freehold.protocol.errors import Conflict, InvalidInput
from freehold.protocol.units import MEASURE_LIMIT
from freehold.services.compute.court import needed_thaw
from freehold.services.compute.terms import KEPT_EPOCHS


def test_one_supervisor_at_a_time(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "local")
    with files.lock():
        with pytest.raises(Conflict, match="runs already"):
            LocalFiles(tmp_path / "local").lock()
        LocalFiles(tmp_path / "other").lock().close()
    files.lock().close()


def test_the_defaults_make_a_network() -> None:
    DEFAULT.parameters().check()
    emission = 2 * DEFAULT.parameters().initial_subsidy * DEFAULT.parameters().halving_epochs
    assert emission <= DEFAULT.cap - DEFAULT.initial_supply
    spent = DEFAULT.operators * (DEFAULT.bond + DEFAULT.operator_tokens) + DEFAULT.client_tokens
    assert spent <= DEFAULT.initial_supply
    assert DEFAULT.client_credits * 10**18 // DEFAULT.price < DEFAULT.client_tokens


def test_no_bond_is_gone_before_the_longest_case_over_a_receipt_takes_it() -> None:
    for settings in (DEFAULT, DEFAULT._replace(epoch_length=1, dispute_window=600)):
        parameters = settings.parameters()
        assert parameters.thaw_epochs >= KEPT_EPOCHS + needed_thaw(MEASURE_LIMIT - 1, parameters)


def test_a_network_keeps_the_settings_it_was_made_with(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "local")
    files.root.mkdir()
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"epoch_length": 3, "step": 1, "poll": 1, "restart": False}))
    assert files.read_settings() == DEFAULT
    made = files.read_settings(given)
    assert (made.epoch_length, made.step, made.restart) == (3, 1, False)
    files.write_settings(made)
    given.write_text(json.dumps({"epoch_length": 4}))
    assert files.read_settings(given) == files.read_settings() == made


@pytest.mark.parametrize(
    "value", [[], {"epochs": 3}, {"epoch_length": "3"}, {"epoch_length": 3.5}, {"restart": 1}, {"step": "no"}]
)
def test_settings_that_make_no_sense_are_named(value: object) -> None:
    with pytest.raises(InvalidInput):
        LocalSettings.from_json(value)


def test_ports_are_kept_for_the_next_start(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "local")
    files.root.mkdir()
    assert files.last_port("member-1") == 0
    files.write_member("member-1", DEFAULT, 0)
    files.keep_port("member-1", "http://127.0.0.1:4321")
    assert files.last_port("member-1") == 4321


def test_the_price_is_the_users_once_written(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    files.write_price(5)
    files.write_price(6)
    assert json.loads(files.price.read_text()) == {"price": "5"}
