"""One job from its first survey to its last delivered file; or from wherever the last process left it.

    for each step, as soon as what it needs is done:
        expand (once, written down) -> survey -> plan -> run its pieces -> deliver -> done

Everything that counts is in the journal before it matters: so cancelling this at any point, or killing the process,
loses nothing, and `drive` again goes on. Invariants: one process drives a job at a time; a job that has ended leaves no
order running that it knows of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from freehold.client.errors import BucketExists
from freehold.client.jobs_access import Access, end_grants, open_grant, own_delivery
from freehold.client.jobs_attested import read_quotes
from freehold.client.jobs_checks import Piece
from freehold.client.jobs_contents import Contents, Objects
from freehold.client.jobs_delivery import (
    Delivering,
    accepted_rows,
    came_of,
    fetch_all,
    to_bucket,
    to_folder,
)
from freehold.client.jobs_journal import DONE, FAILED, OPEN, RUNNING, STOPPED, JobJournal, JobRow, OrderRow
from freehold.client.jobs_market import Market, build_request, refuse, survey
from freehold.client.jobs_money import Purse
from freehold.client.jobs_orders import LOST_PAUSES, PATIENCE, Compute, Desk, program_of
from freehold.client.jobs_pieces import Came, Planner, Tools, delivery_to, name_outputs
from freehold.client.jobs_quote import LEAST_MEASURE, affordable, bound_of, first_most, plan_checks
from freehold.client.jobs_services import ServiceRun
from freehold.client.jobs_spec import Job, Step
from freehold.client.jobs_steps import Means, PieceFailed, StepRun, load_piece
from freehold.client.root import AccountRoot, ServicePlace
from freehold.client.service_places import new_service_id, publish, withdraw
from freehold.protocol.errors import FreeholdError
from freehold.protocol.parameters import Parameters
from freehold.protocol.units import Address
from freehold.services.compute.ordering.checks import Standing
from freehold.services.compute.ordering.measuring import Speeds
from freehold.services.compute.tasks import Task, decode_task
from freehold.services.compute.verification.reliability import Evidence

EVIDENCE, SPEEDS = "evidence", "speeds"  # records in the journal
LOOK_SECONDS = 1.0  # between looks whether another process has stopped the job
TOKEN_LENGTH = 128  # of what a node may say there
GRACE_SECONDS = 5.0  # for telling nodes to stop


class House(NamedTuple):
    """What all jobs of an account share."""

    account: Address
    seed: bytes
    parameters: Parameters
    journal: JobJournal
    client: Compute
    contents: Contents
    objects: Objects
    tools: Tools
    root: AccountRoot | None
    evidence: Evidence
    speeds: Speeds
    clock: Callable[[], float]
    patience: float = PATIENCE


class Progress(NamedTuple):
    """What a job tells whoever watches: accepted pieces of a step (kind "pieces"), or a sentence (kind "say")."""

    kind: str
    step: str
    done: int = 0
    total: int = 0
    text: str = ""


class Driver:
    """Drives one job that `journal.driving` is held for."""

    def __init__(self, house: House, row: JobRow, watch: Callable[[Progress], None]) -> None:
        self._house = house
        self._row = row
        self._watch = watch
        self.job = Job.of(msgspec.json.decode(row.spec))
        self._direct = bool(row.gateway)
        self._purse = Purse(row.most)
        self._access = Access(row.gateway)
        self.desk = Desk(
            row, house.journal, house.client, self._purse, house.contents, self._access.of, house.clock,
            self._on_standing, float(house.parameters.epoch_length), house.patience,
        )  # fmt: skip
        self._planner = Planner(house.contents, house.objects, house.tools, Path(row.base), direct=self._direct)
        self.delivering = Delivering(self.desk, house.client, house.contents, house.objects, house.tools, self._note)
        self._means = Means(
            row, self.job.retries, house.journal, house.client, self.desk, house.contents, house.evidence, house.clock,
            self._note, lambda step, done, total: watch(Progress("pieces", step, done, total)),
        )  # fmt: skip
        self._done = {step.name: asyncio.Event() for step in self.job.steps}
        self._came: dict[str, list[Came]] = {}
        self._running: dict[str, StepRun] = {}
        self._published: dict[str, str] = {}  # by step: the token of the instance that its service's id leads to
        self._publishing: dict[str, asyncio.Task[None]] = {}  # by step
        self._consumed = {need for step in self.job.steps for need in step.before}

    async def drive(self) -> JobRow:
        """Until it has ended; the job as it then is. Cancelled: orders go on at their nodes, and `drive` finds them."""
        row, journal = self._row, self._house.journal
        self.desk.load(await journal.orders(row.id))
        await self._open_storage()
        after = asyncio.create_task(self._look_after_lost())
        watching = asyncio.create_task(self._watch_for_stop())
        work = asyncio.create_task(self._run())
        try:
            await asyncio.wait({work, watching}, timeout=self._time_left(), return_when=asyncio.FIRST_COMPLETED)
            phase, reason, status = await self._judge(work, watching)
        finally:
            tasks = (work, watching, after, *self._publishing.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await journal.keep_record(EVIDENCE, msgspec.json.encode(self._house.evidence))
        await self._finish()
        await journal.end_job(row.id, phase, reason, status, int(self._house.clock()))
        return await journal.job(row.id)

    def _time_left(self) -> float:
        """Seconds. A job that is found again after its deadline has a moment to take what came until then: nothing is
        ordered any more."""
        left = self._row.deadline - self._house.clock()
        is_late = left <= 0 and any(step.service is None for step in self.job.steps)
        return GRACE_SECONDS + self._house.patience if is_late else max(0.0, left)

    async def stop(self) -> JobRow:
        """End it without driving it: its orders are stopped at their nodes. The job as it then is."""
        journal = self._house.journal
        self.desk.load(await journal.orders(self._row.id))
        await self._finish()
        await journal.end_job(self._row.id, STOPPED, "stopped by its owner", 0, int(self._house.clock()))
        return await journal.job(self._row.id)

    async def _judge(self, work: asyncio.Task[None], watching: asyncio.Task[None]) -> tuple[str, str, int]:
        if work.done():
            error = _first(work.exception())
            if error is None:
                return DONE, "", 0
            if not isinstance(error, FreeholdError):
                raise error
            status = error.details.get("status")
            said = {"code": error.code, "reason": error.message, "hint": error.advice}
            await self._note("", "end", said | {"order": error.details.get("order", "")})
            return FAILED, error.message, status if isinstance(error, PieceFailed) and isinstance(status, int) else 0
        if watching.done():
            return STOPPED, "stopped by its owner", 0
        if all(step.service is not None for step in self.job.steps):
            return DONE, "it ran until its deadline", 0
        return FAILED, "its deadline passed before it was done", 0

    async def _finish(self) -> None:
        """Nothing of it runs on, and nothing leads to it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE_SECONDS + self._house.patience):
                await self.desk.stop_all()
        events = await self._house.journal.events(self._row.id)
        for service in {str(one.data["service"]) for one in events if one.kind == "service"}:
            if self._house.root is not None:
                try:
                    await withdraw(self._house.root, service)
                except FreeholdError as error:  # nothing is there any more where its URL leads
                    await self._note("", "withdraw", {"service": service, "reason": error.message})
        if self._house.root is not None:
            now = int(self._house.clock())
            failed = await end_grants(self._house.journal, self._house.root, self._house.seed, self._row.id, now)
            if reason := failed.get(self._row.id):
                await self._note("", "grant", {"reason": reason, "until": self._row.deadline})

    async def _open_storage(self) -> None:
        """The grant that its nodes' are narrowed from: made once, for a job that reads or writes objects by itself."""
        files = [(*step.inputs.values(), step.stdin, step.map.over if step.map else None) for step in self.job.steps]
        touches = any(file is not None and file.remote for some in files for file in some)
        if not self._direct or not (touches or any(delivery_to(step.output) for step in self.job.steps)):
            return
        house = self._house
        self._access.grant = await open_grant(house.journal, self._row, house.seed, house.account)

    async def _watch_for_stop(self) -> None:
        """Another process says so in the journal, which has no way to wake this one."""
        while True:
            if (await self._house.journal.job(self._row.id)).phase != RUNNING:
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _look_after_lost(self) -> None:
        """Orders whose nodes fell silent, of this job and of earlier ones: their receipts, or their end."""
        for pause in (*LOST_PAUSES, *[LOST_PAUSES[-1]] * 10_000):
            await asyncio.sleep(pause * self._house.patience / PATIENCE)
            for row in await self._house.journal.lost():
                found = await self.desk.look_after(row)
                step = self._running.get(row.step) if row.job == self._row.id else None
                if found is not None and step is not None:
                    step.offer(found)

    async def _run(self) -> None:
        for bucket in {where.bucket for step in self.job.steps if (where := delivery_to(step.output)) is not None}:
            with suppress(BucketExists):
                await self._house.objects.mb(bucket)
        async with asyncio.TaskGroup() as group:
            for step in self.job.order():
                group.create_task(self._step(step))

    async def _step(self, step: Step) -> None:
        for need in step.before:
            await self._done[need].wait()
        journal, id = self._house.journal, self._row.id
        phases = await journal.steps(id)
        if step.name not in phases:
            where = own_delivery(self.job, step, direct=self._direct)
            drafts = await self._planner.expand(step, self._came.__getitem__, where)
            await journal.add_step(id, step.name, [(label, task.encode()) for label, task in drafts])
        if phases.get(step.name) != DONE:
            await self._run_pieces(step)
        await self._deliver(step, is_done=phases.get(step.name) == DONE)
        self._done[step.name].set()

    async def _run_pieces(self, step: Step) -> None:
        house, id = self._house, self._row.id
        rows = await house.journal.pieces(id, step.name)
        tasks = [decode_task(row.task) for row in rows]
        if not tasks:
            return
        bound = bound_of(step)
        largest, _ = await house.journal.measure(program_of(tasks[0]))
        is_left_alone = own_delivery(self.job, step, direct=self._direct) is not None
        most = bound if step.service is not None else first_most(largest, bound, is_left_alone=is_left_alone)
        pieces = [Piece(row, task, most, bound) for row, task in zip(rows, tasks, strict=True)]
        by_number: dict[int, list[OrderRow]] = {}
        for order in await house.journal.orders(id, step.name):
            by_number.setdefault(order.number, []).append(order)
        for piece in pieces:
            load_piece(piece, by_number.get(piece.row.number, []))
        if failed := next((piece for piece in pieces if piece.row.phase == FAILED), None):
            raise PieceFailed(f"step {step.name!r}, task {failed.row.number} {failed.row.reason}")
        if step.service is not None:
            await ServiceRun(step.name, pieces[0], self._means, partial(self._survey, step, tasks, most)).run()
            return
        quotes = await asyncio.to_thread(read_quotes, step.verify.hardware, Path(self._row.base), house.clock)
        market = await self._survey(step, tasks, most)
        checking = plan_checks(self.job, step, tasks, market, house.evidence, house.parameters, most)
        await self._note(step.name, "plan", {
            "tasks": len(tasks), "replicas": checking.plan.replicas, "audit_ppm": checking.plan.audit_ppm,
            "sample": checking.sample, "reasons": list(checking.reasons), "class": str(step.verify.kind),
        })  # fmt: skip
        dearest = max(offered.price for offered in market.offers)
        # As much again is left for a node that falls silent: what it holds does not come back for long.
        within = affordable(self._purse.free, dearest, 2 * max(checking.plan.replicas, checking.plan.audited))
        for piece in pieces:
            # What is ordered already has its measure, and holds its credits: further runs are compared with it.
            is_ordered = any(order.phase in (DONE, OPEN) for order in by_number.get(piece.row.number, []))
            least = max(within, piece.most if is_ordered else LEAST_MEASURE)
            piece.most, piece.bound = min(piece.most, least), min(piece.bound, least)
        run = self._running[step.name] = StepRun(
            step, pieces, market, checking.plan, checking.sample, self._means, quotes
        )
        await run.run()

    async def _survey(self, step: Step, tasks: Sequence[Task], most: int) -> Market:
        house = self._house
        request = build_request(house.account, self.job, step, tasks[0], most, len(tasks))
        market = await survey(house.client, request, house.evidence, house.speeds, int(house.clock()))
        wanted = {"constraint": request.constraint, "executor": request.executor}
        await self._note(step.name, "survey", {"nodes": market.nodes, "help": market.help, **wanted})
        if not market.offers:
            raise refuse(step, market)
        return market

    async def _deliver(self, step: Step, *, is_done: bool) -> None:
        house, id = self._house, self._row.id
        orders = await house.journal.orders(id, step.name)
        pieces = await house.journal.pieces(id, step.name)
        accepted = {piece.number: piece.accepted for piece in pieces if piece.accepted is not None}
        rows = accepted_rows(accepted, orders)
        came = self._came[step.name] = came_of(rows)
        if is_done:
            return
        if step.name in self._consumed:
            await fetch_all(self.delivering, rows, came)
        if step.output is not None and step.service is None:
            named = name_outputs(came, folders=step.map is not None and step.map.folders)
            where = delivery_to(step.output)
            if where is None:
                await to_folder(self.delivering, rows, named, Path(self._row.base) / step.output)
            else:
                through = await to_bucket(
                    self.delivering, rows, named, where, through_nodes=self._direct, known=orders, step=step.name
                )
                if through:
                    why = "no gateway is known" if not self._direct else "their nodes did not write them"
                    self._say(step.name, f"{through} files passed through this machine: {why}")
        await house.journal.end_step(id, step.name)

    # Telling

    async def _note(self, step: str, kind: str, data: dict[str, Any]) -> None:
        await self._house.journal.note(self._row.id, step, kind, data, int(self._house.clock()))

    def _say(self, step: str, text: str) -> None:
        self._watch(Progress("say", step, text=text))

    async def _on_standing(self, endpoint: str, row: OrderRow, standing: Standing) -> None:
        """A service's place is published once it is healthy, and again where it was started anew: that is what its
        token tells, while one order after another pays for it. It is paid for meanwhile."""
        place = standing.service
        if place is None or self._house.root is None or not place.get("healthy"):
            return
        token = str(place.get("token", ""))[:TOKEN_LENGTH]
        if self._published.get(row.step) == token:
            return
        self._published[row.step] = token
        if (earlier := self._publishing.pop(row.step, None)) is not None:
            earlier.cancel()
        found = ServicePlace(
            node=str(row.node), endpoint=endpoint, lease=str(row.order.lease),
            order=str(row.id), token=token, job=self._row.id, since=int(self._house.clock()),
        )  # fmt: skip
        self._publishing[row.step] = asyncio.create_task(self._publish(row, self._house.root, found))

    async def _publish(self, row: OrderRow, root: AccountRoot, place: ServicePlace) -> None:
        """Until its URL leads there: that nodes do not take the root just now is no failure of the service."""
        service = await self._note_place(row, sha256(place.token.encode()).hexdigest()[:16])
        while True:
            try:
                await publish(root, service, place)
                return
            except FreeholdError as error:
                self._say(row.step, f"the service runs, and its URL does not lead to it yet: {error.message}")
                await asyncio.sleep(LOOK_SECONDS)

    async def _note_place(self, row: OrderRow, instance: str) -> str:
        """Write down where a service runs, before anybody is told; the id under which it is reached, which stays."""
        events = await self._house.journal.events(self._row.id)
        last = next((one for one in reversed(events) if one.kind == "service" and one.step == row.step), None)
        service = str(last.data["service"]) if last else new_service_id()
        if last is None or last.data["instance"] != instance:
            data = {"service": service, "node": str(row.node), "instance": instance}
            await self._note(row.step, "service", data)
            self._say(row.step, f"the service runs at {row.node}")
        return service


def _first(error: BaseException | None) -> BaseException | None:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
