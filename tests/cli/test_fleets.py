"""A fleet's files: what `make` writes is what `register` and `report` read, and nothing else is taken for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.cli.fleet_files import LIST, SECRET, check_signatures, encode_list, make_fleet, read_keys, read_list
from freehold.market.network import CONTRACTS, MemberRecord, Network
from freehold.protocol.errors import Conflict, InvalidInput, NotFound
from freehold.protocol.fleets import FleetDevice
from freehold.protocol.keys import is_signed_by
from freehold.protocol.merkle import verify_row
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain
from freehold.protocol.units import ZERO_HASH
from tests.cli.runner import invoke
from tests.protocol.world import DOMAIN, MEMBERS, PARAMETERS, key

OWNER = key(1).address
CELL = 0x8928308280FFFFF


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A network file beside which nothing runs."""
    path = tmp_path / "network.json"
    Network(
        name="test",
        chain_id=DOMAIN.chain_id,
        rpc_url="http://127.0.0.1:1",
        contracts=dict.fromkeys(CONTRACTS, DOMAIN.contract),
        deployment_block=1,
        deployment_hash=ZERO_HASH,
        deployment_time=1,
        members=tuple(MemberRecord(member.address, member.public, "http://127.0.0.1:1") for member in MEMBERS),
        parameters=PARAMETERS,
    ).save(path)
    return path


def test_devices_sign_their_rows_and_every_one_has_its_proof(tmp_path: Path) -> None:
    made = make_fleet(tmp_path / "d", 5, OWNER, CELL, DOMAIN)
    read = read_list(tmp_path / "d", DOMAIN)
    assert read == made == read_list(tmp_path / "d" / LIST, DOMAIN)
    check_signatures(read, DOMAIN)
    for i, (row, device) in enumerate(zip(read, read_keys(tmp_path / "d", read), strict=True)):
        assert (row.device, row.owner, row.place) == (device.address, OWNER, CELL)
        assert is_signed_by(row, row.device_signature, device.address, DOMAIN)
        assert verify_row(read.root, 5, i, row.row_hash(), read.tree.proof(i))
    assert (tmp_path / "d" / SECRET).stat().st_mode & 0o777 == 0o600


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    make_fleet(tmp_path, 2, OWNER, CELL, DOMAIN)
    before = (tmp_path / SECRET).read_text()
    with pytest.raises(Conflict):
        make_fleet(tmp_path, 2, OWNER, CELL, DOMAIN)
    (tmp_path / LIST).unlink()
    with pytest.raises(Conflict):
        make_fleet(tmp_path, 2, OWNER, CELL, DOMAIN)
    assert (tmp_path / SECRET).read_text() == before


def test_a_list_that_was_changed_is_refused(tmp_path: Path) -> None:
    make_fleet(tmp_path, 3, OWNER, CELL, DOMAIN)
    path = tmp_path / LIST
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        changed = bytearray(data)
        changed[at] ^= 1
        path.write_bytes(bytes(changed))
        with pytest.raises(InvalidInput):
            read_list(tmp_path, DOMAIN)
    for wrong in (b"", data[:-1], data + b"\0", b"{}\n", data.partition(b"\n")[2]):
        path.write_bytes(wrong)
        with pytest.raises(InvalidInput):
            read_list(tmp_path, DOMAIN)
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match="another network"):
        read_list(tmp_path, Domain(DOMAIN.chain_id + 1, DOMAIN.contract))
    with pytest.raises(NotFound):
        read_list(tmp_path / "nowhere", DOMAIN)


def test_a_row_that_its_device_did_not_sign_is_named(tmp_path: Path) -> None:
    made = make_fleet(tmp_path, 4, OWNER, CELL, DOMAIN)
    rows = list(made)
    rows[2] = FleetDevice(
        device=rows[2].device, owner=key(2).address, place=CELL, device_signature=rows[2].device_signature
    )
    (tmp_path / LIST).write_bytes(encode_list(Table.of(FleetDevice, rows), DOMAIN))
    with pytest.raises(InvalidInput, match="the first is device 2"):
        check_signatures(read_list(tmp_path, DOMAIN), DOMAIN)


def test_keys_must_be_those_of_the_list(tmp_path: Path) -> None:
    devices = make_fleet(tmp_path, 2, OWNER, CELL, DOMAIN)
    (tmp_path / SECRET).write_text("ab" * 32)
    with pytest.raises(InvalidInput, match="not that of its devices"):
        read_keys(tmp_path, devices)
    (tmp_path / SECRET).write_text("nonsense")
    with pytest.raises(InvalidInput):
        read_keys(tmp_path, devices)
    (tmp_path / SECRET).unlink()
    with pytest.raises(NotFound, match="has no keys"):
        read_keys(tmp_path, devices)


def test_make_from_the_command_line(tmp_path: Path, network: Path) -> None:
    arguments = ("fleet", "make", "--devices", "3", "--owner", str(OWNER), "--network", str(network))
    made = invoke(tmp_path, *arguments, str(tmp_path / "d"), "--place", "8928308280fffff", "--json").data
    assert made["root"] == str(read_list(tmp_path / "d", DOMAIN).root)
    again = invoke(tmp_path, *arguments, str(tmp_path / "d"), "--json")
    assert (again.code, again.error["code"]) == (1, "conflict")
    for cell in ("hello", "ffffffffffffffff", "0"):
        assert invoke(tmp_path, *arguments, str(tmp_path / "e"), "--place", cell).code == 2
    assert not (tmp_path / "e").exists()


def test_what_is_for_good_asks_first(tmp_path: Path, network: Path) -> None:
    for command in (("revoke", "0x12", "3"), ("retire", "0x12")):
        asked = invoke(tmp_path, "fleet", *command, "--network", str(network))
        assert asked.code == 2
        assert "--yes" in asked.stderr
