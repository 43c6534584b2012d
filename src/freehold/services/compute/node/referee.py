"""Referee duty: what two nodes say of one task is held against a run of one's own.

A seat of the committed state says whose receipts contradict each other, and in what: in the whole result, or in the
state after one step. The referee asks both nodes for what a run needs, checks it against what the state commits to,
runs it, and says which receipt it found good, in every epoch while its seat stands.

    EXACT   only of WebAssembly can it be sure: an output is right if it is its own
    NEAR    a result is right if its distance by the task's metric is within the threshold
    BOTH    where it cannot be sure: the task is not deterministic, its own run was cut short, or a client had one of
            the two stopped
    SPARED  what was cut short otherwise ("time", "failed") while the task can be done: it is no result, and no lie

Who is silent is not found right; but a moment's silence proves nothing, so it is waited for as long as the seat allows.

Invariant: an opinion rests on bytes that match the case's task and input; where nobody shows them there is none.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from freehold.net.auth import authorize
from freehold.protocol.errors import FreeholdError, Unavailable
from freehold.protocol.service import Context
from freehold.protocol.units import ZERO_HASH, Address, Hash
from freehold.services.compute.node.blobs import in_thread
from freehold.services.compute.node.evidence import Evidence
from freehold.services.compute.node.executors import Executors
from freehold.services.compute.node.orders_checks import check_resources
from freehold.services.compute.node.orders_running import Produced, Run, sha256_of
from freehold.services.compute.node.settings import Settings
from freehold.services.compute.node.shown import (
    Fetched,
    Shown,
    check_shown,
    choose_inputs,
    claims_nothing,
    is_sure,
    read_produced,
    write_checked,
)
from freehold.services.compute.tasks import Result, Task, input_root, state_leaf
from freehold.services.compute.terms import BOTH, EXACT, NEAR, SEAT, SPARED, Opinion, WorkState, claim_of
from freehold.services.compute.verification.metrics import result_distance
from freehold.services.seam import ProviderContext

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0  # until the accused are asked again
PATIENCE = 5  # times that one of the two is asked, when the other has shown what is needed
SHOWN_LIMIT = 64 * 2**20  # bytes of JSON
COMPARED_LIMIT = 256 * 2**20  # bytes of outputs that are compared by a metric


class Finding(NamedTuple):
    """What an opinion says."""

    output: Hash
    good: int


class Referee:
    """One node's seats."""

    def __init__(
        self, context: ProviderContext, folder: Path, settings: Settings, executors: Executors, evidence: Evidence
    ) -> None:
        self._context, self._folder, self._settings = context, folder, settings
        self._executors, self._evidence = executors, evidence
        self._found: dict[Hash, Finding] = {}
        self._tasks: dict[Hash, asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(1)
        self._epoch = 0
        self.opinions = 0

    async def begin(self, context: Context) -> None:
        """An epoch has begun: say again what is known, and begin on seats that are new."""
        own = self._context.key.address
        seats = {row.id: row for row in context.state if row.role == SEAT and row.node == own}
        self._epoch = context.epoch
        for case in [case for case in self._tasks if case not in seats]:
            self._tasks.pop(case).cancel()
        self._found = {case: found for case, found in self._found.items() if case in seats}
        for case, seat in seats.items():
            if case in self._found:
                self._say(case)
            elif case not in self._tasks:
                self._tasks[case] = asyncio.create_task(self._judge(seat), name=f"case {case}")

    async def stop(self) -> None:
        """Judge no more: seats are taken up again after the next start."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _say(self, case: Hash) -> None:
        found = self._found[case]
        self._evidence.say(
            Opinion(epoch=self._epoch, case=case, node=self._context.key.address, output=found.output, good=found.good)
        )
        self.opinions += 1

    async def _judge(self, seat: WorkState) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                self._found[seat.id] = await self._find(seat)
                log.info("case %s: good is %d", seat.id, self._found[seat.id].good)
                return self._say(seat.id)
            except (FreeholdError, OSError) as error:
                log.info("case %s: %s", seat.id, error)
            except Exception:
                log.exception("case %s", seat.id)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _find(self, seat: WorkState) -> Finding:
        """Run it again. FreeholdError where that cannot be done now."""
        shown = await self._ask_all(seat)
        if not shown:
            raise Unavailable("neither of the accused shows what is needed")
        first = next(iter(shown.values()))
        if seat.kind == EXACT and first.task.executor != "wasm":
            return Finding(ZERO_HASH, BOTH)
        if len(shown) < 2 and self._epoch < waits_until(seat):
            raise Unavailable(f"one of the accused shows nothing: it has until epoch {waits_until(seat)}")
        to_run = first if seat.step or seat.kind == NEAR else choose_inputs(seat.input, shown)
        if to_run is None:
            return Finding(ZERO_HASH, BOTH)
        executor = await self._executors.find(first.task)
        task = self._bounded(first.task if not seat.step else msgspec.structs.replace(first.task, steps=1))
        folder = self._folder / f"case-{seat.id.hex()}"

        async def fetch(node: Address, sha256: str, target: Path) -> None:
            await self._fetch(seat, node, sha256, target)

        async with AsyncExitStack() as stack:
            files = await stack.enter_async_context(
                Fetched(folder.with_suffix(".files"), list(shown), fetch, self._context.files.free_bytes)
            )
            run = await stack.enter_async_context(Run(folder, task, executor, lambda _: None))
            given = await files.give(to_run, seat.step)
            async with self._turn:
                produced = await run.run(given, max(one.receipt.most for one in shown.values()))
            if produced.outcome.ended in ("stopped", "failed", "refused"):
                raise Unavailable(f"it does not run here: {produced.outcome.reason}")
            return await self._compare(seat, produced, input_root(list(to_run.inputs)), shown, files)

    def _bounded(self, task: Task) -> Task:
        """What is run here: a client and its nodes may have named any resources. Refused where it needs more than an
        order here could have; time is a guard, and says nothing of the result (`claims_nothing`)."""
        seconds = min(task.resources.seconds, self._settings.seconds)
        bounded = msgspec.structs.replace(task, resources=msgspec.structs.replace(task.resources, seconds=seconds))
        check_resources(bounded, self._settings, self._executors.properties())
        return bounded

    async def _compare(
        self, seat: WorkState, produced: Produced, given: Hash, shown: Mapping[Address, Shown], files: Fetched
    ) -> Finding:
        result, task = produced.result(), next(iter(shown.values())).task
        output = output_of(produced, result) if seat.step else result.hash()
        if seat.kind == EXACT:
            if not seat.step:
                output = claim_of(given, output, produced.outcome.measure)
            if not is_sure(task, result, produced.outcome.measure, list(shown.values())):
                return Finding(output, BOTH)
            good = 0
            for bit, node, said in ((1, seat.first, seat.first_output), (2, seat.second, seat.second_output)):
                if output == said:
                    good |= bit
                elif not seat.step and node in shown and claims_nothing(task, shown[node].result):
                    good |= bit * SPARED
            return Finding(output, good)
        if any(claims_nothing(task, one) for one in (result, *(each.result for each in shown.values()))):
            return Finding(output, BOTH)
        good = 0
        for bit, node in ((1, seat.first), (2, seat.second)):
            if node in shown and await self._is_near(task, produced, shown[node].result, node, files):
                good |= bit
            elif node not in shown:
                good |= bit * SPARED
        return Finding(output, good)

    async def _is_near(self, task: Task, produced: Produced, other: Result, node: Address, files: Fetched) -> bool:
        own = produced.result()
        if own.hash() == other.hash():
            return True
        if sum(one.size for result in (own, other) for one in (result.stdout, *result.files)) > COMPARED_LIMIT:
            raise Unavailable("the results are too large to be compared here")
        bodies = await in_thread(read_produced, produced)
        for one in (other.stdout, *other.files):
            if one.sha256 not in bodies:
                bodies[one.sha256] = await in_thread((await files.get(one.sha256, [node])).read_bytes)
        distance = await in_thread(result_distance, task.metric, own, other, bodies.__getitem__)
        return distance <= task.threshold

    # What the accused show

    async def _ask_all(self, seat: WorkState) -> dict[Address, Shown]:
        """What both show; what one does, when the other has been asked often enough."""
        shown: dict[Address, Shown] = {}
        for attempt in range(PATIENCE):
            if attempt:
                await asyncio.sleep(min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE))
            for node in (seat.first, seat.second):
                if node in shown:
                    continue
                try:
                    shown[node] = check_shown(await self._ask(seat, node), seat, node, self._context.domain)
                except (FreeholdError, OSError) as error:
                    log.info("case %s: node %s shows nothing: %s", seat.id, node, error)
            if len(shown) == 2:
                break
        return shown

    async def _ask(self, seat: WorkState, node: Address) -> Any:
        path = f"/v1/compute/cases/{seat.id}/task?referee={self._context.key.address}"
        peer = await self._context.find_peer(node)
        return await peer.call("GET", path, headers=self._sign(path, node), limit=SHOWN_LIMIT)

    async def _fetch(self, seat: WorkState, node: Address, sha256: str, target: Path) -> None:
        path = f"/v1/compute/cases/{seat.id}/blobs/{sha256}?referee={self._context.key.address}"
        peer = await self._context.find_peer(node)
        async with peer.request("GET", path, headers=self._sign(path, node)) as response:
            await write_checked(response.content.iter_any(), target, sha256, self._context.files.free_bytes)

    def _sign(self, path: str, node: Address) -> dict[str, str]:
        nonce = Hash(secrets.token_bytes(32))
        key, domain, now = self._context.key, self._context.domain, self._context.clock()
        return authorize(key, "GET", path, ZERO_HASH, node, domain, now, nonce)


def waits_until(seat: WorkState) -> int:
    """The epoch from which an accused that shows nothing is not waited for: in time to run the work again, which the
    seat has twice as long for as it took, and two epochs (`court.py`)."""
    return seat.until - max(0, seat.until - seat.epoch - 2) // 2


def output_of(produced: Produced, result: Result) -> Hash:
    """What came out of a step: the leaf of its state; of one that did not go well, what no state has."""
    outcome = produced.outcome
    is_well = outcome.ended == "exited" and outcome.status == 0
    return state_leaf(sha256_of(outcome.stdout)) if is_well else result.hash()
