# pragma version 0.4.3
# pragma nonreentrancy on
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title Fleets: any number of devices by one Merkle root
@license GNU Affero General Public License v3.0 only
@notice An operator registers a fleet in one transaction, whatever its size. A fleet's root is the row root (rows.vy) over
        its devices in the order of their index; the count is fixed with it. One device is moved, revoked or shown by
        its row and the row's proof; only what differs from the root is stored. The devices' own signatures in the rows
        are checked where the whole list is shown: at enrolment, by every member.
        Invariants: only a device's present owner moves it; a revoked device is dead for good, and so is every device of
        a retired fleet. The events alone give the state.
"""

from modules import rows

event FleetRegistered:
    operator: indexed(address)
    fleet: indexed(bytes32)
    root: bytes32
    count: uint32
    uri: String[200]


event DeviceMoved:
    fleet: indexed(bytes32)
    index: uint32
    device: indexed(address)
    owner: indexed(address)


event DeviceRevoked:
    fleet: indexed(bytes32)
    index: uint32
    device: indexed(address)


event FleetRetired:
    operator: indexed(address)
    fleet: indexed(bytes32)


struct Fleet:
    operator: address
    count: uint32
    retired: bool
    root: bytes32


struct FleetDevice:
    device: address
    owner: address
    place: uint64
    device_signature: Bytes[65]


DEVICE_TYPE_HASH: constant(bytes32) = keccak256("FleetDevice(address device,address owner,uint64 place)")
# In the place of an owner: no address is this large.
_REVOKED: constant(uint256) = 2**160

# How many fleets an operator has registered: the number of its next one.
fleet_count: public(HashMap[address, uint256])
_roots: HashMap[bytes32, bytes32]
# operator (160 bits) | count (32) | retired (1), low to high
_records: HashMap[bytes32, uint256]
# By fleet and index: the owner that a move set, or _REVOKED.
_changes: HashMap[bytes32, HashMap[uint32, uint256]]


@external
def register(root: bytes32, count: uint32, uri: String[200]) -> bytes32:
    """
    @param uri Where the list of devices is kept; whoever fetches it checks it against the root.
    @return The fleet's id: keccak256(abi.encode(operator, number)), numbers from 0.
    """
    assert root != empty(bytes32), "fleets: no root"
    assert count > 0, "fleets: no devices"
    number: uint256 = self.fleet_count[msg.sender]
    fleet: bytes32 = self._fleet_of(msg.sender, number)
    self.fleet_count[msg.sender] = number + 1
    self._roots[fleet] = root
    self._records[fleet] = convert(msg.sender, uint256) | (convert(count, uint256) << 160)
    log FleetRegistered(operator=msg.sender, fleet=fleet, root=root, count=count, uri=uri)
    return fleet


@external
def move(
    fleet: bytes32, index: uint32, device: FleetDevice, proof: DynArray[bytes32, rows.MAX_DEPTH], to: address
):
    """
    @notice Gives a device to another owner; only its present owner can.
    """
    assert to != empty(address), "fleets: no owner"
    owner: address = self._owner_of(fleet, index, device, proof)
    assert msg.sender == owner, "fleets: not the owner"
    self._changes[fleet][index] = convert(to, uint256)
    log DeviceMoved(fleet=fleet, index=index, device=device.device, owner=to)


@external
def revoke(fleet: bytes32, index: uint32, device: FleetDevice, proof: DynArray[bytes32, rows.MAX_DEPTH]):
    """
    @notice For good: by the fleet's operator or the device's present owner.
    """
    owner: address = self._owner_of(fleet, index, device, proof)
    assert msg.sender == owner or msg.sender == self._operator_of(fleet), "fleets: not the owner or operator"
    self._changes[fleet][index] = _REVOKED
    log DeviceRevoked(fleet=fleet, index=index, device=device.device)


@external
def retire(fleet: bytes32):
    """
    @notice For good: no device of the fleet is live any more.
    """
    record: uint256 = self._records[fleet]
    assert record != 0 and msg.sender == self._operator_of(fleet), "fleets: not the operator"
    assert not self._is_retired(record), "fleets: retired"
    self._records[fleet] = record | (1 << 192)
    log FleetRetired(operator=msg.sender, fleet=fleet)


@external
@view
def is_live(
    fleet: bytes32, index: uint32, device: FleetDevice, proof: DynArray[bytes32, rows.MAX_DEPTH]
) -> (bool, address):
    """
    @notice Whether this device stands at `index` of a live fleet and was not revoked, and who owns it. Reverts if the
            proof is not of that fleet.
    """
    change: uint256 = self._change_of(fleet, index, device, proof)
    if self._is_retired(self._records[fleet]) or change == _REVOKED:
        return False, empty(address)
    return True, device.owner if change == 0 else convert(change, address)


@external
@view
def fleets(fleet: bytes32) -> Fleet:
    """
    @return All zero for an id that nobody registered.
    """
    record: uint256 = self._records[fleet]
    return Fleet(
        operator=self._operator_of(fleet),
        count=self._count_of(record),
        retired=self._is_retired(record),
        root=self._roots[fleet],
    )


@external
@view
def fleet_of(operator: address, number: uint256) -> bytes32:
    return self._fleet_of(operator, number)


@internal
@view
def _owner_of(
    fleet: bytes32, index: uint32, device: FleetDevice, proof: DynArray[bytes32, rows.MAX_DEPTH]
) -> address:
    """
    The present owner of a device that is alive.
    """
    change: uint256 = self._change_of(fleet, index, device, proof)
    assert not self._is_retired(self._records[fleet]), "fleets: retired"
    assert change != _REVOKED, "fleets: revoked"
    return device.owner if change == 0 else convert(change, address)


@internal
@view
def _change_of(
    fleet: bytes32, index: uint32, device: FleetDevice, proof: DynArray[bytes32, rows.MAX_DEPTH]
) -> uint256:
    """
    What was stored for a device, once its row is shown to stand at `index` of the fleet.
    """
    record: uint256 = self._records[fleet]
    assert record != 0, "fleets: unknown"
    struct_hash: bytes32 = keccak256(abi_encode(DEVICE_TYPE_HASH, device.device, device.owner, device.place))
    row_hash: bytes32 = keccak256(concat(struct_hash, device.device_signature))
    root: bytes32 = rows._row_root(self._count_of(record), index, row_hash, proof)
    assert root == self._roots[fleet], "fleets: wrong proof"
    return self._changes[fleet][index]


@internal
@pure
def _fleet_of(operator: address, number: uint256) -> bytes32:
    return keccak256(abi_encode(operator, number))


@internal
@view
def _operator_of(fleet: bytes32) -> address:
    return convert(self._records[fleet] & (_REVOKED - 1), address)


@internal
@pure
def _count_of(record: uint256) -> uint32:
    return convert((record >> 160) & (2**32 - 1), uint32)


@internal
@pure
def _is_retired(record: uint256) -> bool:
    return record >> 192 == 1
