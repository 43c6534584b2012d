"""The prices that a node holds to: those that it has bid, until they run out, and those at which clients have worked.

Anybody may ask for a bid, under as many addresses as it likes, so both are bounded, and a step costs the same however
many there are. Where there are more than LIMIT, the bid that was made longest ago goes, and the client that has not
ordered for longest: a flood shortens how long a bid stands, and refuses nobody.

Invariant: what has run out is never agreed on; a lease's price is agreed on as long as one of the two is kept.
"""

from __future__ import annotations

from collections import OrderedDict

from freehold.protocol.units import Address

LIMIT = 2**16  # of each kind: more bids than a node can sign while one of them stands

_Key = tuple[Address, int]


class Prices:
    """By client and price. Times are unix seconds."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._bids: OrderedDict[_Key, int] = OrderedDict()  # until when each stands; the one made last is the last
        self._worked: OrderedDict[_Key, None] = OrderedDict()  # the one used last is the last

    def __len__(self) -> int:
        return len(self._bids) + len(self._worked)

    def bid(self, client: Address, price: int, until: int, now: int) -> None:
        """The node has bid this price."""
        while self._bids and next(iter(self._bids.values())) < now:
            self._bids.popitem(last=False)
        key = (client, price)
        self._bids[key] = max(until, self._bids.get(key, 0))
        self._bids.move_to_end(key)
        if len(self._bids) > self._limit:
            self._bids.popitem(last=False)

    def work(self, client: Address, price: int) -> None:
        """The client has ordered at this price: it may open such a lease again."""
        self._worked[client, price] = None
        self._worked.move_to_end((client, price))
        if len(self._worked) > self._limit:
            self._worked.popitem(last=False)

    def stands(self, client: Address, price: int, now: int) -> bool:
        """Whether the node holds to this price for this client."""
        return self._bids.get((client, price), 0) >= now or (client, price) in self._worked
