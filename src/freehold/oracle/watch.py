"""`freehold watch`: replay every epoch as the chain accepts it, and dispute by itself what does not follow.

    chain    final blocks, folded as a member folds them: what was accepted, at which anchor
    members  bundles, and states as their signers have them; believed only as far as the chain names them
    court    challenges, demands and answers, under the watcher's own bond

Anyone may run it; one honest watcher within the dispute window is enough. Without a key it only watches and says.

Every dispute and every answer is a task of its own: none holds up another, or the epochs after it, and what members
serve ends at most the task that looks at it. Settling runs in a thread: deadlines on chain do not wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

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
    choose_blind_demands,
    choose_demands,
    contradict_answer,
    contradict_blindly,
    examine,
    find_contradiction,
    is_claimed,
    make_answer,
)
from freehold.protocol.beacon import Block
from freehold.protocol.bundle import decode_bundle
from freehold.protocol.disputes import (
    Contradiction,
    find_fallen_count,
)
from freehold.protocol.errors import Corrupt, FreeholdError, NotFound
from freehold.protocol.keys import Key
from freehold.protocol.state import State
from freehold.protocol.units import Address, Hash
from freehold.services.judging import JUDGES

log = logging.getLogger(__name__)

PENDING = 64  # findings that are kept: the Ledger's ring holds no more pending reports
PATIENCE = 10  # looks at the members for a bundle, until the next epoch's turn; tries to collect what a dispute won


class Seen(NamedTuple):
    """What the watcher tells of an epoch, as it happens."""

    epoch: int
    attempt: int
    what: str  # verified, contested, withheld, challenged, demanded, answered, revoked, slashed
    why: str


class Holding(NamedTuple):
    """Somebody's challenge or answered demand, which keeps a report pending."""

    epoch: int
    report: Hash
    challenger: Address


class Case(NamedTuple):
    """What a dispute starts from: a proof, or what to demand, and how to find a proof in what is answered."""

    accepted: AcceptedEpoch
    contradiction: Contradiction | None
    demands: list[Demand]
    judge: Callable[[Shown], Contradiction | None]


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
        self._quorum = Quorum(dial, network.members, network.domain)
        self._feed = Feed(rpc, network, poll, lambda _epoch, _transaction: None)
        self._court = Court(rpc, network, key) if key is not None else None
        self._tell, self._from = tell, from_epoch
        self._queue: asyncio.Queue[tuple[AcceptedEpoch, int]] = asyncio.Queue()  # and when it was accepted
        self._tasks: set[asyncio.Task[None]] = set()
        self._findings: OrderedDict[Hash, Finding] = OrderedDict()
        self._asked: dict[Hash, Demand] = {}  # this watcher's last demand, by report
        self._shown: dict[Hash, Shown] = {}  # and what was answered to it
        self._holds: set[Holding] = set()  # that somebody has to end once their time has passed
        self.verified = 0

    async def run(self) -> None:
        """Until cancelled. What fails for a while is tried again."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._feed.run(self.chain.block, self._on_block))
                tasks.create_task(self._examine_all())
                if self._court is not None:
                    tasks.create_task(self._follow_disputes(self._court))
                    tasks.create_task(self._end_holds(self._court))
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, epoch: int, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(_guard(epoch, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_block(self, final: FinalBlock) -> None:
        for happened in self.chain.process_block(final):
            if isinstance(happened, AcceptedEpoch):
                self._queue.put_nowait((happened, final.block.time))
            elif isinstance(happened, Revoked):
                self._tell(Seen(happened.epoch, happened.attempt, "revoked", f"with all after it, to {happened.last}"))

    async def _examine_all(self) -> None:
        while True:
            accepted, time = await self._queue.get()
            if accepted.accepted.report.epoch >= self._from:
                await _guard(accepted.accepted.report.epoch, self._examine(accepted, time))

    async def _examine(self, accepted: AcceptedEpoch, time: int) -> None:
        report = accepted.accepted.report
        finding = await self._find(accepted) if accepted.is_anchored else None
        if finding is not None:
            await self._judge(finding)
            return
        if accepted.is_anchored:
            self._tell(Seen(report.epoch, report.attempt, "withheld", "no member shows what the report follows from"))
        else:  # whatever its evidence is: of a report that came before its anchor there can be none
            why = f"anchor_hash: computed {accepted.anchor.anchor_hash}, reported {report.anchor_hash}"
            self._tell(Seen(report.epoch, report.attempt, "contested", why))
        if self._court is not None and report.epoch > self.chain.active:
            self._spawn(report.epoch, self._pursue(self._court, accepted, time))

    async def _judge(self, finding: Finding) -> None:
        report = finding.report
        self._findings[report.struct_hash()] = finding
        if len(self._findings) > PENDING:
            self._findings.popitem(last=False)
        if not finding.difference:
            self.verified += 1
            self._tell(Seen(report.epoch, report.attempt, "verified", str(report.struct_hash())))
            if self._court is not None and len(finding.settlement.slashes):
                self._spawn(report.epoch, self._take(self._court, finding))
            return
        name = finding.difference
        ours, theirs = getattr(finding.computed, name), getattr(report, name)
        self._tell(Seen(report.epoch, report.attempt, "contested", f"{name}: computed {ours}, reported {theirs}"))
        if self._court is not None and report.epoch > self.chain.active:
            self._spawn(report.epoch, self._contest(self._court, finding))

    async def _take(self, court: Court, finding: Finding) -> None:
        """Once the report is active: what it says that bonds have lost."""
        report = finding.report
        while self.chain.active < report.epoch:
            if not await court.is_current(report):
                return
            await asyncio.sleep(self._poll)
        for _ in range(PATIENCE):
            taken = await court.take(report, finding.settlement.slashes)
            if taken.bonds:
                self._tell(Seen(report.epoch, report.attempt, "slashed", f"{taken.bonds} bonds"))
            if not taken.failures:
                return
            await asyncio.sleep(self._poll)

    async def _find(self, accepted: AcceptedEpoch) -> Finding | None:
        """The epoch, settled here from the first bundle that is authentic; None if nobody shows one for a while."""
        for _ in range(PATIENCE):
            finding = await self._look(accepted)
            if finding is not None:
                return finding
            await asyncio.sleep(self._poll)
        return None

    async def _look(self, accepted: AcceptedEpoch) -> Finding | None:
        report = accepted.accepted.report

        def check(data: bytes) -> Finding:
            with _suspicion():
                return examine(accepted, decode_bundle(data, JUDGES), JUDGES, self._network.domain)

        try:
            return await self._quorum.first_good(f"/v1/bundles/{report.epoch}?attempt={report.attempt}", check)
        except (FreeholdError, OSError) as error:
            log.info("epoch %d: %s", report.epoch, error)
            return None

    async def _pursue(self, court: Court, accepted: AcceptedEpoch, time: int) -> None:
        """Look on for what is withheld; from the middle of the window on, demand on chain what can be asked without it.

        A manifest that cannot be settled (no quorum's, or of another anchor) is nothing that a member could show.
        """
        report, previous = accepted.accepted.report, accepted.previous
        while self.chain.block.time < time + self._network.parameters.dispute_window // 2:
            finding = await self._look(accepted)
            if finding is not None:
                await self._judge(finding)
                return
            await asyncio.sleep(self._poll)
        known = self._findings.get(previous.struct_hash()) if previous is not None else None
        before = known.settlement.state.accounts.rows if known is not None and not known.difference else ()
        contradiction = find_fallen_count(previous, report) if previous is not None else None
        demands = choose_blind_demands(report, before, secrets.randbits(64))
        await self._dispute(
            court, Case(accepted, contradiction, demands, lambda shown: contradict_blindly(report, before, shown))
        )

    async def _claimed(self, finding: Finding) -> State | None:
        """The state after the epoch as a member has it whose accounts the report commits to."""

        def check(data: bytes) -> State:
            with _suspicion():
                state = decode_state(data, JUDGES)
                if not is_claimed(state, finding.report):
                    raise Corrupt("this state is not the one that the report commits to")
                return state

        try:
            return await self._quorum.first_good(f"/v1/states/{finding.report.epoch}", check)
        except (FreeholdError, OSError):
            return None

    async def _contest(self, court: Court, finding: Finding) -> None:
        claimed = await self._claimed(finding)
        contradiction = await asyncio.to_thread(find_contradiction, finding, claimed)
        demands = [] if contradiction is not None else choose_demands(finding, claimed)
        await self._dispute(
            court,
            Case(finding.accepted, contradiction, demands, lambda shown: contradict_answer(finding, shown, JUDGES)),
        )

    async def _dispute(self, court: Court, case: Case) -> None:
        """Until the report is gone or nothing is left to try: a challenge if there is a proof, else demands, whose
        answers may be the proof. What fails is tried again: a commitment that is not revealed costs the bond."""
        report, accepted = case.accepted.accepted.report, case.accepted.accepted
        while self.chain.active < report.epoch:
            try:
                if not await court.is_current(report):
                    break
                case = await self._hear(case)
                if not await self._step(court, case):
                    return
            except (FreeholdError, OSError) as error:
                log.warning("epoch %d: %s", report.epoch, error)
            await asyncio.sleep(self._poll)
        for _ in range(PATIENCE):
            try:
                if not await court.prove(case.accepted.previous, report, case.contradiction):
                    await court.withdraw(report)
                await court.slash(report, accepted.signers, accepted.signatures)
                return
            except (FreeholdError, OSError) as error:
                log.warning("epoch %d: %s", report.epoch, error)
            await asyncio.sleep(self._poll)

    async def _hear(self, case: Case) -> Case:
        """The case, with what has been answered to this watcher meanwhile."""
        report = case.accepted.accepted.report
        answered = self._shown.pop(report.struct_hash(), None)
        if answered is None:
            return case
        contradiction = case.contradiction
        try:
            contradiction = contradiction or await asyncio.to_thread(case.judge, answered)
        except Exception:  # whoever answers chooses the bytes
            log.exception("epoch %d: the answer cannot be read", report.epoch)
        what = "nothing" if contradiction is None else f"a contradiction of kind {contradiction.kind}"
        self._tell(Seen(report.epoch, report.attempt, "answered", f"it shows {what}"))
        return case._replace(contradiction=contradiction)

    async def _step(self, court: Court, case: Case) -> bool:
        """The next step on chain; False when there is none."""
        report, before, contradiction = case.accepted.accepted.report, case.accepted.previous, case.contradiction
        kind = await court.hold_kind(report)
        if contradiction is not None and kind in (NOTHING, CHALLENGE, ANSWERED):
            if not await court.challenge(before, report, contradiction) and kind != CHALLENGE:
                self._tell(Seen(report.epoch, report.attempt, "challenged", f"kind {contradiction.kind}"))
        elif kind == NOTHING and not case.demands:
            return False
        elif kind == NOTHING:
            demand = case.demands[0]
            await court.demand(report, demand)
            del case.demands[0]
            self._tell(Seen(report.epoch, report.attempt, "demanded", f"kind {demand.kind}"))
        elif kind not in (CHALLENGE, ANSWERED):
            await court.expire(before, report)
        return True

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
                    self._on_demanded(court, happened)
                elif isinstance(happened, disputes_abi.Answered | disputes_abi.Committed):
                    report, challenger = Hash(happened.report_hash), Address(happened.challenger)
                    self._holds.add(Holding(happened.epoch, report, challenger))
                    if isinstance(happened, disputes_abi.Answered) and challenger == court.challenger:
                        self._shown[report] = Shown(self._asked[report], happened.shown)

    def _on_demanded(self, court: Court, demanded: disputes_abi.Demanded) -> None:
        if Address(demanded.challenger) == court.challenger:
            self._asked[Hash(demanded.report_hash)] = Demand(demanded.kind, demanded.position)
        else:
            self._spawn(demanded.epoch, self._answer(court, demanded))

    async def _end_holds(self, court: Court) -> None:
        """End every hold whose time has passed, whoever opened it: a report stays pending until somebody does."""
        while True:
            for hold in list(self._holds):
                try:
                    if hold.epoch <= self.chain.active or await court.end_hold(*hold):
                        self._holds.discard(hold)
                except (FreeholdError, OSError) as error:
                    log.warning("epoch %d: a hold does not end: %s", hold.epoch, error)
            await asyncio.sleep(self._poll)

    async def _answer(self, court: Court, demanded: disputes_abi.Demanded) -> None:
        """As soon as the report has been examined, and as long as the demand is open: unanswered, it revokes."""
        report, challenger = Hash(demanded.report_hash), Address(demanded.challenger)
        while self.chain.active < demanded.epoch:
            try:
                if not await court.is_demanded(demanded.epoch, report, challenger):
                    return
                finding = self._findings.get(report)
                if finding is not None and finding.difference:
                    return
                if finding is not None:
                    demand = Demand(demanded.kind, demanded.position)
                    answer = await asyncio.to_thread(make_answer, finding.settlement, finding.bundle, JUDGES, demand)
                    await court.answer(finding.report, challenger, answer)
                    return
            except NotFound as error:
                log.warning("epoch %d: no answer from here: %s", demanded.epoch, error.message)
                return
            except (FreeholdError, OSError) as error:
                log.info("epoch %d: not answered yet: %s", demanded.epoch, error)
            await asyncio.sleep(self._poll)


async def _guard(epoch: int, work: Coroutine[Any, Any, None]) -> None:
    """Whatever one piece of work fails of ends only that."""
    try:
        await work
    except (FreeholdError, OSError) as error:
        log.warning("epoch %d: %s", epoch, error)
    except Exception:
        log.exception("epoch %d: given up", epoch)


@contextmanager
def _suspicion() -> Iterator[None]:
    """Bytes from a member may make a decoder fail in any way: then they are none that were promised."""
    try:
        yield
    except FreeholdError:
        raise
    except Exception as error:
        raise Corrupt(f"bytes of a member do not decode: {error or type(error).__name__}") from error
