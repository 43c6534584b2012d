"""`freehold watch`: replay every epoch as the chain accepts it, and dispute by itself what does not follow.

    chain    final blocks, folded as a member folds them: what was accepted, at which anchor
    members  bundles, and states as their signers have them; believed only as far as the chain names them
    court    challenges, demands and answers, under the watcher's own bond

Anyone may run it; one honest watcher within the dispute window is enough. Without a key it only watches and says.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from freehold.chain.contracts import disputes as disputes_abi
from freehold.chain.follower import Follower
from freehold.chain.rpc import Rpc
from freehold.market.network import Network
from freehold.market.quorum import Quorum
from freehold.net.client import Dial
from freehold.oracle.chain import Feed
from freehold.oracle.chain_records import FinalBlock, Revoked
from freehold.oracle.chain_view import AcceptedEpoch, ChainView, Start
from freehold.oracle.court import ANSWERED, CHALLENGE, NOTHING, Court
from freehold.oracle.store import decode_state
from freehold.oracle.watching import (
    Demand,
    Finding,
    Shown,
    choose_demands,
    contradict_answer,
    examine,
    find_contradiction,
    is_claimed,
)
from freehold.protocol.beacon import Block
from freehold.protocol.bundle import decode_bundle
from freehold.protocol.disputes import DEMAND_LEAF, Answer, answer_leaf, answer_verdict
from freehold.protocol.errors import ChainError, FreeholdError
from freehold.protocol.keys import Key
from freehold.protocol.state import State
from freehold.protocol.units import Address, Hash
from freehold.services.judging import JUDGES

log = logging.getLogger(__name__)

PENDING = 64  # findings that are kept: the Ledger's ring holds no more pending reports
PATIENCE = 10  # looks at the members for a bundle, until what they withhold is demanded on chain


class Seen(NamedTuple):
    """What the watcher tells of an epoch, as it happens."""

    epoch: int
    attempt: int
    what: str  # verified, contested, withheld, challenged, demanded, answered, revoked
    why: str


class Holding(NamedTuple):
    """Somebody's challenge or answered demand, which keeps a report pending."""

    epoch: int
    report: Hash
    challenger: Address


class Watcher:
    """One watcher of one network. `tell` hears of everything that it finds and does."""

    def __init__(
        self,
        network: Network,
        rpc: Rpc,
        dial: Dial,
        key: Key | None,
        tell: Callable[[Seen], None],
        *,
        poll: float = 1.0,
        from_epoch: int = 0,
    ) -> None:
        block = Block(network.deployment_block, network.deployment_hash, network.deployment_time)
        self.chain = ChainView(Start(block, network.parameters, network.member_addresses))
        self._network, self._rpc, self._poll = network, rpc, poll
        self._quorum = Quorum(dial, network.member_addresses, network.member_urls, network.domain)
        self._feed = Feed(rpc, network, poll, lambda _epoch, _transaction: None)
        self._court = Court(rpc, network, key) if key is not None else None
        self._tell, self._from = tell, from_epoch
        self._queue: asyncio.Queue[AcceptedEpoch] = asyncio.Queue()
        self._findings: OrderedDict[Hash, Finding] = OrderedDict()
        self._asked: dict[Hash, Demand] = {}  # this watcher's last demand, by report
        self._shown: dict[Hash, Shown] = {}  # and what was answered to it
        self._holds: set[Holding] = set()  # that somebody has to end once their time has passed
        self.verified = 0

    async def run(self) -> None:
        """Until cancelled. What fails for a while is tried again."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._feed.run(self.chain.block, self._on_block))
            tasks.create_task(self._examine_all())
            if self._court is not None:
                tasks.create_task(self._follow_disputes(self._court))
                tasks.create_task(self._end_holds(self._court))

    def _on_block(self, final: FinalBlock) -> None:
        for happened in self.chain.process_block(final):
            if isinstance(happened, AcceptedEpoch):
                self._queue.put_nowait(happened)
            elif isinstance(happened, Revoked):
                self._tell(Seen(happened.epoch, happened.attempt, "revoked", f"with all after it, to {happened.last}"))

    async def _examine_all(self) -> None:
        while True:
            accepted = await self._queue.get()
            if accepted.accepted.report.epoch < self._from:
                continue
            try:
                await self._examine(accepted)
            except (FreeholdError, OSError) as error:
                log.warning("epoch %d: %s", accepted.accepted.report.epoch, error)

    async def _examine(self, accepted: AcceptedEpoch) -> None:
        report = accepted.accepted.report
        finding = await self._find(accepted)
        if finding is None:
            self._tell(Seen(report.epoch, report.attempt, "withheld", "no member shows what the report follows from"))
            return
        self._findings[report.struct_hash()] = finding
        if len(self._findings) > PENDING:
            self._findings.popitem(last=False)
        if not finding.difference:
            self.verified += 1
            self._tell(Seen(report.epoch, report.attempt, "verified", str(report.struct_hash())))
            return
        name = finding.difference
        ours, theirs = getattr(finding.computed, name), getattr(report, name)
        self._tell(Seen(report.epoch, report.attempt, "contested", f"{name}: computed {ours}, reported {theirs}"))
        if self._court is not None:
            await self._dispute(self._court, finding)

    async def _find(self, accepted: AcceptedEpoch) -> Finding | None:
        """The epoch, settled here from the first bundle that is authentic; None if nobody shows one for a while."""
        report = accepted.accepted.report

        def check(data: bytes) -> Finding:
            return examine(accepted, decode_bundle(data, JUDGES), JUDGES, self._network.domain)

        path = f"/v1/bundles/{report.epoch}?attempt={report.attempt}"
        for _ in range(PATIENCE):
            try:
                return await self._quorum.first_good(path, check)
            except FreeholdError as error:
                log.info("epoch %d: %s", report.epoch, error.message)
            await asyncio.sleep(self._poll)
        return None

    async def _claimed(self, finding: Finding) -> State | None:
        """The state after the epoch as a member has it whose accounts the report commits to."""

        def check(data: bytes) -> State:
            state = decode_state(data, JUDGES)
            if not is_claimed(state, finding.report):
                raise ChainError("this state is not the one that the report commits to")
            return state

        try:
            return await self._quorum.first_good(f"/v1/states/{finding.report.epoch}", check)
        except FreeholdError:
            return None

    async def _dispute(self, court: Court, finding: Finding) -> None:
        """Until the report is gone or nothing is left to try: a challenge if there is a proof, else demands, whose
        answers may be the proof."""
        report, before = finding.report, finding.accepted.previous
        claimed = await self._claimed(finding)
        contradiction = find_contradiction(finding, claimed)
        demands = [] if contradiction is not None else choose_demands(finding, claimed)
        while await court.is_current(report) and self.chain.active < report.epoch:
            answered = self._shown.pop(report.struct_hash(), None)
            if answered is not None:
                contradiction = contradiction or contradict_answer(finding, answered, JUDGES)
                what = "nothing" if contradiction is None else f"a contradiction of kind {contradiction.kind}"
                self._tell(Seen(report.epoch, report.attempt, "answered", f"it shows {what}"))
            try:
                kind = await court.hold_kind(report)
                if contradiction is not None and kind in (NOTHING, CHALLENGE, ANSWERED):
                    await court.challenge(before, report, contradiction)
                    if kind != CHALLENGE:
                        self._tell(Seen(report.epoch, report.attempt, "challenged", f"kind {contradiction.kind}"))
                elif kind == NOTHING and demands:
                    demand = demands.pop(0)
                    await court.demand(report, demand)
                    self._tell(Seen(report.epoch, report.attempt, "demanded", f"kind {demand.kind}"))
                elif kind == NOTHING:
                    return
                elif kind not in (CHALLENGE, ANSWERED):
                    await court.expire(before, report)
            except ChainError as error:
                log.warning("epoch %d: %s", report.epoch, error.message)
            await asyncio.sleep(self._poll)
        accepted = finding.accepted.accepted
        await court.slash(report, accepted.signers, accepted.signatures)

    async def _follow_disputes(self, court: Court) -> None:
        """Answer what others demand of reports that follow: it pays, and keeps them from being revoked. Take note of
        what is answered to this watcher, and of every hold that will have to be ended."""
        follower = Follower(
            self._rpc,
            [court.disputes],
            finality_depth=self._network.parameters.finality_depth,
            interval=self._poll,
        )
        async for batch in follower.run(self._network.deployment_block):
            for event in batch.events:
                happened = event.value
                if isinstance(happened, disputes_abi.Demanded):
                    await self._on_demanded(court, happened)
                elif isinstance(happened, disputes_abi.Answered | disputes_abi.Committed):
                    report, challenger = Hash(happened.report_hash), Address(happened.challenger)
                    self._holds.add(Holding(happened.epoch, report, challenger))
                    if isinstance(happened, disputes_abi.Answered) and challenger == court.challenger:
                        self._shown[report] = Shown(self._asked[report], happened.shown)

    async def _on_demanded(self, court: Court, demanded: disputes_abi.Demanded) -> None:
        if Address(demanded.challenger) == court.challenger:
            self._asked[Hash(demanded.report_hash)] = Demand(demanded.kind, demanded.position)
        else:
            await self._answer(court, demanded)

    async def _end_holds(self, court: Court) -> None:
        """End every hold whose time has passed, whoever opened it: a report stays pending until somebody does."""
        while True:
            for hold in list(self._holds):
                try:
                    if hold.epoch <= self.chain.active or await court.end_hold(*hold):
                        self._holds.discard(hold)
                except (ChainError, OSError) as error:
                    log.warning("epoch %d: a hold does not end: %s", hold.epoch, error)
            await asyncio.sleep(self._poll)

    async def _answer(self, court: Court, demanded: disputes_abi.Demanded) -> None:
        finding = await self._wait_for(Hash(demanded.report_hash))
        if finding is None or finding.difference:
            return
        try:
            answer = make_answer(finding, demanded.kind, demanded.position)
            await court.answer(finding.report, Address(demanded.challenger), answer)
        except FreeholdError as error:
            log.info("epoch %d: no answer from here: %s", demanded.epoch, error.message)

    async def _wait_for(self, report: Hash) -> Finding | None:
        """The finding on a report, once it has been examined; None where that takes too long."""
        for _ in range(PATIENCE):
            if report in self._findings:
                return self._findings[report]
            await asyncio.sleep(self._poll)
        return None


def make_answer(finding: Finding, kind: int, position: int) -> Answer:
    """What a demand asks for, from an epoch that was settled here. NotFound."""
    if kind == DEMAND_LEAF:
        return answer_leaf(finding.settlement.state.accounts.rows, position)
    return answer_verdict(finding.settlement, finding.bundle, position, JUDGES)
