"""A whole network over https: every party has a certificate of its own, and files, votes and payments go on as ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from freehold.market.network import Network
from freehold.protocol.units import ZERO_HASH
from tests.end_to_end.files import hash_of, make_file
from tests.end_to_end.network import DEADLINE, RunningNetwork, get_json, wait_for

SIZE = 16 * 2**20
SETTINGS: dict[str, Any] = {"tls": True, "restart": True}

pytestmark = pytest.mark.timeout(240)


def listed(network: RunningNetwork) -> dict[str, str]:
    """The members' certificates, by the network file."""
    members = Network.load(network.local / "network.json").members
    return {member.url: str(member.fingerprint) for member in members}


def test_everybody_is_at_https_with_a_certificate_of_its_own(network: RunningNetwork) -> None:
    told = network.ask("status")
    assert told["healthy"], told["problems"]
    assert len(told["processes"]) == 12
    assert all(process["url"].startswith("https://") for process in told["processes"])
    offered = {
        get_json(f"{url}/v1/offers")[0]["fingerprint"]
        for name, url in network.urls().items()
        if name.startswith("operator")
    }
    known = offered | set(listed(network).values())
    assert len(known) == 12
    assert str(ZERO_HASH) not in known
    doctor = network.run("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(doctor.stdout)["data"]["checks"]}
    assert checks["members"]["ok"], checks
    assert checks["operators"]["ok"], checks
    assert checks["clock"]["ok"], checks


def test_a_file_goes_there_and_back_and_members_vote(network: RunningNetwork, tmp_path: Path) -> None:
    digest = make_file(tmp_path / "data.bin", SIZE)
    network.ask("cp", str(tmp_path / "data.bin"), "fh://demo/data.bin", "--yes")
    network.ask("cp", "fh://demo/data.bin", str(tmp_path / "back.bin"), "--yes")
    assert hash_of(tmp_path / "back.bin") == digest
    # Reports need the votes of three of four members, which reach each other with pinned certificates alone.
    network.wait_epochs(2)


def test_a_member_and_a_node_come_back_with_other_certificates(network: RunningNetwork, tmp_path: Path) -> None:
    before = listed(network)
    for name in ("member-1", "operator-1"):
        folder = network.local / "processes" / name / "data" / "tls"
        (folder / "certificate.pem").unlink()
        network.kill(name)
        url = network.urls()[name]
        wait_for(lambda url=url: get_json(f"{url}/readyz"), f"{name} is back")  # type: ignore[misc]
    changed = network.urls()["member-1"]
    wait_for(lambda: listed(network)[changed] != before[changed], "the network file names the new certificate")
    network.wait_epochs(2)
    wait_for(lambda: network.ask("status")["healthy"], "all is well", DEADLINE)
    make_file(tmp_path / "more.bin", SIZE)
    network.ask("cp", str(tmp_path / "more.bin"), "fh://demo/more.bin", "--yes")
