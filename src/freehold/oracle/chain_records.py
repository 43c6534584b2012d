"""What the contracts recorded in final blocks, as far as members read it. `chain.py` makes these of events.

Invariant: a record says what stands after it, never a difference; so a fold of them does not depend on where it began.
"""

from __future__ import annotations

from typing import NamedTuple

from freehold.protocol.beacon import Block
from freehold.protocol.messages import Report
from freehold.protocol.parameters import Parameters
from freehold.protocol.units import Address, Hash


class Registered(NamedTuple):
    """A node came into the registry, or changed its endpoint."""

    operator: Address
    node: Address
    endpoint: str
    payout: Address


class Retired(NamedTuple):
    """A node left the registry for good."""

    operator: Address
    node: Address


class PayoutSet(NamedTuple):
    """An operator's earnings go to another address from here on."""

    operator: Address
    payout: Address


class Bonded(NamedTuple):
    """What an operator has staked for a node, after any change to it."""

    operator: Address
    node: Address
    bond: int


class Bought(NamedTuple):
    """A client's cumulative purchases, after one more."""

    client: Address
    paid_in: int
    burned: int


class FleetRegistered(NamedTuple):
    """An operator's devices came into the registry, as the root of their rows."""

    operator: Address
    fleet: Hash
    root: Hash
    devices: int


class FleetRetired(NamedTuple):
    """A fleet left the registry for good."""

    fleet: Hash


class DeviceRevoked(NamedTuple):
    """One device of a fleet counts no more."""

    fleet: Hash
    position: int
    device: Address


class DeviceMoved(NamedTuple):
    """One device of a fleet has another owner."""

    fleet: Hash
    position: int
    device: Address
    owner: Address


class MembersScheduled(NamedTuple):
    """The members from an epoch on; it replaces what was scheduled for that epoch or later."""

    from_epoch: int
    members: tuple[Address, ...]


class ParametersScheduled(NamedTuple):
    """The parameters from an epoch on; they replace what was scheduled for that epoch or later."""

    from_epoch: int
    parameters: Parameters


class Accepted(NamedTuple):
    """The Oracle took this report. `signatures` are its signers', where the transaction shows them, else empty."""

    report: Report
    signers: int
    signatures: bytes


class Activated(NamedTuple):
    """Reports up to this epoch are active: final for good."""

    epoch: int


class Revoked(NamedTuple):
    """The reports of `epoch` to `last` are void; each of these epochs is to be settled again, one attempt higher.

    `attempt` is the new one of `epoch`.
    """

    epoch: int
    last: int
    attempt: int


class Frozen(NamedTuple):
    """No report came for so long that the way out is open, since this chain time."""

    at: int


class Collected(NamedTuple):
    """A voucher was paid on chain while the network was frozen; `chain` is the hash chain of them all."""

    lease: Hash
    client: Address
    operator: Address
    credits: int
    released: int
    tokens: int
    chain: Hash


class Resumed(NamedTuple):
    """The freeze is over: `epoch` is to be settled with a fresh anchor after this block, as `attempt`."""

    epoch: int
    attempt: int


ChainRecord = (
    Registered
    | Retired
    | PayoutSet
    | Bonded
    | Bought
    | FleetRegistered
    | FleetRetired
    | DeviceRevoked
    | DeviceMoved
    | MembersScheduled
    | ParametersScheduled
    | Accepted
    | Activated
    | Revoked
    | Frozen
    | Collected
    | Resumed
)


class FinalBlock(NamedTuple):
    """A final block and what the contracts recorded in it, in order."""

    block: Block
    records: tuple[ChainRecord, ...]
