"""What a judge finds proven wrong becomes rows under the report's slashes root: of whoever has, or had, a bond."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from freehold.protocol import epoch
from freehold.protocol.service import Context, Folded, Rows
from freehold.protocol.tables import Table
from freehold.protocol.units import ZERO_HASH, Address, Hash
from freehold.protocol.verdicts import Slash, Verdict
from freehold.services.storage.score import StorageJudge
from tests.protocol.world import PARAMETERS, World, busy_world, key

HARMED = key(1).address


class Accuser(StorageJudge):
    """A judge that finds `found` proven wrong."""

    def __init__(self, found: list[Slash]) -> None:
        self._found = found

    def fold(self, rows: Rows, verdicts: Table[Verdict], context: Context) -> Folded:
        return super().fold(rows, verdicts, context)._replace(slashes=Table.of(Slash, self._found))


def found(node: Address, subject: int) -> Slash:
    return Slash(
        service="storage",
        node=node,
        operator=Address(bytes(20)),
        subject=Hash(subject.to_bytes(32)),
        harmed=HARMED,
        amount=2**90,
    )


def settle(world: World, slashes: list[Slash], monkeypatch: pytest.MonkeyPatch) -> epoch.Settlement:
    from tests.protocol import world as module

    judges: dict[str, Any] = {**module.JUDGES, "storage": Accuser(slashes)}
    monkeypatch.setattr(module, "JUDGES", judges)
    return world.settle(world.proofs())


def test_an_epoch_without_any_has_no_root() -> None:
    world = busy_world()
    settlement = world.settle(world.proofs())
    assert len(settlement.slashes) == 0
    assert settlement.report.slashes_root == ZERO_HASH


def test_the_report_commits_to_who_loses_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    world = busy_world()
    first, second = sorted(node.address for node in world.nodes[:2])
    settlement = settle(world, [found(second, 1), found(first, 2)], monkeypatch)
    assert [row.node for row in settlement.slashes] == [first, second]
    for row in settlement.slashes:
        assert row.amount == PARAMETERS.wrong_result_slash
        assert row.operator == settlement.state.operators[row.node].operator
        assert row.harmed == HARMED
    assert settlement.report.slashes_root == settlement.slashes.root != ZERO_HASH


def test_what_thaws_answers_as_what_is_bonded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The anchor says that nothing is bonded: what thaws the contract knows."""
    world = busy_world()
    node, anchor = world.nodes[0].address, world.anchor

    def thawing(number: int) -> Any:
        data = anchor(number)
        return msgspec.structs.replace(data, nodes=tuple(msgspec.structs.replace(n, bond=0) for n in data.nodes))

    monkeypatch.setattr(world, "anchor", thawing)
    settlement = settle(world, [found(node, 1)], monkeypatch)
    assert [(row.node, row.amount) for row in settlement.slashes] == [(node, PARAMETERS.wrong_result_slash)]


def test_one_subject_costs_a_node_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = busy_world()
    twice = [found(world.nodes[0].address, 1), found(world.nodes[0].address, 1)]
    assert len(settle(world, twice, monkeypatch).slashes) == 1


def test_who_is_not_registered_has_nothing_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(settle(busy_world(), [found(key(77).address, 1)], monkeypatch).slashes) == 0
