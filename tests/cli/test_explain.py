"""`why` and `epoch replay` on bundle files: every step is there, it adds up, and nothing is left unexplained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from freehold import cli
from freehold.cli.bundles import check_bundle
from freehold.cli.explain import explain
from freehold.protocol.bundle import encode_bundle
from freehold.protocol.errors import NotFound, ReplayMismatch
from freehold.protocol.units import Address, Hash
from freehold.services.explaining import Explainer
from freehold.services.judging import EXPLAINERS
from tests.cli.runner import invoke
from tests.protocol.world import World, busy_world, key

OPERATORS = [key(5000 + i).address for i in range(3)]


@pytest.fixture(scope="module")
def world() -> World:
    """Epoch 1: nothing; 2: leases open; 3: all prove; 4: the first node is silent; 5: two of three are."""
    world = busy_world()
    world.settle(world.proofs())
    world.settle(world.proofs(frozenset([world.nodes[0].address])))
    world.settle(world.proofs(frozenset(node.address for node in world.nodes[:2])))
    return world


def why(world: World, epoch: int, subject: Address) -> dict[str, Any]:
    return explain(check_bundle(encode_bundle(world.bundles[epoch - 1]), epoch, None, None), subject)


def test_a_paid_epoch_is_explained_from_evidence_to_proof(world: World) -> None:
    told = why(world, 3, OPERATORS[0])
    settlement = world.settlements[2]
    assert [v["reason"] for v in told["verdicts"]] == ["good"] * 4
    assert all(v["obligation"]["offset"] < v["obligation"]["size"] for v in told["verdicts"])
    (contribution,) = told["contributions"]
    assert contribution["measure"] == contribution["held"] * contribution["seconds"] == (5000 + 4096 + 1) * 20
    (payment,) = told["payments"]
    paid = next(p for p in settlement.payments if p.operator == OPERATORS[0])
    assert int(payment["credits"]) == paid.credits
    assert int(told["totals"]["tokens"]) == paid.earned + paid.subsidy > 0
    before, after = (int(told["settled"][when]["tokens_earned"]) for when in ("before", "after"))
    assert after - before == paid.earned + paid.subsidy
    assert told["settled"]["root"] == str(settlement.report.accounts_root)
    assert told["zero"] == []


def test_the_node_the_operator_and_the_client_see_the_same_payment(world: World) -> None:
    node = world.nodes[0].address
    by_node, by_operator = why(world, 3, node), why(world, 3, OPERATORS[0])
    assert by_node["payments"] == by_operator["payments"]
    assert by_node["account"] == str(OPERATORS[0])
    by_client = why(world, 3, key(1).address)
    assert by_operator["payments"][0] in by_client["payments"]
    assert len(by_client["payments"]) == 3
    assert int(by_client["totals"]["spent"]) == sum(int(p["credits"]) for p in by_client["payments"])


@pytest.mark.parametrize(
    ("epoch", "says"),
    [
        (1, "held nothing after the epoch before"),
        (2, "challenged and paid from the next on"),
        (4, "4 x silent"),
        (5, "4 x slept"),
    ],
)
def test_nothing_is_explained_too(world: World, epoch: int, says: str) -> None:
    told = why(world, epoch, OPERATORS[0])
    assert told["totals"]["tokens"] == "0"
    assert any(says in reason for reason in told["zero"]), told["zero"]


def test_who_is_unknown_is_said(world: World) -> None:
    with pytest.raises(NotFound, match="knows no operator"):
        why(world, 3, key(77).address)


def test_a_changed_bundle_explains_nothing(world: World) -> None:
    data = bytearray(encode_bundle(world.bundles[2]))
    data[len(data) // 2] ^= 1
    with pytest.raises(ReplayMismatch):
        check_bundle(bytes(data), 3, None, None)


@pytest.fixture
def bundle(world: World, tmp_path: Path) -> Path:
    path = tmp_path / "3.bundle"
    path.write_bytes(encode_bundle(world.bundles[2]))
    return path


def test_why_prints_every_step(world: World, bundle: Path, tmp_path: Path) -> None:
    shown = invoke(tmp_path, "why", str(OPERATORS[0]), "--bundle", str(bundle))
    assert shown.code == 0, shown
    paid = next(p for p in world.settlements[2].payments if p.operator == OPERATORS[0])
    for number in (paid.measure, paid.price, paid.credits, paid.released, paid.earned, paid.burned, paid.subsidy):
        assert str(number) in shown.stdout
    assert str(world.settlements[2].report.accounts_root) in shown.stdout
    assert "4 x storage.proof: good" in shown.stdout
    assert "not compared with a chain" in shown.stderr


def test_a_service_that_says_nothing_of_its_own_is_explained_too(
    world: World, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = why(world, 3, OPERATORS[0])
    monkeypatch.setitem(EXPLAINERS, "storage", Explainer)
    told = why(world, 3, OPERATORS[0])
    assert told["services"] == {}
    assert [told[name] for name in ("verdicts", "payments", "totals", "settled")] == [
        full[name] for name in ("verdicts", "payments", "totals", "settled")
    ]
    shown = invoke(tmp_path, "why", str(OPERATORS[0]), "--bundle", str(bundle))
    assert shown.code == 0, shown
    assert f"a measure of {told['contributions'][0]['measure']}" in shown.stdout
    with pytest.raises(NotFound, match="knows no piece of work"):
        explain(check_bundle(bundle.read_bytes(), 3, None, None), Hash(bytes.fromhex(told["payments"][0]["lease"][2:])))


def test_a_lease_for_storage_is_told_with_its_payment(world: World, bundle: Path, tmp_path: Path) -> None:
    (payment,) = why(world, 3, OPERATORS[0])["payments"]
    told = invoke(tmp_path, "why", payment["lease"], "--bundle", str(bundle), "--json").data
    assert (told["what"], told["service"], told["payments"]) == ("lease", "storage", [payment])
    assert told["held"] == 5000 + 4096 + 1
    shown = invoke(tmp_path, "why", payment["lease"], "--bundle", str(bundle)).stdout
    assert f"held {told['held']} bytes under it" in shown
    assert payment["owed"] in shown


def test_why_names_no_service() -> None:
    """A new service is explained without a change here: what is its own, it says itself."""
    for path in sorted(Path(cli.__file__).parent.glob("*.py")):
        if path.stem.startswith(("explain", "why")):
            text = path.read_text(encoding="utf-8")
            assert not [name for name in EXPLAINERS if f"services.{name}" in text or f'"{name}"' in text], path


def test_replay_of_a_file_equals_what_was_signed(world: World, bundle: Path, tmp_path: Path) -> None:
    told = invoke(tmp_path, "epoch", "replay", "3", "--bundle", str(bundle), "--offline", "--json").data
    assert told["report"] == str(world.settlements[2].report.struct_hash())
    assert told["on_chain"] is None
    alone = invoke(tmp_path, "epoch", "replay", "3", "--bundle", str(bundle))
    assert (alone.code, "NOT compared with a chain" in alone.stdout) == (0, True)
    other = invoke(tmp_path, "epoch", "replay", "4", "--bundle", str(bundle), "--offline", "--json")
    assert other.error["code"] == "replay_mismatch"
    assert other.error["details"]["first"] == "report.epoch"


def test_replay_of_a_changed_file_names_the_first_difference(bundle: Path, tmp_path: Path) -> None:
    data = bytearray(bundle.read_bytes())
    place = data.rfind(b'"tokens_earned"')
    data[place + 20] ^= 1
    bundle.write_bytes(bytes(data))
    failed = invoke(tmp_path, "epoch", "replay", "3", "--bundle", str(bundle), "--offline", "--json")
    assert failed.code == 1
    assert failed.error["code"] == "replay_mismatch"
    assert failed.error["details"]["first"] == "report.json"
