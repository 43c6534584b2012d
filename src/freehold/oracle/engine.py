"""Runs the state machine: events in, effects out, in their order, with one commit for all that waits.

While the disk syncs, events go on; everything that they persist shares the next commit (group commit), and whatever
they want sent waits for it. Invariant: no effect that is visible outside begins before every Persist that precedes it
is durable. When the disk fails, so does the process: memory would be ahead of it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from freehold.oracle.chain import Submitter
from freehold.oracle.effects import (
    Accuse,
    Broadcast,
    Commit,
    Contest,
    Effect,
    FetchBatch,
    FetchBundle,
    Persist,
    Reply,
    Rollback,
    Send,
    Settle,
    Signed,
    Submit,
    Uncommit,
)
from freehold.oracle.events import BatchFetched, BundleFetched, Event, RolledBack, Settled
from freehold.oracle.member import Member
from freehold.oracle.peers import Peers
from freehold.oracle.records import Record
from freehold.oracle.store import Store
from freehold.protocol.batches import Batch, decode_batch, encode_batch
from freehold.protocol.bundle import Bundle, check_start, decode_bundle
from freehold.protocol.epoch import Settlement, certified_subjects, check_manifest, settle
from freehold.protocol.errors import FreeholdError, NotFound, Overloaded, Unavailable
from freehold.protocol.service import Judge
from freehold.protocol.units import Hash

log = logging.getLogger(__name__)

QUEUE_LIMIT = 20_000  # effects that wait; beyond it clients are told to come back
FAILURES = (FreeholdError, ArithmeticError, LookupError, TypeError, ValueError)


class Engine:
    """One member at work. `handle` and `ask` are for the adapters; `run` is a task."""

    def __init__(self, member: Member, store: Store, peers: Peers, submitter: Submitter) -> None:
        self.member = member
        self._store, self._peers, self._submitter = store, peers, submitter
        self._queue: list[Effect] = []
        self._waiting = asyncio.Event()
        self._replies: dict[int, asyncio.Future[Signed]] = {}
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def handle(self, event: Event) -> None:
        """Give the state machine an event; its effects are queued."""
        self._queue += self.member.on(event)
        if self._queue:
            self._waiting.set()

    async def ask(self, make: Callable[[int], Event]) -> Signed:
        """Give an event that is answered, and wait for the answer. The member's refusal is raised; Overloaded."""
        if len(self._queue) > QUEUE_LIMIT:
            raise Overloaded("this member has too much to do at once", retry_after=1)
        reply = next(self._numbers)
        future: asyncio.Future[Signed] = asyncio.get_running_loop().create_future()
        self._replies[reply] = future
        try:
            self.handle(make(reply))
            return await future
        finally:
            self._replies.pop(reply, None)

    async def run(self) -> None:
        """Do what the state machine wants, until cancelled; raises what the disk, or a bug, failed with."""
        loop = asyncio.create_task(self._run())
        try:
            await asyncio.wait([loop, self._failed], return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
            await loop
        finally:
            for task in [loop, *self._tasks]:
                task.cancel()
            await asyncio.gather(loop, *self._tasks, return_exceptions=True)
            for future in self._replies.values():
                if not future.done():
                    future.set_exception(Unavailable("this member is stopping"))

    async def _run(self) -> None:
        while True:
            await self._waiting.wait()
            self._waiting.clear()
            effects, self._queue = self._queue, []
            while effects:
                whole = (i for i, effect in enumerate(effects) if isinstance(effect, Commit | Uncommit))
                until = next(whole, len(effects))
                await self._do(effects[:until])
                for effect in effects[until : until + 1]:
                    await self._settle_store(effect)
                effects = effects[until + 1 :]

    async def _settle_store(self, effect: Effect) -> None:
        """What the store does as one: nothing else is under way meanwhile."""
        if isinstance(effect, Commit):
            await self._store.commit(effect)
            log.info("epoch %d: committed", effect.bundle.report.epoch)
        elif isinstance(effect, Uncommit):
            await self._store.uncommit(effect)
            log.warning("every epoch after %d is revoked, and is settled again", effect.epoch)

    async def _do(self, effects: list[Effect]) -> None:
        records: list[Record] = [r for effect in effects if isinstance(effect, Persist) for r in effect.records]
        if records:
            await self._store.write(records)
        for effect in effects:
            self._start(effect)

    def _start(self, effect: Effect) -> None:
        if isinstance(effect, Broadcast):
            for peer in effect.peers:
                self._peers.send(peer, effect.message)
        elif isinstance(effect, Send):
            self._peers.send(effect.peer, effect.message)
        elif isinstance(effect, Reply):
            self._answer(effect)
        elif isinstance(effect, FetchBatch):
            self._spawn(self._fetch_batch(effect))
        elif isinstance(effect, FetchBundle):
            self._spawn(self._fetch_bundle(effect))
        elif isinstance(effect, Settle):
            self._spawn(self._settle(effect))
        elif isinstance(effect, Contest):
            log.error("epoch %d: the chain took a report that does not follow", effect.bundle.report.epoch)
            self._spawn(self._store.keep_evidence(effect.bundle))
        elif isinstance(effect, Rollback):
            self._spawn(self._roll_back(effect))
        elif isinstance(effect, Submit):
            self._spawn(self._submitter.submit(effect))
        elif isinstance(effect, Accuse):
            self._spawn(self._submitter.accuse(effect))

    def _answer(self, effect: Reply) -> None:
        future = self._replies.get(effect.reply)
        if future is None or future.done():
            return
        if isinstance(effect.answer, FreeholdError):
            future.set_exception(effect.answer)
        else:
            future.set_result(effect.answer)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and not self._failed.done():
            error = task.exception()
            assert error is not None
            self._failed.set_exception(error)

    async def _fetch_batch(self, effect: FetchBatch) -> None:
        found: tuple[Batch, bytes] | None = None
        try:
            data = await self._peers.fetch_batch(effect.peer, effect.subject)
            batch = await asyncio.to_thread(decode_batch, data, self._store.kinds, self.member.setup.domain)
            found = (batch, data) if batch.subject == effect.subject else None
        except FreeholdError as error:
            log.debug("batch %s from %s: %s", effect.subject, effect.peer, error.message)
        self.handle(BatchFetched(effect.subject, effect.peer, found))

    async def _fetch_bundle(self, effect: FetchBundle) -> None:
        found: Bundle | None = None
        oldest: int | None = None
        try:
            data = await self._peers.fetch_bundle(effect.peer, effect.epoch)
            found = await asyncio.to_thread(_open_bundle, data, self.member.setup.judges)
        except FreeholdError as error:
            log.debug("bundle %d from %s: %s", effect.epoch, effect.peer, error.message)
            said = error.details.get("oldest") if isinstance(error, NotFound) else None
            oldest = said if type(said) is int else None
        self.handle(BundleFetched(effect.epoch, effect.peer, found, oldest))

    async def _roll_back(self, effect: Rollback) -> None:
        committed, bundles = await self._store.read_before(effect.epoch)
        batches = {subject: batch for bundle in bundles for subject, batch in bundle.batches.items()}
        encoded = await asyncio.to_thread(lambda: {s: (batch, encode_batch(batch)) for s, batch in batches.items()})
        manifests = tuple(bundle.manifest for bundle in bundles)
        self.handle(RolledBack(effect.epoch, committed, manifests, encoded))

    async def _settle(self, effect: Settle) -> None:
        self.handle(await asyncio.to_thread(self._compute, effect))

    def _compute(self, effect: Settle) -> Settled:
        manifest = effect.manifest
        batches: dict[Hash, Batch] = {}
        settlement: Settlement | None = None
        failure, is_manifest = "", True
        try:
            setup = self.member.setup
            if not effect.is_checked:
                is_manifest = False
                check_manifest(manifest, effect.anchor, setup.domain)
                is_manifest = True
            for subject in certified_subjects(manifest):
                batch = effect.batches.get(subject) or self._store.batch(subject)
                if batch is not None:
                    batches[subject] = batch
            settlement = settle(effect.previous, manifest, batches, effect.anchor, setup.judges, setup.domain)
        except FAILURES as error:
            failure = f"{type(error).__name__}: {error}"
            log.error("epoch %d, view %d does not settle: %s", manifest.epoch, manifest.view, failure)
        return Settled(manifest.epoch, manifest.struct_hash(), settlement, batches, failure, is_manifest)


def _open_bundle(data: bytes, judges: Mapping[str, Judge]) -> Bundle:
    """A bundle that begins where its report before ended. ReplayMismatch."""
    bundle = decode_bundle(data, judges)
    check_start(bundle)
    return bundle
