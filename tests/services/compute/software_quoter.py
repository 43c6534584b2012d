"""A quoter made of software, as an operator's command: `software_quoter.py FOLDER BOUND` prints a report of a chip
whose keys are in FOLDER. `keep` puts them there; a file called `fails` or `stale` makes it do so."""

from __future__ import annotations

import sys
from pathlib import Path

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from freehold.services.compute.verification.attestation import sev
from tests.services.compute.quote_maker import Chip, make_report, make_table


def keep(chip: Chip, folder: Path) -> tuple[str, ...]:
    """Write down a chip's keys; the command that quotes with them."""
    folder.mkdir()
    pem = chip.vcek.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key").write_bytes(pem)
    (folder / "table").write_bytes(make_table({sev.VCEK: chip.vcek.der, sev.ASK: chip.ask.der}))
    return (sys.executable, "-m", "tests.services.compute.software_quoter", str(folder))


def main(folder: Path, bound: bytes) -> int:
    if (folder / "fails").exists():
        return 3
    if (folder / "stale").exists():
        bound = bytes(64)
    key = load_pem_private_key((folder / "key").read_bytes(), None)
    sys.stdout.buffer.write(make_report(key, bound) + (folder / "table").read_bytes())  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), bytes.fromhex(sys.argv[2])))
