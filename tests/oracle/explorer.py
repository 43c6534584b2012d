"""Explores everything that can happen to real members, up to a bound: every order of deliveries, losses, repetitions,
late settlements, timeouts, and crashes between any two effects.

The net is the set of what was ever sent: each message may come to each member at any time, any number of times, or
never. So loss, delay, reordering and repetition need no steps of their own. One member may be corrupt: its messages are
a fixed menu, each of which it may have sent to anybody from the start.

A member's step depends on its own state and on what comes in, so it is computed once for each such pair, by the real
`Member.on` on a copy of the real Member; a state of the whole is a tuple of members' states, what was sent, and what is
left of the bounds. States are told apart by everything in them but caches: nothing that differs is taken for equal.

Reduced, and why nothing is missed by it: observations are not delivered to a member that leads no view within the
bounds (it keeps them for proposing, and nothing else reads them), nor its own messages to a member (it ignores them).
Not explored: more steps, timeouts or crashes than the bounds say; batches that have to be fetched; retransmissions
(what they repeat is in the net already); a second epoch, the chain after the anchor, revocations.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any, NamedTuple

from freehold.oracle.chain_view import ChainView
from freehold.oracle.checks import Checks, PeerMessage
from freehold.oracle.committed import Committed
from freehold.oracle.effects import Broadcast, Effect, Persist, Send, Settle
from freehold.oracle.events import ChainAdvanced, Event, MessageReceived, PriceSeen, Settled, Tick
from freehold.oracle.member import Member
from freehold.oracle.records import BATCH, EQUIVOCATION, Record
from freehold.oracle.setup import Setup
from freehold.protocol.batches import Batch
from freehold.protocol.epoch import certified_subjects
from freehold.protocol.messages import Observation
from freehold.protocol.typed import Message
from freehold.protocol.units import Address, Hash
from tests.oracle.simulation import settle_once

PLAIN = (int, str, bytes, float, bool, type(None))
# What only status shows, or what only says when to repeat what is in the net already: nothing else reads it.
UNREAD = {"work", "_late", "_accused", "_answered", "equivocations", "_out"}
UNORDERED = {"seals", "votes", "_views", "manifests", "said"}  # read by key, or sorted
SHARED = (Message, Setup, Checks, Committed, Settled, Record, Batch)  # never changed once made


def fork(value: Any, memo: dict[int, Any]) -> Any:
    """A copy of a member, or of a part of one, that shares what never changes."""
    if isinstance(value, (*PLAIN, *SHARED)):
        return value
    if id(value) in memo:
        return memo[id(value)]
    copied: Any
    if isinstance(value, Counter):
        copied = memo[id(value)] = Counter(value)
    elif isinstance(value, dict):
        copied = memo[id(value)] = type(value)()
        for key, item in value.items():
            copied[key] = fork(item, memo)
    elif isinstance(value, list | deque):
        copied = memo[id(value)] = type(value)()
        copied.extend(fork(item, memo) for item in value)
    elif isinstance(value, set):
        copied = memo[id(value)] = set(value)
    elif isinstance(value, tuple | frozenset):
        return value
    elif isinstance(value, MethodType):
        return MethodType(value.__func__, fork(value.__self__, memo))
    else:
        assert type(value).__module__.startswith("freehold.oracle"), type(value)
        copied = memo[id(value)] = object.__new__(type(value))
        copied.__dict__.update({name: fork(item, memo) for name, item in vars(value).items()})
    return copied


class Names:
    """A short name for each message, by its content."""

    def __init__(self) -> None:
        self._by_content: dict[tuple[type, bytes], int] = {}
        self._by_identity: dict[int, tuple[int, object]] = {}

    def of(self, value: Message) -> int:
        known = self._by_identity.get(id(value))
        if known is None:
            name = self._by_content.setdefault((type(value), value.to_bytes()), len(self._by_content))
            known = self._by_identity[id(value)] = (name, value)  # kept alive, so that the identity stays its own
        return known[0]


def describe(value: Any, names: Names, seen: set[int], is_sorted: bool = False) -> Any:
    """Everything in a member that may tell it from another, as a hashable value."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Message):
        return names.of(value)
    if isinstance(value, Settled):
        return value.manifest, value.settlement is None
    if isinstance(value, Committed):
        return value.epoch, value.attempt
    if isinstance(value, ChainView):  # it follows from the blocks that it has seen
        return value.block.number
    if isinstance(value, Setup | Checks | Batch | MethodType) or callable(value):
        return None
    if isinstance(value, dict):
        items = [(describe(k, names, seen), describe(v, names, seen, is_sorted)) for k, v in value.items()]
        return tuple(sorted(items, key=repr) if is_sorted else items)
    if isinstance(value, set | frozenset):
        return tuple(sorted(map(repr, value)))
    if isinstance(value, list | tuple | deque):
        return tuple(describe(item, names, seen) for item in value)
    if id(value) in seen:
        return None
    seen.add(id(value))
    fields = [(name, item) for name, item in vars(value).items() if name not in UNREAD]
    return tuple((name, describe(item, names, seen, name in UNORDERED)) for name, item in fields)


@dataclass(frozen=True)
class Local:
    """One member's process: the machine, its disk, settlements under way, and how far it is in its script."""

    member: Member
    disk: dict[tuple[str, str], Record]
    settling: tuple[Settled, ...] = ()
    script: int = 0
    now: int = 0


class Step(NamedTuple):
    """Where something leads: the local state after it, the bits of what is sent meanwhile, and how many effects."""

    local: int
    sent: int
    effects: int


class Whole(NamedTuple):
    """A state of the whole. `sent` has a bit for each message; crashes and timeouts are what is left of the bounds."""

    locals: tuple[int, ...]
    sent: int
    crashes: int
    timeouts: int


@dataclass(frozen=True)
class Scenario:
    """What to explore."""

    setups: tuple[Setup, ...]  # of the honest members
    scripts: tuple[tuple[Event, ...], ...]  # what happens to each besides, one after the other
    done: int  # how much of the scripts has happened to everybody when the exploration starts
    batches: dict[Hash, Batch]
    menu: Callable[[list[PeerMessage]], Iterable[PeerMessage]]  # what the corrupt member may say, once these are known
    leaders: frozenset[Address]  # who leads a view within the bounds
    crashes: int
    timeouts: int


class Explorer:
    """Of one scenario. `explore` visits every state within its bounds."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._names = Names()
        self._known: dict[Any, int] = {}
        self._numbers: dict[int, int] = {}
        self._steps: dict[tuple[int, Any, int | None], Step] = {}
        self.locals: list[Local] = []
        self.messages: list[PeerMessage] = []
        self.transitions = 0
        born = [self._birth(setup, {}, scenario.done, is_first=True) for setup in scenario.setups]
        sent = 0
        for step in born:
            sent |= step.sent
        for message in scenario.menu(list(self.messages)):
            sent |= 1 << self._number(message)
        self.first = Whole(tuple(step.local for step in born), sent, scenario.crashes, scenario.timeouts)

    def _number(self, message: PeerMessage) -> int:
        """The bit of a message."""
        name = self._names.of(message)
        if name not in self._numbers:
            self._numbers[name] = len(self.messages)
            self.messages.append(message)
        return self._numbers[name]

    def _intern(self, local: Local) -> int:
        disk = tuple(sorted((p, record.data) for p, record in local.disk.items() if p[0] != EQUIVOCATION))
        machine = describe(local.member, self._names, set())
        key = (machine, disk, tuple(one.manifest for one in local.settling), local.script, local.now)
        if key not in self._known:
            self._known[key] = len(self.locals)
            self.locals.append(local)
        return self._known[key]

    # -- one member's steps

    def _birth(self, setup: Setup, disk: dict[tuple[str, str], Record], script: int, is_first: bool = False) -> Step:
        """A process that starts and sees the chain, the price and its clock as far as its script has got; to the first
        one everything else in the script has happened too."""
        records = [(r, self._scenario.batches[Hash(r.key)] if r.kind == BATCH else None) for r in disk.values()]
        local = Local(Member(setup, None, records), disk, (), script)
        events = self._scenario.scripts[self._scenario.setups.index(setup)][:script]
        sent = 0
        for event in events:
            if is_first or isinstance(event, ChainAdvanced | PriceSeen | Tick):
                local, more = self._perform(local, local.member.on(event))
                sent |= more
        return Step(self._intern(local), sent, 0)

    def _perform(self, local: Local, effects: Iterable[Effect]) -> tuple[Local, int]:
        disk, settling, sent = dict(local.disk), local.settling, 0
        for effect in effects:
            if isinstance(effect, Persist):
                disk |= {(record.kind, record.key): record for record in effect.records}
                disk = {place: record for place, record in disk.items() if record.data is not None}
            elif isinstance(effect, Broadcast | Send):
                sent |= 1 << self._number(effect.message)
            elif isinstance(effect, Settle):
                batches = {s: self._scenario.batches[s] for s in certified_subjects(effect.manifest)}
                settlement = settle_once(effect.previous, effect.manifest, batches, effect.anchor)
                outcome = Settled(effect.manifest.epoch, effect.manifest.struct_hash(), settlement, batches, "")
                settling = (*settling, outcome)
        return replace(local, disk=disk, settling=settling), sent

    def step(self, at: int, what: Any, cut: int | None = None) -> Step:
        """What this happening leads to at the member in local state `at`; with `cut`, it dies after so many effects
        and starts again. `what`: a message's bit, ("settled", i), ("script",), ("timeout",) or ("crash",)."""
        key = (at, what, cut)
        if key not in self._steps:
            self._steps[key] = self._compute(self.locals[at], what, cut)
        return self._steps[key]

    def _compute(self, local: Local, what: Any, cut: int | None) -> Step:
        setup, script, now, settling = local.member.setup, local.script, local.now, local.settling
        if what == ("crash",):
            return self._birth(setup, local.disk, script)
        event: Event
        if isinstance(what, int):
            event = MessageReceived(self.messages[what])
        elif what == ("script",):
            event, script = self._scenario.scripts[self._scenario.setups.index(setup)][script], script + 1
        elif what == ("timeout",):
            round_ = local.member.round
            now = round_._deadline if round_ is not None and round_._deadline is not None else now + 1
            event = Tick(now)
        else:
            event = settling[what[1]]
            settling = tuple(one for one in settling if one is not event)
        chain = local.member.chain
        member = fork(local.member, {} if isinstance(event, ChainAdvanced) else {id(chain): chain})
        effects = member.on(event)
        after, sent = self._perform(Local(member, local.disk, settling, script, now), effects[:cut])
        if cut is None:
            return Step(self._intern(after), sent, len(effects))
        born = self._birth(setup, after.disk, script)
        return Step(born.local, sent | born.sent, len(effects))

    # -- the whole

    def happenings(self, whole: Whole, i: int, everything: bool = False) -> Iterator[Any]:
        """What may happen to the i-th honest member next, crashes aside; with `everything`, what changes nothing within
        the bounds too."""
        at = whole.locals[i]
        local, me = self.locals[at], self._scenario.setups[i].key.address
        if local.script < len(self._scenario.scripts[i]):
            yield ("script",)
        for place in range(len(local.settling)):
            yield ("settled", place)
        for number in range(whole.sent.bit_length()):
            if whole.sent >> number & 1 and (everything or self._may_matter(self.messages[number], me)):
                yield number
        if whole.timeouts and local.member.round is not None:
            yield ("timeout",)

    def _may_matter(self, message: PeerMessage, me: Address) -> bool:
        if isinstance(message, Observation) and me not in self._scenario.leaders:
            return False
        return getattr(message, "member", None) != me

    def after(self, whole: Whole) -> Iterator[Whole]:
        """Every state that one step leads to."""
        for i, at in enumerate(whole.locals):
            timeouts = whole.timeouts
            for what in self.happenings(whole, i):
                step = self.step(at, what)
                left = timeouts - (what == ("timeout",))
                yield self._move(whole, i, step, whole.crashes, left)
                if whole.crashes:
                    for cut in range(1, step.effects):
                        yield self._move(whole, i, self.step(at, what, cut), whole.crashes - 1, left)
            if whole.crashes:
                yield self._move(whole, i, self.step(at, ("crash",)), whole.crashes - 1, timeouts)

    def _move(self, whole: Whole, i: int, step: Step, crashes: int, timeouts: int) -> Whole:
        self.transitions += 1
        locals_ = (*whole.locals[:i], step.local, *whole.locals[i + 1 :])
        return Whole(locals_, whole.sent | step.sent, crashes, timeouts)

    def explore(self, check: Callable[[Whole], None], depth: int) -> tuple[int, bool]:
        """Visit every state that at most `depth` steps lead to; how many there are, and whether there are no others."""
        seen, front = {self.first}, [self.first]
        check(self.first)
        for _ in range(depth):
            later = []
            for whole in front:
                for one in self.after(whole):
                    if one not in seen:
                        seen.add(one)
                        check(one)
                        later.append(one)
            front = later
            if not front:
                break
        return len(seen), not front

    def close(self, whole: Whole, rounds: int) -> Whole:
        """What comes of a state once the faults have stopped and the corrupt member is silent: everything comes to
        everybody, and whoever waits too long gives up on the leader."""
        for _ in range(rounds):
            before = None
            while before != whole:
                before = whole
                for i in range(len(whole.locals)):
                    for what in list(self.happenings(whole._replace(timeouts=0), i, everything=True)):
                        whole = self._happen(whole, i, what)
            if self.is_certified(whole):
                break
            for i in range(len(whole.locals)):
                whole = self._happen(whole, i, ("timeout",))
        return whole

    def is_certified(self, whole: Whole) -> bool:
        """Whether some honest member has a report with Q signatures, which it submits."""
        rounds = [self.locals[at].member.round for at in whole.locals]
        return any(round_ is not None and round_.certified for round_ in rounds)

    def _happen(self, whole: Whole, i: int, what: Any) -> Whole:
        if isinstance(what, tuple) and what[0] == "settled":
            if not self.locals[whole.locals[i]].settling:
                return whole
            what = ("settled", 0)
        return self._move(whole, i, self.step(whole.locals[i], what), whole.crashes, whole.timeouts)
