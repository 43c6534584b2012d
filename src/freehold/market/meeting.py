"""How a node is met: what it offers is signed by its key and names its certificate, and so the node can be pinned.

    fingerprint_at   which certificate is shown at the node's endpoint, by whomever
    /v1/offers       asked over a connection with just that certificate
    judge_identity   the offer is signed by the node's key, stands, and names that certificate

Somebody in between has another certificate than the one the offer names, or an offer that the node did not sign. What
was learned is kept for the process (`Dial.known`). A node that has a new certificate is met again when it no longer
shows the old one; an offer older than the one known does not count: a stolen key is of no use once its owner has
changed it. Endpoints are those of the registry: only its operator makes a node one that is spoken to over http.

Invariant: no node is asked anything but its offers before this has succeeded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from freehold.net.client import Dial, Known, Peer
from freehold.protocol.errors import MalformedMessage, Unavailable, WrongCertificate
from freehold.protocol.keys import is_signed_by
from freehold.protocol.messages import Offer
from freehold.protocol.typed import Domain
from freehold.protocol.units import ZERO_HASH, Address, Hash

LEARN_SECONDS = 5.0
UNKNOWN = Known(ZERO_HASH, 0)


class Shown(NamedTuple):
    """A node's offers, and the fingerprint of the certificate that they came with; zero over http."""

    offers: list[Offer]
    fingerprint: Hash


def node_peer(dial: Dial, node: Address, url: str, domain: Domain, clock: Callable[[], float]) -> Peer:
    """The node at `url`: over https it is met before its first request. WrongCertificate where it is somebody else."""
    if not url.startswith("https:"):
        return dial.peer(url)
    return dial.peer(url, NodePin(dial, node, url, domain, clock))


class NodePin:
    """A node's fingerprint, as its newest known offer names it (a `net.client.Pin`)."""

    def __init__(self, dial: Dial, node: Address, url: str, domain: Domain, clock: Callable[[], float]) -> None:
        self._dial, self._node, self._url = dial, node, url
        self._domain, self._clock = domain, clock
        self._learning = asyncio.Lock()

    async def fingerprint(self, wrong: Hash = ZERO_HASH) -> Hash:
        """What the node's certificate must have; learned where it is not known, or known to be `wrong`."""
        async with self._learning:
            known = self._dial.known.get((self._node, self._url), UNKNOWN)
            if known.fingerprint in (ZERO_HASH, wrong):
                known = await self._learn(known.expiry)
        return known.fingerprint

    async def _learn(self, expiry: int) -> Known:
        reason = "it offers nothing"
        try:
            async with asyncio.timeout(LEARN_SECONDS):
                shown = await ask_offers(self._dial, self._node, self._url)
        except TimeoutError:
            raise Unavailable(f"{self._url} did not answer within {LEARN_SECONDS:.0f} s", url=self._url) from None
        for offer in shown.offers:
            reason = judge_identity(offer, self._node, shown.fingerprint, self._domain, int(self._clock()))
            if not reason and offer.expiry < expiry:
                reason = "its offer is older than the one known"
            if not reason:
                note_certificate(self._dial, self._url, offer)
                return Known(offer.fingerprint, offer.expiry)
        raise WrongCertificate(f"{self._url} does not prove to be node {self._node}: {reason}", url=self._url)


def note_certificate(dial: Dial, url: str, offer: Offer) -> None:
    """Pin the node at `url` by an offer that `judge_identity` has nothing against."""
    if offer.expiry >= dial.known.get((offer.node, url), UNKNOWN).expiry:
        dial.known[offer.node, url] = Known(offer.fingerprint, offer.expiry)


async def ask_offers(dial: Dial, node: Address, url: str) -> Shown:
    """The offers at `url`, of whoever answers there: `judge_identity` says which are the node's. FreeholdError."""
    known = dial.known.get((node, url), UNKNOWN).fingerprint
    if known != ZERO_HASH:
        with suppress(WrongCertificate):
            return await _fetch(dial, url, known)
    return await _fetch(dial, url, await dial.fingerprint_at(url))


async def _fetch(dial: Dial, url: str, fingerprint: Hash) -> Shown:
    value = await dial.peer(url, fingerprint).get_json("/v1/offers")
    try:
        return Shown([Offer.from_json(entry) for entry in value], fingerprint)
    except TypeError:
        raise MalformedMessage(f"{url} answered with something else than offers") from None


def judge_identity(offer: Offer, node: Address, shown: Hash, domain: Domain, now: int) -> str:
    """Why an offer that came with the certificate `shown` is not the node's; empty if it is."""
    if offer.node != node:
        return f"its offer is another node's ({offer.node})"
    if offer.expiry < now:
        return f"its offer expired {now - offer.expiry} s ago"
    if offer.fingerprint != shown:
        what = f"it shows {shown}" if shown != ZERO_HASH else "it is spoken to over http"
        return f"its offer names the certificate {offer.fingerprint}, and {what}"
    if not is_signed_by(offer, offer.node_signature, node, domain):
        return "its offer is not signed by it"
    return ""
