"""What is collected on: rows of the active state, from members or out of a kept bundle, proven before they are sent."""

from __future__ import annotations

import asyncio
import copy
from types import SimpleNamespace
from typing import Any, cast

import pytest

from freehold.chain.errors import Reverted
from freehold.client.collect import ClientRows, Collecting, KeptState, ask_rows, parse_rows, read_state
from freehold.client.money import prove_account
from freehold.protocol.bundle import encode_bundle
from freehold.protocol.errors import Corrupt, MalformedMessage, NotFound, Refused
from freehold.protocol.merkle import ACCOUNTS, is_sum_proof, row_root, verify_row
from freehold.protocol.messages import Voucher
from freehold.protocol.state import TableRoot
from freehold.protocol.units import ZERO_HASH, Hash
from freehold.services.judging import JUDGES
from tests.protocol.world import World, busy_world, key

CLIENT, STRANGER = key(1).address, key(99).address


@pytest.fixture(scope="module")
def world() -> World:
    """Epoch 3 pays; epoch 4 holds its state."""
    made = busy_world()
    made.settle(made.proofs())
    made.settle(made.proofs())
    return made


@pytest.mark.parametrize("epoch", [3, 4])
def test_the_bundles_of_the_active_epoch_and_the_next_hold_its_state(world: World, epoch: int) -> None:
    report = world.settlements[2].report
    state = read_state(encode_bundle(world.bundles[epoch - 1]), report, JUDGES)
    assert state.root() == report.state_root


def test_another_epochs_bundle_is_said(world: World) -> None:
    with pytest.raises(NotFound, match="bundle of epoch 2: the active report is of epoch 3"):
        read_state(encode_bundle(world.bundles[1]), world.settlements[2].report, JUDGES)


def test_a_bundle_of_another_network_is_not_the_active_state(world: World) -> None:
    other = busy_world()
    other.settle([])
    with pytest.raises(Corrupt, match="not the one that the chain's report names"):
        read_state(encode_bundle(other.bundles[2]), world.settlements[2].report, JUDGES)


def answer_of(rows: ClientRows) -> dict[str, Any]:
    """The rows as a member sends them."""
    assert rows.client is not None
    placed = {"clients": [rows.client], "leases": rows.leases.values(), "locks": rows.locks.values()}
    return {
        "tables": [root.to_json() for root in rows.tables],
        "rows": {
            name: [
                {"row": one.row.to_json(), "index": one.position, "proof": [str(h) for h in one.proof]} for one in found
            ]
            for name, found in placed.items()
        },
    }


def test_kept_rows_and_a_members_are_the_same_and_stand_in_the_state(world: World) -> None:
    state = world.settlements[2].state
    rows = KeptState(state).rows_of(CLIENT)
    assert parse_rows(answer_of(rows), state.root(), CLIENT) == rows
    assert set(rows.leases) == {lease.lease for lease in state.leases.values() if lease.client == CLIENT}
    assert set(rows.locks) == set(state.locks[CLIENT]) == set(rows.leases)
    for name, placed in (("leases", list(rows.leases.values())), ("locks", list(rows.locks.values()))):
        for one in placed:
            place = rows.place(name, one)
            assert verify_row(place.root, place.count_, place.index_, one.row.row_hash(), place.proof)
            root = TableRoot(name=name, count=place.count_, root=place.root)
            assert verify_row(state.root(), place.tables, place.table, root.row_hash(), place.table_proof)
    assert row_root([root.row_hash() for root in rows.tables]) == state.root()
    nobody = KeptState(state).rows_of(STRANGER)
    assert (nobody.client, nobody.leases, nobody.locks) == (None, {}, {})


def changed(answer: dict[str, Any], change: str) -> Any:
    value = copy.deepcopy(answer)
    lease = value["rows"]["leases"][0]
    if change == "table":
        value["tables"][0]["count"] += 1
    elif change == "row":
        lease["row"]["settled"] = "0" if lease["row"]["settled"] != "0" else "1"
    elif change == "place":
        lease["index"] += 1
    elif change == "text":
        lease["index"] = str(lease["index"])
    elif change == "proof":
        lease["proof"][0] = str(ZERO_HASH)
    elif change == "unproven":
        del lease["proof"]
    else:
        return {"rows": {}}
    return value


@pytest.mark.parametrize("change", ["table", "row", "place", "text", "proof", "unproven", "nothing"])
def test_what_a_member_makes_up_is_refused_and_the_next_one_asked(world: World, change: str) -> None:
    report, state = world.settlements[2].report, world.settlements[2].state
    good = answer_of(KeptState(state).rows_of(CLIENT))
    bad = changed(good, change)
    with pytest.raises((Corrupt, MalformedMessage)):
        parse_rows(bad, report.state_root, CLIENT)
    with pytest.raises((Corrupt, MalformedMessage)):
        parse_rows(good, report.state_root, STRANGER)

    def rows_from(*answers: Any) -> ClientRows:
        async def ask(path: str) -> list[Any]:
            assert path == f"/v1/state/3/clients/{CLIENT}"
            return [(STRANGER, answer) for answer in answers]

        return asyncio.run(ask_rows(cast("Any", SimpleNamespace(ask=ask)), report, CLIENT))

    assert rows_from(bad, good) == KeptState(state).rows_of(CLIENT)
    with pytest.raises((Corrupt, MalformedMessage)):
        rows_from(bad)


class Sending:
    """A sender whose transactions revert for one reason."""

    def __init__(self, reason: str) -> None:
        self.reason, self.sent = reason, 0

    async def transact(self, _: Any) -> Any:
        self.sent += 1
        raise Reverted(self.reason, reason=self.reason)


class Answering:
    """An RPC end that answers every call with one number."""

    def __init__(self, number: int) -> None:
        self.number = number

    async def eth_call(self, *_: Any, **__: Any) -> bytes:
        return self.number.to_bytes(32)


def outcome_of(world: World, amount: int, reason: str = "", collected: int = 0, lease: Hash | None = None) -> Any:
    state, report = world.settlements[2].state, world.settlements[2].report
    rows = KeptState(state).rows_of(CLIENT)
    sender, contracts = Sending(reason), {"collector": STRANGER}
    rpc, network = Answering(collected), SimpleNamespace(contracts=contracts)
    collecting = Collecting(cast("Any", rpc), cast("Any", network), cast("Any", sender), report)
    voucher = Voucher(lease=next(iter(rows.leases)) if lease is None else lease, amount=amount)
    return asyncio.run(collecting.collect(voucher, rows)), sender.sent


def test_what_pays_nothing_is_not_sent_and_says_why(world: World) -> None:
    state = world.settlements[2].state
    lease = next(iter(KeptState(state).rows_of(CLIENT).leases))
    settled, lock = state.leases[lease].settled, state.locks[CLIENT][lease].amount
    assert 0 < settled < lock
    for amount, collected, limit in ((settled, 0, "voucher"), (settled + 5, 5, "voucher"), (2 * lock, lock, "lock")):
        outcome, sent = outcome_of(world, amount, collected=collected)
        assert (outcome.tokens, outcome.why, sent) == (0, f"all that its {limit} covers is paid", 0)


def test_what_the_contract_refuses_is_said_in_words(world: World) -> None:
    outcome, sent = outcome_of(world, 2**90, "collector: nothing left")
    assert (outcome.tokens, sent) == (0, 1)
    assert "no credits left" in outcome.why
    with pytest.raises(Reverted):
        outcome_of(world, 2**90, "ledger: not frozen")
    with pytest.raises(NotFound, match="does not have lease"):
        outcome_of(world, 1, lease=ZERO_HASH)


def test_an_account_is_proven_against_its_own_epoch(world: World) -> None:
    settlement = world.settlements[2]
    for account in settlement.state.accounts:
        row, proof = prove_account(settlement.state, 3, account.account)
        width = ACCOUNTS.node_bytes
        siblings = [ACCOUNTS.unpack(proof[i : i + width]) for i in range(0, len(proof), width)]
        root = settlement.state.accounts_tree().root
        assert row == account
        assert is_sum_proof(ACCOUNTS, root, len(settlement.state.accounts), row.index, row.leaf(), siblings)
    with pytest.raises(NotFound):
        prove_account(settlement.state, 3, STRANGER)
    with pytest.raises(Refused, match="proven against epoch 4"):
        prove_account(settlement.state, 4, CLIENT)
