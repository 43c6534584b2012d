"""Re-sharing: a member that leaves deals what it could open to the members that come, so that repairs stay possible.

A segment's record holds `sealed[i]`, position i's share of the repair key, sealed to the member of that time. That
member deals the box's *opening key* (the 32 bytes under which its ciphertext opens), never the share by itself:

    parts 1..n of the opening key    Shamir over GF(2^128) in two halves, threshold f+1 of the new set
    boxes[j]                         ECIES to new member j of: position ‖ part ‖ binding
    checks[j]                        keccak over label ‖ binding ‖ position ‖ part

Whoever repairs collects f+1 parts, opens the client's own box with the key that they give, and has position i's share
as the client made it. A part that was changed fails its check, which the leaver signed, so it is known who lies; a
leaver that dealt nonsense is known by the box that does not open, since the client's record names the box. A box that
was dealt may be dealt on in the same way when its holder leaves in turn.

What holds: as long as at most f members of each set are dishonest, together and over time, nobody has f+1 shares: f
shares of leavers and f parts of those that came say nothing, mixed in any way. Where a share is handed over as it is,
to one successor, f of each set together would open the key. What does not hold: a share that somebody has seen stays
good for ever, as the key is the same; members that stay keep theirs; a leaver cannot prove that it forgot its own.
Invariant: any `threshold` good parts give the opening key; fewer say nothing about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
from Crypto.Protocol.SecretSharing import Shamir
from ecies import decrypt, encrypt
from ecies.config import Config
from ecies.keys import PrivateKey, PublicKey
from ecies.utils import sym_decrypt

from freehold.protocol.certificates import faults
from freehold.protocol.errors import Corrupt, InvalidInput, MalformedMessage, WrongPassphrase
from freehold.protocol.keys import Key, check_signed_by
from freehold.protocol.typed import Domain, Message, keccak
from freehold.protocol.units import UNSIGNED, Address, Hash, Signature, Uint64
from freehold.services.storage.repair_key import MAX_MEMBERS, SHARE_BYTES, Share, binding_of
from freehold.services.storage.segment_record import SegmentRecord

OPENING_KEY_BYTES = 32
MAX_BOX_BYTES = 512

_HALF = OPENING_KEY_BYTES // 2
_ECIES = Config(is_ephemeral_key_compressed=True, is_hkdf_key_compressed=True)
_EPHEMERAL_BYTES = 33
_CHECK = b"freehold/dealt-part/1"


class Resharing(Message, frozen=True):
    """What a leaver deals of one box, to the set that begins with `from_epoch`; nodes keep it beside the record.

    `box` is keccak of the box dealt: one of the record's `sealed`, or of another resharing's `boxes`.
    """

    record: Hash
    box: Hash
    member: Address
    from_epoch: Uint64
    members: tuple[Address, ...]
    boxes: tuple[bytes, ...]
    checks: tuple[Hash, ...]
    member_signature: Signature = UNSIGNED

    @property
    def threshold(self) -> int:
        """How many parts open the box: f+1 of the set."""
        return faults(len(self.members)) + 1

    def check(self, domain: Domain) -> None:
        """MalformedMessage unless the fields fit each other; WrongSignature unless the leaver signed them."""
        count = len(self.members)
        if not 1 <= count <= MAX_MEMBERS or len(set(self.members)) != count:
            raise MalformedMessage(f"a set has 1 to {MAX_MEMBERS} members, each once")
        if len(self.boxes) != count or len(self.checks) != count:
            raise MalformedMessage("each member of the set has one box and one check")
        if any(len(box) > MAX_BOX_BYTES for box in self.boxes):
            raise MalformedMessage(f"a box has at most {MAX_BOX_BYTES} bytes")
        check_signed_by(self, self.member_signature, self.member, domain)


class NewSet(NamedTuple):
    """The members that come, in the contract's order, with their public keys (33 or 65 bytes)."""

    from_epoch: int
    members: Sequence[Address]
    keys: Sequence[bytes]


class Part(NamedTuple):
    """`position` is 1 for the first member of the new set."""

    position: int
    value: bytes


def compute_opening_key(box: bytes, secret: bytes) -> bytes:
    """The key under which this box's ciphertext opens, from its holder's secret key. WrongPassphrase for another's."""
    try:
        key = PublicKey(_ECIES.elliptic_curve, box[:_EPHEMERAL_BYTES]).decapsulate(
            PrivateKey(_ECIES.elliptic_curve, secret), _ECIES.is_hkdf_key_compressed
        )
        open_box(box, key)
    except (ValueError, IndexError, Corrupt):
        raise WrongPassphrase("the box does not open with this member's key") from None
    return bytes(key)


def open_box(box: bytes, opening_key: bytes) -> bytes:
    """What is in a box. Corrupt where the key is not the one that it was sealed under."""
    try:
        return sym_decrypt(
            opening_key, box[_EPHEMERAL_BYTES:], _ECIES.symmetric_algorithm, _ECIES.symmetric_nonce_length
        )
    except (ValueError, IndexError):
        raise Corrupt("the box does not open with what was dealt: whoever dealt it dealt something else") from None


def reshare(record: SegmentRecord, box: bytes, leaver: Key, to: NewSet, domain: Domain) -> Resharing:
    """Deal a box that is sealed to `leaver`. WrongPassphrase where it is sealed to somebody else."""
    if len(to.members) != len(to.keys) or not 1 <= len(to.members) <= MAX_MEMBERS:
        raise InvalidInput("a set names each of its members' keys")
    opening_key, binding = compute_opening_key(box, leaver.secret), binding_of(record.roots)
    parts = _split(opening_key, faults(len(to.members)) + 1, len(to.members))
    dealt = Resharing(
        record=record.hash(),
        box=keccak(box),
        member=leaver.address,
        from_epoch=to.from_epoch,
        members=tuple(to.members),
        boxes=tuple(
            encrypt(bytes(key), bytes([part.position]) + part.value + binding, config=_ECIES)
            for key, part in zip(to.keys, parts, strict=True)
        ),
        checks=tuple(_check_of(part, binding) for part in parts),
    )
    return msgspec.structs.replace(dealt, member_signature=leaver.sign(dealt, domain))


def open_part(dealt: Resharing, record: SegmentRecord, secret: bytes, position: int) -> Part:
    """What was dealt to the new member at `position`. WrongPassphrase; Corrupt where it is not what was signed for."""
    try:
        opened = decrypt(secret, dealt.boxes[position - 1], config=_ECIES)
    except (ValueError, IndexError):
        raise WrongPassphrase("the box does not open with this member's key") from None
    binding = binding_of(record.roots)
    part = Part(opened[0] if opened else 0, opened[1 : 1 + OPENING_KEY_BYTES])
    if len(opened) != 1 + OPENING_KEY_BYTES + len(binding) or opened[1 + OPENING_KEY_BYTES :] != binding:
        raise Corrupt("the box holds something else than a part for this segment")
    if part.position != position or not is_part(dealt, record, part):
        raise Corrupt(f"{dealt.member} sealed another part than the one it signed for")
    return part


def is_part(dealt: Resharing, record: SegmentRecord, part: Part) -> bool:
    """Whether this is the part that the leaver signed for: a member that shows another one lies."""
    if not 1 <= part.position <= len(dealt.checks):
        return False
    return dealt.checks[part.position - 1] == _check_of(part, binding_of(record.roots))


def combine_parts(dealt: Resharing, record: SegmentRecord, parts: Iterable[Part]) -> bytes:
    """The opening key of the box that was dealt. Corrupt for a wrong part, InvalidInput for too few."""
    distinct = dict(parts)
    wrong = [position for position, value in distinct.items() if not is_part(dealt, record, Part(position, value))]
    if wrong:
        raise Corrupt(f"the part at position {wrong[0]} is not the one that was dealt", position=wrong[0])
    if len(distinct) < dealt.threshold:
        raise InvalidInput(f"{len(distinct)} parts are too few: {dealt.threshold} are needed")
    chosen = sorted(distinct.items())[: dealt.threshold]
    if dealt.threshold == 1:
        return chosen[0][1]
    halves = ([(position, value[at : at + _HALF]) for position, value in chosen] for at in (0, _HALF))
    return b"".join(bytes(Shamir.combine(half, ssss=False)) for half in halves)


def open_dealt_share(record: SegmentRecord, position: int, opening_key: bytes) -> Share:
    """The client's share at `position` (1 for the first), by the key that was dealt. Corrupt where it is another."""
    opened = open_box(record.sealed[position - 1], opening_key)
    if opened[1 + SHARE_BYTES :] != binding_of(record.roots) or opened[0] != position:
        raise Corrupt("the record's box holds something else than a share of this segment's key")
    return Share(opened[0], opened[1 : 1 + SHARE_BYTES])


def _split(secret: bytes, threshold: int, count: int) -> list[Part]:
    if threshold == 1:  # Shamir of degree 0: every part is the secret itself
        return [Part(position, secret) for position in range(1, count + 1)]
    halves = [Shamir.split(threshold, count, secret[at : at + _HALF], ssss=False) for at in (0, _HALF)]
    return [Part(position, bytes(first + second)) for (position, first), (_, second) in zip(*halves, strict=True)]


def _check_of(part: Part, binding: bytes) -> Hash:
    return keccak(_CHECK + binding + bytes([part.position]) + part.value)
