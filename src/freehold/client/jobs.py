"""Jobs of an account: quoted, ordered, found again, followed, stopped, and explained.

    async with Freehold(network, account) as freehold:
        job = await freehold.jobs.submit(Job(steps=[Step(python="primes.py", arguments=["1000000"])]))
        done = await freehold.jobs.wait(job.id)

`jobs_driver.py` has what happens in between. Invariant: a job that `submit` returned is in the journal: whichever
process of this account calls `wait` next goes on with it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from freehold.client.jobs_access import own_delivery
from freehold.client.jobs_checks import result_of
from freehold.client.jobs_contents import Contents, Objects
from freehold.client.jobs_delivery import accepted_rows, came_of, to_folder
from freehold.client.jobs_driver import EVIDENCE, Driver, House, Progress
from freehold.client.jobs_fields import suggest
from freehold.client.jobs_folder import CannotPlace, check_places
from freehold.client.jobs_journal import DONE, LOST, OPEN, RUNNING, STOPPING, JobJournal, JobRow, OrderRow
from freehold.client.jobs_market import build_request, refuse, survey
from freehold.client.jobs_nodes import list_nodes, load_speeds
from freehold.client.jobs_orders import PATIENCE, Compute, program_of
from freehold.client.jobs_pieces import Came, Planner, Tools, name_outputs
from freehold.client.jobs_quote import Quote, StepQuote, bound_of, check_classes, first_most, plan_checks, quote_step
from freehold.client.jobs_sources import check_sources
from freehold.client.jobs_spec import Job, Step
from freehold.client.root import AccountRoot
from freehold.protocol.errors import Conflict, FreeholdError, NotFound, Refused
from freehold.protocol.parameters import Parameters
from freehold.protocol.units import Address
from freehold.services.compute.tasks import Task
from freehold.services.compute.verification.reliability import Evidence
from freehold.services.storage.terms import UNITS_PER_VOUCHER_PRICE

FOLLOW_SECONDS = 0.5  # between looks at a journal that another process writes
ID_BYTES = 5


class PieceResult(NamedTuple):
    """What a task came to: `stdout`, and its files by path, both as they are fetched from this machine or its node."""

    number: int
    item: str
    node: Address
    stdout: bytes
    files: tuple[str, ...]


class Jobs:
    """One account's. The journal is opened with the first call that needs it; `close` closes it."""

    def __init__(
        self,
        account: Address,
        seed: bytes,
        parameters: Parameters,
        client: Compute,
        objects: Objects,
        root: AccountRoot | None,
        folder: Path,
        tools: Tools,
        clock: Callable[[], float],
        patience: float = PATIENCE,
    ) -> None:
        self._account = account
        self._seed = seed
        self._parameters = parameters
        self._client = client
        self._objects = objects
        self._root = root
        self._folder = folder
        self._tools = tools
        self._clock = clock
        self._patience = patience
        self._stack = ExitStack()
        self._house: House | None = None

    def close(self) -> None:
        """Close the journal; jobs go on at their nodes."""
        self._stack.close()
        self._house = None

    def listen(self, tell: Callable[[str], None]) -> None:
        """Have `tell` told what this machine is busy with for a job (building an interpreter, compiling), and "" when
        that has ended."""
        self._tools.tell = tell

    async def _open(self) -> House:
        if self._house is None:
            journal = JobJournal(self._folder)
            self._stack.callback(journal.close)
            kept = await journal.record(EVIDENCE)
            self._house = House(
                account=self._account, seed=self._seed, parameters=self._parameters, journal=journal,
                client=self._client, contents=Contents(journal, self._folder / "contents", self._objects),
                objects=self._objects, tools=self._tools, root=self._root,
                evidence=msgspec.json.decode(kept, type=Evidence) if kept else Evidence(),
                speeds=await load_speeds(journal), clock=self._clock, patience=self._patience,
            )  # fmt: skip
        return self._house

    # Ordering

    async def quote(self, job: Job, base: Path = Path(), gateway: str = "") -> Quote:
        """What it would take and cost by the bids of now; nothing is ordered. NobodyMatches, InsufficientOperators."""
        house = await self._open()
        check_classes(job)
        await asyncio.to_thread(check_sources, job, base)
        planner = Planner(house.contents, self._objects, self._tools, base, direct=bool(gateway))
        quoted = list[StepQuote]()
        for step in job.order():
            known = not step.before
            tasks = [task for _, task in await planner.expand(step, lambda _: [], None)] if known else []
            sample = tasks[0] if tasks else await self._guess(planner, step)
            bound = bound_of(step)
            largest, _ = await house.journal.measure(program_of(sample))
            is_left_alone = own_delivery(job, step, direct=bool(gateway)) is not None
            most = bound if step.service is not None else first_most(largest, bound, is_left_alone=is_left_alone)
            request = build_request(self._account, job, step, sample, most, max(1, len(tasks)))
            market = await survey(self._client, request, house.evidence, house.speeds, int(self._clock()))
            if not market.offers:
                raise refuse(step, market)
            checking = plan_checks(job, step, tasks or [sample], market, house.evidence, self._parameters, most)
            count = len(tasks) if known else None if step.map is not None else 1
            quoted.append(quote_step(step, count, most, market, checking))
        stored = planner.object_bytes
        return Quote(tuple(quoted), await self._price_reading(stored), stored)

    async def _guess(self, planner: Planner, step: Any) -> Task:
        """A task as the step's will be, without the inputs that are not there yet."""
        bare = msgspec.json.decode(msgspec.json.encode(step.to_json()))
        for name in ("map", "stdin", "needs"):
            bare.pop(name, None)
        bare["inputs"] = {path: file for path, file in bare.get("inputs", {}).items() if "step" not in file}
        ((_, task),) = await planner.expand(type(step).of(bare), lambda _: [], None)
        return task

    async def _price_reading(self, size: int) -> int:
        """Credits for reading so many bytes of objects, at the dearest operator."""
        if not size:
            return 0
        prices = [one.offer.voucher_price for one in (await self._objects.survey()).candidates]
        return -(-size * max(prices, default=0) // UNITS_PER_VOUCHER_PRICE)

    async def submit(self, job: Job, base: Path = Path(), gateway: str = "", most: int | None = None) -> JobRow:
        """Write a job down, to be driven by `wait`. `most` (credits, base units) wins over the job's own; without any,
        it is what a quote says. Relative paths start at `base`."""
        house = await self._open()
        check_classes(job)
        await asyncio.to_thread(check_sources, job, base)
        if most is None:
            most = job.most
        if most is None:
            quote = await self.quote(job, base, gateway)
            if not quote.known:
                raise Refused(
                    "what this job comes to is known only as it goes on: say the most that it may cost",
                    hint="For example `most: 1 credits` in its spec, or --most 1.",
                )
            most = quote.most
        now = int(self._clock())
        row = JobRow(
            secrets.token_hex(ID_BYTES), str(job.name), msgspec.json.encode(job.to_json()).decode(),
            str(await asyncio.to_thread(base.absolute)), gateway, now, now + job.deadline, most, RUNNING, "", 0, 0,
            secrets.token_bytes(32),
        )  # fmt: skip
        await house.journal.add_job(row)
        return row

    async def wait(self, job: str, watch: Callable[[Progress], None] = lambda _: None) -> JobRow:
        """Drive a job until it has ended; where another process does, wait for that. Cancelled, its orders go on."""
        house = await self._open()
        while True:
            row = await house.journal.job(job)
            if row.ended:
                return row
            with ExitStack() as stack:
                try:
                    stack.enter_context(house.journal.driving(row.id))
                except Conflict:
                    await self._tell(house, row, watch)
                    await asyncio.sleep(FOLLOW_SECONDS)
                    continue
                row = await house.journal.job(row.id)  # who drove it until now may have ended it
                return row if row.ended else await Driver(house, row, watch).drive()

    async def _tell(self, house: House, row: JobRow, watch: Callable[[Progress], None]) -> None:
        counts: dict[str, list[int]] = {}
        for piece in await house.journal.pieces(row.id):
            count = counts.setdefault(piece.step, [0, 0])
            count[0] += piece.accepted is not None
            count[1] += 1
        for step, (done, total) in counts.items():
            watch(Progress("pieces", step, done, total))

    async def stop(self, job: str) -> JobRow:
        """End a job: what runs is stopped at its nodes, and billed for what it took."""
        house = await self._open()
        row = await house.journal.job(job)
        await house.journal.ask_to_stop(row.id)
        while True:
            row = await house.journal.job(row.id)
            if row.ended:
                return row
            with ExitStack() as stack:
                try:
                    stack.enter_context(house.journal.driving(row.id))
                except Conflict:
                    await asyncio.sleep(FOLLOW_SECONDS)
                    continue
                row = await house.journal.job(row.id)
                return row if row.ended else await Driver(house, row, lambda _: None).stop()

    # Looking

    async def all(self) -> list[JobRow]:
        """All jobs, the newest first."""
        return await (await self._open()).journal.jobs()

    async def find(self, job: str) -> JobRow:
        """A job by its id, the start of it, or its name. NotFound."""
        return await (await self._open()).journal.job(job)

    async def describe(self, job: str) -> dict[str, Any]:
        """How a job stands: its steps, its orders, what it has cost, and whether anybody drives it."""
        house = await self._open()
        row = await house.journal.job(job)
        orders = await house.journal.orders(row.id)
        phases = await house.journal.steps(row.id)
        steps = []
        for step in Job.of(msgspec.json.decode(row.spec)).order():
            pieces = await house.journal.pieces(row.id, step.name)
            mine = [one for one in orders if one.step == step.name]
            steps.append({
                "step": step.name, "phase": phases.get(step.name, "waiting"), "tasks": len(pieces),
                "accepted": sum(piece.accepted is not None for piece in pieces), "orders": len(mine),
                "running": sum(one.phase == OPEN for one in mine), "lost": sum(one.phase == LOST for one in mine),
            })  # fmt: skip
        return {
            **describe_row(row),
            "driven": house.journal.is_driven(row.id),
            "steps": steps,
            "cost": _cost(row, orders),
        }

    async def cost(self, job: str) -> dict[str, Any]:
        """What a job has cost and what its orders may still come to; assurance's price apart, and by node."""
        house = await self._open()
        row = await house.journal.job(job)
        orders = await house.journal.orders(row.id)
        done = [one for one in orders if one.phase == DONE]
        ids = {piece.accepted for piece in await house.journal.pieces(row.id)}
        accepted = {(one.step, one.number): one for one in done if one.id in ids}
        parts = {"work": 0, "assurance": 0, "delivery": 0}
        by_node: dict[str, int] = {}
        for one in done:
            by_node[str(one.node)] = by_node.get(str(one.node), 0) + one.cost
            parts[_part(one, accepted.get((one.step, one.number)))] += one.cost
        return {
            **_cost(row, orders), **{name: str(value) for name, value in parts.items()},
            "nodes": {node: str(value) for node, value in sorted(by_node.items())},
        }  # fmt: skip

    async def why(self, job: str) -> dict[str, Any]:
        """Each node: matched, or the rule that excluded it; each bid; each check of each result."""
        house = await self._open()
        row = await house.journal.job(job)
        events = await house.journal.events(row.id)
        accepted = {piece.accepted for piece in await house.journal.pieces(row.id)}
        orders = await house.journal.orders(row.id)
        return {
            **describe_row(row),
            "events": [{"at": one.at, "step": one.step, "kind": one.kind, **one.data} for one in events],
            "orders": [_order_json(one, accepted=one.id in accepted) for one in orders],
        }

    async def results(self, job: str) -> dict[str, list[PieceResult]]:
        """What the accepted tasks of each step came to, in their order."""
        house = await self._open()
        row = await house.journal.job(job)
        driver = Driver(house, row, lambda _: None)
        orders, found = await house.journal.orders(row.id), dict[str, list[PieceResult]]()
        for step in driver.job.order():
            pieces = {one.number: one for one in await house.journal.pieces(row.id, step.name) if one.accepted}
            rows = accepted_rows({number: one.accepted for number, one in pieces.items() if one.accepted}, orders)
            found[str(step.name)] = [
                PieceResult(
                    number, pieces[number].item, order.node, await self._stdout(driver, order),
                    tuple(file.path for file in result_of(order).files),
                )
                for number, order in rows.items()
            ]  # fmt: skip
        return found

    async def nodes(self, measure: bool = False, again: bool = False, most: int | None = None) -> list[dict[str, Any]]:
        """A row for each registered node: what it offers, what it says of its speed beside what was measured, and what
        it is chosen by; or why it does not offer. `measure`: run benchmarks at those that were not measured for a day
        (`again`: at all), which costs at most the sum of the rows' "measuring", and `most` where that is given."""
        return await list_nodes(await self._open(), measure=measure, again=again, most=most)

    async def printed(self, job: str, order: str) -> bytes:
        """What one order's run wrote to its standard output; nothing where no receipt came."""
        house = await self._open()
        row = await house.journal.job(job)
        rows = [one for one in await house.journal.orders(row.id) if str(one.id) == order and one.phase == DONE]
        return await self._stdout(Driver(house, row, lambda _: None), rows[0]) if rows else b""

    async def _stdout(self, driver: Driver, order: OrderRow) -> bytes:
        stdout = result_of(order).stdout
        data = await driver.desk.fetch(order, stdout.sha256, stdout.size)
        return data if isinstance(data, bytes) else await asyncio.to_thread(data.read_bytes)

    async def fetch(self, job: str, folder: Path, step: str = "", *, folders: bool = False) -> list[str]:
        """Bring the files of a job's last steps (or of one step) into a local folder, from the nodes that kept them;
        their paths. `folders`: each task's into one of its number. InvalidInput where two tasks' files have one path,
        CannotPlace where names are in each other's way."""
        house = await self._open()
        row = await house.journal.job(job)
        driver = Driver(house, row, lambda _: None)
        orders, found = await house.journal.orders(row.id), list[tuple[dict[int, OrderRow], dict[str, Came]]]()
        for one in choose_steps(driver.job, step):
            pieces = await house.journal.pieces(row.id, one.name)
            rows = accepted_rows({piece.number: piece.accepted for piece in pieces if piece.accepted}, orders)
            apart = folders or (one.map is not None and one.map.folders)
            found.append((rows, name_outputs(came_of(rows), folders=apart)))
        paths = [path for _, named in found for path in named]
        if twice := next((path for path, count in Counter(paths).items() if count > 1), None):
            raise CannotPlace(f"several steps have put out {twice!r}", hint="Fetch one of them: `--step NAME`.")
        await asyncio.to_thread(check_places, folder, paths)
        for rows, named in found:
            await to_folder(driver.delivering, rows, named, folder)
        return paths

    async def logs(self, job: str, *, follow: bool = False) -> AsyncGenerator[tuple[OrderRow, bytes], None]:
        """What the programs of a job wrote to standard error, order by order; `follow`: until the job has ended."""
        house = await self._open()
        seen = set[Any]()
        while True:
            row = await house.journal.job(job)
            orders = await house.journal.orders(row.id)
            fresh = [one for one in orders if one.id not in seen and one.purpose != "delivery"]
            for order in fresh:
                seen.add(order.id)
                with suppress(FreeholdError):  # a node that is away has no log to show
                    node = await self._client.reopen(order.node, order.order.lease)
                    async for data in node.follow(order.id, live=follow):
                        yield order, data
            if not follow or (row.ended and not fresh):
                return
            if not fresh:
                await asyncio.sleep(FOLLOW_SECONDS)

    async def service(self, job: str) -> str:
        """The id under which a job's service is reached through a gateway. Refused where it is not up."""
        house = await self._open()
        row = await house.journal.job(job)
        found = [one.data["service"] for one in await house.journal.events(row.id) if one.kind == "service"]
        if not found or row.ended:
            raise Refused("this job has no service that is up", hint="`freehold job describe JOB` says how it stands.")
        return str(found[-1])


def choose_steps(job: Job, name: str = "") -> list[Step]:
    """The step of this name; without any, those whose outputs no other takes. NotFound."""
    steps = job.order()
    if not name:
        consumed = {need for step in steps for need in step.before}
        return [step for step in steps if step.name not in consumed]
    if found := [step for step in steps if step.name == name]:
        return found
    raise NotFound(f"this job has no step {name!r}", hint=suggest(name, [str(step.name) for step in steps]))


def _part(one: OrderRow, accepted: OrderRow | None) -> str:
    """What an order was for, in a bill. `accepted` is the one whose result its task came to: any other that came to a
    result was there to check it, whichever of them was ordered first."""
    if one.purpose == "delivery":
        return "delivery"
    if accepted is None:
        return "assurance" if one.purpose == "check" else "work"
    return "assurance" if one.id != accepted.id and result_of(one).ended == "exited" else "work"


def _cost(row: JobRow, orders: list[OrderRow]) -> dict[str, Any]:
    return {
        "spent": str(sum(one.cost for one in orders if one.phase == DONE)),
        "running": str(sum(one.cost for one in orders if one.phase == OPEN)),
        "silent": str(sum(one.cost for one in orders if one.phase == LOST)),
        "most": str(row.most),
        "orders": len(orders),
    }


def describe_row(row: JobRow) -> dict[str, Any]:
    """A job as data."""
    phase = RUNNING if row.phase == STOPPING else row.phase
    return {
        "job": row.id, "name": row.name, "phase": phase, "reason": row.reason, "status": row.status,
        "created": row.created, "deadline": row.deadline, "ended": row.ended or None, "most": str(row.most),
    }  # fmt: skip


def _order_json(one: OrderRow, *, accepted: bool) -> dict[str, Any]:
    receipt = one.receipt
    return {
        "order": str(one.id), "step": one.step, "number": one.number, "node": str(one.node),
        "operator": str(one.operator), "price": str(one.price), "cost": str(one.cost), "purpose": one.purpose,
        "phase": one.phase, "accepted": accepted, "measure": receipt.measure if receipt else None,
        "output": str(receipt.output) if receipt else None, "ended": result_of(one).ended if one.result else None,
        "status": result_of(one).status if one.result else None, "reason": one.reason,
    }  # fmt: skip
