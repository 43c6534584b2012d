"""Who may run a step: bids, held against what the step wants and what this client knows, the best first; and why not.

Nodes judge a request by themselves and answer with a signed bid or a refusal. The client matches once more with what
only it knows (`operator`, `reliability`), leaves alone for a while who failed it lately, and ranks by price / (speed x
reliability). If nobody is left it asks once more for bids on almost nothing, so that the rule which excludes each node,
and the nearest that would match, can be told.

Invariant: every registered node stands in `nodes` once, as chosen or with the reason why it is not.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from freehold.client.jobs_spec import Job, Step
from freehold.market.constraint_terms import quote
from freehold.market.constraints import parse
from freehold.market.matching import Party, Rated, match_all, nearest, rank
from freehold.protocol.errors import Refused
from freehold.protocol.units import Address
from freehold.services.compute.bidding import BidRequest, get_order_party
from freehold.services.compute.executors.wasm_terms import ENGINE
from freehold.services.compute.ordering.measuring import Speeds
from freehold.services.compute.ordering.survey import Found, Offered
from freehold.services.compute.tasks import Resources, Task
from freehold.services.compute.verification.attestation.policy import PROPERTY, kinds_of
from freehold.services.compute.verification.reliability import Evidence, reliability_ppm

BID_SECONDS = 3
FUEL = "speed.fuel"
SPEED_LIMIT = 2**62
ANYTHING = parse("")


class NobodyMatches(Refused):
    """No node can run a step; `details` have the reason of each, and what would help."""

    code = "nobody_matches"
    hint = "Relax `where` or `resources`; `freehold job why JOB` has each node's reason."


class Surveys(Protocol):
    """Of a compute client, what asks for bids."""

    async def survey(self, request: BidRequest) -> Found: ...


class Market(NamedTuple):
    """What a survey came to: who may run it, the best first; a row for each node; sentences where nobody may."""

    offers: list[Offered]
    nodes: list[dict[str, Any]]
    help: list[str]


def build_request(client: Address, job: Job, step: Step, task: Task, most: int, orders: int) -> BidRequest:
    """What nodes are asked. InvalidInput where a constraint does not parse."""
    texts = [f"({text})" for text in (job.where, step.where) if text.strip()]
    if task.kind == "python":  # an interpreter's file does not say what runs it
        texts.append(f'executor.wasm.engine = "{ENGINE}"')
    if step.verify.hardware is not None:
        kinds = kinds_of(step.verify.hardware.measurements)
        texts.append(f"({' or '.join(f'{PROPERTY} = {quote(kind)}' for kind in kinds)})")
    wanted = " and ".join(texts)
    return BidRequest(
        client=str(client), executor=task.executor, kind=task.kind, engine=task.engine, resources=task.resources,
        constraint=str(parse(wanted)), network=task.network, steps=task.steps, most=most, orders=orders,
        seconds=BID_SECONDS, salt=secrets.token_hex(8),
    )  # fmt: skip


async def survey(client: Surveys, request: BidRequest, evidence: Evidence, speeds: Speeds, now: int) -> Market:
    """Ask everybody, and choose. Nobody left is no error here: `offers` is then empty and `help` says why."""
    found = await client.survey(request)
    order = get_order_party(request)
    nodes = [_row(node, reason=why) for node, why in found.refusals.items()]
    offers = list[Offered]()
    for offered, matched in zip(found.bids, match_all(order, _parties(found.bids, evidence, speeds)), strict=True):
        reason = "; ".join(one.text for one in matched.reasons) or why_left_alone(offered, evidence, now)
        nodes.append(_row(offered.node, offered, reason, evidence, speeds))
        if not reason:
            offers.append(offered)
    ranked = rank_offers(offers, evidence, speeds)
    help = [] if ranked else await _find_nearest(client, request, order, evidence, speeds)
    places = {offered.node: place for place, offered in enumerate(ranked, 1)}
    for row in nodes:
        row["place"] = places.get(Address(row["node"]), 0)
    return Market(ranked, sorted(nodes, key=lambda row: (row["place"] or len(nodes) + 1, row["node"])), help)


def refuse(step: Step, market: Market) -> NobodyMatches:
    """The error where nobody matches."""
    count = len(market.nodes)
    what = "no node is registered" if not count else "\n  ".join(["no node can run it", *market.help])
    return NobodyMatches(f"step {str(step.name)!r}: {what}", step=str(step.name), nodes=market.nodes)


def _parties(bids: Sequence[Offered], evidence: Evidence, speeds: Speeds) -> list[Party]:
    return [Party(str(one.node), one.properties | _known(one, evidence, speeds), ANYTHING) for one in bids]


def _known(offered: Offered, evidence: Evidence, speeds: Speeds) -> dict[str, Any]:
    """What this client knows of a node: its reliability, in millionths, and what it measured."""
    return {"reliability": reliability_ppm(evidence.of_node(offered.node)), **speeds.properties(offered.node)}


def why_left_alone(offered: Offered, evidence: Evidence, now: int) -> str:
    """Why it is not asked just now, although it bids; empty if it is."""
    if evidence.is_available(offered.node, offered.operator, now):
        return ""
    record, own = evidence.of_node(offered.node), evidence.of(offered.operator)
    until = max(record.blocked_until, own.blocked_until)
    wrong = f"{own.invalid} wrong results, " if own.invalid else ""
    return f"it failed this client lately ({wrong}{record.failures_in_row} in a row): asked again in {until - now} s"


def rank_offers(offers: Sequence[Offered], evidence: Evidence, speeds: Speeds) -> list[Offered]:
    """The best first, by price / (speed x reliability)."""
    by_address = {bytes(one.node): one for one in offers}
    rated = [
        Rated(
            bytes(one.node),
            bytes(one.operator),
            one.price,
            get_speed(one, speeds),
            reliability_ppm(evidence.of_node(one.node)),
        )
        for one in offers
    ]
    return [by_address[one.address] for one in rank(rated)]


def get_speed(offered: Offered, speeds: Speeds) -> int:
    """Its processor's, as it was measured, or else as far as what it says is believed; 1 where it says nothing."""
    value = offered.properties.get(FUEL)
    claimed = value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < SPEED_LIMIT else 1
    return speeds.speed(offered.node, FUEL, claimed)


async def _find_nearest(
    client: Surveys, request: BidRequest, order: Party, evidence: Evidence, speeds: Speeds
) -> list[str]:
    """What keeps everybody away, found from what they say of themselves when they are asked for almost nothing."""
    least = Resources(processors=1, memory=1, disk=1, seconds=1, processes=1)
    anything = msgspec.structs.replace(
        request, executor="wasm", kind="python", engine="", resources=least, constraint="", network=False, steps=0,
        salt=secrets.token_hex(8),
    )  # fmt: skip
    bids = (await client.survey(anything)).bids
    return (
        nearest(order, _parties(bids, evidence, speeds)).describe()
        if bids
        else ["no node answers with a bid for anything"]
    )


def _row(
    node: Address,
    offered: Offered | None = None,
    reason: str = "",
    evidence: Evidence | None = None,
    speeds: Speeds | None = None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"node": str(node), "reason": reason, "operator": "", "price": "", "place": 0}
    if offered is not None and evidence is not None and speeds is not None:
        row |= {"operator": str(offered.operator), "price": str(offered.price), "speed": get_speed(offered, speeds)}
        row["reliability_ppm"] = reliability_ppm(evidence.of_node(node))
    return row
