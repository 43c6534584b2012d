"""What this node offers: a signed offer a service, with the space that is free now."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from freehold.protocol.errors import Refused
from freehold.protocol.keys import Key
from freehold.protocol.messages import STREAM, VOUCHER, Lease, Offer
from freehold.protocol.typed import Domain
from freehold.protocol.units import ZERO_HASH
from freehold.services.seam import HostedProvider, Prices

OFFER_SECONDS = 3600  # an offer's prices stand this long


class Offers:
    """The offers of one node. `endpoint` and `fingerprint` are known once the server is bound."""

    def __init__(
        self,
        key: Key,
        domain: Domain,
        place: str,
        prices: Mapping[str, Prices],
        providers: Mapping[str, HostedProvider],
        clock: Callable[[], int],
    ) -> None:
        self._key = key
        self._domain = domain
        self._place = place
        self._prices = prices
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
        provider = self._providers.get(lease.service)
        if provider is None or not provider.is_leased or lease.mode not in (STREAM, VOUCHER):
            raise Refused(f"this node does not offer {lease.service!r} in mode {lease.mode}")
        listed = self._prices[lease.service]
        price = provider.agreed_price(lease)
        if price is None:
            price = listed.stream if lease.mode == STREAM else listed.voucher
        if lease.price != price:
            raise Refused(f"the price here is {price}, not {lease.price}", price=str(price))

    def _sign(self, service: str, capacity: int) -> Offer:
        offer = Offer(
            node=self._key.address,
            service=service,
            endpoint=self.endpoint,
            fingerprint=self.fingerprint,
            place=self._place,
            stream_price=self._prices[service].stream,
            voucher_price=self._prices[service].voucher,
            capacity=capacity,
            expiry=self._clock() + OFFER_SECONDS,
        )
        return msgspec.structs.replace(offer, node_signature=self._key.sign(offer, self._domain))
