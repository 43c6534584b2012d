"""`why` for compute: an order, a receipt, a case, a lease, and whose they are; each step from evidence to payment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freehold.cli.bundles import Checked, check_bundle
from freehold.cli.explain import Explanation, explain
from freehold.protocol.bundle import encode_bundle
from freehold.protocol.errors import NotFound, ReplayMismatch
from freehold.protocol.tables import Table
from freehold.protocol.units import Address, Hash
from freehold.protocol.verdicts import Contribution
from freehold.services.compute.terms import OPINION, Dispute, Receipt
from freehold.services.judging import JUDGES
from tests.cli.runner import invoke
from tests.protocol.world import PARAMETERS, key
from tests.services.compute_life import CLIENT, CREDIT, NODES, SECOND, ComputeLife
from tests.services.compute_world import WRONG_OUTPUT

HONEST, CHEAT = NODES[:2]
FIRST = 3  # the epoch in which receipts come


class Told(ComputeLife):
    """3: two receipts that contradict each other, and another; 4: a dispute; 5: referees are drawn; 6: they decide."""

    def __init__(self) -> None:
        super().__init__()
        self.right, self.wrong = self.run(HONEST, 1), self.run(CHEAT, 1, WRONG_OUTPUT)
        self.other = self.run(HONEST, 2, measure=3 * SECOND)
        self.settle(self.receipts(self.right, self.wrong, self.other))
        self.settle([self.dispute(self.right, self.wrong)])
        self.settle([])
        self.settle(self.opinions())


@pytest.fixture(scope="module")
def life() -> Told:
    return Told()


def checked(life: Told, epoch: int) -> Checked:
    return check_bundle(encode_bundle(life.bundles[epoch - 1]), epoch, None, None)


def why(life: Told, epoch: int, subject: Address | Hash) -> dict[str, Any]:
    return explain(checked(life, epoch), subject)


def order_id(receipt: Receipt) -> Hash:
    return receipt.order().struct_hash()


def test_an_order_is_told_from_its_receipt_to_its_payment(life: Told) -> None:
    order = order_id(life.other)
    told = [why(life, epoch, order) for epoch in (FIRST, FIRST + 1, FIRST + 2)]
    assert [one["paid"] for one in told] == [False, True, False]
    assert [one["stand"].split(":")[0] for one in told] == ["waits", "paid", "paid"]
    assert told[0]["receipts"] == [
        {
            "subject": str(life.other.row_hash()),
            "reason": "good",
            "means": "it waits this epoch, and is paid in the next unless it is disputed",
            "measure": 3 * SECOND,
        }
    ]
    (payment,) = told[1]["payments"]
    assert (payment["measure"], payment["owed"]) == (3 * SECOND, str(3 * CREDIT))
    assert told[0]["payments"] == told[2]["payments"] == []
    assert why(life, FIRST, life.other.row_hash())["order"] == str(order)


def test_a_case_is_told_from_its_dispute_to_the_bond(life: Told) -> None:
    dispute = Dispute(client=CLIENT.address, first=life.right, second=life.wrong, kind=1, steps=())
    told = {epoch: why(life, epoch, dispute.case()) for epoch in range(FIRST + 1, FIRST + 4)}
    assert [len(one["seats"]) for one in told.values()] == [0, 3, 3]
    assert [one["open"] for one in told.values()] == [True, True, False]
    assert [one["reason"] for one in told[FIRST + 1]["disputes"]] == ["good"]
    last = told[FIRST + 3]
    assert all((one["first"], one["second"], one["reason"]) == (True, False, "good") for one in last["opinions"])
    assert [one["reason"] for one in last["ruled"]] == ["good", "wrong_result"]
    (slash,) = last["slashes"]
    assert (slash["node"], slash["amount"]) == (str(CHEAT.address), str(PARAMETERS.wrong_result_slash))
    assert why(life, FIRST + 1, dispute.row_hash())["case"] == str(dispute.case())
    cheated = why(life, FIRST + 3, order_id(life.wrong))
    assert (cheated["ruled"]["reason"], cheated["paid"]) == ("wrong_result", False)


def test_a_lease_and_its_node_and_its_client_see_the_same_orders(life: Told) -> None:
    lease = life.leases[HONEST.address].struct_hash()
    told = why(life, FIRST + 1, lease)
    assert {order["order"] for order in told["orders"]} == {str(order_id(life.right)), str(order_id(life.other))}
    assert told["measure"] == 3 * SECOND
    by_node = why(life, FIRST + 1, HONEST.address)
    assert by_node["services"]["compute"]["paid"] == [order for order in told["orders"] if order["paid"]]
    assert by_node["payments"] == told["payments"]
    by_client = why(life, FIRST + 1, CLIENT.address)
    assert len(by_client["services"]["compute"]["orders"]) == 3
    assert len(by_client["services"]["compute"]["cases"]) == 1
    assert why(life, FIRST + 3, CLIENT.address)["services"]["compute"]["slashes"]


def test_nothing_is_explained_too(life: Told) -> None:
    told = why(life, FIRST, HONEST.address)
    assert told["totals"]["tokens"] == "0"
    assert any("2 of its orders: waits" in reason for reason in told["zero"])
    idle = next(node for node in NODES if str(node.address) not in {one["node"] for one in concerned(life)})
    assert why(life, FIRST, idle.address)["services"].get("compute") is None
    with pytest.raises(NotFound, match="knows no piece of work"):
        why(life, FIRST, Hash(bytes(31) + b"\x07"))
    with pytest.raises(NotFound):
        why(life, FIRST, key(99).address)


def concerned(life: Told) -> list[dict[str, Any]]:
    dispute = Dispute(client=CLIENT.address, first=life.right, second=life.wrong, kind=1, steps=())
    seats: list[dict[str, Any]] = why(life, FIRST + 3, dispute.case())["seats"]
    return [*seats, {"node": str(HONEST.address)}, {"node": str(CHEAT.address)}]


def test_sums_that_do_not_add_up_are_an_error(life: Told) -> None:
    one = checked(life, FIRST + 1)
    rows = [msgspec.structs.replace(row, measure=row.measure + 1) for row in one.settlement.contributions]
    settlement = replace(one.settlement, contributions=Table.of(Contribution, rows))
    with pytest.raises(ReplayMismatch, match="do not add up"):
        Explanation(one.bundle, settlement, JUDGES, HONEST.address)


def test_the_command_takes_an_id_and_prints_every_step(life: Told, tmp_path: Path) -> None:
    def shown(epoch: int, subject: object) -> str:
        path = tmp_path / f"{epoch}.bundle"
        path.write_bytes(encode_bundle(life.bundles[epoch - 1]))
        result = invoke(tmp_path, "why", str(subject), "--bundle", str(path))
        assert result.code == 0, result
        return result.stdout

    order = shown(FIRST + 1, order_id(life.other))
    for what in (str(3 * SECOND), str(3 * CREDIT), "paid in this epoch", "waits"):
        assert what in order
    dispute = Dispute(client=CLIENT.address, first=life.right, second=life.wrong, kind=1, steps=())
    case = shown(FIRST + 3, dispute.case())
    for what in ("finds good: first", "wrong_result", str(CHEAT.address), "are slashed"):
        assert what in case
    assert "3 x compute.opinion" not in case
    lease = shown(FIRST + 1, life.leases[HONEST.address].struct_hash())
    assert "order" in lease
    referee = Address(concerned(life)[0]["node"])
    assert f"x {OPINION}: good (it was asked for, and counts)" in shown(FIRST + 3, referee)
    assert "waits: paid in the next epoch" in shown(FIRST, HONEST.address)
    assert f"{3 * SECOND} ns of a processor" in shown(FIRST + 1, HONEST.address)
