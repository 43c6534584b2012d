"""Which nodes would run something, and for how much: every registered node with its bond is asked for a sealed bid.

A node's silence, its refusal and a bid that does not check are reasons by node, never errors. Invariant: a bid that is
returned was signed by that node for this client and this request, and stands.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from freehold.market.meeting import node_peer
from freehold.net.auth import authorize
from freehold.net.client import JSON_HEADERS, Dial
from freehold.protocol.errors import FreeholdError
from freehold.protocol.keys import Key
from freehold.protocol.state import NodeRecord
from freehold.protocol.typed import Domain, canonical_json, keccak
from freehold.protocol.units import Address, Hash
from freehold.services.compute.bidding import BidRequest, Expected, decode_properties, judge_bid
from freehold.services.compute.terms import Bid

PATH = "/v1/compute/bids"


class Offered(NamedTuple):
    """A registered node and its bid. `properties` are the node's own, and what the chain says of it: "node",
    "operator", "bond"."""

    record: NodeRecord
    bid: Bid
    properties: dict[str, Any]

    @property
    def node(self) -> Address:
        """The node's address."""
        return self.record.node

    @property
    def operator(self) -> Address:
        """Who owns the node."""
        return self.record.operator

    @property
    def price(self) -> int:
        """Credits (base units) for an hour of one processor."""
        return self.bid.price


class Found(NamedTuple):
    """Who bids, and why the others do not (by node)."""

    bids: list[Offered]
    refusals: dict[Address, str]


class Asking(NamedTuple):
    """Who asks, and how."""

    key: Key
    domain: Domain
    dial: Dial
    clock: Callable[[], float]
    minimum_bond: int


async def survey(nodes: Sequence[NodeRecord], request: BidRequest, asking: Asking) -> Found:
    """Ask every node at once; whoever has not answered after `request.seconds` does not count."""
    body = canonical_json({"request": msgspec.to_builtins(request), "client": str(asking.key.address)})
    answers = await asyncio.gather(*(_ask(record, request, body, asking) for record in nodes))
    return Found(
        [answer for answer in answers if isinstance(answer, Offered)],
        {r.node: answer for r, answer in zip(nodes, answers, strict=True) if isinstance(answer, str)},
    )


async def _ask(record: NodeRecord, request: BidRequest, body: bytes, asking: Asking) -> Offered | str:
    if record.bond < asking.minimum_bond:
        return f"its bond of {record.bond} is below {asking.minimum_bond}"
    now = int(asking.clock())
    peer = node_peer(asking.dial, record.node, record.endpoint, asking.domain, asking.clock)
    nonce = Hash(secrets.token_bytes(32))
    signed = authorize(asking.key, "POST", PATH, keccak(body), record.node, asking.domain, now, nonce)
    try:
        async with asyncio.timeout(request.seconds):
            answer = await peer.post_bytes(PATH, body, JSON_HEADERS | signed)
        bid = Bid.from_json(answer.get("bid") if isinstance(answer, dict) else None)
    except TimeoutError:
        return f"{record.endpoint} did not answer within {request.seconds} s"
    except FreeholdError as error:
        return _reasons(error)
    if reason := judge_bid(bid, Expected(record.node, request, asking.domain, int(asking.clock()))):
        return reason
    facts = {"node": str(record.node), "operator": str(record.operator), "bond": record.bond}
    return Offered(record, bid, decode_properties(bid.properties) | facts)


def _reasons(error: FreeholdError) -> str:
    """What a node that does not bid says of it."""
    reasons = error.details.get("reasons")
    if isinstance(reasons, list) and reasons and all(isinstance(reason, str) for reason in reasons):
        return "; ".join(reasons)
    return error.message
