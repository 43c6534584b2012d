"""The nodes that offer compute, what they say of their speed beside what was measured of it, and measuring them.

    rows      every registered node: its price, its executors, each figure twice, what counts when nodes are chosen,
              how reliable it was; or why it does not offer
    measure   benchmarks at nodes that were not measured for a day, one node after another; one segment of each is run
              again here. What came of it is kept at once (the journal's record of speeds), for every later choice.

Measuring is paid for as jobs are. Invariants: what may be billed for it is at most what `rows` said, node by node, and
altogether at most what the caller allows; a figure is kept only of a benchmark that was checked.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from freehold.client.jobs_driver import SPEEDS, House
from freehold.client.jobs_journal import JobJournal
from freehold.client.jobs_market import BID_SECONDS, get_speed, rank_offers, why_left_alone
from freehold.client.jobs_orders import Compute
from freehold.protocol.units import Address, Hash
from freehold.services.compute.benchmarks import PLANS, get_deviation
from freehold.services.compute.bidding import BidRequest
from freehold.services.compute.ordering.checks import Standing, most_cost
from freehold.services.compute.ordering.measuring import (
    Figure,
    Node,
    Speeds,
    get_advertised,
    measure_offers,
    most_to_measure,
)
from freehold.services.compute.ordering.survey import Found, Offered
from freehold.services.compute.tasks import ExecutorName, ProgramKind, Resources, Task
from freehold.services.compute.terms import Order
from freehold.services.compute.verification.reliability import reliability_ppm

DAY = 86_400  # seconds for which a node need not be measured again
KINDS: Mapping[ExecutorName, ProgramKind] = {
    "wasm": "module", "sandbox": "native", "container": "image", "service": "native",
}  # fmt: skip


class Came(NamedTuple):
    """What measuring one node came to: its cost in credits (base units), and sentences on what does not count."""

    cost: int
    problems: tuple[str, ...]


async def load_speeds(journal: JobJournal) -> Speeds:
    """What this account has measured."""
    kept = await journal.record(SPEEDS)
    return msgspec.json.decode(kept, type=Speeds) if kept else Speeds()


async def list_nodes(
    house: House, *, measure: bool = False, again: bool = False, most: int | None = None
) -> list[dict[str, Any]]:
    """A row for each registered node, those that would be chosen first at the top. `measure`: those that are due,
    or with `again` all that run WebAssembly, as far as `most` (credits, base units) goes."""
    found = await _survey(house)
    house.speeds.rates = (await load_speeds(house.journal)).rates  # other processes measure too
    came: dict[Address, Came] = {}
    if measure:
        came = await _measure(house, [one for one in found.bids if _is_due(house, one, again=again)], most)
        again = False
    due = {one.node: most_to_measure(one.price) for one in found.bids if _is_due(house, one, again=again)}
    ranked = rank_offers([one for one in found.bids if not _reason(house, one)], house.evidence, house.speeds)
    places = {one.node: place for place, one in enumerate(ranked, 1)}
    rows = [
        _row(house, one, places.get(one.node, 0), due.get(one.node, 0), came.get(one.node, Came(0, ())))
        for one in found.bids
    ]
    rows += [{"node": str(node), "reason": reason, "place": 0} for node, reason in found.refusals.items()]
    return sorted(rows, key=lambda row: (row["place"] or len(rows) + 1, row["node"]))


async def _survey(house: House) -> Found:
    """Everybody that bids for anything at all; of the others, the refusal that has the least against it."""
    answers = await asyncio.gather(*(house.client.survey(_request(house, name)) for name in KINDS))
    bids: dict[Address, Offered] = {}
    refusals: dict[Address, str] = {}
    for found in answers:
        bids = {one.node: one for one in found.bids} | bids
        for node, reason in found.refusals.items():
            refusals[node] = min(refusals.get(node, reason), reason, key=len)
    return Found(list(bids.values()), {node: why for node, why in refusals.items() if node not in bids})


def _request(house: House, executor: ExecutorName) -> BidRequest:
    """What a benchmark asks for, of this executor; others are asked for as much."""
    return BidRequest(
        client=str(house.account), executor=executor, kind=KINDS[executor], resources=Resources(seconds=120),
        most=max(plan.most for plan in PLANS.values()), seconds=BID_SECONDS, salt=secrets.token_hex(8),
    )  # fmt: skip


def _is_due(house: House, offered: Offered, *, again: bool) -> bool:
    """Whether it can be measured, and was not within a day. Who failed this client lately is left alone here too."""
    if offered.properties.get("executor.wasm") is not True or _reason(house, offered):
        return False
    known = house.speeds.rates.get(str(offered.node), {})
    since = house.clock() - DAY
    return again or any(plan.property not in known or known[plan.property].at <= since for plan in PLANS.values())


def _reason(house: House, offered: Offered) -> str:
    return why_left_alone(offered, house.evidence, int(house.clock()))


def _row(house: House, offered: Offered, place: int, most: int, came: Came) -> dict[str, Any]:
    names = (name for name in KINDS if offered.properties.get(f"executor.{name}") is True)
    return {
        "node": str(offered.node), "operator": str(offered.operator), "price": str(offered.price),
        "executors": list(names), "reason": _reason(house, offered), "place": place,
        "speed": get_speed(offered, house.speeds), "figures": _figures(offered, house.speeds),
        "reliability_ppm": reliability_ppm(house.evidence.of_node(offered.node)),
        "measuring": str(most), "cost": str(came.cost), "problems": list(came.problems),
    }  # fmt: skip


def _figures(offered: Offered, speeds: Speeds) -> list[dict[str, Any]]:
    """Each figure twice. `measured` is None where nobody has, and 0 where a check failed; `deviation` is in basis
    points below what it advertises, `counts` what it is ranked by."""
    found = []
    for plan in PLANS.values():
        advertised = get_advertised(offered.properties, plan.property)
        known = speeds.rates.get(str(offered.node), {}).get(plan.property)
        found.append({
            "name": plan.property, "advertised": advertised, "measured": known.rate if known else None,
            "samples": known.samples if known else 0, "at": known.at if known else None,
            "deviation": get_deviation(advertised, known.rate) if known else None,
            "counts": speeds.speed(offered.node, plan.property, advertised),
        })  # fmt: skip
    return found


async def _measure(house: House, offers: list[Offered], most: int | None) -> dict[Address, Came]:
    """One node after another: two at once would slow each other down at this client."""
    came: dict[Address, Came] = {}
    spent = 0
    async with house.tools.rerunning() as rerun:
        for offered in offers:
            needed = most_to_measure(offered.price)
            if most is not None and spent + needed > most:
                came[offered.node] = Came(0, ("measuring it could cost more than what is left to spend",))
                continue
            meter = Meter(house.client)
            found = (await measure_offers(meter, [offered], rerun))[offered.node]
            spent += meter.cost
            if isinstance(found, str):
                came[offered.node] = Came(meter.cost, (found,))
                continue
            await _keep(house, offered.node, found)
            came[offered.node] = Came(meter.cost, tuple(figure.reason for figure in found if figure.reason))
    return came


async def _keep(house: House, node: Address, figures: list[Figure]) -> None:
    """Write down what was measured, beside what other processes have written meanwhile."""
    speeds = await load_speeds(house.journal)
    for figure in figures:
        speeds.add(node, figure, int(house.clock()))
    await house.journal.keep_record(SPEEDS, msgspec.json.encode(speeds))
    house.speeds.rates = speeds.rates


class Meter:
    """A client of compute, of which is known what it has ordered: `cost`, in credits (base units)."""

    def __init__(self, client: Compute) -> None:
        self._client = client
        self.orders: dict[Hash, int] = {}

    @property
    def cost(self) -> int:
        """What the receipts come to; an order without any counts for the most that it may cost."""
        return sum(self.orders.values())

    async def session(self, offered: Offered, amount: int) -> Node:
        """See `ComputeClient`."""
        node = await self._client.session(offered, amount)
        return MeteredNode(node, node.price, self.orders)

    async def until(self, seconds: float) -> int:
        """See `ComputeClient`."""
        return await self._client.until(seconds)


class MeteredNode:
    """A session of which every order is counted."""

    def __init__(self, node: Node, price: int, orders: dict[Hash, int]) -> None:
        self._node = node
        self._price = price
        self._orders = orders

    def order(self, task: Task, most: int, until: int) -> Order:
        """See `ComputeNode`."""
        order = self._node.order(task, most, until)
        self._orders[order.struct_hash()] = most_cost(order.most, self._price)
        return order

    async def submit(
        self, order: Order, task: Task, blobs: Mapping[str, bytes], access: Mapping[str, Any] | None, wait: float
    ) -> Standing:
        """See `ComputeNode`."""
        return self._count(await self._node.submit(order, task, blobs, access, wait))

    async def wait(self, job: Hash, seconds: float, task: Task | None = None) -> Standing:
        """See `ComputeNode`."""
        return self._count(await self._node.wait(job, seconds, task))

    def _count(self, standing: Standing) -> Standing:
        if standing.receipt is not None:
            self._orders[standing.job] = most_cost(standing.receipt.measure, self._price)
        return standing
