"""Heads: where a bucket's newest index is. The one thing of a bucket that changes in place.

    read(bucket) -> Head | None
    compare_and_set(bucket, expected, new)      Conflict, and no change, unless the head is `expected`

A head's version grows by one with each change, so that an old one cannot pass for new; `None` is "no such bucket".
`LocalHeads` keeps a file a bucket, sealed with a key of the account's seed. Invariants: what `compare_and_set` set
survives a power cut; of any number of writers with one expectation exactly one wins; a wrong seed is WrongPassphrase,
never an empty list.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from freehold.client.paths import check_bucket
from freehold.protocol.errors import Conflict, Corrupt, InvalidInput, WrongPassphrase

_LABEL = b"freehold/heads/1"
_NONCE_BYTES = 12
_SEAL = b"freehold heads"
_SUFFIX = ".head"


class Head(NamedTuple):
    """`version` counts changes from 1; `data` is the bucket layer's own."""

    version: int
    data: bytes


class Heads(Protocol):
    """The seam behind which buckets' heads stand."""

    def read(self, bucket: str) -> Head | None:
        """The bucket's head; None where there is no such bucket."""

    def compare_and_set(self, bucket: str, expected: Head | None, new: Head | None) -> None:
        """Replace `expected` by `new` (None: no bucket). Conflict, and no change, where the head is another."""

    def names(self) -> list[str]:
        """The buckets' names, sorted."""


class LocalHeads:
    """Heads as files of one account, authenticated and encrypted."""

    def __init__(self, folder: Path, seed: bytes) -> None:
        self.folder = folder
        self._cipher = AESGCM(HKDF(SHA256(), 32, salt=None, info=_LABEL).derive(seed))
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._locked():
            self._check_seal()

    def read(self, bucket: str) -> Head | None:
        """See `Heads`. WrongPassphrase if the file was not sealed by this seed, for this bucket."""
        try:
            raw = self._path(bucket).read_bytes()
        except FileNotFoundError:
            return None
        plain = self._open(raw, bucket.encode())
        if len(plain) < 8:
            raise Corrupt(f"the head of {bucket!r} is cut short")
        return Head(int.from_bytes(plain[:8]), plain[8:])

    def compare_and_set(self, bucket: str, expected: Head | None, new: Head | None) -> None:
        """See `Heads`."""
        check_bucket(bucket)
        if new is not None and new.version != (expected.version if expected else 0) + 1:
            raise InvalidInput(f"version {new.version} does not follow {expected.version if expected else 0}")
        with self._locked():
            current = self.read(bucket)
            if current != expected:
                raise Conflict(
                    f"bucket {bucket!r} was changed by another writer",
                    version=current.version if current else 0,
                )
            if new is None:
                self._path(bucket).unlink(missing_ok=True)
                self._sync()
            else:
                self._write(self._path(bucket), self._close(new.version.to_bytes(8) + new.data, bucket.encode()))

    def names(self) -> list[str]:
        """See `Heads`."""
        return sorted(path.name.removesuffix(_SUFFIX) for path in self.folder.glob(f"*{_SUFFIX}"))

    def _check_seal(self) -> None:
        seal = self.folder / "seal"
        if seal.exists():
            self._open(seal.read_bytes(), _SEAL)
        else:
            self._write(seal, self._close(_SEAL, _SEAL))

    def _path(self, bucket: str) -> Path:
        return self.folder / f"{check_bucket(bucket)}{_SUFFIX}"

    def _close(self, plain: bytes, context: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, _LABEL + b"/" + context)

    def _open(self, raw: bytes, context: bytes) -> bytes:
        try:
            return self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _LABEL + b"/" + context)
        except (InvalidTag, ValueError):
            raise WrongPassphrase(
                "this account's buckets do not open with this secret: it is the wrong wallet, or a file was changed"
            ) from None

    def _write(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(path.name + ".new")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        self._sync()

    def _sync(self) -> None:
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
