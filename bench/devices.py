"""The files of one epoch of N devices, each with its own signed report: what a member finds on its disk.

Every device has its own key, stands in one of FLEETS fleets, and is paid to an owner of its own: so there are as many
accounts as devices. Keys and reports are made by processes of their own, which takes longer than settling them.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from freehold.protocol.batches import encode_batch, make_batch
from freehold.protocol.certificates import make_certificate, quorum
from freehold.protocol.keys import Key
from freehold.protocol.messages import Acknowledgement, Manifest, Observation
from freehold.protocol.parameters import Parameters
from freehold.protocol.state import (
    AccountState,
    AnchorData,
    EpochState,
    FleetRecord,
    MemberSet,
    MemberState,
    State,
)
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain, keccak
from freehold.protocol.units import ONE, ZERO_HASH, Address, Hash
from freehold.services.compute.terms import WorkState
from freehold.services.sensing.terms import REPORT, DeviceReport, DeviceState
from freehold.services.storage.terms import ListState

DOMAIN = Domain(31337, Address(bytes(19) + b"\x01"))
EPOCH = 2
ROWS = 100_000  # in a batch: the most that one may have
FLEETS = 100
PARAMETERS = Parameters(
    epoch_length=3600,
    answering_window=600,
    finality_depth=64,
    challenges=8,
    tau=100_000,
    beta=500_000,
    initial_subsidy=1_000_000 * ONE,
    halving_epochs=20_000,
    minimum_bond=1_000 * ONE,
    wrong_result_slash=500 * ONE,
    lapse_grace=3,
    lock_release=2,
    segment_size=8 << 20,
    dispute_window=86_400,
    thaw_epochs=24,
    max_price_age=86_400,
    initial_price=ONE,
    member_share=50_000,
    coverage_share=800_000,
    device_bond=ONE,
    freeze_lengths=12,
    answer_reports=3,
    claim_epochs=4,
    bundle_epochs=1000,
)
MEMBERS = tuple(Key(keccak(b"bench member" + bytes([i]))) for i in range(4))
BLOCK = keccak(b"the block behind the beacon")
BEACON = keccak(BLOCK + ZERO_HASH)


class Made(NamedTuple):
    """One process's share: addresses and signatures, 20 and 65 bytes a device."""

    devices: bytes
    signatures: bytes


def device_key(number: int) -> Key:
    """A deterministic key."""
    return Key(keccak(b"bench device" + number.to_bytes(8)))


def reading_of(number: int) -> Hash:
    """What a device measured, as the hash that its report carries."""
    return keccak(b"reading" + number.to_bytes(8))


def make_devices(start: int, stop: int) -> Made:
    """Keys and signed reports of the devices in range(start, stop)."""
    devices, signatures = [], []
    for number in range(start, stop):
        key = device_key(number)
        report = DeviceReport(device=key.address, epoch=EPOCH, beacon=BEACON, reading=reading_of(number))
        devices.append(bytes(key.address))
        signatures.append(bytes(key.sign(report, DOMAIN)))
    return Made(b"".join(devices), b"".join(signatures))


def write_epoch(directory: Path, count: int) -> None:
    """Batches, manifest, anchor and the state before, as a member has them on its disk."""
    edges = [*range(0, count, 10_000), count]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        made = list(pool.map(make_devices, edges[:-1], edges[1:]))
    devices = np.frombuffer(b"".join(part.devices for part in made), np.uint8).reshape(-1, 20)
    signatures = np.frombuffer(b"".join(part.signatures for part in made), np.uint8).reshape(-1, 65)
    readings = np.frombuffer(b"".join(reading_of(i) for i in range(count)), np.uint8).reshape(-1, 32)
    state = make_state(devices)
    anchor = make_anchor(count, state)
    subjects = []
    (directory / "batches").mkdir()
    for start in range(0, count, ROWS):
        stop = min(start + ROWS, count)
        signed = {"reading": readings[start:stop], "device_signature": list_of(signatures[start:stop])}
        columns = {"device": devices[start:stop], "epoch": EPOCH, "beacon": BEACON} | signed
        batch = make_batch(REPORT, Table.from_columns(DeviceReport, columns, stop - start), MEMBERS[0], DOMAIN)
        (directory / "batches" / str(batch.subject)).write_bytes(encode_batch(batch))
        subjects.append(batch.subject)
    for name, table in state.tables().items():
        (directory / f"{name}.table").write_bytes(table.encode())
    (directory / "anchor.json").write_bytes(anchor.to_bytes())
    (directory / "manifest.json").write_bytes(make_manifest(anchor, subjects).to_bytes())


def list_of(signatures: np.ndarray) -> list[bytes]:
    """(n, 65) as values."""
    data = signatures.tobytes()
    return [data[i : i + 65] for i in range(0, len(data), 65)]


def make_state(devices: np.ndarray) -> State:
    """After epoch 1: every device enrolled, every owner with an account. Owners are the devices' complement."""
    count = len(devices)
    order = np.lexsort(devices.T[::-1])
    numbers = np.arange(count)
    fleets = np.frombuffer(b"".join(fleet_id(i) for i in range(FLEETS)), np.uint8).reshape(-1, 32)
    columns = {
        "device": devices,
        "fleet": fleets[numbers % FLEETS],
        "index": (numbers // FLEETS).astype("<u4"),
        "owner": devices ^ np.uint8(255),
        "place": numbers.astype("<u8"),
        "since": 1,
    }
    amount = np.zeros((count, 12), np.uint8)
    amount[:, :8] = np.arange(1, count + 1, dtype="<u8").view(np.uint8).reshape(-1, 8)
    accounts = {
        "index": numbers.astype("<u8"),
        "account": devices ^ np.uint8(255),
        "tokens_earned": amount,
        "credits_earned": 0,
        "credits_spent": 0,
    }
    return State(
        epoch=EpochState(epoch=1, anchor_block=10, anchor_hash=keccak(b"1"), anchor_time=1000, reveals=ZERO_HASH),
        accounts=Table.from_columns(AccountState, accounts, count),
        members={m.address: MemberState(member=m.address, commitment=keccak(m.address)) for m in MEMBERS},
        services={
            "sensing": Table.from_columns(DeviceState, columns, count).take(order),
            "storage": Table.of(ListState),
            "compute": Table.of(WorkState),
        },
    )


def fleet_id(number: int) -> Hash:
    """A fleet's id."""
    return keccak(b"fleet" + bytes([number]))


def make_anchor(count: int, state: State) -> AnchorData:
    """What the chain says: FLEETS fleets of different operators, bonded for every device."""
    fleets = [
        FleetRecord(
            fleet=fleet_id(i),
            operator=Address(keccak(b"operator" + bytes([i]))[12:]),
            root=keccak(b"root" + bytes([i])),
            count=-(-count // FLEETS),
            bond=count * ONE,
        )
        for i in range(FLEETS)
    ]
    return AnchorData(
        epoch=EPOCH,
        anchor_block=20,
        anchor_hash=keccak(b"2"),
        anchor_time=1000 + 3600,
        beacon_block=12,
        beacon_hash=BLOCK,
        previous=keccak(state.epoch.row_hash()),
        nodes=(),
        buyers=(),
        fleets=tuple(fleets),
        changes=(),
        collections=(),
        collected=ZERO_HASH,
        membership=(MemberSet(from_epoch=1, members=tuple(m.address for m in MEMBERS)),),
        parameters=PARAMETERS,
    )


def make_manifest(anchor: AnchorData, subjects: list[Hash]) -> Manifest:
    """Q observations of every batch's certificate."""
    addresses = tuple(m.address for m in MEMBERS)
    certificates = []
    for subject in subjects:
        acknowledgement = Acknowledgement(epoch=EPOCH, subject=subject)
        signed = {m.address: m.sign(acknowledgement, DOMAIN) for m in MEMBERS}
        certificates.append(make_certificate(acknowledgement, signed, addresses))
    observations = []
    for member in MEMBERS[: quorum(len(MEMBERS))]:
        observation = Observation(
            epoch=EPOCH,
            anchor=anchor.struct_hash(),
            price=ONE,
            commitment=keccak(member.address),
            reveal=ZERO_HASH,
            certificates=tuple(certificates),
            member=member.address,
        )
        signature = member.sign(observation, DOMAIN)
        observations.append(msgspec.structs.replace(observation, member_signature=signature))
    return Manifest(epoch=EPOCH, attempt=0, view=0, observations=tuple(observations))


def read_state(directory: Path, kinds: dict[str, type]) -> State:
    """The state before, decoded."""
    tables = {name: Table.decode(kind, (directory / f"{name}.table").read_bytes()) for name, kind in kinds.items()}
    return State.from_tables(tables)
