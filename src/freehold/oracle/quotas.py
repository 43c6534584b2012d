"""How much evidence one sender may hand in, so that nobody takes the room of the others.

A sender's quota follows from what it has at stake: a bonded node's is the largest; a client that has bought credits,
or a node without its bond, has less; all that have nothing at stake share one. Bought credits are cheap, so bonded
nodes also have room of their own: of what a member keeps in all, others take half at the most.

Invariant: whatever others send, a bonded node within its quota is not refused for want of room, unless bonded nodes
have filled it.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum
from typing import NamedTuple

from freehold.protocol.errors import Overloaded, Refused
from freehold.protocol.units import Address, Hash

MIB = 2**20
HELD_LIMIT = 5_000  # certificates; a manifest of seven members with as many is 20 MB
MANIFEST_BYTES = 24 * MIB  # of a manifest of any number of members: a message takes 32 MiB (`server.py`)
BATCHES_LIMIT = 50_000
CERTIFICATE_JSON, SIGNATURE_JSON = 170, 130  # bytes of a certificate in an observation, and of each signature in it


class Quota(NamedTuple):
    """Of one sender: batches, their rows and bytes in one epoch, and certificates that are held at once."""

    batches: int
    rows: int
    size: int
    held: int


class Standing(Enum):
    """What a sender has at stake."""

    BONDED = "a registered node with its bond"
    KNOWN = "a client that has bought credits, or a node without its bond"
    STRANGE = "nothing"


QUOTAS = {
    Standing.BONDED: Quota(batches=500, rows=200_000, size=8 * MIB, held=1_000),
    Standing.KNOWN: Quota(batches=250, rows=20_000, size=4 * MIB, held=500),
    Standing.STRANGE: Quota(batches=100, rows=2_000, size=1 * MIB, held=100),
}
STRANGERS = Address(bytes(20))


class Usage:
    """What senders have used of their quotas."""

    def __init__(self) -> None:
        self._epoch = 0
        self._batches: Counter[Address] = Counter()
        self._rows: Counter[Address] = Counter()
        self._size: Counter[Address] = Counter()
        self._holders: dict[Hash, tuple[Address | None, Standing]] = {}
        self._held: Counter[Address] = Counter()
        self._held_by_others = 0

    def check_batch(self, sender: Address, standing: Standing, rows: int, size: int, epoch: int, kept: int) -> None:
        """Overloaded, or Refused for a stranger, where this batch is more than its sender may send in `epoch`.

        `kept`: how many batches this member has.
        """
        self._open(epoch)
        quota, who = QUOTAS[standing], _counted(sender, standing)
        if standing is Standing.STRANGE and (size > quota.size or rows > quota.rows):
            raise Refused(
                f"{sender} is no registered node and has bought no credits",
                hint="Register the node, or buy credits, and wait until that is final.",
                limit=quota.size,
            )
        if kept >= _share(BATCHES_LIMIT, standing):
            raise Overloaded("this member takes no more batches in this epoch", limit=BATCHES_LIMIT, epoch=epoch)
        for what, used, limit in (
            ("batches", self._batches[who] + 1, quota.batches),
            ("rows", self._rows[who] + rows, quota.rows),
            ("bytes", self._size[who] + size, quota.size),
        ):
            if used > limit:
                raise Overloaded(
                    f"this member takes {limit} {what} from {sender} in one epoch", limit=limit, epoch=epoch
                )

    def restore_batch(self, sender: Address, standing: Standing, rows: int, size: int, epoch: int) -> None:
        """A batch was taken for `epoch` before a restart: only the newest epoch's count."""
        if epoch >= self._epoch:
            self._open(epoch)
            self.count_batch(sender, standing, rows, size)

    def _open(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch = epoch
            for counter in (self._batches, self._rows, self._size):
                counter.clear()

    def count_batch(self, sender: Address, standing: Standing, rows: int, size: int) -> None:
        """A batch that passed was taken."""
        who = _counted(sender, standing)
        self._batches[who] += 1
        self._rows[who] += rows
        self._size[who] += size

    def hold(self, subject: Hash, sender: Address | None, standing: Standing, epoch: int, signers: int) -> None:
        """Count a certificate as held. Overloaded where it is more than its sender, or all but the bonded, may have.

        `sender` is None where its batch is not here; `signers` is the quorum that signed it.
        """
        who = None if sender is None else _counted(sender, standing)
        total = len(self._holders) if standing is Standing.BONDED else self._held_by_others
        limit = held_limit(signers)
        own = max(1, QUOTAS[standing].held * limit // HELD_LIMIT)
        if total >= _share(limit, standing) or (who is not None and self._held[who] >= own):
            raise Overloaded("this member holds no more certificates in this epoch", limit=limit, epoch=epoch)
        self.restore_held(subject, sender, standing)

    def restore_held(self, subject: Hash, sender: Address | None, standing: Standing) -> None:
        """Count a certificate that is held, whatever its sender has beside it."""
        who = None if sender is None else _counted(sender, standing)
        self._holders[subject] = who, standing
        self._held_by_others += standing is not Standing.BONDED
        if who is not None:
            self._held[who] += 1

    def release(self, subject: Hash) -> None:
        """A certificate is no longer held."""
        who, standing = self._holders.pop(subject)
        self._held_by_others -= standing is not Standing.BONDED
        if who is not None:
            self._held[who] -= 1
            if not self._held[who]:
                del self._held[who]


def held_limit(signers: int) -> int:
    """Certificates that a member holds at once, each with so many signatures, as many as a manifest has observations:
    a manifest whose observers all hold them is a message that members take, or no epoch would be settled any more."""
    return min(HELD_LIMIT, MANIFEST_BYTES // max(1, signers * (CERTIFICATE_JSON + signers * SIGNATURE_JSON)))


def _counted(sender: Address, standing: Standing) -> Address:
    return STRANGERS if standing is Standing.STRANGE else sender


def _share(limit: int, standing: Standing) -> int:
    return limit if standing is Standing.BONDED else limit // 2
