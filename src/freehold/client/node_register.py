"""One register at several nodes: the proposer's side of CASPaxos (D. Rystsov, 2018).

A change prepares a ballot at a majority, learns what was accepted last, and has the next value accepted by a majority.
Acceptors promise the ballot that follows with each value they take, so who succeeded last goes straight to `accept`.
A read asks for ballots only: one that a majority shows is chosen; else the round is completed before it answers.
Invariants: a ballot is used for one value; a change is called a Conflict only once a majority holds, above every ballot
of ours, a value that ours is no part of.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec

from freehold.client.heads import Head
from freehold.protocol.errors import Conflict, Corrupt, FreeholdError, Unavailable
from freehold.protocol.keys import Key
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address
from freehold.services.storage.client_registers import Acceptor
from freehold.services.storage.register_values import (
    CONTROL,
    NEVER,
    WRITER_BYTES,
    Accepted,
    Answer,
    Ballot,
    Known,
    Place,
    Value,
    ask_promise,
    make_value,
    part_after,
    propose,
    whole,
)

NODE_SECONDS = 4.0  # for one node to answer, and longer for what is long:
VALUE_SECONDS = 12.0  # to show a whole value
LEAST_SPEED = 512 << 10  # bytes a second, to all nodes together
BEHIND_LIMIT = 64  # answers that nobody waits for any more
HEDGE_SECONDS = 0.25  # after which the slower nodes are asked too
BACKOFF_SECONDS = 0.02  # doubles with each lost duel
LOOKS = 3  # at ballots that differ, before a round is completed for them
LOOK_SECONDS = 0.01
LEAP = 1 << 32  # by which a node may raise our ballots at once: it does not prove what it has promised

Decide = Callable[[Value | None], Value | None]


class Moved(Exception):
    """The group is sealed at `node`, as that says: the group's control says where to go on."""

    def __init__(self, node: Address) -> None:
        self.node = node


class Forgotten(Unavailable):
    """A node does not hold the group, or not any more; so does a majority, where a call raises this."""


class Standing(NamedTuple):
    """What was learned of a group's nodes, for all of its registers: seconds that each took lately; until when (loop's
    time) it is not believed that the group is sealed, as its control was found open."""

    speed: dict[Address, float]
    doubted: dict[Address, float]


class Signer(NamedTuple):
    """Whose registers they are."""

    key: Key
    domain: Domain


class Change:
    """One compare-and-set, over however many rounds and groups it takes."""

    def __init__(self, expected: Head | None, new: Head | None) -> None:
        self.expected, self.new = expected, new
        self.version = (expected.version if expected else 0) + 1
        self.is_sent = False
        self._writer = secrets.token_bytes(WRITER_BYTES)

    def fits(self, current: Value | None) -> bool:
        """Whether this is what the change expects."""
        if current is None or self.expected is None:
            return current is None and self.expected is None
        return not current.is_gone and head_of(current) == self.expected

    def decide(self, current: Value | None) -> Value | None:
        """What follows `current`: the new value where it fits, else what there is."""
        if not self.fits(current):
            return current
        self.is_sent = True
        if self.new is None:
            return make_value(current, b"", (), self._writer, True)
        return make_value(current, self.new.base, self.new.frames, self._writer, False)

    def judge(self, settled: Value | None) -> None:
        """Raise unless the change is in a value that a majority holds: Conflict where it surely is not and will not
        be, Unavailable where that cannot be told any more."""
        version = settled.version if settled else 0
        made = settled.has_writer(self._writer, self.version) if settled and self.is_sent else False
        if made is None:
            raise Unavailable("the head has changed many times since: whether this change is in it cannot be told")
        if not made:
            raise Conflict("the head was changed by another writer", version=version)


def head_of(value: Value) -> Head:
    """A value as the head that it is."""
    return Head(value.version, value.base, value.frames)


class _Seen(NamedTuple):
    ballot: Ballot
    value: Value


class Register:
    """A register of an account, as one process proposes to it. Acceptors are those of one group."""

    def __init__(self, place: Place, acceptors: Sequence[Acceptor], signer: Signer, standing: Standing) -> None:
        self._place = place
        self._acceptors = acceptors
        self._signer = signer
        self._proposer = secrets.token_bytes(8)  # of this object alone: its ballots are used once
        self._speed, self._doubted = standing
        self._majority = len(acceptors) // 2 + 1
        self._counter = 0  # the highest that was seen or used
        self._ready: _Seen | None = None  # a ballot that a majority has promised us, and what it has accepted last
        self._seen: _Seen | None = None  # the newest value that the account's signature was checked of
        self._at: dict[Address, bytes] = {}  # the chain that each node has
        self._busy: set[Address] = set()  # nodes that have not answered to the last value yet
        self._behind: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not (self._lock.locked() or self._busy or self._behind)

    # -- what callers do ------------------------------------------------------------------------------------------

    async def read(self) -> Value | None:
        """The newest value that was chosen before the call, or one chosen since. Unavailable, Moved."""
        for look in range(LOOKS):
            if look:
                await asyncio.sleep(random.uniform(0, LOOK_SECONDS * 4**look))
            first = self._order()[0].node
            answers, failures = await self._gather(
                lambda acceptor, first=first: acceptor.show(  # type: ignore[misc]
                    self._place, self._known(parts=self._seen is not None or acceptor.node == first)
                ),
                lambda answers: self._common(answers) is not None,
            )
            if len(answers) < self._majority:
                raise _too_few(self._majority, answers, failures)
            common = self._common(answers)
            if common is not None:
                with suppress(_Newer):
                    return await self._value_of(common, answers)
        return await self.settle(lambda current: current)

    async def change(self, change: Change) -> None:
        """Make a change. Conflict, Unavailable (`Heads`), Moved."""
        async with self._lock:
            ready = self._ready
            if ready is not None and change.fits(ready.value):
                value = change.decide(ready.value)
                assert value is not None
                if await self._propose(ready.ballot, value, ready.value):
                    return
            settled = await self._settle(change.decide)
        change.judge(settled)

    async def settle(self, decide: Decide, *, is_founding: bool = False, is_patient: bool = False) -> Value | None:
        """What a majority holds after a whole round, in which `decide` may replace what was accepted last.

        `is_founding`: the register of a group that is new. `is_patient`, as then: every node is waited for.
        """
        async with self._lock:
            return await self._settle(decide, is_founding, is_patient or is_founding)

    async def stop(self) -> None:
        """Give up on nodes that have not answered yet."""
        for task in self._behind:
            task.cancel()
        await asyncio.gather(*self._behind, return_exceptions=True)

    # -- rounds ---------------------------------------------------------------------------------------------------

    async def _settle(self, decide: Decide, is_founding: bool = False, is_patient: bool = False) -> Value | None:
        lost = unproven = 0
        while True:
            if lost:
                await asyncio.sleep(random.uniform(0, BACKOFF_SECONDS * 2 ** min(lost, 6)))
            lost += 1
            self._ready = None
            self._counter += 1
            ballot = Ballot(self._counter, self._proposer)
            promises = await self._prepare(ballot, is_founding, is_patient or unproven > 2)
            if promises is None:
                continue
            try:
                last, current = await self._last(promises)
            except _Newer:
                unproven += 1  # another proposer is ahead, or a node shows what it does not have
                continue
            target = decide(current)
            if target is None:
                return None
            if target is current and sum(answer.ballot == last for answer in promises.values()) >= self._majority:
                self._ready = _Seen(ballot, target)
                return target
            if await self._propose(ballot, target, current, is_patient):
                return target

    async def _prepare(self, ballot: Ballot, is_founding: bool, is_patient: bool) -> Mapping[Acceptor, Answer] | None:
        """Who has promised; None where another's ballot is higher."""
        key, domain = self._signer
        asked = {
            parts: ask_promise(key, domain, self._place, ballot, self._known(parts=parts), founding=is_founding)
            for parts in (False, True)
        }
        first = self._order()[0].node
        answers, failures = await self._gather(
            lambda acceptor: acceptor.prepare(self._place, asked[self._seen is not None or acceptor.node == first]),
            lambda answers: self._is_decided(answers, is_patient),
            is_eager=is_patient,
        )
        return self._count(answers, failures)

    async def _propose(self, ballot: Ballot, value: Value, before: Value | None, is_patient: bool = False) -> bool:
        """Whether a majority has taken the value; False where another's ballot is higher."""
        self._ready = None
        self._counter = max(self._counter, ballot.counter)
        proposal = propose(self._signer.key, self._signer.domain, self._place, ballot, value)
        idle = [acceptor for acceptor in self._acceptors if acceptor.node not in self._busy]
        size = part_after(value, before.chain[-1] if before else b"", before).size
        answers, failures = await self._gather(
            lambda acceptor: self._send(acceptor, proposal, value, before),
            lambda answers: self._is_decided(answers, is_patient),
            among=idle if len(idle) >= self._majority else self._acceptors,
            is_eager=True,
            seconds=NODE_SECONDS + size * len(self._acceptors) / LEAST_SPEED,
        )
        if self._count(answers, failures) is None:
            return False
        self._seen = _Seen(ballot, value)
        self._ready = _Seen(ballot.following(), value)
        return True

    async def _send(self, acceptor: Acceptor, proposal: Accepted, value: Value, before: Value | None) -> Answer:
        at = self._at.get(acceptor.node) or (before.chain[-1] if before else b"")
        self._busy.add(acceptor.node)
        try:
            # Nodes read a group's control, so it is never sent in parts.
            part = whole(value) if self._place.name == CONTROL else part_after(value, at, before)
            answer = await acceptor.accept(self._place, msgspec.structs.replace(proposal, part=part))
            if answer.status == "behind":
                answer = await acceptor.accept(self._place, msgspec.structs.replace(proposal, part=whole(value)))
        finally:
            self._busy.discard(acceptor.node)
        if answer.status == "ok":
            self._at[acceptor.node] = value.chain[-1]
        return answer

    def _is_decided(self, answers: Mapping[Acceptor, Answer], is_patient: bool) -> bool:
        agreeing = len(_agreeing(answers))
        needed = len(self._acceptors) if is_patient else self._majority
        return agreeing >= needed or len(answers) - agreeing > len(self._acceptors) - self._majority

    def _count(
        self, answers: Mapping[Acceptor, Answer], failures: Mapping[Acceptor, FreeholdError]
    ) -> Mapping[Acceptor, Answer] | None:
        """Those that agree, where they are a majority; None where others were promised more."""
        agreeing = _agreeing(answers)
        if len(agreeing) >= self._majority:
            return agreeing
        highest = max((answer.promised[0] for answer in answers.values()), default=0)
        self._counter = max(self._counter, min(highest, self._counter + LEAP))
        if len(answers) >= self._majority:
            return None
        raise _too_few(self._majority, answers, failures)

    # -- what was accepted ----------------------------------------------------------------------------------------

    def _known(self, *, parts: bool = True) -> Known:
        seen = self._seen
        if seen is None:
            return Known(parts=parts)
        return Known(seen.ballot.counter, seen.ballot.proposer, seen.value.chain[-1], parts)

    def _common(self, answers: Mapping[Acceptor, Answer]) -> Ballot | None:
        """The ballot that a majority shows."""
        counts = Counter(answer.ballot for answer in answers.values())
        return next((Ballot(*ballot) for ballot, count in counts.items() if count >= self._majority), None)

    async def _last(self, promises: Mapping[Acceptor, Answer]) -> tuple[Ballot, Value | None]:
        """What was accepted last among a majority of these, without nodes that show a ballot and not its value."""
        while True:
            last = max(Ballot(*answer.ballot) for answer in promises.values())
            try:
                return last, await self._value_of(last, promises)
            except _Newer:
                promises = {acceptor: answer for acceptor, answer in promises.items() if answer.ballot != last}
                if len(promises) < self._majority:
                    raise

    async def _value_of(self, ballot: Ballot, answers: Mapping[Acceptor, Answer]) -> Value | None:
        """The value under a ballot that some of these show; _Newer where none of them has it any more."""
        if ballot == NEVER:
            return None
        if self._seen is not None and self._seen.ballot == ballot:
            return self._seen.value
        holding = [acceptor for acceptor, answer in answers.items() if answer.ballot == ballot]
        for acceptor in sorted(holding, key=lambda found: not _has_part(answers[found])):
            answer = answers[acceptor]
            with suppress(FreeholdError, TimeoutError):
                if not _has_part(answer):
                    async with asyncio.timeout(VALUE_SECONDS):
                        answer = await acceptor.show(self._place, self._known())
                accepted = answer.accepted
                if accepted is None or accepted.ballot != ballot:
                    continue
                accepted.check(self._place, self._signer.domain)
                value = accepted.open(self._seen.value if self._seen else None)
                if self._seen is None or ballot > self._seen.ballot:
                    self._seen = _Seen(ballot, value)
                self._at[acceptor.node] = value.chain[-1]
                return value
        raise _Newer

    # -- asking ---------------------------------------------------------------------------------------------------

    def _order(self) -> list[Acceptor]:
        return sorted(self._acceptors, key=lambda acceptor: self._speed.get(acceptor.node, 0.0))

    async def _gather(
        self,
        call: Callable[[Acceptor], Awaitable[Answer]],
        is_enough: Callable[[Mapping[Acceptor, Answer]], bool],
        *,
        among: Sequence[Acceptor] | None = None,
        is_eager: bool = False,
        seconds: float = NODE_SECONDS,
    ) -> tuple[dict[Acceptor, Answer], dict[Acceptor, FreeholdError]]:
        """Ask nodes until it is enough: the quickest first, all of them at once if `is_eager`. Those that have not
        answered by then go on for themselves, since giving up on one costs its connection, unless they are many.
        Moved where one says that the group is sealed."""
        waiting = [acceptor for acceptor in self._order() if among is None or acceptor in among]
        tasks: dict[asyncio.Task[Answer], Acceptor] = {}
        answers: dict[Acceptor, Answer] = {}
        failures: dict[Acceptor, FreeholdError] = {}
        start = len(waiting) if is_eager else self._majority + 1
        try:
            while True:
                for acceptor in waiting[:start]:
                    tasks[asyncio.create_task(self._ask(acceptor, call, seconds))] = acceptor
                waiting = waiting[start:]
                done, _ = await asyncio.wait(
                    tasks, timeout=HEDGE_SECONDS if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                start = 0 if done else len(waiting)
                for task in done:
                    acceptor = tasks.pop(task)
                    try:
                        answers[acceptor] = task.result()
                    except FreeholdError as error:
                        failures[acceptor] = error
                        start = len(waiting)
                if is_enough(answers) or not (tasks or waiting):
                    return answers, failures
                if not tasks or any(answer.status == "stale" for answer in answers.values()):
                    start = len(waiting)
        finally:
            for task in tasks:
                if len(self._behind) < BEHIND_LIMIT:
                    follower = asyncio.create_task(_end(task))
                    self._behind.add(follower)
                    follower.add_done_callback(self._behind.discard)
                else:
                    task.cancel()

    async def _ask(self, acceptor: Acceptor, call: Callable[[Acceptor], Awaitable[Answer]], seconds: float) -> Answer:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(seconds):
                answer = await call(acceptor)
        except TimeoutError:
            self._speed[acceptor.node] = seconds
            raise Unavailable(f"node {acceptor.node} did not answer within {seconds:.0f} s") from None
        except FreeholdError:
            self._speed[acceptor.node] = NODE_SECONDS
            raise
        self._speed[acceptor.node] = 0.8 * self._speed.get(acceptor.node, 0.0) + 0.2 * (loop.time() - began)
        if answer.status == "sealed":
            if self._place.name == CONTROL or self._doubted.get(acceptor.node, began) > began:
                raise Unavailable(f"node {acceptor.node} says that the group is sealed, and it is not")
            raise Moved(acceptor.node)
        if answer.status == "unknown":
            raise Forgotten(f"node {acceptor.node} does not hold this group")
        if answer.status == "behind":
            raise Corrupt(f"node {acceptor.node} does not take a whole value")
        return answer


class _Newer(Exception):
    """What a ballot stood for has been replaced meanwhile."""


def _agreeing(answers: Mapping[Acceptor, Answer]) -> dict[Acceptor, Answer]:
    return {acceptor: answer for acceptor, answer in answers.items() if answer.status == "ok"}


def _has_part(answer: Answer) -> bool:
    return answer.accepted is not None and answer.accepted.part is not None


async def _end(task: asyncio.Task[Answer]) -> None:
    try:
        await task
    except (FreeholdError, Moved):
        return  # a node that was late: it is sent what it lacks with the next change
    finally:
        task.cancel()


def _too_few(
    needed: int, answers: Mapping[Acceptor, Answer], failures: Mapping[Acceptor, FreeholdError]
) -> Unavailable:
    reasons = "; ".join(sorted({error.message for error in failures.values()}))
    forgotten = sum(isinstance(error, Forgotten) for error in failures.values()) >= needed
    return (Forgotten if forgotten else Unavailable)(
        f"{len(answers)} nodes answer for this head, {needed} are needed: {reasons}", hint="Try again."
    )
