"""Fleets: an operator's devices under one Merkle root, as contracts/Fleets.vy keeps and checks them.

A fleet's root is the row root over its devices in the order of their index, each device's own signature included. Its
id is keccak(abi.encode(operator, number)), numbers from 0. What differs from the root since (devices moved and revoked,
fleets retired) is in the contract's events.

Invariant: a device's row, index and proof are what every call of the contract about that device takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from freehold.protocol.keys import Key
from freehold.protocol.merkle import RowTree
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain, Message, keccak
from freehold.protocol.units import UNSIGNED, Address, Hash, Signature, Uint64


class FleetDevice(Message, frozen=True):
    """One device: its key, who is paid for it, and where it stands (H3 cell). The device's key signs it."""

    device: Address
    owner: Address
    place: Uint64
    device_signature: Signature = UNSIGNED


def fleet_id(operator: Address, number: int) -> Hash:
    """The id of an operator's fleet `number`."""
    return keccak(bytes(12) + operator + number.to_bytes(32))


def sign_device(key: Key, owner: Address, place: int, domain: Domain) -> FleetDevice:
    """A device's row, signed by its key."""
    unsigned = FleetDevice(device=key.address, owner=owner, place=place)
    signature = key.sign(unsigned, domain)
    return FleetDevice(device=key.address, owner=owner, place=place, device_signature=signature)


class Fleet:
    """A fleet's devices in their order: its root and count to register, and each device's proof."""

    def __init__(self, devices: Sequence[FleetDevice]) -> None:
        self.devices = Table.of(FleetDevice, devices)

    @property
    def root(self) -> Hash:
        """What the contract keeps."""
        return self.devices.root

    @property
    def count(self) -> int:
        """How many devices there are."""
        return len(self.devices)

    @cached_property
    def _tree(self) -> RowTree:
        return RowTree(self.devices.row_hashes)

    def proof(self, index: int) -> list[Hash]:
        """The siblings of device `index`, bottom up. IndexError where there is none."""
        if not 0 <= index < self.count:
            raise IndexError(f"device {index} of {self.count}")
        return self._tree.proof(index)
