"""A watcher believes a bundle as far as the chain names it, and finds what proves a wrong report."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from freehold.oracle.chain_records import Accepted
from freehold.oracle.chain_view import AcceptedEpoch
from freehold.oracle.watch import Case, Seen, Watcher
from freehold.oracle.watching import (
    Demand,
    Finding,
    Shown,
    choose_blind_demands,
    choose_demands,
    contradict_answer,
    contradict_blindly,
    examine,
    find_contradiction,
    is_claimed,
    make_answer,
)
from freehold.protocol.bundle import Bundle
from freehold.protocol.disputes import (
    COUNT,
    DEMAND_LEAF,
    DEMAND_VERDICT,
    OPENING,
    SHRANK,
    Contradiction,
    answer_leaf,
    answer_verdict,
    find_wrong_verdict,
    index_at,
    path_of,
)
from freehold.protocol.epoch import Settlement
from freehold.protocol.errors import ChainError, NotFound, ReplayMismatch
from freehold.protocol.messages import Report
from freehold.protocol.state import AccountState, State
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain, keccak
from freehold.protocol.units import Address, Hash
from freehold.protocol.verdicts import SILENT, Verdict
from freehold.services.judging import JUDGES
from tests.protocol.world import DOMAIN, World, busy_world


@pytest.fixture(scope="module")
def world() -> World:
    """Epoch 3 is the first that pays; epoch 4 pays again."""
    world = busy_world()
    world.settle(world.proofs())
    world.settle(world.proofs())
    return world


def accepted(bundle: Bundle, report: Report | None = None) -> AcceptedEpoch:
    taken = Accepted(report or bundle.report, bundle.signers, bundle.signatures)
    return AcceptedEpoch(taken, bundle.anchor, bundle.previous)


def test_an_epoch_that_follows_is_verified(world: World) -> None:
    for bundle in world.bundles:
        finding = examine(accepted(bundle), bundle, JUDGES, DOMAIN)
        assert finding.difference == ""
        assert find_contradiction(finding, finding.settlement.state) is None


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (lambda b, w: b._replace(domain=Domain(1, DOMAIN.contract)), "network.json"),
        (lambda b, w: b._replace(anchor=w.bundles[1].anchor), "anchor.json"),
        (lambda b, w: b._replace(manifest=w.bundles[1].manifest), "manifest.json"),
        (lambda b, w: b._replace(state=w.bundles[1].state), "state"),
    ],
)
def test_a_bundle_that_the_chain_does_not_name_is_refused(
    world: World, change: Callable[[Bundle, World], Bundle], first: str
) -> None:
    bundle = world.bundles[3]
    with pytest.raises(ReplayMismatch) as refused:
        examine(accepted(bundle), change(bundle, world), JUDGES, DOMAIN)
    assert refused.value.details["first"] == first


def stolen(world: World) -> tuple[Report, State]:
    """Epoch 4 with the first account's earnings at the last."""
    truth = world.settlements[3]
    rows = list(truth.state.accounts)
    rows[0], rows[-1] = (
        msgspec.structs.replace(rows[0], tokens_earned=0),
        msgspec.structs.replace(rows[-1], tokens_earned=rows[-1].tokens_earned + rows[0].tokens_earned),
    )
    values: dict[str, Any] = {name: getattr(truth.state, name) for name in State.__dataclass_fields__}
    state = State(**(values | {"accounts": Table.of(AccountState, rows)}))
    root = Hash(state.accounts_tree().root.hash + b"\x00")
    return msgspec.structs.replace(truth.report, accounts_root=root, state_root=state.root()), state


def test_a_total_that_shrank_is_proven(world: World) -> None:
    report, state = stolen(world)
    bundle = world.bundles[3]
    finding = examine(accepted(bundle, report), bundle, JUDGES, DOMAIN)
    assert finding.difference == "state_root"
    proof = find_contradiction(finding, state)
    assert proof is not None
    assert proof.kind == SHRANK
    assert is_claimed(state, report)
    assert not is_claimed(world.settlements[3].state, report)
    assert find_contradiction(finding, world.settlements[3].state) is None  # not what the report commits to
    assert find_contradiction(finding, None) is None


def test_fewer_accounts_than_before_need_no_state(world: World) -> None:
    bundle = world.bundles[3]
    report = msgspec.structs.replace(bundle.report, accounts=bundle.report.accounts - 1)
    proof = find_contradiction(examine(accepted(bundle, report), bundle, JUDGES, DOMAIN), None)
    assert proof is not None
    assert proof.kind == COUNT


def test_what_cannot_be_seen_is_demanded(world: World) -> None:
    report, state = stolen(world)
    bundle = world.bundles[3]
    finding = examine(accepted(bundle, report), bundle, JUDGES, DOMAIN)
    leaves = choose_demands(finding, None)
    richest = max(finding.settlement.state.accounts, key=lambda row: row.tokens_earned)
    assert leaves[0] == Demand(DEMAND_LEAF, richest.index)
    verdicts = choose_demands(finding, state)
    assert verdicts
    assert {demand.kind for demand in verdicts} == {DEMAND_VERDICT}
    robbed = next(iter(finding.settlement.state.accounts)).account
    nodes = {o.node for o in finding.settlement.state.operators.values() if o.operator == robbed}
    answered = make_answer(finding.settlement, finding.bundle, JUDGES, verdicts[0])
    assert any(bytes(node) in answered.shown for node in nodes)
    assert answered.backing


def test_a_leaf_that_an_answer_shows_to_have_shrunk_is_proven(world: World) -> None:
    """The same proof as from the whole state, and none from a leaf that stayed or that is new."""
    report, state = stolen(world)
    bundle = world.bundles[3]
    finding = examine(accepted(bundle, report), bundle, JUDGES, DOMAIN)

    def contradict(position: int) -> Any:
        demand = Demand(DEMAND_LEAF, position)
        return contradict_answer(finding, Shown(demand, answer_leaf(state.accounts.rows, position).shown), JUDGES)

    assert contradict(0) == find_contradiction(finding, state)
    assert [contradict(i) for i in range(1, len(state.accounts))] == [None] * (len(state.accounts) - 1)
    places = 1 << (len(state.accounts) - 1).bit_length()
    assert [contradict(i) for i in range(len(state.accounts), places)] == [None] * (places - len(state.accounts))
    honest = answer_leaf(finding.settlement.state.accounts.rows, 0).shown
    assert contradict_answer(finding, Shown(Demand(DEMAND_LEAF, 0), honest), JUDGES) is None


def claimed_silent(world: World) -> tuple[Finding, Settlement, Demand]:
    """Epoch 4 where the first good opening is called silent, and what to demand of it."""
    truth, bundle = world.settlements[3], world.bundles[3]
    demand = choose_demands(examine(accepted(bundle, stolen(world)[0]), bundle, JUDGES, DOMAIN), stolen(world)[1])[0]
    rows = list(truth.verdicts)
    at = index_at(len(rows), demand.position)
    rows[at] = msgspec.structs.replace(rows[at], reason=SILENT, measure=0)
    verdicts = Table.of(Verdict, rows)
    report = msgspec.structs.replace(truth.report, verdicts_root=verdicts.root)
    lied = Settlement(**{**vars(truth), "verdicts": verdicts, "report": report})
    return examine(accepted(bundle, report), bundle, JUDGES, DOMAIN), lied, demand


def test_a_good_opening_that_an_answer_calls_silent_is_proven(world: World) -> None:
    """The same proof as from the whole table of verdicts, and none from a verdict that is right."""
    finding, lied, demand = claimed_silent(world)
    shown = answer_verdict(lied, finding.bundle, demand.position, JUDGES).shown
    proof = contradict_answer(finding, Shown(demand, shown), JUDGES)
    assert proof is not None
    assert proof.kind == OPENING
    assert proof == find_wrong_verdict(lied.verdicts, finding.settlement, finding.bundle, JUDGES)
    paths = {path_of(len(lied.verdicts), i) for i in range(len(lied.verdicts))} - {demand.position}
    for path in paths:
        other = Shown(Demand(DEMAND_VERDICT, path), answer_verdict(lied, finding.bundle, path, JUDGES).shown)
        assert contradict_answer(finding, other, JUDGES) is None


@pytest.mark.parametrize(
    "changes", [{"node": Address(bytes(20))}, {"service": "compute"}, {"subject": Hash(bytes(32))}]
)
def test_a_shown_verdict_on_something_else_proves_nothing(world: World, changes: dict[str, Any]) -> None:
    """The contract would refuse it, and that would cost the bond."""
    finding, lied, demand = claimed_silent(world)
    rows = list(lied.verdicts)
    at = index_at(len(rows), demand.position)
    rows[at] = msgspec.structs.replace(rows[at], **changes)
    verdicts = Table.of(Verdict, rows)
    other = Settlement(**{**vars(lied), "verdicts": verdicts})
    shown = answer_verdict(other, finding.bundle, demand.position, JUDGES).shown
    assert contradict_answer(finding, Shown(demand, shown), JUDGES) is None
    assert find_wrong_verdict(verdicts, finding.settlement, finding.bundle, JUDGES) is None


def test_an_answer_need_not_be_written_as_we_would(world: World) -> None:
    """Texts that are not UTF-8 and padding that is not zero pass the contract: the proof is built all the same."""
    finding, lied, demand = claimed_silent(world)
    shown = answer_verdict(lied, finding.bundle, demand.position, JUDGES).shown
    odd = shown.replace(b"silent".ljust(32, b"\x00"), b"\xff\xfe\xfd\xfc\xfb\xfa".ljust(32, b"\x01"))
    assert odd != shown
    proof = contradict_answer(finding, Shown(demand, odd), JUDGES)
    assert proof is not None
    assert b"\xff\xfe\xfd\xfc\xfb\xfa" in proof.evidence


def test_demands_are_answered_from_what_was_settled(world: World) -> None:
    finding = examine(accepted(world.bundles[3]), world.bundles[3], JUDGES, DOMAIN)
    assert make_answer(finding.settlement, finding.bundle, JUDGES, Demand(DEMAND_LEAF, 0)).shown
    with pytest.raises(NotFound):
        make_answer(finding.settlement, finding.bundle, JUDGES, Demand(DEMAND_LEAF, 2**20))


def test_a_report_of_another_manifest_is_not_judged_by_this_bundle(world: World) -> None:
    bundle = world.bundles[3]
    other = msgspec.structs.replace(bundle.report, manifest=keccak(b"another"))
    with pytest.raises(ReplayMismatch):
        examine(accepted(bundle, other), bundle, JUDGES, DOMAIN)


def test_without_a_bundle_what_was_known_before_is_demanded(world: World) -> None:
    """A leaf that fell is proven by the accounts before alone, and what is honest proves nothing."""
    report, state = stolen(world)
    before = world.settlements[2].state.accounts.rows
    demands = choose_blind_demands(report, before, 5)
    assert demands[0] == Demand(DEMAND_VERDICT, 5)
    assert {demand.position for demand in demands[1:]} <= set(range(len(before)))
    assert choose_blind_demands(msgspec.structs.replace(report, verdicts_root=Hash(bytes(32))), (), 5) == [
        Demand(DEMAND_LEAF, 0)
    ]
    bundle = world.bundles[3]
    finding = examine(accepted(bundle, report), bundle, JUDGES, DOMAIN)
    shown = Shown(Demand(DEMAND_LEAF, 0), answer_leaf(state.accounts.rows, 0).shown)
    assert contradict_blindly(report, before, shown) == find_contradiction(finding, state) is not None
    honest = Shown(Demand(DEMAND_LEAF, 0), answer_leaf(world.settlements[3].state.accounts.rows, 0).shown)
    assert contradict_blindly(world.settlements[3].report, before, honest) is None
    assert contradict_blindly(report, before, Shown(demands[0], b"")) is None


class FlakyCourt:
    """A court each of whose answers fails once. The report may be gone before the reveal: `taken` where somebody else
    has proven it wrong, `escaped` where its signers had it revoked over a demand of their own."""

    def __init__(self, taken: bool, escaped: bool) -> None:
        self.kind, self.is_gone, self.taken, self.escaped = 0, False, taken, escaped
        self.did: list[str] = []
        self._failed: set[str] = set()

    def _fail_once(self, what: str) -> None:
        if what not in self._failed:
            self._failed.add(what)
            raise ChainError("away for a moment")

    async def is_current(self, report: Report) -> bool:
        self._fail_once(f"is_current {self.kind}")
        return not self.is_gone

    async def hold_kind(self, report: Report) -> int:
        self._fail_once(f"hold_kind {self.kind}")
        return self.kind

    async def challenge(self, before: Report | None, report: Report, contradiction: Contradiction) -> bool:
        self._fail_once(f"challenge {self.kind}")
        if self.kind == 0:
            self.kind, self.is_gone = 3, self.taken or self.escaped
            self.did.append("committed")
            return False
        self.kind, self.is_gone = 0, True
        self.did.append("revealed")
        return True

    async def prove(self, before: Report | None, report: Report, contradiction: Contradiction) -> bool:
        self._fail_once("prove")
        return self.kind == 3 and self.escaped and await self.challenge(before, report, contradiction)

    async def withdraw(self, report: Report) -> None:
        self._fail_once("withdraw")
        if self.kind:
            self.did.append("withdrawn")

    async def slash(self, report: Report, signers: int, signatures: bytes) -> None:
        self._fail_once("slash")
        self.did.append("slashed")


@pytest.mark.parametrize(
    ("taken", "escaped", "did"),
    [
        (False, False, ["committed", "revealed", "slashed"]),
        (True, False, ["committed", "withdrawn", "withdrawn", "slashed"]),
        (False, True, ["committed", "revealed", "slashed"]),
    ],
)
def test_a_chain_that_fails_for_a_moment_costs_no_bond(
    world: World, taken: bool, escaped: bool, did: list[str]
) -> None:
    """What is committed is revealed, also of a report that is gone; where others were quicker, the bond comes back."""
    watcher = object.__new__(Watcher)
    watcher.chain = SimpleNamespace(active=0)  # type: ignore[assignment]
    watcher._poll, watcher._shown, watcher._tell = 0.0, {}, lambda seen: None
    court = FlakyCourt(taken, escaped)
    case = Case(accepted(world.bundles[3]), Contradiction(COUNT, b""), [], lambda shown: None)
    asyncio.run(watcher._dispute(court, case))  # type: ignore[arg-type]
    assert court.did == did


def test_a_report_about_another_anchor_is_contested_and_pursued_without_evidence(world: World) -> None:
    """Once members had the time to show some, what can be asked without it is demanded."""
    bundle, told, cases = world.bundles[3], list[Seen](), list[Case]()
    lie = msgspec.structs.replace(bundle.report, anchor_hash=keccak(b"another"))

    async def refuse(path: str, check: Callable[[bytes], Finding]) -> Finding:
        raise ChainError(f"nobody has {path}")

    async def dispute(court: object, case: Case) -> None:
        cases.append(case)

    async def examine_it() -> None:
        await watcher._examine(accepted(bundle, lie), 0)
        await asyncio.gather(*watcher._tasks)

    watcher = object.__new__(Watcher)
    watcher.chain = SimpleNamespace(active=0, block=SimpleNamespace(time=10))  # type: ignore[assignment]
    watcher._network = SimpleNamespace(parameters=SimpleNamespace(dispute_window=20))  # type: ignore[assignment]
    watcher._quorum = SimpleNamespace(first_good=refuse)  # type: ignore[assignment]
    watcher._court = object()  # type: ignore[assignment]
    watcher._findings, watcher._tasks = OrderedDict(), set()
    watcher._poll, watcher._tell, watcher._dispute = 0.0, told.append, dispute  # type: ignore[method-assign]
    asyncio.run(examine_it())
    assert [(seen.epoch, seen.what, seen.why.split(":")[0]) for seen in told] == [(4, "contested", "anchor_hash")]
    (case,) = cases
    assert case.accepted.accepted.report == lie
    assert case.demands
