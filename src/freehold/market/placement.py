"""Which nodes to deal with: live registrations, their signed offers, and a choice among them.

Distinct shards go to distinct operators, so a choice has at most one node of each; among equals, places that are not
yet used come first, then the cheaper, then chance. Invariant: what is chosen was signed by the node itself, came over a
connection with the certificate that it names, and has not expired (`meeting.py`); and where too few are left the error
says how many there are.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

from freehold.market.meeting import ask_offers, judge_identity, note_certificate
from freehold.net.client import Dial
from freehold.protocol.errors import FreeholdError, InsufficientOperators
from freehold.protocol.messages import Offer
from freehold.protocol.state import NodeRecord
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address, Hash

OFFER_SECONDS = 3.0  # a node that takes longer to say what it offers is not waited for


class Directory(Protocol):
    """Where live registrations are read."""

    async def nodes(self) -> Sequence[NodeRecord]:
        """Every registered node with its operator, endpoint and bond."""


class Candidate(NamedTuple):
    """A registered node and what it offers now."""

    record: NodeRecord
    offer: Offer

    @property
    def node(self) -> Address:
        """The node's address."""
        return self.record.node


class Terms(NamedTuple):
    """What a client asks of a candidate. `capacity` is in the service's unit; `now` is unix time in seconds."""

    service: str
    domain: Domain
    now: int
    minimum_bond: int = 0
    capacity: int = 0


class Survey(NamedTuple):
    """Who offers, and why the others do not (by node)."""

    candidates: list[Candidate]
    refusals: dict[Address, str]


async def survey(nodes: Iterable[NodeRecord], dial: Dial, terms: Terms) -> Survey:
    """Ask every node at once for its offers; silence and bad offers are reasons, not errors."""
    records = list(nodes)
    answers = await asyncio.gather(*(_ask(record, dial, terms) for record in records))
    return Survey(
        [answer for answer in answers if isinstance(answer, Candidate)],
        {r.node: answer for r, answer in zip(records, answers, strict=True) if isinstance(answer, str)},
    )


async def _ask(record: NodeRecord, dial: Dial, terms: Terms) -> Candidate | str:
    if record.bond < terms.minimum_bond:
        return f"its bond of {record.bond} is below {terms.minimum_bond}"
    try:
        async with asyncio.timeout(OFFER_SECONDS):
            shown = await ask_offers(dial, record.node, record.endpoint)
    except TimeoutError:
        return f"{record.endpoint} did not answer within {OFFER_SECONDS:.0f} s"
    except FreeholdError as error:
        return str(error)
    reason = f"it offers no {terms.service}"
    for offer in shown.offers:
        if offer.service == terms.service:
            reason = judge_offer(offer, record, terms, shown.fingerprint)
            if not reason:
                note_certificate(dial, record.endpoint, offer)
                return Candidate(record, offer)
    return reason


def judge_offer(offer: Offer, record: NodeRecord, terms: Terms, shown: Hash) -> str:
    """Why an offer that came with the certificate `shown` (zero: over http) cannot be taken; empty if it can."""
    if offer.capacity < terms.capacity:
        return f"{offer.capacity} of {terms.capacity} are free"
    return judge_identity(offer, record.node, shown, terms.domain, terms.now)


def choose(
    candidates: Sequence[Candidate],
    count: int,
    *,
    taken: Collection[Candidate] = (),
    avoid: Collection[Address] = (),
    chance: random.Random | None = None,
) -> list[Candidate]:
    """`count` candidates of distinct operators, none of them an operator of `taken`, none in `avoid`.

    InsufficientOperators says how many operators there are, those of `taken` included.
    """
    operators = {candidate.record.operator for candidate in taken}
    places = Counter(candidate.offer.place for candidate in taken)
    pool = [c for c in candidates if c.node not in avoid and c.record.operator not in operators]
    (chance or random.SystemRandom()).shuffle(pool)
    chosen: list[Candidate] = []
    while len(chosen) < count and pool:
        best = min(pool, key=lambda c: (places[c.offer.place], c.offer.stream_price))
        chosen.append(best)
        places[best.offer.place] += 1
        pool = [c for c in pool if c.record.operator != best.record.operator]
    if len(chosen) < count:
        there, needed = len(chosen) + len(operators), count + len(operators)
        raise InsufficientOperators(f"{there} operators can take this, {needed} are needed", have=there, need=needed)
    return chosen
