"""The testnet's pure parts: Clique's rules, the first block, how the validators' program is found, built and read."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from freehold.chain.abi import creation_code
from freehold.chain.contracts import Registry
from freehold.chain.deploy import with_artifacts
from freehold.protocol.errors import Conflict
from freehold.protocol.units import Address
from testnet.genesis import FORK, SEAL, VANITY, build_genesis, compute_majority
from testnet.geth import MODULE, GoMissing, compute_name, ensure_geth, get_build_flags, parse_version
from testnet.network import SETTINGS, VALIDATORS
from testnet.validators import ENDS, HTTP, PEER, REORG

SIGNERS = [Address(bytes([n]) * 20) for n in (3, 1, 2)]


@pytest.mark.parametrize(("signers", "majority"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)])
def test_a_majority_is_more_than_half_and_no_more_than_needed(signers: int, majority: int) -> None:
    assert compute_majority(signers) == majority
    assert 2 * majority > signers >= 2 * (majority - 1)


def test_the_first_block_names_its_signers_in_order_and_no_fork_that_clique_refuses() -> None:
    genesis = build_genesis(7, 2, SIGNERS, [Address(b"\x09" * 20)])
    assert bytes.fromhex(genesis["extraData"][2:]) == VANITY + b"".join(sorted(map(bytes, SIGNERS))) + SEAL
    assert genesis["config"]["clique"] == {"period": 2, "epoch": 30_000}
    assert genesis["config"][f"{FORK}Block"] == 0
    assert not [name for name in genesis["config"] if name.endswith("Time")]  # Shanghai and later go by time
    assert list(genesis["alloc"]) == ["0x" + "09" * 20]


@pytest.mark.parametrize("signers", [[], [SIGNERS[0], SIGNERS[0]]])
def test_signers_must_be_there_and_differ(signers: list[Address]) -> None:
    with pytest.raises(ValueError, match="signers"):
        build_genesis(7, 2, signers, [])


def test_the_network_outlives_what_the_story_kills() -> None:
    assert VALIDATORS >= 4
    assert compute_majority(VALIDATORS) <= VALIDATORS - 1
    assert SETTINGS.finality_depth >= compute_majority(VALIDATORS)
    assert ENDS - 1 >= ENDS // 2 + 1  # of the RPC ends that a process has, one may be gone
    assert not SETTINGS.restart


@pytest.mark.parametrize(
    ("text", "version"),
    [("go version go1.26.8 linux/amd64\n", (1, 26)), ("go version go1.21rc2 darwin/arm64", (1, 21))],
)
def test_gos_version_is_read(text: str, version: tuple[int, int]) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize("text", ["go version go1.20.14 linux/amd64", "gcc 12", ""])
def test_a_go_that_is_too_old_or_none_is_said(text: str) -> None:
    with pytest.raises(GoMissing):
        parse_version(text)


def test_the_linker_is_told_only_where_it_would_refuse() -> None:
    assert "-ldflags=-checklinkname=0" in get_build_flags((1, 23))
    assert not [flag for flag in get_build_flags((1, 22)) if "checklinkname" in flag]


def test_the_binarys_name_follows_from_what_it_is_built_from(tmp_path: Path) -> None:
    for name in ("go.mod", "go.sum"):
        (tmp_path / name).write_bytes((MODULE / name).read_bytes())
    names = {compute_name(MODULE, "go1.26"), compute_name(tmp_path, "go1.26")}
    assert len(names) == 1
    names.add(compute_name(tmp_path, "go1.27"))
    (tmp_path / "go.sum").write_text("something else")
    names.add(compute_name(tmp_path, "go1.26"))
    assert len(names) == 3


def test_without_go_it_is_said_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FREEHOLD_GETH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("testnet.geth.PLACES", ())
    with pytest.raises(GoMissing) as missing:
        asyncio.run(ensure_geth(tmp_path, print))
    assert "FREEHOLD_GETH" in missing.value.advice


def test_what_geth_logs_is_understood() -> None:
    lines = (
        "INFO [11-21|13:38:10.344] HTTP server started       endpoint=127.0.0.1:45121 auth=false prefix=\n"
        "INFO [11-21|13:38:10.344] HTTP server started       endpoint=127.0.0.1:40793 auth=true  prefix=\n"
        f'INFO [11-21|13:38:10.345] Started P2P networking    self="enode://{"5a" * 64}@127.0.0.1:42717?discport=0"\n'
        "INFO [11-21|13:38:12.345] Chain reorg detected      number=24 hash=ab..cd drop=2 dropfrom=ab..cd add=3\n"
        "WARN [11-21|13:38:12.345] Large chain reorg detected number=24 hash=ab..cd drop=64 dropfrom=ab..cd add=3\n"
    )
    http, peer = HTTP.search(lines), PEER.search(lines)
    assert http is not None
    assert peer is not None
    assert http[1] == "45121"
    assert peer.groups() == ("5a" * 64, "42717")
    assert REORG.findall(lines) == ["2", "64"]


def test_code_of_another_fork_takes_the_same_arguments(tmp_path: Path) -> None:
    (tmp_path / "Registry.json").write_text(json.dumps({"bytecode": "0xc0de"}))
    call = Registry.create()
    call = call._replace(data=call.data + b"arguments")
    changed = with_artifacts({"Registry": call}, tmp_path)["Registry"]
    assert call.data.startswith(creation_code("Registry"))
    assert changed == call._replace(data=b"\xc0\xdearguments")


def test_one_run_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("vyper", reason="testnet.run compiles the contracts")
    from testnet.run import alone

    with alone(tmp_path / "lock"), pytest.raises(Conflict, match=f"process {os.getpid()}"), alone(tmp_path / "lock"):
        pass
    with alone(tmp_path / "lock"):
        pass
