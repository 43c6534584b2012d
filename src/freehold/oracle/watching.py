"""What a watcher makes of an accepted report, without I/O: does it follow from its evidence; if not, what proves it?

    examine             settle the epoch anew from a bundle that the chain vouches for, and compare
    find_contradiction  what the Disputes contract can judge by itself: a fallen count or total, a wrong sum, an opening
    choose_demands      what to ask for on chain where the contradiction cannot be seen from here
    contradict_answer   what the answer to a demand proves wrong
    ..._blind...        the same where nobody shows the evidence, or there is none that could be settled

A bundle is believed only as far as the chain names it: the anchor is the watcher's own fold of the chain, the state
before is the one that the accepted report before commits to, the manifest is the one that the report names. So members
can withhold, and cannot mislead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from freehold.oracle.chain_view import AcceptedEpoch
from freehold.protocol.bundle import Bundle, first_difference
from freehold.protocol.disputes import (
    DEMAND_LEAF,
    DEMAND_VERDICT,
    OPENING_KIND,
    OPENING_SERVICE,
    Answer,
    Contradiction,
    answer_leaf,
    answer_verdict,
    find_fallen_count,
    find_shrunk,
    find_shrunk_shown,
    find_wrong_verdict_shown,
    path_of,
)
from freehold.protocol.epoch import Settlement, check_manifest, settle
from freehold.protocol.errors import ReplayMismatch
from freehold.protocol.messages import Report
from freehold.protocol.service import Judge
from freehold.protocol.state import AccountState, State
from freehold.protocol.typed import Domain
from freehold.protocol.units import ZERO_HASH, Address
from freehold.protocol.verdicts import GOOD

DEMANDS = 4  # for one report: each costs a bond while it is open


class Finding(NamedTuple):
    """An epoch as it was accepted and as it settles here. `difference` is the first field in which they differ, or
    empty; `computed` is the report that should have been."""

    accepted: AcceptedEpoch
    bundle: Bundle
    settlement: Settlement
    difference: str

    @property
    def report(self) -> Report:
        """What the chain accepted."""
        return self.accepted.accepted.report

    @property
    def computed(self) -> Report:
        """What it should have been."""
        return self.settlement.report


class Demand(NamedTuple):
    """What to ask for on chain: a leaf by its position, or a verdict by its path."""

    kind: int
    position: int


class Shown(NamedTuple):
    """What an answer showed on chain for a demand. The contract has checked that the report commits to it."""

    demand: Demand
    shown: bytes


def examine(accepted: AcceptedEpoch, bundle: Bundle, judges: Mapping[str, Judge], domain: Domain) -> Finding:
    """Settle the accepted epoch from this bundle. ReplayMismatch where the bundle is not what the chain names."""
    report = accepted.accepted.report
    _check_authentic(accepted, bundle, domain)
    check_manifest(bundle.manifest, accepted.anchor, domain)
    settlement = settle(bundle.state, bundle.manifest, bundle.batches, accepted.anchor, judges, domain)
    return Finding(accepted, bundle, settlement, first_difference(settlement.report, report) or "")


def _check_authentic(accepted: AcceptedEpoch, bundle: Bundle, domain: Domain) -> None:
    previous, report = accepted.previous, accepted.accepted.report
    if bundle.domain != domain:
        raise ReplayMismatch("the bundle is of another network", first="network.json")
    if bundle.anchor != accepted.anchor:
        raise ReplayMismatch("the bundle's anchor is not the chain's", first="anchor.json")
    if bundle.manifest.struct_hash() != report.manifest:
        raise ReplayMismatch("the bundle's manifest is not the one that the report names", first="manifest.json")
    if previous is None:
        if bundle.state.epoch.epoch != 0 or len(bundle.state.accounts) or bundle.state.clients:
            raise ReplayMismatch("epoch 1 starts from the empty state", first="state")
    elif bundle.state.root() != previous.state_root:
        raise ReplayMismatch("the state before is not the one that the report before commits to", first="state")


def find_contradiction(finding: Finding, claimed: State | None) -> Contradiction | None:
    """What proves the report wrong by itself. `claimed` is the state after the epoch as its signers have it, if any
    member shows one that the report commits to."""
    previous, report = finding.accepted.previous, finding.report
    if previous is None:
        return None
    fallen = find_fallen_count(previous, report)
    if fallen is not None or claimed is None:
        return fallen
    if not is_claimed(claimed, report):
        return None
    return find_shrunk(finding.bundle.state.accounts.rows, claimed.accounts.rows)


def contradict_answer(finding: Finding, answer: Shown, judges: Mapping[str, Judge]) -> Contradiction | None:
    """What an answer to a demand proves wrong by itself: a leaf that shrank, or a good opening called otherwise."""
    (kind, position), shown = answer
    if kind == DEMAND_LEAF:
        return find_shrunk_shown(finding.bundle.state.accounts.rows, finding.report, position, shown)
    return find_wrong_verdict_shown(shown, position, finding.settlement, finding.bundle, judges)


def make_answer(settlement: Settlement, bundle: Bundle, judges: Mapping[str, Judge], demand: Demand) -> Answer:
    """What a demand asks for, of an epoch that was settled here from this bundle. NotFound."""
    if demand.kind == DEMAND_LEAF:
        return answer_leaf(settlement.state.accounts.rows, demand.position)
    return answer_verdict(settlement, bundle, demand.position, judges)


def is_claimed(state: State, report: Report) -> bool:
    """Whether the report commits to this state's accounts."""
    root = state.accounts_tree().root
    sums = (report.tokens_earned, report.credits_earned, report.credits_spent)
    return root.hash == report.accounts_root[:31] and root.sums == sums


def choose_demands(finding: Finding, claimed: State | None) -> list[Demand]:
    """What to ask for: the verdicts on good openings of those who got less than they earned; where nobody shows the
    accounts, the leaves of those who earned most."""
    earned = {row.account: row for row in finding.settlement.state.accounts}
    if claimed is None or not is_claimed(claimed, finding.report):
        places = sorted(earned.values(), key=lambda row: (-row.tokens_earned, row.index))
        return [Demand(DEMAND_LEAF, row.index) for row in places if row.index < max(finding.report.accounts, 1)][
            :DEMANDS
        ]
    got = {row.account: row.tokens_earned for row in claimed.accounts}
    short = {account for account, row in earned.items() if got.get(account, 0) < row.tokens_earned}
    return [Demand(DEMAND_VERDICT, path) for path in _paths_of_openings(finding, short)][:DEMANDS]


def choose_blind_demands(report: Report, before: Sequence[AccountState], path: int) -> list[Demand]:
    """What to ask for where nobody shows what the report follows from: the verdict at a path that nobody could foresee,
    and the leaves of those who had earned most `before` it, whose totals must not have fallen."""
    verdicts = [Demand(DEMAND_VERDICT, path)] if report.verdicts_root != ZERO_HASH else []
    places = sorted(before, key=lambda row: (-row.tokens_earned, row.index))
    leaves = [Demand(DEMAND_LEAF, row.index) for row in places if row.index < report.accounts]
    return [*verdicts, *(leaves or [Demand(DEMAND_LEAF, 0)])][:DEMANDS]


def contradict_blindly(report: Report, before: Sequence[AccountState], answer: Shown) -> Contradiction | None:
    """What an answer proves wrong by the accounts `before` the report alone: a leaf that shrank."""
    if answer.demand.kind != DEMAND_LEAF:
        return None
    return find_shrunk_shown(before, report, answer.demand.position, answer.shown)


def _paths_of_openings(finding: Finding, operators: set[Address]) -> list[int]:
    """Paths of the verdicts that should call an opening of these operators' nodes good: one a node, then the others."""
    nodes = {o.node for o in finding.settlement.state.operators.values() if o.operator in operators}
    verdicts = finding.settlement.verdicts
    first: dict[Address, int] = {}
    rest: list[int] = []
    for index, verdict in enumerate(verdicts):
        is_opening = (verdict.service, verdict.kind, verdict.reason) == (OPENING_SERVICE, OPENING_KIND, GOOD)
        if is_opening and verdict.node in nodes:
            path = path_of(len(verdicts), index)
            if verdict.node in first:
                rest.append(path)
            else:
                first[verdict.node] = path
    return [*first.values(), *rest]
