"""A fleet on disk: the public list of its devices, and for devices that are simulated here the secret of their keys.

    DIR/devices.fleet     one line of JSON (which network, how many, their root), then the rows as a table
    DIR/secret            64 hexadecimal digits, mode 600: device i's key is keccak(secret ‖ i)

The list may be published; the secret never leaves its folder. Invariant: nothing here overwrites a secret, and a list
that is read is the one that its header's root commits to.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from freehold.protocol.errors import Conflict, FreeholdError, InvalidInput, MalformedMessage, NotFound
from freehold.protocol.fleets import FleetDevice
from freehold.protocol.keys import Key, are_signed_by
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain, canonical_json, parse_json
from freehold.protocol.units import Address
from freehold.services.sensing.device import derive_keys, sign_devices

FORMAT = "freehold-fleet-1"
LIST, SECRET = "devices.fleet", "secret"


def make_fleet(folder: Path, count: int, owner: Address, place: int, domain: Domain) -> Table[FleetDevice]:
    """New devices in a folder that has none yet. Conflict where it does."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / LIST).exists() or (folder / SECRET).exists():
        raise Conflict(f"there is a fleet in {folder} already", hint="Name another folder: keys are never overwritten.")
    secret = secrets.token_bytes(32)
    devices = sign_devices(list(derive_keys(secret, count)), owner, place, domain)
    handle = os.open(folder / SECRET, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(secret.hex() + "\n")
    (folder / LIST).write_bytes(encode_list(devices, domain))
    return devices


def encode_list(devices: Table[FleetDevice], domain: Domain) -> bytes:
    """The list as one file."""
    header = {
        "format": FORMAT,
        "chain_id": domain.chain_id,
        "contract": str(domain.contract),
        "devices": len(devices),
        "root": str(devices.root),
    }
    return canonical_json(header) + b"\n" + devices.encode()


def read_list(path: Path, domain: Domain) -> Table[FleetDevice]:
    """The devices of a list, or of the folder that has one. NotFound; InvalidInput where it is another network's, cut
    short or changed."""
    file = path / LIST if path.is_dir() else path
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"there is no fleet at {file}", hint="Make one with `freehold fleet make`.") from None
    head, _, rows = data.partition(b"\n")
    try:
        header = parse_json(head)
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise MalformedMessage(f"its first line does not say {FORMAT}")
        devices = Table.decode(FleetDevice, rows)
    except FreeholdError as error:
        raise InvalidInput(f"{file} is no list of devices: {error.message}") from None
    if (header.get("chain_id"), header.get("contract")) != (domain.chain_id, str(domain.contract)):
        raise InvalidInput(
            f"{file} is for another network: its devices signed for chain {header.get('chain_id')}, "
            f"contract {header.get('contract')}",
            hint="A new deployment needs new signatures: make the fleet again.",
        )
    if (header.get("devices"), header.get("root")) != (len(devices), str(devices.root)) or not len(devices):
        raise InvalidInput(f"{file} was changed: its rows do not lead to its root")
    return devices


def check_signatures(devices: Table[FleetDevice], domain: Domain) -> None:
    """InvalidInput, naming the first, where a device has not signed its row: it would never be counted."""
    signatures = devices.column("device_signature").padded(65)
    signed = are_signed_by(devices.digests(domain), signatures, devices.column("device"))
    if not signed.all():
        first = int((~signed).argmax())
        raise InvalidInput(
            f"{int((~signed).sum())} devices have not signed their rows; the first is device {first}",
            hint="Each device signs its own row: device, owner and place.",
            index=first,
        )


def read_keys(folder: Path, devices: Table[FleetDevice]) -> list[Key]:
    """The keys of a folder's simulated devices. NotFound; InvalidInput where they are not those of its list."""
    try:
        secret = bytes.fromhex((folder / SECRET).read_text().strip())
    except FileNotFoundError:
        raise NotFound(
            f"{folder} has no keys", hint="`freehold fleet report` is for folders that `freehold fleet make` made."
        ) from None
    except ValueError:
        raise InvalidInput(f"{folder / SECRET} is not hexadecimal") from None
    keys = list(derive_keys(secret, len(devices)))
    if keys[0].address != devices.row(0).device:
        raise InvalidInput(f"the secret in {folder} is not that of its devices")
    return keys
