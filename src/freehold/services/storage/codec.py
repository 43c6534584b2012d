"""A segment of a file to n masked shards, and back from any k of them.

    plaintext -> AES-256-GCM under the segment's own key -> zeros up to k * shard_size
              -> k data shards (slices of it) and n - k parity shards (Reed-Solomon, ISA-L's Cauchy matrix)
              -> every shard XOR its own AES-256-CTR keystream from the repair key -> a SHA-256 tree root a shard

A shard is exactly the code's bytes under its mask: no header, and the same bytes whoever makes it. So a rebuilt shard
has the root that the record names, and no set of other shards gives a node its own: that needs the repair key.

Invariants: a shard's root is checked before a byte of it is used (`VerifiedShard` cannot be made otherwise); what
decodes is the plaintext, or an error says which shard or that the key is wrong.

The library that carries ISA-L puts a header before each fragment. It does not depend on the data, so it is taken off
here and put back from a template. The code works column by column, hence in blocks of 16 KiB: they stay in the cache,
where whole shards would cost ten times as much in fresh memory. For the same reason all large buffers live in a
`Workspace` that is used again. Everything here blocks, and most of it lets other threads run: call it in a thread.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pyeclib.ec_iface import ECDriver

from freehold.protocol.errors import Corrupt, InvalidInput, WrongPassphrase
from freehold.services.storage import shard_tree
from freehold.services.storage.segment_record import MAX_SHARD_BYTES, MAX_SHARDS, VERSION, SegmentRecord

SEGMENT_BYTES = 8 << 20
KEY_BYTES = 32
REPAIR_KEY_BYTES = 16
TAG_BYTES = 16

_BLOCK: Final = 16 << 10
_NONCE: Final = bytes(12)  # a key seals one segment once, so that the nonce need not vary
_CONTEXT: Final = b"freehold/segment/1\x00"
_MASK_INFO: Final = b"freehold/mask/1\x00"

Buffer = bytes | bytearray | memoryview


class SegmentKeys(NamedTuple):
    """The two secrets of a segment: `key` (32 bytes) opens it, `repair` (16 bytes) makes its masks."""

    key: bytes
    repair: bytes

    @staticmethod
    def random() -> SegmentKeys:
        return SegmentKeys(secrets.token_bytes(KEY_BYTES), secrets.token_bytes(REPAIR_KEY_BYTES))

    def to_bytes(self) -> bytes:
        return self.key + self.repair

    @staticmethod
    def from_bytes(data: bytes) -> SegmentKeys:
        if len(data) != KEY_BYTES + REPAIR_KEY_BYTES:
            raise InvalidInput(f"segment keys have {KEY_BYTES + REPAIR_KEY_BYTES} bytes, not {len(data)}")
        return SegmentKeys(data[:KEY_BYTES], data[KEY_BYTES:])


class Workspace:
    """Large buffers that one segment after another uses. What they hold stands until the next call that gets it."""

    def __init__(self) -> None:
        self._buffers: dict[str, bytearray] = {}

    def take(self, name: str, size: int) -> memoryview:
        """`size` bytes with whatever was in them."""
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[name] = bytearray(size)
        return memoryview(buffer)[:size]


class EncodedSegment(NamedTuple):
    """`shards[i]` (views of `shard_size` bytes into the workspace) under `roots[i]`."""

    k: int
    n: int
    plaintext_size: int
    shard_size: int
    shards: list[memoryview]
    roots: tuple[bytes, ...]

    def record(self, sealed: Sequence[bytes] = ()) -> SegmentRecord:
        """The public record, with the repair key's shares sealed to the members."""
        return SegmentRecord(VERSION, self.k, self.n, self.shard_size, self.roots, tuple(sealed))


@dataclass(frozen=True, slots=True)
class VerifiedShard:
    """A shard whose root was checked. Only `verify_shard` makes one."""

    index: int
    data: Buffer


def shard_size(plaintext_size: int, k: int) -> int:
    """Bytes of each shard of a segment of `plaintext_size` bytes."""
    return (plaintext_size + TAG_BYTES + k - 1) // k


def encode_segment(
    plaintext: Buffer, keys: SegmentKeys, k: int, n: int, workspace: Workspace | None = None
) -> EncodedSegment:
    """The n shards of a segment (0 bytes or more), any k of which give it back.

    Deterministic in its arguments; `keys` must be of this segment only: whoever has them says where it belongs, so that
    a segment may be put into another object as it is. The shards are views into `workspace`, to be used before its next
    call. InvalidInput for a code out of range or a segment too large.
    """
    _check_code(k, n)
    size = shard_size(len(plaintext), k)
    if size > MAX_SHARD_BYTES:
        raise InvalidInput(f"a shard of {size} bytes is more than {MAX_SHARD_BYTES}")
    space = workspace or Workspace()
    cipher = _encrypt(plaintext, keys.key, space.take("cipher", k * size))
    out = space.take("shards", n * size)
    shards = [out[i * size : (i + 1) * size] for i in range(n)]
    masks = [_mask(keys.repair, i) for i in range(n)]
    for i in range(k):
        masks[i].update_into(cipher[i * size : (i + 1) * size], shards[i])
    driver = _driver(k, n)
    for at in range(0, size, _BLOCK):
        end = min(at + _BLOCK, size)
        row = b"".join([cipher[i * size + at : i * size + end] for i in range(k)])
        for i, fragment in enumerate(driver.encode(row)[k:], start=k):
            masks[i].update_into(memoryview(fragment)[at - end :], shards[i][at:end])
    return EncodedSegment(k, n, len(plaintext), size, shards, tuple(shard_tree.root(shard) for shard in shards))


def verify_shard(record: SegmentRecord, index: int, data: Buffer) -> VerifiedShard:
    """`data` as shard `index` of the record. Corrupt (with `shard`) if it is not, whole and unchanged."""
    if not 0 <= index < record.n:
        raise InvalidInput(f"a segment of {record.n} shards has no shard {index}")
    if len(data) != record.shard_size:
        raise Corrupt(
            f"shard {index} has {len(data)} bytes, not {record.shard_size}",
            shard=index, bytes=len(data), expected_bytes=record.shard_size,
        )  # fmt: skip
    root = shard_tree.root(data)
    if root != record.roots[index]:
        raise Corrupt(
            f"shard {index} is not what the segment record names",
            shard=index, root=root.hex(), expected_root=record.roots[index].hex(),
        )  # fmt: skip
    return VerifiedShard(index, data)


def decode_segment(
    record: SegmentRecord,
    shards: Mapping[int, Buffer],
    plaintext_size: int,
    keys: SegmentKeys,
    workspace: Workspace | None = None,
) -> memoryview:
    """`decode_verified` over shards that nobody has checked yet. Corrupt names the first bad one."""
    verified = [verify_shard(record, index, data) for index, data in sorted(shards.items())]
    return decode_verified(record, verified, plaintext_size, keys, workspace)


def decode_verified(
    record: SegmentRecord,
    shards: Sequence[VerifiedShard],
    plaintext_size: int,
    keys: SegmentKeys,
    workspace: Workspace | None = None,
) -> memoryview:
    """The plaintext, from any k distinct shards or more; a view into `workspace`, to be used before its next call.

    InvalidInput when there are fewer than k or the size does not fit the record; WrongPassphrase when the shards are
    right but do not open with this key.
    """
    if plaintext_size < 0 or shard_size(plaintext_size, record.k) != record.shard_size:
        raise InvalidInput(f"{plaintext_size} bytes do not make {record.k} shards of {record.shard_size}")
    space = workspace or Workspace()
    cipher = _gather(record, shards, keys.repair, space)
    plain = space.take("plain", plaintext_size)
    try:
        AESGCM(keys.key).decrypt_into(_NONCE, cipher[: plaintext_size + TAG_BYTES], _CONTEXT, plain)
    except InvalidTag:
        raise WrongPassphrase("the segment does not open with this key") from None
    return plain


def rebuild_shard(
    record: SegmentRecord,
    index: int,
    shards: Sequence[VerifiedShard],
    repair: bytes,
    workspace: Workspace | None = None,
) -> bytes:
    """Shard `index` from any k others, by the repair key alone: without the segment's key, hence without its plaintext.

    Corrupt if the result is not the shard that the record names: the repair key is wrong, or the client's coding was.
    """
    space = workspace or Workspace()
    cipher = _gather(record, shards, repair, space)
    size, mask, out = record.shard_size, _mask(repair, index), bytearray(record.shard_size)
    if index < record.k:
        mask.update_into(cipher[index * size : (index + 1) * size], out)
    else:
        driver = _driver(record.k, record.n)
        for at in range(0, size, _BLOCK):
            end = min(at + _BLOCK, size)
            row = b"".join([cipher[i * size + at : i * size + end] for i in range(record.k)])
            mask.update_into(memoryview(driver.encode(row)[index])[at - end :], memoryview(out)[at:end])
    return bytes(verify_shard(record, index, out).data)


def _check_code(k: int, n: int) -> None:
    if not 1 <= k < n <= MAX_SHARDS:
        raise InvalidInput(f"{k} of {n} is not a code: 1 <= k < n <= {MAX_SHARDS}")


def _encrypt(plaintext: Buffer, key: bytes, cipher: memoryview) -> memoryview:
    used = len(plaintext) + TAG_BYTES
    AESGCM(key).encrypt_into(_NONCE, plaintext, _CONTEXT, cipher[:used])
    cipher[used:] = bytes(len(cipher) - used)
    return cipher


def _gather(record: SegmentRecord, shards: Sequence[VerifiedShard], repair: bytes, space: Workspace) -> memoryview:
    """The k data shards without their masks, in a row: from themselves where they are given, else decoded."""
    k, size = record.k, record.shard_size
    given = {shard.index: shard.data for shard in sorted(shards, key=lambda shard: shard.index)}
    if len(given) < k:
        raise InvalidInput(f"{len(given)} shards are too few: the segment needs {k}", have=len(given), need=k)
    used = list(given)[:k]
    cipher = space.take("cipher", k * size)
    slots = [cipher[i * size : (i + 1) * size] for i in range(k)]
    spare = space.take("parity", sum(i >= k for i in used) * size)
    parity = [spare[at : at + size] for at in range(0, len(spare), size)]
    plain = [slots[i] if i < k else parity.pop(0) for i in used]
    for i, slot in zip(used, plain, strict=True):
        _mask(repair, i).update_into(given[i], slot)
    missing = [i for i in range(k) if i not in given]
    driver = _driver(k, record.n)
    for at in range(0, size, _BLOCK) if missing else ():
        end = min(at + _BLOCK, size)
        headers = _headers(k, record.n, end - at)
        row = driver.decode([headers[i] + slot[at:end] for i, slot in zip(used, plain, strict=True)])
        for i in missing:
            slots[i][at:end] = memoryview(row)[i * (end - at) : (i + 1) * (end - at)]
    return cipher


def _mask(repair: bytes, index: int) -> CipherContext:
    """Shard `index`'s keystream: XOR puts the mask on and takes it off."""
    if len(repair) != REPAIR_KEY_BYTES:
        raise InvalidInput(f"a repair key has {REPAIR_KEY_BYTES} bytes, not {len(repair)}")
    key = HKDF(SHA256(), KEY_BYTES, salt=None, info=_MASK_INFO + index.to_bytes(2)).derive(repair)
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()


@lru_cache(maxsize=16)
def _driver(k: int, n: int) -> ECDriver:
    return ECDriver(ec_type="isa_l_rs_cauchy", k=k, m=n - k)


@lru_cache(maxsize=64)
def _headers(k: int, n: int, block: int) -> tuple[bytes, ...]:
    """The library's header of each of n fragments of `block` bytes; they do not depend on the data."""
    return tuple(fragment[:-block] for fragment in _driver(k, n).encode(bytes(k * block)))
