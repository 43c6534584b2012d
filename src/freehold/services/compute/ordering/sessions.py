"""Nodes under a lease whose lock covers what is to be ordered, kept for as long as that is so.

    open     a lease at the bid's price (found, or signed anew), credits locked, the reservation shown to the node
    cover    more credits locked for a lease that is there
    spare    the same in the background, before they run out

A session that is there and covers what is asked for costs nothing. Whatever else is asked for at the same time is
dealt with together, under one reservation; one such slow way at a time is under way. Credits that are locked and not
used stay the client's: a lock is a promise, what a node is paid is what the state settles.

Invariant: no order is sent under a lease that its node does not count as covered.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from freehold.market.leases import Leases, NodeLeases
from freehold.market.reservations import Want
from freehold.market.view import ClientView
from freehold.protocol.errors import FreeholdError, InsufficientCredits, Unavailable
from freehold.protocol.messages import STREAM
from freehold.protocol.state import NodeRecord
from freehold.protocol.units import Address, Hash
from freehold.services.compute.ordering.node import ComputeNode, Means
from freehold.services.compute.ordering.receipts import Receipts
from freehold.services.compute.ordering.survey import Asking, Offered

OPEN_SECONDS = 4.0  # for a node to sign a lease: whoever takes longer must not hold up the others
COMFORT = 2  # times what is asked for is locked beyond it, where credits allow it

Failures = dict[Address, FreeholdError]


@dataclass(eq=False)
class _Ask:
    """What somebody waits for: a node that has `amount` credits free. Done once it has `found`, or an `error`."""

    amount: int
    offered: Offered | None = None
    found: ComputeNode | None = None
    error: FreeholdError | None = None
    is_done: bool = False

    def end(self, found: ComputeNode | None, error: FreeholdError | None = None) -> None:
        self.found, self.error, self.is_done = found, error, True


class Sessions:
    """One account's sessions for compute."""

    def __init__(self, leases: Leases, asking: Asking, receipts: Receipts) -> None:
        self._leases = leases
        self._means = Means(asking.key, asking.domain, asking.dial, asking.clock, receipts, self.cover, self.spare)
        self._nodes: dict[Hash, ComputeNode] = {}
        self._waiting: list[_Ask] = []
        self._changing = asyncio.Lock()
        self._sparing: dict[Hash, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """End what goes on in the background."""
        tasks = list(self._sparing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def open(self, wants: Sequence[tuple[Offered, int]]) -> tuple[list[ComputeNode], Failures]:
        """Sessions that have so many credits free, in the order of `wants`; of the nodes that do not serve, why."""
        asks = [_Ask(amount, offered=offered, found=self._covering(offered, amount)) for offered, amount in wants]
        await self._run([ask for ask in asks if ask.found is None])
        failures: Failures = {}
        ready = []
        for ask, (offered, amount) in zip(asks, wants, strict=True):
            if ask.found is not None:
                ask.found.amount = max(ask.found.amount, amount)
                ready.append(ask.found)
            else:
                failures[offered.node] = ask.error or Unavailable(f"node {offered.node} was not asked")
        return ready, failures

    async def cover(self, node: ComputeNode, amount: int) -> None:
        """Have so many credits free under this lease. InsufficientCredits, or what the node answered."""
        ask = _Ask(amount, found=node)
        await self._run([ask])
        if ask.error is not None:
            raise ask.error

    def spare(self, node: ComputeNode) -> None:
        """Lock more before it is needed; where that fails, whoever needs it will hear of it."""
        if node.lease not in self._sparing:
            self._sparing[node.lease] = task = asyncio.create_task(self._spare(node))
            task.add_done_callback(lambda _: self._sparing.pop(node.lease, None))

    async def _spare(self, node: ComputeNode) -> None:
        try:
            await self.cover(node, node.amount)
        except FreeholdError:
            node.amount = 0  # until somebody asks for this session again

    def restore(self, record: NodeRecord, leases: NodeLeases) -> ComputeNode:
        """The one session under a lease that is there, where its node listens now; a new one knows nothing of its
        lock yet."""
        key = leases.stream_id
        known = self._nodes.get(key)
        if known is None or known.leases.endpoint != leases.endpoint:
            self._nodes[key] = ComputeNode(leases, record.operator, self._means, known.funds if known else None)
        return self._nodes[key]

    async def release(self, view: ClientView, nodes: Sequence[ComputeNode]) -> list[Hash]:
        """Close the leases of these sessions under which nothing runs and nothing is owed, as their nodes say too."""
        async with self._changing:
            facts = await asyncio.gather(*(self._leases.refresh([node.leases]) for node in nodes))
            idle = [
                node.lease
                for node, shown in zip(nodes, facts, strict=True)
                if _credits(shown.get(node.node, {}).get(STREAM, {}).get("outstanding")) == 0 and not node.funds.running
            ]
            for lease in idle:
                self._nodes.pop(lease, None)
            return await self._leases.end(idle, view) if idle else []

    def _covering(self, offered: Offered, amount: int) -> ComputeNode | None:
        fit = [n for n in self._nodes.values() if n.node == offered.node and n.price <= offered.price]
        fit = [node for node in fit if node.leases.endpoint == offered.record.endpoint and not node.is_stale]
        fit = [node for node in fit if node.free >= max(amount, 1)]
        return min(fit, key=lambda node: node.price) if fit else None

    # The slow way

    async def _run(self, asks: Sequence[_Ask]) -> None:
        """Return once all of these are done; whoever comes first deals with all that wait."""
        self._waiting += asks
        try:
            async with self._changing:
                while any(not ask.is_done for ask in asks):
                    batch = list(self._waiting)
                    await self._serve(batch)
        finally:
            self._waiting = [ask for ask in self._waiting if not ask.is_done and ask not in asks]

    async def _serve(self, batch: Sequence[_Ask]) -> None:
        for group in _by_turns(batch):
            try:
                await self._prepare(group)
            except InsufficientCredits as error:
                await self._one_by_one(group, error)
            except FreeholdError as error:
                for ask in group:
                    if not ask.is_done:
                        ask.end(None, error)

    async def _one_by_one(self, group: Sequence[_Ask], error: InsufficientCredits) -> None:
        """There are too few credits for all of them: first come, first served."""
        for ask in group:
            if ask.is_done:
                continue
            try:
                if len(group) > 1:
                    await self._prepare([ask])
                else:
                    ask.end(None, error)
            except FreeholdError as failure:
                ask.end(None, failure)

    async def _prepare(self, group: Sequence[_Ask]) -> None:
        """All of these under one reservation; each is of another node."""
        view = await self._leases.view()
        opened = await asyncio.gather(*(self._find(ask, view) for ask in group), return_exceptions=True)
        nodes: dict[Address, tuple[_Ask, ComputeNode]] = {}
        for ask, result in zip(group, opened, strict=True):
            if isinstance(result, ComputeNode):
                nodes[result.node] = ask, result
            elif isinstance(result, FreeholdError):
                ask.end(None, result)
            elif isinstance(result, TimeoutError):
                ask.end(None, Unavailable("the node did not answer in time"))
            else:
                raise result
        if not nodes:
            return
        listed = [node.leases for _, node in nodes.values()]
        facts = await self._leases.refresh(listed)
        wants: dict[Hash, Want] = {}
        for ask, node in nodes.values():
            self._learn(node, facts.get(node.node, {}).get(STREAM), view)
            minimum = max(node.funds.taken + ask.amount, view.settled(node.lease) + 1)
            wants[node.lease] = Want(minimum, minimum + COMFORT * max(ask.amount, node.amount))
        refused = await self._leases.prepare(listed, wants)
        for ask, node in nodes.values():
            error = refused.get(node.node)
            if error is None:
                node.funds.lock = self._leases.locks.get(node.lease, 0)
                self._learn(node, facts.get(node.node, {}).get(STREAM), view)  # with what another device has locked
                node.is_stale = False
                self._nodes[node.lease] = node
            ask.end(node if error is None else None, error)

    async def _find(self, ask: _Ask, view: ClientView) -> ComputeNode:
        if ask.offered is None:
            assert ask.found is not None
            return ask.found
        record, price = ask.offered.record, ask.offered.price
        async with asyncio.timeout(OPEN_SECONDS):
            leases = await self._leases.open(record, {STREAM: price}, view, never_dearer=True)
        return self.restore(record, leases)

    def _learn(self, node: ComputeNode, shown: Any, view: ClientView) -> None:
        """Take over what the node counts under this lease: other devices and runs of this account order under it too.

        What it claims beyond what it can be paid would only lock credits: it is bounded by the lock.
        """
        settled = view.settled(node.lease)
        node.funds.used = max(node.funds.used, settled)
        if not isinstance(shown, Mapping):
            return
        state = shown.get("state")
        outstanding = _credits(shown.get("outstanding"))
        if isinstance(state, Mapping) and outstanding is not None:
            paid, committed = _credits(state.get("settled")) or 0, view.locks.get(node.lease)
            lock = max(node.funds.lock, self._leases.locks.get(node.lease, 0), committed.amount if committed else 0)
            node.funds.learn(max(settled, min(paid + outstanding, lock)))


def _by_turns(batch: Sequence[_Ask]) -> Iterator[list[_Ask]]:
    """Groups in which each node is asked for once."""
    turns: defaultdict[Address, list[_Ask]] = defaultdict(list)
    for ask in batch:
        if not ask.is_done:
            node = ask.offered.node if ask.offered is not None else ask.found.node if ask.found is not None else None
            assert node is not None
            turns[node].append(ask)
    while turns:
        yield [asks.pop(0) for asks in turns.values()]
        for node in [node for node, asks in turns.items() if not asks]:
            del turns[node]


def _credits(value: object) -> int | None:
    if isinstance(value, str) and value.isdecimal() and len(value) < 30:
        return int(value)
    return value if type(value) is int and value >= 0 else None
