"""What this node offers: a signed offer a service, with the space that is free now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from freehold.protocol.errors import Refused
from freehold.protocol.keys import Key
from freehold.protocol.messages import STREAM, VOUCHER, Lease, Offer
from freehold.protocol.typed import Domain
from freehold.protocol.units import ZERO_HASH
from freehold.services.seam import HostedProvider

OFFER_SECONDS = 3600  # an offer's prices stand this long


class Terms(NamedTuple):
    """The operator's prices, in credits per unit of the service's terms, and the place it names."""

    stream_price: int
    voucher_price: int
    place: str


class Offers:
    """The offers of one node. `endpoint` and `fingerprint` are known once the server is bound."""

    def __init__(
        self,
        key: Key,
        domain: Domain,
        terms: Terms,
        providers: Mapping[str, HostedProvider],
        clock: Callable[[], int],
    ) -> None:
        self._key = key
        self._domain = domain
        self._terms = terms
        self._providers = providers
        self._clock = clock
        self.endpoint = ""
        self.fingerprint = ZERO_HASH

    def current(self) -> list[Offer]:
        """One signed offer for each service that clients lease."""
        leased = {name: provider for name, provider in self._providers.items() if provider.is_leased}
        return [self._sign(name, provider.capacity()) for name, provider in leased.items()]

    def check_price(self, lease: Lease) -> None:
        """Refused, naming the price asked, unless the lease is for a service, mode and price that are offered."""
        prices = {STREAM: self._terms.stream_price, VOUCHER: self._terms.voucher_price}
        provider = self._providers.get(lease.service)
        if provider is None or not provider.is_leased or lease.mode not in prices:
            raise Refused(f"this node does not offer {lease.service!r} in mode {lease.mode}")
        if lease.price != prices[lease.mode]:
            raise Refused(f"the price here is {prices[lease.mode]}, not {lease.price}", price=str(prices[lease.mode]))

    def _sign(self, service: str, capacity: int) -> Offer:
        offer = Offer(
            node=self._key.address,
            service=service,
            endpoint=self.endpoint,
            fingerprint=self.fingerprint,
            place=self._terms.place,
            stream_price=self._terms.stream_price,
            voucher_price=self._terms.voucher_price,
            capacity=capacity,
            expiry=self._clock() + OFFER_SECONDS,
        )
        return msgspec.structs.replace(offer, node_signature=self._key.sign(offer, self._domain))
