"""What stands in a register, and how it crosses the network: ballots, values, what is sent of them, groups.

A value is a base, the frames appended to it since, its version, and who made the last versions. It is known by its
chain (of hashes: the base's, then one step for each frame) and signed with the ballot under which it is proposed. So a
change sends only what follows a chain that the other side has.

    chain[0] = H(base)      chain[i] = H(chain[i-1] ‖ H(frame i))      digest = H(version ‖ gone ‖ writers ‖ chain[-1])

Invariant: one ballot stands for one value, so whoever shows a ballot with the account's signature shows its value.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Literal, NamedTuple, TypeVar

import msgspec

from freehold.protocol.errors import Corrupt, InvalidInput, MalformedMessage, WrongSignature
from freehold.protocol.keys import Key, check_signed_by
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address, Hash, Signature
from freehold.services.storage.terms import RegisterPrepare, RegisterValue

VALUE_LIMIT = 4 << 20  # bytes of a base and its frames
FRAMES_LIMIT = 8192
WRITER_BYTES = 8  # a random number that tells one change from every other
TRAIL = 8  # versions of which a value still says who made them
COUNTER_LIMIT = 2**62
BODY_LIMIT = VALUE_LIMIT + FRAMES_LIMIT * 5 + 4096  # of a request or an answer: the frames' lengths, and the rest
CONTROL = bytes(16)  # the name of the register that holds a group's own state
HOLDERS_LIMIT = 7

T = TypeVar("T")


class Ballot(NamedTuple):
    """The order of proposals; `proposer` is 8 random bytes, so that no two proposers share one."""

    counter: int
    proposer: bytes

    def following(self) -> Ballot:
        """What an acceptor promises to the same proposer as it accepts this one."""
        return Ballot(self.counter + 1, self.proposer)

    @property
    def number(self) -> int:
        """The proposer, as it is signed."""
        return int.from_bytes(self.proposer)


NEVER = Ballot(0, bytes(8))  # below every ballot


class Place(NamedTuple):
    """Which register: of whom, in which group, under which name (16 bytes)."""

    account: Address
    group: Hash
    name: bytes


class Value(NamedTuple):
    """What a register holds, with its hashes. `writers`: 8 bytes for each of the last versions, the newest last."""

    version: int
    is_gone: bool
    writers: bytes
    base: bytes
    frames: tuple[bytes, ...]
    hashes: tuple[bytes, ...]  # of the frames
    chain: tuple[bytes, ...]

    @property
    def digest(self) -> Hash:
        """What is signed of it."""
        return compute_digest(self.version, self.is_gone, self.writers, self.chain[-1])

    def has_writer(self, writer: bytes, version: int) -> bool | None:
        """Whether that change made `version`; None where the value does not say any more."""
        at = len(self.writers) - WRITER_BYTES * (self.version - version + 1)
        if version > self.version:
            return False
        return self.writers[at : at + WRITER_BYTES] == writer if at >= 0 else None


def compute_digest(version: int, is_gone: bool, writers: bytes, chain: bytes) -> Hash:
    """The digest of a value by the end of its chain."""
    return Hash(sha256(version.to_bytes(8) + bytes([is_gone, len(writers) // WRITER_BYTES]) + writers + chain).digest())


def link(chain: bytes, frame_hash: bytes) -> bytes:
    """The chain after one more frame."""
    return sha256(chain + frame_hash).digest()


def make_value(before: Value | None, base: bytes, frames: tuple[bytes, ...], writer: bytes, is_gone: bool) -> Value:
    """The value that follows `before`; hashes only what is new in it."""
    kept = 0 if before is None else _count_kept(before, base, frames)
    hashes = (*(before.hashes[len(before.hashes) - kept :] if before and kept else ()),)
    hashes += tuple(sha256(frame).digest() for frame in frames[kept:])
    if before is not None and base == before.base and kept == len(before.frames):
        chain = list(before.chain)
    else:
        chain = [sha256(base).digest()]
    for frame_hash in hashes[len(chain) - 1 :]:
        chain.append(link(chain[-1], frame_hash))
    writers = ((before.writers if before else b"") + writer)[-TRAIL * WRITER_BYTES :]
    return Value((before.version if before else 0) + 1, is_gone, writers, base, frames, hashes, tuple(chain))


def _count_kept(before: Value, base: bytes, frames: tuple[bytes, ...]) -> int:
    """How many of the last frames of `before` the new ones begin with; all or none under the same base."""
    count = len(before.frames)
    drops = range(1) if base == before.base else range(count)
    return next((count - drop for drop in drops if frames[: count - drop] == before.frames[drop:]), 0)


class Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is sent of a value: `frames` after `on`, a chain that the other side has, or all of it where that is empty.

    With a `base` beside `on`: the frames up to `on` stay, but for the first `drop`, after another base.
    """

    on: bytes
    drop: int
    base: bytes | None
    frames: list[bytes]

    @property
    def size(self) -> int:
        """Bytes of what is sent."""
        return len(self.base or b"") + sum(map(len, self.frames))


def whole(value: Value) -> Part:
    """All of a value."""
    return Part(b"", 0, value.base, list(value.frames))


def part_after(value: Value, chain: bytes, before: Value | None = None) -> Part:
    """What whoever is at `chain` needs to come to `value`; `before` is another value that it may be at."""
    for at in range(len(value.chain) - 1, -1, -1):
        if value.chain[at] == chain:
            return Part(chain, 0, None, list(value.frames[at:]))
    if before is not None and before.chain[-1] == chain:
        kept = _count_kept(before, value.base, value.frames)
        if kept or not before.frames:
            return Part(chain, len(before.frames) - kept, value.base, list(value.frames[kept:]))
    return whole(value)


class Accepted(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What an acceptor has accepted, as it shows it; a proposal, as it is sent. `part` is None where it is not sent."""

    counter: int
    proposer: bytes
    version: int
    is_gone: bool
    writers: bytes
    chain: bytes
    signature: bytes
    part: Part | None

    @property
    def ballot(self) -> Ballot:
        """Under which it was proposed."""
        return Ballot(self.counter, self.proposer)

    def check(self, place: Place, domain: Domain) -> None:
        """MalformedMessage, WrongSignature unless the account has signed it for this register."""
        check_ballot(self.ballot)
        if not 0 < self.version < COUNTER_LIMIT or len(self.chain) != 32:
            raise MalformedMessage("a value has a version and a chain of 32 bytes")
        if len(self.writers) % WRITER_BYTES or not WRITER_BYTES <= len(self.writers) <= TRAIL * WRITER_BYTES:
            raise MalformedMessage(f"a value names 1 to {TRAIL} writers")
        if len(self.signature) != 65:
            raise WrongSignature("the value is not signed")
        digest = compute_digest(self.version, self.is_gone, self.writers, self.chain)
        message = _message(place, self.ballot, self.version, digest)
        check_signed_by(message, Signature(self.signature), place.account, domain)

    def open(self, known: Value | None) -> Value:
        """The whole value; Corrupt where what was sent does not lead to its chain."""
        part = self.part
        if part is None:
            raise Corrupt("the value was not sent")
        if not part.on:
            if part.base is None:
                raise Corrupt("a whole value has a base")
            base, at, chain = part.base, 0, [sha256(part.base).digest()]
        else:
            if known is None or part.base is not None or part.on not in known.chain:
                raise Corrupt("the frames follow a value that was not asked from")
            at = known.chain.index(part.on)
            base, chain = known.base, list(known.chain[: at + 1])
        new = tuple(sha256(frame).digest() for frame in part.frames)
        for frame_hash in new:
            chain.append(link(chain[-1], frame_hash))
        if chain[-1] != self.chain:
            raise Corrupt("the frames are not those that were signed")
        frames, hashes = tuple(part.frames), new
        if known is not None:
            frames, hashes = (*known.frames[:at], *frames), (*known.hashes[:at], *new)
        return Value(self.version, self.is_gone, self.writers, base, frames, hashes, tuple(chain))


def _message(place: Place, ballot: Ballot, version: int, digest: Hash) -> RegisterValue:
    return RegisterValue(
        group=place.group, name=place.name, counter=ballot.counter, proposer=ballot.number,
        version=version, content=digest,
    )  # fmt: skip


def propose(key: Key, domain: Domain, place: Place, ballot: Ballot, value: Value) -> Accepted:
    """The value under a ballot, signed, without its parts."""
    signature = bytes(key.sign(_message(place, ballot, value.version, value.digest), domain))
    return Accepted(
        ballot.counter, ballot.proposer, value.version, value.is_gone, value.writers, value.chain[-1], signature, None
    )


class Known(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What whoever asks has: nothing is shown of what stands under that ballot, and only frames after that chain.

    `parts`: whether anything but ballots is wanted.
    """

    counter: int = 0
    proposer: bytes = bytes(8)
    chain: bytes = b""
    parts: bool = True


class Prepare(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`founding`: the register that is to hold a new group's state may begin here."""

    counter: int
    proposer: bytes
    signature: bytes
    founding: bool
    known: Known

    @property
    def ballot(self) -> Ballot:
        """What is to be promised."""
        return Ballot(self.counter, self.proposer)

    def check(self, place: Place, domain: Domain) -> None:
        """MalformedMessage, WrongSignature unless the account asks for it."""
        check_ballot(self.ballot)
        if len(self.signature) != 65:
            raise WrongSignature("the request is not signed")
        check_signed_by(_prepare(place, self.ballot), Signature(self.signature), place.account, domain)


def _prepare(place: Place, ballot: Ballot) -> RegisterPrepare:
    return RegisterPrepare(group=place.group, name=place.name, counter=ballot.counter, proposer=ballot.number)


def ask_promise(
    key: Key, domain: Domain, place: Place, ballot: Ballot, known: Known, *, founding: bool = False
) -> Prepare:
    """The request for a promise, signed."""
    signature = bytes(key.sign(_prepare(place, ballot), domain))
    return Prepare(ballot.counter, ballot.proposer, signature, founding, known)


Status = Literal["ok", "stale", "behind", "sealed", "unknown"]


class Answer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What an acceptor says.

    ok       shown, promised or accepted        stale    it has promised a higher ballot to another (`promised`)
    behind   it does not have `Part.on`         sealed   the group is not used any more: its control says which is
    unknown  it holds nothing of this group, or not any more: it has no part in what this group decides
    """

    status: Status
    promised: tuple[int, bytes] = NEVER
    ballot: tuple[int, bytes] = NEVER  # of what it has accepted
    accepted: Accepted | None = None  # None also where the ballot is the one that is known


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One register of a group, in a list of them."""

    name: bytes
    counter: int
    proposer: bytes


class Listing(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Every register of a group at one acceptor."""

    status: Status
    entries: list[Entry]


class Shown(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A group's control as one acceptor has it."""

    group: bytes
    control: Accepted


CLAIMED, OPEN, SEALED, VOID = 1, 2, 3, 4  # what becomes of a group; nothing goes back


class Group(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a group's control says: who holds its registers, and once it is sealed which group has followed it."""

    state: int
    generation: int
    holders: list[bytes]
    next_group: bytes = b""
    next_holders: list[bytes] = []

    def encode(self) -> bytes:
        """As it stands in the control's base."""
        return msgspec.msgpack.encode(self)

    @staticmethod
    def decode(data: bytes) -> Group:
        """MalformedMessage for anything that is not a group's state."""
        group = decode(data, Group)
        sealed = group.state == SEALED
        lists = [group.holders, group.next_holders] if sealed else [group.holders]
        if not CLAIMED <= group.state <= VOID or not 0 < group.generation < COUNTER_LIMIT:
            raise MalformedMessage("a group has a state and a generation")
        if any(not 0 < len(found) <= HOLDERS_LIMIT or any(len(holder) != 20 for holder in found) for found in lists):
            raise MalformedMessage(f"a group has 1 to {HOLDERS_LIMIT} holders")
        if len(group.next_group) != (32 if sealed else 0) or (group.next_holders and not sealed):
            raise MalformedMessage("a sealed group, and no other, names the next one")
        return group


def check_ballot(ballot: Ballot) -> None:
    """MalformedMessage for what can be no ballot."""
    if not 0 < ballot.counter < COUNTER_LIMIT or len(ballot.proposer) != 8:
        raise MalformedMessage("a ballot is a counter and 8 bytes")


def check_part(part: Part) -> None:
    """MalformedMessage, InvalidInput for what can be no part of a value."""
    if len(part.on) not in (0, 32) or not 0 <= part.drop <= FRAMES_LIMIT or len(part.frames) > FRAMES_LIMIT:
        raise MalformedMessage("a part follows a chain of 32 bytes, or is whole")
    if (not part.on and (part.base is None or part.drop)) or (part.drop and part.base is None):
        raise MalformedMessage("a part that is whole, or drops frames, has a base")
    if part.size > VALUE_LIMIT:
        raise InvalidInput(f"a value has at most {VALUE_LIMIT} bytes", limit=VALUE_LIMIT)


def decode(data: bytes, kind: type[T]) -> T:
    """The struct behind msgpack; MalformedMessage for anything else."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise MalformedMessage(f"not a {kind.__name__}: {error}") from None
