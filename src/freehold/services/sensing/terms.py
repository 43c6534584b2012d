"""Sensing's terms: what devices sign, what is evidence, and what its state is.

A fleet's devices are on chain as one Merkle root (contracts/Fleets.vy). Its operator shows the whole list once, as
enrolment rows; from then on each device stands in the state and owes one signed report an epoch, which names the
epoch's beacon: it cannot have been signed before the epoch began. What was measured travels to whoever buys it; here
stands its hash. Devices are paid by the coverage pool (`protocol/shares.py`): one for each counted report.
"""

from __future__ import annotations

from freehold.protocol.typed import Message
from freehold.protocol.units import UNSIGNED, Address, Hash, Signature, Uint32, Uint64

NAME = "sensing"
UNITS_PER_PRICE = 1  # a price is for one report

ENROLMENT, REPORT = "sensing.enrolment", "sensing.report"

UNKNOWN_FLEET = "unknown_fleet"  # the chain has no such live fleet
WRONG_FLEET_ROOT = "wrong_fleet_root"  # the rows shown are not all of the fleet's, and only they
UNKNOWN_DEVICE = "unknown_device"  # a report from a key that stands in no fleet's list
REVOKED_DEVICE = "revoked_device"
UNCOUNTED = "uncounted"  # a good report beyond what its operator's bond covers: kept, not paid


class Enrolment(Message, frozen=True):
    """Device `index` of a fleet, as its root commits to it: `device_signature` is over the FleetDevice.

    `node` shows it: what others show of the fleet is no part of its list.
    """

    node: Address
    fleet: Hash
    index: Uint32
    device: Address
    owner: Address
    place: Uint64  # H3 cell
    device_signature: Signature = UNSIGNED


class DeviceReport(Message, frozen=True):
    """What a device says once an epoch: `reading` is the keccak of what it measured."""

    device: Address
    epoch: Uint64
    beacon: Hash
    reading: Hash
    device_signature: Signature = UNSIGNED


class DeviceState(Message, frozen=True):
    """An enrolled device, in the order of their addresses. `since` is the epoch that enrolled it."""

    device: Address
    fleet: Hash
    index: Uint32
    owner: Address
    place: Uint64
    since: Uint64


class Duty(Message, frozen=True):
    """An obligation: one report from this device in this epoch."""

    epoch: Uint64
    device: Address
