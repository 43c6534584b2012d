"""Devices in fleets, with real processes: two hundred registered in one transaction, paid, moved, revoked, proven."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from freehold.protocol.units import ONE
from tests.end_to_end.network import DEADLINE, RunningNetwork, get_json, wait_for

pytestmark = pytest.mark.timeout(240)

DEVICES = 200
COVERAGE, MEMBERS = 10 * ONE, 5 * ONE  # of an epoch's schedule of 100 tokens


@pytest.fixture(scope="module")
def folder(network: RunningNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The devices' keys and list; their owner is the client's account."""
    folder = tmp_path_factory.mktemp("fleet") / "devices"
    made = network.ask("fleet", "make", "--devices", str(DEVICES), "--owner", "client", str(folder))
    assert made["devices"] == DEVICES
    return folder


@pytest.fixture(scope="module")
def fleet(network: RunningNetwork, folder: Path) -> Iterator[str]:
    """The fleet of operator-1, enrolled; its devices report in every epoch until the end."""
    registered = network.ask("fleet", "register", str(folder), "--wallet", "operator-1")
    assert registered["devices"] == DEVICES
    assert registered["gas"] < 200_000
    assert registered["gas_per_device"] == -(-registered["gas"] // DEVICES)
    again = network.ask("fleet", "register", str(folder), "--wallet", "operator-1")
    assert (again["fleet"], again["transaction"]) == (registered["fleet"], None)
    reporting = network.launch("fleet", "report", str(folder), "--epochs", "1000", "--json")
    url = f"{network.urls()['operator-1']}/v1/sensing/fleets/{registered['fleet']}"
    wait_for(lambda: bool((get_json(url) or {}).get("enrolled")), "the fleet is enrolled")
    yield registered["fleet"]
    reporting.send_signal(signal.SIGINT)
    out, err = reporting.communicate(timeout=DEADLINE)
    assert json.loads(out)["errors"][0]["code"] == "aborted", (out, err)


def test_a_fleet_from_its_registration_to_a_claim(network: RunningNetwork, fleet: str) -> None:
    enrolled = network.ask("fleet", "show", fleet[:12])["nodes"][0]["enrolled"]
    wait_for(lambda: network.reported() > enrolled, "an epoch in which the devices owe reports is over")
    paid = network.ask("why", "client", "--epoch", str(enrolled + 1))
    assert paid["services"]["sensing"]["live"] == DEVICES
    assert [(row["reason"], row["count"]) for row in paid["services"]["sensing"]["reports"]] == [("good", DEVICES)]
    (reward,) = paid["rewards"]
    assert (reward["service"], reward["measure"], reward["total"]) == ("sensing", DEVICES, DEVICES)
    assert int(reward["subsidy"]) == int(reward["pool"]) == int(paid["totals"]["tokens"]) == COVERAGE
    check_members_are_explained(network, enrolled + 1)

    revoked = network.ask("fleet", "revoke", fleet, "3", "--yes", "--wallet", "operator-1")
    assert revoked["what"] == "revoked"
    moved = network.ask("fleet", "move", fleet, "5", "--to", "operator-2")
    refused = network.run("fleet", "move", fleet, "5", "--to", "client", "--json").error
    assert refused["code"] == "refused"
    assert "only its owner" in refused["message"]
    epoch = network.wait_epochs(2)  # the first of them may have been anchored before

    owner = network.ask("why", "client", "--epoch", str(epoch))
    assert owner["services"]["sensing"]["live"] == DEVICES - 2
    assert [(row["reason"], row["count"]) for row in owner["services"]["sensing"]["reports"]] == [("good", DEVICES - 2)]
    assert int(owner["totals"]["tokens"]) == COVERAGE * (DEVICES - 2) // (DEVICES - 1)
    other = network.ask("why", "operator-2", "--epoch", str(epoch))
    assert [(row["service"], row["measure"]) for row in other["rewards"]] == [("sensing", 1)]
    operator = network.ask("why", "operator-1", "--epoch", str(epoch))
    assert operator["rewards"] == []
    assert [(row["reason"], row["count"]) for row in operator["services"]["sensing"]["operated"]] == [
        ("good", DEVICES - 1)
    ]
    assert operator["services"]["sensing"]["fleets"][0]["covered"] > DEVICES

    device = network.ask("fleet", "prove", fleet, "5")
    assert (device["live"], device["since"]) == (True, str(enrolled))
    assert device["owner"] == moved["to"] == other["account"]
    assert device["device"]["owner"] == owner["account"]  # as registered
    assert network.ask("fleet", "prove", fleet, "3")["live"] is False
    assert network.ask("epoch", "replay", str(epoch))["epoch"] == epoch
    check_claim(network)


def check_members_are_explained(network: RunningNetwork, epoch: int) -> None:
    """Three of four members observed, and are paid; the arithmetic is shown."""
    shown = network.run("why", "member-1", "--epoch", str(epoch))
    assert shown.code == 0, shown
    if "its observation is in the manifest" in shown.stdout:
        assert f"floor({MEMBERS} / 4 members) = {MEMBERS // 4}" in shown.stdout
    else:
        assert "why nothing: The epoch's manifest has Q members' observations" in shown.stdout


def check_claim(network: RunningNetwork) -> None:
    """What the owner earned arrives."""

    def claim() -> dict[str, Any] | None:
        claimed = network.ask("claim", "--as", "client")
        return claimed if int(claimed["claimed"]) else None

    claimed = wait_for(claim, "the owner's reward is active")
    assert int(claimed["balance"]) - int(claimed["balance_before"]) == int(claimed["claimed"]) >= COVERAGE
