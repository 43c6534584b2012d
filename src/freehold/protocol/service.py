"""The service seam: what a new kind of infrastructure has to be.

One folder `services/<name>/` and one line in each of two registries. The judging half (`Judge`: terms, proof,
score) is pure and is all that replay, members and the twin load; the working half (`Provider`) runs in nodes and gets a
context of interfaces (`services/seam.py`). What a client does differs too much from service to service for an
interface of its own: the SDK names a service's client half.

An epoch asks a judge three things, in this order:

    obligations(context)            who must answer what, drawn by the beacon over the state of the epoch before
    judge(obligations, rows, ...)   a verdict on every obligation (silence included) and on every row
    fold(rows, verdicts, ...)       the service's next state, what each lease may be paid for, whose bond is answerable

`tests/services/conformance.py` is the suite that every service passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from freehold.protocol.parameters import Parameters
from freehold.protocol.state import DeviceChange, FleetRecord, LeaseState, NodeRecord
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain, Message
from freehold.protocol.units import Address, Hash
from freehold.protocol.verdicts import Contribution, Slash, Verdict

Rows = Mapping[str, Any]  # by kind: a Table, or Parts for a kind that the judge streams


class Context(NamedTuple):
    """What a judge may know of an epoch. `state` is the service's own table after the epoch before; `leases` are
    all that are open in this epoch, `ended` those that were closed and whose rows are still there; `seconds` is the
    time that a stream may be paid for; `nodes`, `fleets` and `changes` are what the chain says at the anchor. A node,
    which only answers obligations, has neither these nor `ended`."""

    epoch: int
    seconds: int
    beacon: Hash
    parameters: Parameters
    domain: Domain
    leases: Mapping[Hash, LeaseState]
    state: Table[Any]
    fleets: tuple[FleetRecord, ...] = ()
    changes: tuple[DeviceChange, ...] = ()
    nodes: tuple[NodeRecord, ...] = ()
    ended: Mapping[Hash, LeaseState] = MappingProxyType({})


class Folded(NamedTuple):
    """What an epoch comes to for a service: its next state, the measure proven for each lease or for an account that
    the coverage pool pays, and what was proven wrong."""

    state: Table[Any]
    contributions: Table[Contribution]
    slashes: Table[Slash] = Table.of(Slash)


class Judge(Protocol):
    """The judging half of a service: pure functions over tables."""

    name: str
    kinds: Mapping[str, type[Message]]  # what its evidence batches may hold, by kind
    sender_fields: Mapping[str, str]  # by kind: the field that must be the batch's sender
    streamed: frozenset[str]  # the kinds whose rows it reads table by table (`tables.Parts`): a row may come twice
    state_kind: type[Message]  # a row of its state
    obligation_kind: type[Message]
    units_per_price: int  # a price is for this much of the measure

    def obligations(self, context: Context) -> Table[Any]:
        """What each node must answer in this epoch. Work grows with nodes, not with what they hold."""

    def judge(self, obligations: Table[Any], rows: Rows, context: Context) -> Table[Verdict]:
        """A verdict on every obligation and every row; never raises on a bad row."""

    def fold(self, rows: Rows, verdicts: Table[Verdict], context: Context) -> Folded:
        """What this epoch comes to."""

    def owing(self, state: Table[Any]) -> Set[Hash]:
        """The leases under which work that was done may still come to be paid: their locks do not fall."""

    def needed_thaw(self, parameters: Parameters) -> int:
        """The least `thaw_epochs` by which a node's bond cannot be gone before work that is found wrong takes it."""

    def holdings(self, state: Table[Any]) -> Mapping[Address, int]:
        """What each node must hold, in the service's own unit."""


class Provider(Protocol):
    """The working half at a node: serves clients, and answers an epoch's obligations."""

    name: str

    async def start(self) -> None:
        """Take up work where it was left; raises a FreeholdError with a hint where it cannot."""

    async def stop(self) -> None:
        """Finish what was acknowledged, then return."""

    async def prove(self, context: Context) -> Mapping[str, Table[Any]]:
        """Evidence rows, by kind, that answer this node's obligations."""

    async def collect(self) -> Mapping[str, Table[Any]]:
        """Evidence rows, by kind, that do not expire and are not yet in a committed state."""

    def capacity(self) -> int:
        """What is still free, in the service's own unit, for the offer."""
