"""The device's side: a key, a row in a fleet, one signed report an epoch; and many devices in one process.

What a real device does is `sign_device` (`protocol/fleets.py`), once, and then each epoch: ask its node for the open
epoch's beacon, sign, post. A simulator's devices have keys that follow from one secret, so that a folder of a hundred
thousand of them is two small files. Signing is one curve operation a device; everything else is columns.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from freehold.net.client import Peer, retry_after
from freehold.protocol.columns import ragged_of_cells
from freehold.protocol.errors import EpochClosed, FreeholdError, MalformedMessage, Unavailable
from freehold.protocol.fleets import FleetDevice
from freehold.protocol.hashing import Bytes, keccak_rows
from freehold.protocol.keys import Key
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain, keccak
from freehold.protocol.units import Address, Hash
from freehold.services.sensing.terms import DeviceReport

ROWS_AT_ONCE = 5_000  # reports in one request
TRIES = 5  # of a request to a node that is busy
LONGEST_PAUSE = 5.0
WAIT_SECONDS = 60.0  # for a node that does not answer, or not yet know the beacon


class OpenEpoch(NamedTuple):
    """What a device signs: the epoch, and its beacon."""

    epoch: int
    beacon: Hash


class Sent(NamedTuple):
    """What the node said of reports: taken now, known before, and the others by reason."""

    new: int
    known: int
    refused: Counter[str]


def derive_keys(secret: bytes, count: int) -> Iterator[Key]:
    """The keys of a simulator's devices: keccak(secret ‖ index)."""
    return (Key(keccak(secret + index.to_bytes(4))) for index in range(count))


def sign_devices(keys: Sequence[Key], owner: Address, place: int, domain: Domain) -> Table[FleetDevice]:
    """The rows of a fleet whose devices all have this owner and stand at this place (H3 cell), each signed."""
    columns = {"device": _addresses(keys), "owner": _repeated(owner, len(keys)), "place": place}
    return _signed(FleetDevice, columns, keys, domain)


def sign_reports(keys: Sequence[Key], opened: OpenEpoch, readings: Bytes, domain: Domain) -> Table[DeviceReport]:
    """Each device's report: row i of `readings` (n, 32) is the keccak of what device i measured."""
    columns = {
        "device": _addresses(keys),
        "epoch": opened.epoch,
        "beacon": _repeated(opened.beacon, len(keys)),
        "reading": readings,
    }
    return _signed(DeviceReport, columns, keys, domain)


def _signed(kind: Any, columns: dict[str, Any], keys: Sequence[Key], domain: Domain) -> Table[Any]:
    digests = Table.from_columns(kind, columns | {"device_signature": b""}, len(keys)).digests(domain)
    signatures = b"".join(key.sign_digest(Hash(digest)) for key, digest in zip(keys, _rows(digests), strict=True))
    cells = np.frombuffer(signatures, np.uint8).reshape(-1, 65)
    return Table.from_columns(kind, columns | {"device_signature": ragged_of_cells(cells)}, len(keys))


def _addresses(keys: Sequence[Key]) -> Bytes:
    return np.frombuffer(b"".join(key.address for key in keys), np.uint8).reshape(-1, 20)


def _repeated(value: bytes, count: int) -> Bytes:
    return np.broadcast_to(np.frombuffer(value, np.uint8), (count, len(value)))


def _rows(cells: Bytes) -> Iterator[bytes]:
    data, width = cells.tobytes(), cells.shape[1]
    return (data[at : at + width] for at in range(0, len(data), width))


async def read_open(peer: Peer) -> OpenEpoch:
    """The epoch that a node takes reports for. Unavailable while it does not know the epoch's beacon."""
    value = await peer.get_json("/v1/sensing/open")
    try:
        return OpenEpoch(int(value["epoch"]), Hash(value["beacon"]))
    except (KeyError, TypeError, ValueError):
        raise MalformedMessage(f"{peer.url} does not say which epoch is open") from None


async def send_reports(peer: Peer, reports: Table[DeviceReport]) -> Sent:
    """Hand reports in, some thousands at a time; a node that is busy is asked again when it says.

    Raises the typed error of a request of which nothing was taken.
    """
    new, known, refused = 0, 0, Counter[str]()
    for at in range(0, len(reports), ROWS_AT_ONCE):
        piece = reports.take(np.arange(at, min(at + ROWS_AT_ONCE, len(reports))))
        answer = await _post(peer, piece.encode())
        try:
            new, known = new + answer["taken"], known + answer["known"]
            refused.update(answer["refused"])
        except (KeyError, TypeError):
            raise MalformedMessage(f"{peer.url} does not say what became of the reports") from None
    return Sent(new, known, refused)


async def _post(peer: Peer, data: bytes) -> Any:
    for attempt in range(1, TRIES + 1):
        try:
            return await peer.post_bytes("/v1/sensing/tables", data)
        except FreeholdError as error:
            wait = retry_after(error)
            if not wait or attempt == TRIES:
                raise
            await asyncio.sleep(min(wait, LONGEST_PAUSE))
    raise AssertionError("the last try returns or raises")


class Simulator:
    """Many devices in one process. What they measure is made up: a reading a device and epoch."""

    def __init__(self, keys: Sequence[Key], domain: Domain) -> None:
        self._keys = keys
        self._domain = domain
        self._last: OpenEpoch | None = None

    async def report(self, peer: Peer, poll: float = 0.2) -> tuple[OpenEpoch, Sent]:
        """Every device's report for the open epoch, once: waits for the next where it has reported for this one.

        An epoch that closes before all are in counts as one of which they were not: the next one is taken.
        """
        while True:
            opened = await self._wait_open(peer, poll)
            addresses = _addresses(self._keys)
            measured = keccak_rows([b"made up", opened.epoch.to_bytes(8), addresses], len(self._keys))
            reports = await asyncio.to_thread(sign_reports, self._keys, opened, measured, self._domain)
            self._last = opened
            try:
                return opened, await send_reports(peer, reports)
            except EpochClosed:
                continue

    async def _wait_open(self, peer: Peer, poll: float) -> OpenEpoch:
        """The open epoch, once it is another than the last and its beacon is known; Unavailable after WAIT_SECONDS."""
        until = asyncio.get_running_loop().time() + WAIT_SECONDS
        while True:
            try:
                opened = await read_open(peer)
                if opened != self._last:
                    return opened
            except Unavailable:
                if asyncio.get_running_loop().time() > until:
                    raise
            await asyncio.sleep(poll)
