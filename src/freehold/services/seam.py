"""What a node hands to a provider, and what it asks of one beyond the evidence (`protocol/service.py`).

A provider sees blobs, SQL, leases, its key and a clock by interface; so it runs alike in a node, over a disk in
memory, and in the simulator. Amounts are credits in base units; times are unix seconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from freehold.protocol.keys import Key
from freehold.protocol.messages import Lease, Voucher
from freehold.protocol.parameters import Parameters
from freehold.protocol.service import Provider
from freehold.protocol.state import LeaseState
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address, Hash

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview


class Arrival(Protocol):
    """A blob that is being written; leaving its context without `commit` leaves nothing behind."""

    def write(self, chunk: Buffer) -> None: ...

    def commit(self) -> None:
        """Return once the blob is durable under its key."""

    def abort(self) -> None: ...


class Files(Protocol):
    """Blobs within an allowance (`store/blobs.py`). Blocks: call it in a thread."""

    @property
    def used_bytes(self) -> int: ...

    @property
    def free_bytes(self) -> int: ...

    def begin(self, key: str, size: int = 0) -> Arrival: ...

    def put(self, key: str, chunks: Iterable[Buffer]) -> int: ...

    def has(self, key: str) -> bool: ...

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes: ...

    def read_into(self, key: str, target: memoryview) -> int: ...

    def delete(self, key: str) -> bool: ...

    def list_keys(self) -> Iterator[str]: ...


class Sql(Protocol):
    """One SQL database (`store/sql.py`): what `write` returned is durable, what raised is undone."""

    async def write(self, work: Callable[[Any], T]) -> T: ...

    async def read(self, work: Callable[[Any], T]) -> T: ...

    def close(self) -> None: ...


class Standing(NamedTuple):
    """What a node knows of one lease. `lock` comes from certified reservations, `state` from the last committed report
    that named the lease; `epoch` is that of the last committed report at all."""

    lease: Lease
    lock: int
    epoch: int
    state: LeaseState | None

    @property
    def settled(self) -> int:
        """Credits that committed reports have paid."""
        return self.state.settled if self.state else 0


class Charge(NamedTuple):
    """What one answer adds to a lease paid by voucher: `measure` of the service, `units` to a price. `is_prepaid`: the
    client wants it only if its vouchers cover it."""

    client: Address
    service: str
    measure: int
    units: int
    is_prepaid: bool = False


class Leases(Protocol):
    """A node's book of leases."""

    async def find(self, lease: Hash) -> Standing:
        """NotFound where no client and this node have signed it."""

    async def charge(self, voucher: Voucher, charge: Charge) -> None:
        """Take the voucher and count one more answer, durably. Conflict and InsufficientCredits say what is owed."""

    async def refund(self, lease: Hash, measure: int) -> None:
        """Take back what was counted and not sent."""


class Prices(NamedTuple):
    """An operator's list prices for a service: credits (base units) for its unit of work, and for what it sends."""

    stream: int
    voucher: int


class LiveFleet(NamedTuple):
    """A fleet of this node's operator that the chain knows and has not retired."""

    root: Hash
    devices: int


@dataclass(frozen=True)
class ProviderContext:
    """All that a provider may touch. `authenticate(sender, headers, method, path, body hash)`: WrongSignature unless
    the request is from `sender`. `find_fleet` asks the chain: NotFound, Refused (another operator's, or retired).
    `members_of` names an epoch's oracle members, as far as they are known here. `settings` are the service's own part
    of the node's configuration, `prices` the list prices, `place` is what the operator names; `folder` is a directory
    of the service's own for what need not last. `find_peer` gives another registered node (a `net.client.Peer`):
    NotFound."""

    key: Key
    domain: Domain
    parameters: Parameters
    leases: Leases
    files: Files
    open_sql: Callable[[Sequence[str]], Sql]
    authenticate: Callable[[Address, Mapping[str, str], str, str, Hash], None]
    find_fleet: Callable[[Hash], Awaitable[LiveFleet]]
    members_of: Callable[[int], Sequence[Address]]
    clock: Callable[[], int]
    settings: Mapping[str, Any]
    prices: Prices
    place: str
    folder: str
    find_peer: Callable[[Address], Awaitable[Any]]


class HostedProvider(Provider, Protocol):
    """A provider as a node runs it. One that clients lease is offered to them, and has a share of the node's disk."""

    is_leased: ClassVar[bool]

    async def gather(self, already: Mapping[str, int]) -> Mapping[str, Table[Any]]:
        """Evidence of the open epoch that came in since it began, by kind, in the order in which it came: what follows
        the first `already` rows of its kind, which are held."""

    async def watched(self) -> Sequence[Address]:
        """Whose rows of the committed state it wants to see, beside those that name the node."""

    def routes(self) -> Sequence[Any]:
        """Its HTTP routes, all under /v1/<service>/."""

    async def commit(self, epoch: int, rows: Table[Any], leases: Mapping[Hash, LeaseState]) -> None:
        """The node's own rows and leases in the state that the report of `epoch` commits to, with the rows of whom it
        watches; all proven against it."""

    def agreed_price(self, lease: Lease) -> int | None:
        """The price that the provider itself has agreed on with this lease's client for its mode; None: the list's."""

    async def describe(self, lease: Hash) -> Mapping[str, Any]:
        """JSON-ready facts that a client needs to go on with a lease."""

    async def tidy(self) -> None:
        """Delete what nothing names any more."""

    def metrics(self) -> Mapping[str, int]:
        """Figures by name, without the prefix of process and service."""


class ProviderFactory(Protocol):
    """Makes a provider: its class."""

    @property
    def is_leased(self) -> bool: ...

    def __call__(self, context: ProviderContext) -> HostedProvider: ...
