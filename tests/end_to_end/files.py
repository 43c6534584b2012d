"""Files of random bytes for tests, and their hashes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

MIB = 2**20


def make_file(path: Path, size: int) -> str:
    """A file of `size` random bytes (whole MiB); its SHA-256."""
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    return hash_of(path)


def hash_of(path: Path) -> str:
    """A file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
