"""The newest index of each bucket that this machine has seen, so that `ls` asks nobody and costs nothing.

Sealed with a key of the account, for one head exactly. Whatever does not open is not there: the index is then read
from the network again, so that a lost or damaged cache costs a download and nothing else.
"""

from __future__ import annotations

import secrets
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from freehold.client.bucket_heads import Head
from freehold.client.paths import check_bucket

_LABEL = b"freehold/index-cache/1"
_NONCE_BYTES = 12


class IndexCache:
    """A file a bucket, replaced atomically."""

    def __init__(self, folder: Path, seed: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._cipher = AESGCM(HKDF(SHA256(), 32, salt=None, info=_LABEL).derive(seed))

    def read(self, bucket: str, head: Head) -> bytes | None:
        """The index that this head names; None if it is not here."""
        try:
            raw = self._path(bucket).read_bytes()
            return self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _context(bucket, head))
        except (FileNotFoundError, InvalidTag, ValueError):
            return None

    def write(self, bucket: str, head: Head, index: bytes) -> None:
        """Keep the index that this head names."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        temporary = self._folder / f"{bucket}.{nonce.hex()}.new"
        temporary.write_bytes(nonce + self._cipher.encrypt(nonce, index, _context(bucket, head)))
        temporary.replace(self._path(bucket))

    def _path(self, bucket: str) -> Path:
        return self._folder / check_bucket(bucket)


def _context(bucket: str, head: Head) -> bytes:
    return _LABEL + sha256(bucket.encode() + b"\x00" + head.version.to_bytes(8) + head.data).digest()
