"""Heads held by several nodes of the network, of different operators: a majority of them makes every change.

All heads of an account stand at one group of nodes, at most 7. What the group is stands in a register of the group
itself, its control, which goes claimed -> open -> sealed, or claimed -> void:

    begin    claim a group; ask every node for other claims; void those (by their own majority), or give way; open
    move     seal the group, naming the next; copy every head from a sealed majority; open the next
    follow   whoever finds a group sealed completes its move

Invariant: at most one group of an account is open at a time. Of two that are claimed, the later claim sees the earlier,
as at most so many nodes may be silent as cannot hide a majority; and a group is opened or made void by consensus.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn, Protocol, TypeVar

from freehold.client.heads import Head, check_change
from freehold.client.node_register import (
    NODE_SECONDS,
    Change,
    Forgotten,
    Moved,
    Register,
    Signer,
    Standing,
    head_of,
)
from freehold.protocol.errors import FreeholdError, InsufficientOperators, InvalidInput, Unavailable
from freehold.protocol.keys import Key
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address, Hash
from freehold.services.storage.client_registers import Acceptor
from freehold.services.storage.register_values import (
    CLAIMED,
    CONTROL,
    FRAMES_LIMIT,
    HOLDERS_LIMIT,
    OPEN,
    SEALED,
    VOID,
    WRITER_BYTES,
    Group,
    Known,
    Listing,
    Place,
    Shown,
    Value,
    make_value,
)

REPLACE_SECONDS = 60.0  # without an answer, after which a node is replaced
CALL_SECONDS = 30.0  # for one read or change
DOUBT_SECONDS = 60.0  # for which a node is not believed that said that the group had moved
AT_ONCE = 16  # nodes asked, or heads moved, at once
REGISTERS = 128  # of a group, kept though nobody uses them

T = TypeVar("T")


class Registered(Protocol):
    """A node of the network; it shows what it holds to everyone."""

    @property
    def node(self) -> Address:
        """Its key."""

    @property
    def operator(self) -> Address:
        """Who runs it."""

    @property
    def acceptor(self) -> Acceptor:
        """How to ask it."""


class Seats(Protocol):
    """Where registers can stand (`services/storage/client_seats.py`)."""

    async def choose(self, count: int, avoid: Collection[Address]) -> Sequence[Acceptor]:
        """`count` nodes under covered leases, of distinct operators, none of them an operator of nodes in `avoid`.
        InsufficientOperators."""

    async def find(self, nodes: Collection[Address]) -> Mapping[Address, Acceptor]:
        """Those of the nodes that are registered, under the leases that are there; without one, to read from."""

    async def everyone(self) -> Sequence[Registered]:
        """Every registered node."""

    async def leased(self) -> Collection[Address]:
        """Nodes that the account has open leases with in the last report, whichever device made them: nobody else can
        hold a group from before that."""


class _Opened:
    """A group as this process deals with it."""

    def __init__(self, group: Hash, acceptors: Sequence[Acceptor], signer: Signer) -> None:
        self.group = group
        self.acceptors = acceptors
        self.majority = len(acceptors) // 2 + 1
        self.answered: dict[Address, float] = {}  # when each node was last heard of
        self.doubted: dict[Address, float] = {}  # until when a node's word that the group is sealed is not taken
        standing = Standing({}, self.doubted)
        self._make: Callable[[Place], Register] = lambda place: Register(place, acceptors, signer, standing)
        self._registers: dict[Place, Register] = {}  # the one used last is the last

    def register(self, place: Place) -> Register:
        """A register of the group, the same one as long as it is in use: each keeps the value that it saw last."""
        register = self._registers.pop(place, None) or self._make(place)
        self._registers[place] = register
        for old in list(self._registers)[: max(0, len(self._registers) - REGISTERS)]:
            if self._registers[old].is_idle:
                del self._registers[old]
        return register

    async def stop(self) -> None:
        """Give up on nodes that have not answered."""
        await asyncio.gather(*(register.stop() for register in self._registers.values()))


class NodeHeads:
    """An account's heads (`heads.Heads`)."""

    def __init__(self, key: Key, domain: Domain, seats: Seats, replace_seconds: float = REPLACE_SECONDS) -> None:
        self._signer = Signer(key, domain)
        self._seats = seats
        self._replace_seconds = replace_seconds
        self._opened: _Opened | None = None
        self._finding = asyncio.Lock()
        self._reads: dict[str, asyncio.Task[Head | None]] = {}  # those that have not begun yet
        self._reading: dict[str, asyncio.Lock] = {}

    async def stop(self) -> None:
        """Give up on nodes that have not answered; nothing else is kept."""
        if self._opened is not None:
            await self._opened.stop()

    # -- heads ----------------------------------------------------------------------------------------------------

    async def read(self, name: str) -> Head | None:
        """See `Heads`. Reads of one name that overlap share a round, which begins after each of them has."""
        check_change(name, None, None)
        task = self._reads.get(name)
        if task is None:
            task = self._reads[name] = asyncio.create_task(self._read_next(name))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # its callers may all have gone
        return await asyncio.shield(task)

    async def _read_next(self, name: str) -> Head | None:
        lock = self._reading.setdefault(name, asyncio.Lock())
        async with lock:
            del self._reads[name]  # whoever comes from now on waits for the next

            async def read(opened: _Opened) -> Value | None:
                return await opened.register(self._place(opened, name)).read()

            value = await self._within(read, None)
            return head_of(value) if value is not None and not value.is_gone else None

    async def compare_and_set(self, name: str, expected: Head | None, new: Head | None) -> None:
        """See `Heads`."""
        check_change(name, expected, new)
        if bytes.fromhex(name) == CONTROL:
            raise InvalidInput("this name is the group's own")
        if new is not None and len(new.frames) > FRAMES_LIMIT:
            raise InvalidInput(f"a head has at most {FRAMES_LIMIT} frames", limit=FRAMES_LIMIT)
        change = Change(expected, new)

        async def make(opened: _Opened) -> bool:
            await opened.register(self._place(opened, name)).change(change)
            return True

        if await self._within(make, None) is None:
            if expected is not None:
                change.judge(None)
            async with _within_time():
                await self._begin()
            if await self._within(make, None) is None:
                raise Unavailable("this account's group is gone again", hint="Try again.")

    async def _within(self, work: Callable[[_Opened], Awaitable[T]], missing: T) -> T:
        """Do it in the account's group, wherever that has moved; `missing` where the account has none."""
        async with _within_time():
            while True:
                opened = await self._find()
                if opened is None:
                    return missing
                try:
                    return await work(opened)
                except Moved as moved:
                    await self._leave(opened, moved.node)
                except Forgotten:  # it may have moved long ago: whoever asks next looks for the group anew
                    if self._opened is opened:
                        self._opened = None
                    raise

    def _place(self, opened: _Opened, name: str) -> Place:
        return Place(self._signer.key.address, opened.group, bytes.fromhex(name))

    # -- the group ------------------------------------------------------------------------------------------------

    async def _find(self) -> _Opened | None:
        if self._opened is not None:
            return self._opened
        async with self._finding:
            if self._opened is None:
                shown, hidden = await self._survey()
                self._opened = await self._follow_newest(shown)
                if self._opened is None and hidden:
                    raise Unavailable(hidden, hint="Try again.")
            return self._opened

    async def _leave(self, opened: _Opened, witness: Address | None = None) -> None:
        """Go on in the group that follows; `witness` says that there is one, and is not believed for a while if not."""
        async with self._finding:
            if self._opened is opened:
                self._opened = None
                self._opened = await self._follow(opened, is_sealed=True)
                if self._opened is opened and witness is not None:
                    opened.doubted[witness] = asyncio.get_running_loop().time() + DOUBT_SECONDS

    async def _survey(self) -> tuple[dict[Hash, Group], str]:
        """The groups that any node shows, each in its last state that one does; and why others may be hidden."""
        nodes = await self._seats.everyone()
        account = self._signer.key.address
        answers = await _bounded([lambda n=n: n.acceptor.groups(account) for n in nodes])  # type: ignore[misc]
        newest: dict[Hash, tuple[int, Group]] = {}
        silent: set[Address] = set()
        for node, answer in zip(nodes, answers, strict=True):
            if not isinstance(answer, list):
                silent.add(node.node)
                continue
            for shown in answer:
                found = self._check(shown)
                if found is not None and shown.control.version > newest.get(found[0], (0, None))[0]:
                    newest[found[0]] = (shown.control.version, found[1])
        groups = {group: state for group, (_, state) in newest.items()}
        if not silent or any(state.state in (OPEN, SEALED) for state in groups.values()):
            return groups, ""
        size = _group_size(len({node.operator for node in nodes}))
        hidden = f"{len(silent)} of {len(nodes)} nodes do not say what they hold"
        if len(silent) > size // 2:
            return groups, hidden
        # A group of before may be smaller than one of today: where the network has grown, or not all served.
        leased = silent.intersection(await self._seats.leased())
        return groups, f"{hidden}, and this account has leases with {len(leased)} of those" if leased else ""

    def _check(self, shown: Shown) -> tuple[Hash, Group] | None:
        """A group that the account has signed; None for anything else that a node may show."""
        try:
            group = Hash(shown.group)
            shown.control.check(Place(self._signer.key.address, group, CONTROL), self._signer.domain)
            return group, Group.decode(shown.control.open(None).base)
        except FreeholdError:
            return None

    async def _follow_newest(self, shown: Mapping[Hash, Group]) -> _Opened | None:
        living = [(state.generation, group) for group, state in shown.items() if state.state in (OPEN, SEALED)]
        if not living:
            return None
        _, group = max(living)
        return await self._follow(await self._make(group, shown[group].holders))

    async def _make(self, group: Hash, holders: Sequence[bytes]) -> _Opened:
        nodes = [Address(holder) for holder in holders]
        found = await self._seats.find(nodes)
        return self._over(group, [found.get(node, _Lost(node)) for node in nodes])

    def _over(self, group: Hash, acceptors: Sequence[Acceptor]) -> _Opened:
        return _Opened(group, acceptors, self._signer)

    def _control(self, opened: _Opened) -> Register:
        return opened.register(Place(self._signer.key.address, opened.group, CONTROL))

    async def _follow(self, opened: _Opened, *, is_sealed: bool = False) -> _Opened | None:
        """The group that is open after this one; moves that were not completed are.

        `is_sealed`: some node says so. Whether all do is settled with every node that answers, that one among them.
        """
        while True:
            control = self._control(opened)
            if is_sealed:
                value = await control.settle(lambda current: current, is_patient=True)
            else:
                value = await control.read()
            is_sealed = False
            if value is None:
                raise Unavailable(f"the nodes of group {opened.group} have forgotten it")
            state = Group.decode(value.base)
            if state.state == OPEN:
                return opened
            if state.state != SEALED:
                return None
            opened = await self._complete(opened, state)

    # -- a first group --------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Make the account's first group, or find that another process has."""
        async with self._finding:
            if self._opened is not None:
                return
            operators = len({node.operator for node in await self._seats.everyone()})
            acceptors = await self._choose(_group_size(operators))
            opened = self._over(Hash(secrets.token_bytes(32)), acceptors)
            claim = Group(CLAIMED, 1, [bytes(acceptor.node) for acceptor in acceptors])
            await self._control(opened).settle(_first(claim), is_founding=True)
            while self._opened is None:
                self._opened = await self._contest(opened)
                if self._opened is None:
                    await asyncio.sleep(random.uniform(0, 0.1))
                    shown, _ = await self._survey()
                    self._opened = await self._follow_newest(shown)
                    claims = self._claims(shown)
                    if self._opened is None and claims:
                        opened = await self._make(claims[0], shown[claims[0]].holders)
                    elif self._opened is None:
                        raise Unavailable("another process is making this account's group", hint="Try again.")

    async def _choose(self, count: int) -> Sequence[Acceptor]:
        """As many as asked for, or the largest odd number that can be had."""
        while True:
            try:
                return await self._seats.choose(count, ())
            except InsufficientOperators as error:
                there = _group_size(min(count - 2, error.details.get("have", count - 2)))
                if count <= 1:
                    raise
                count = max(there, 1)

    async def _contest(self, opened: _Opened) -> _Opened | None:
        """Open a claimed group once no other claim can be; another that is open; None where this one became void."""
        # Claimed at a majority from here on, so whoever claims later sees it.
        state = await self._turn(opened, CLAIMED, is_founding=True)
        if state != CLAIMED:
            return await self._follow(opened)
        shown, hidden = await self._survey()
        if hidden:
            raise Unavailable(hidden, hint="Try again.")
        open_one = await self._follow_newest({group: found for group, found in shown.items() if group != opened.group})
        if open_one is not None:
            await self._turn(opened, VOID, is_founding=True)
            return open_one
        for group in self._claims(shown):
            if group < opened.group:
                await self._turn(opened, VOID, is_founding=True)
                return None
            if group > opened.group:
                other = await self._make(group, shown[group].holders)
                if await self._turn(other, VOID, is_founding=True) != VOID:
                    await self._turn(opened, VOID, is_founding=True)
                    return await self._follow(other)
        await self._turn(opened, OPEN)
        return await self._follow(opened)

    def _claims(self, shown: Mapping[Hash, Group]) -> list[Hash]:
        """Claims to be the first group, in the order in which they give way to each other."""
        return sorted(group for group, found in shown.items() if found.state == CLAIMED and found.generation == 1)

    async def _turn(self, opened: _Opened, after: int, *, is_founding: bool = False) -> int:
        """Bring a group that is claimed to another state, by its majority; the state that it is in then.

        `is_founding`: also where its claim has not come to a majority.
        """

        def decide(current: Value | None) -> Value | None:
            if current is None:
                holders = [bytes(acceptor.node) for acceptor in opened.acceptors]
                return _next(None, Group(after, 1, holders)) if is_founding else None
            state = Group.decode(current.base)
            if state.state != CLAIMED or after == CLAIMED:
                return current
            return _next(current, Group(after, state.generation, state.holders))

        value = await self._control(opened).settle(decide, is_founding=is_founding)
        return Group.decode(value.base).state if value is not None else VOID

    # -- moving ---------------------------------------------------------------------------------------------------

    async def maintain(self) -> None:
        """Replace nodes that are gone, and take more where there were too few. See `Heads`."""
        async with _within_time():
            await self._maintain()

    async def _maintain(self) -> None:
        opened = await self._find()
        if opened is None:
            return
        now = asyncio.get_running_loop().time()
        control = Place(self._signer.key.address, opened.group, CONTROL)
        answers = await _bounded(
            [lambda a=a: a.show(control, Known(parts=False)) for a in opened.acceptors]  # type: ignore[misc]
        )
        for acceptor, answer in zip(opened.acceptors, answers, strict=True):
            heard = not isinstance(answer, BaseException) and answer.status == "ok"
            if heard or acceptor.node not in opened.answered:
                opened.answered[acceptor.node] = now
        everyone = await self._seats.everyone()
        registered = {node.node for node in everyone}
        kept = [
            acceptor.node
            for acceptor in opened.acceptors
            if acceptor.node in registered and now - opened.answered[acceptor.node] < self._replace_seconds
        ]
        size = max(len(opened.acceptors), _group_size(len({node.operator for node in everyone})))
        if len(kept) == size:
            return
        try:
            chosen = await self._seats.choose(size - len(kept), [acceptor.node for acceptor in opened.acceptors])
        except InsufficientOperators:
            return  # there is nobody else
        await self._move(opened, [*kept, *(acceptor.node for acceptor in chosen)])

    async def _move(self, opened: _Opened, holders: Sequence[Address]) -> None:
        following = secrets.token_bytes(32)

        def seal(current: Value | None) -> Value | None:
            if current is None:
                return None
            state = Group.decode(current.base)
            if state.state != OPEN:
                return current
            return _next(
                current,
                Group(SEALED, state.generation, state.holders, following, [bytes(holder) for holder in holders]),
            )

        await self._control(opened).settle(seal)
        await self._leave(opened)

    async def _complete(self, old: _Opened, sealed: Group) -> _Opened:
        """Move everything from a group that is sealed by its majority to the one that it names, and open that."""
        following = await self._make(Hash(sealed.next_group), sealed.next_holders)
        claim = Group(CLAIMED, sealed.generation + 1, sealed.next_holders)
        value = await self._control(following).settle(_first(claim), is_founding=True)
        if value is not None and Group.decode(value.base).state == CLAIMED:
            try:
                for name, acceptors in (await self._sealed_registers(old)).items():
                    await self._copy(old, following, name, acceptors)
            except Unavailable:
                # Another process may have moved everything meanwhile: nodes then have nothing of the old group left.
                if await self._turn(following, CLAIMED) == CLAIMED:
                    raise
                return following
            await self._turn(following, OPEN)
        return following

    async def _sealed_registers(self, old: _Opened) -> dict[bytes, list[Acceptor]]:
        """Every register of a sealed group, and where its newest value stands among a majority that is sealed: nothing
        can be chosen in the group any more, and what was chosen is there."""
        account = self._signer.key.address
        answers = await _bounded(
            [lambda a=a: a.entries(account, old.group) for a in old.acceptors]  # type: ignore[misc]
        )
        listings = {
            acceptor: answer
            for acceptor, answer in zip(old.acceptors, answers, strict=True)
            if isinstance(answer, Listing) and answer.status == "sealed"
        }
        if len(listings) < old.majority:
            raise Unavailable(f"{len(listings)} nodes of a group that moves answer, {old.majority} are needed")
        newest: dict[bytes, tuple[int, bytes]] = {}
        for listing in listings.values():
            for entry in listing.entries:
                newest[entry.name] = max(newest.get(entry.name, (0, b"")), (entry.counter, entry.proposer))
        return {
            name: [
                acceptor
                for acceptor, listing in listings.items()
                if any((e.name, e.counter, e.proposer) == (name, *ballot) for e in listing.entries)
            ]
            for name, ballot in newest.items()
        }

    async def _copy(self, old: _Opened, following: _Opened, name: bytes, acceptors: Sequence[Acceptor]) -> None:
        account = self._signer.key.address
        for acceptor in acceptors:
            try:
                async with asyncio.timeout(NODE_SECONDS):
                    answer = await acceptor.show(Place(account, old.group, name), Known())
                if answer.accepted is None:
                    continue
                answer.accepted.check(Place(account, old.group, name), self._signer.domain)
                value = answer.accepted.open(None)
            except (FreeholdError, TimeoutError):
                continue
            # What another process has moved, and may have been changed since, stays.
            register = following.register(Place(account, following.group, name))
            await register.settle(lambda current, moved=value: current or moved)  # type: ignore[misc]
            return
        raise Unavailable(f"head {name.hex()} cannot be read from the nodes that held it")


@asynccontextmanager
async def _within_time() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(CALL_SECONDS):
            yield
    except TimeoutError:
        raise Unavailable(f"a majority did not agree within {CALL_SECONDS:.0f} s", hint="Try again.") from None


class _Lost:
    """A node that is not registered any more."""

    def __init__(self, node: Address) -> None:
        self.node = node

    async def groups(self, *_: object) -> NoReturn:
        raise Unavailable(f"node {self.node} is not registered any more")

    entries = show = prepare = accept = groups


def _group_size(operators: int) -> int:
    """The largest odd number of nodes, at most 7, that so many operators allow."""
    return min(HOLDERS_LIMIT, operators - 1 + operators % 2) if operators else 1


def _first(claim: Group) -> Callable[[Value | None], Value]:
    return lambda current: current or _next(None, claim)


def _next(current: Value | None, state: Group) -> Value:
    return make_value(current, state.encode(), (), secrets.token_bytes(WRITER_BYTES), False)


async def _bounded(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T | BaseException]:
    """What each call gave, or the error of a node that did not answer in time; a few at once."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(call: Callable[[], Awaitable[T]]) -> T | BaseException:
        async with gate:
            try:
                async with asyncio.timeout(NODE_SECONDS):
                    return await call()
            except (FreeholdError, TimeoutError) as error:
                return error

    return list(await asyncio.gather(*(one(call) for call in calls)))
