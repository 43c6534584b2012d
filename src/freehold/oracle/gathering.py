"""Gathering: which batches a member has, which certificates it holds, and what it may acknowledge.

    acknowledge   a batch is kept; a reservation also has to be covered, and is the only one under its number
    hold          a certificate is kept, and will be in this member's observation

A reservation is judged against the state after the epoch before the
one it is acknowledged for, with the locks of those certified for the same epoch; `epoch.settle` judges it against
exactly that. So a reservation is acknowledged only while that state is committed.

Invariant: nothing here changes memory before it has refused what it refuses; what it returns must be durable before
anybody hears of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from freehold.oracle.quotas import Standing, Usage
from freehold.oracle.records import BATCH, HELD, RESERVED, Record
from freehold.protocol.batches import RESERVATION, Batch, encode_batch
from freehold.protocol.certificates import CERTIFICATE_EPOCHS
from freehold.protocol.errors import (
    Conflict,
    DeadlineExpired,
    EpochClosed,
    FreeholdError,
    InsufficientCredits,
    Refused,
    WrongSignature,
)
from freehold.protocol.messages import BatchHeader, Certificate, Reservation
from freehold.protocol.parameters import Parameters
from freehold.protocol.reservations import (
    ReservationContext,
    compute_commitment,
    judge_reservation,
    locks_of,
    new_client,
)
from freehold.protocol.service import Judge
from freehold.protocol.state import LockState, State
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address, Hash
from freehold.protocol.verdicts import (
    DUPLICATE_LOCK,
    GOOD,
    LOCK_FELL,
    OVERCOMMITTED,
    RESERVATION_GAP,
    WRONG_SIGNATURE,
)


class Kept(NamedTuple):
    """A batch on this member's disk: what memory keeps of it. `epoch`: the last one it was acknowledged for."""

    epoch: int
    sender: Address
    reservation: Reservation | None


class Reserved(NamedTuple):
    """Which reservation was acknowledged under a number, and for which epoch."""

    epoch: int
    subject: Hash


class Gathering:
    """The batches, certificates and acknowledged reservations of one member.

    `parameters_of` gives an epoch's parameters; `standing_of` says what a sender has at stake, by the chain as it is
    now.
    """

    def __init__(
        self,
        domain: Domain,
        parameters_of: Callable[[int], Parameters],
        standing_of: Callable[[Address], Standing],
        judges: Mapping[str, Judge],
    ) -> None:
        self._domain, self._parameters_of, self._standing_of = domain, parameters_of, standing_of
        self._judges = judges
        self.batches: dict[Hash, Kept] = {}
        self.held: dict[Hash, Certificate] = {}
        self._reserved: dict[tuple[Address, int], Reserved] = {}
        self._numbered: dict[tuple[Address, int], list[Hash]] = {}
        self._used = Usage()
        self._restored: dict[Hash, tuple[int, int]] = {}  # batches of before a restart: rows and bytes
        self._is_counted = True

    def restore(self, record: Record, batch: Batch | None = None) -> None:
        """Take up what was on disk: a batch, a held certificate, or an acknowledged reservation."""
        data = record.data or b""
        self._is_counted = False
        if record.kind == BATCH and batch is not None:
            self._keep(batch, record.epoch)
            self._restored[batch.subject] = len(batch.table), len(encode_batch(batch))
        elif record.kind == HELD:
            certificate = Certificate.from_bytes(data)
            self.held[certificate.subject] = certificate
        elif record.kind == RESERVED:
            client, number = record.key.split(" ")
            self._reserved[Address(client), int(number)] = Reserved(record.epoch, Hash(data))

    @property
    def _usage(self) -> Usage:
        """What senders have used. What was on disk is counted when it is first asked for: then the chain is known."""
        if not self._is_counted:
            self._is_counted = True
            for subject, (rows, size) in self._restored.items():
                kept = self.batches[subject]
                self._used.restore_batch(kept.sender, self._standing_of(kept.sender), rows, size, kept.epoch)
            self._restored.clear()
            for subject in self.held:
                self._used.restore_held(subject, *self._holder(subject))
        return self._used

    def _holder(self, subject: Hash) -> tuple[Address | None, Standing]:
        """Whose certificate it is, as far as that is known here."""
        kept = self.batches.get(subject)
        return (kept.sender, self._standing_of(kept.sender)) if kept else (None, Standing.KNOWN)

    def check_quota(self, header: BatchHeader, size: int, epoch: int) -> None:
        """Overloaded or Refused where a batch with this header, of `size` bytes, is more than its sender may send."""
        subject = header.struct_hash()
        known = self.batches.get(subject)
        if known is None or known.epoch < epoch:
            kept = len(self.batches) - (known is not None)
            self._usage.check_batch(header.sender, self._standing_of(header.sender), header.count, size, epoch, kept)

    def acknowledge(self, batch: Batch, data: bytes, epoch: int, state: State | None, time: int) -> list[Record]:
        """What to write before `batch` is acknowledged for `epoch`; `state` is that after the epoch before,
        None while that is being settled; only reservations need it.

        Overloaded, Refused; for a reservation also DeadlineExpired, WrongSignature, Conflict, InsufficientCredits
        (which says how many are missing).
        """
        known, sender = self.batches.get(batch.subject), batch.header.sender
        is_new, standing = known is None or known.epoch < epoch, self._standing_of(sender)
        self.check_quota(batch.header, len(data), epoch)
        records = self._reserve(batch, state, epoch, time) if batch.header.kind == RESERVATION else []
        if is_new:
            self._usage.count_batch(sender, standing, len(batch.table), len(data))
            self._keep(batch, epoch)
            records.append(Record(BATCH, str(batch.subject), epoch, data))
        return records

    def keep(self, batch: Batch, data: bytes, epoch: int) -> list[Record]:
        """What to write of a certified batch that a peer had; nothing is acknowledged."""
        if batch.subject in self.batches:
            return []
        self._keep(batch, epoch)
        return [Record(BATCH, str(batch.subject), epoch, data)]

    def _keep(self, batch: Batch, epoch: int) -> None:
        reservation: Reservation | None = None
        if batch.header.kind == RESERVATION:
            reservation = batch.table.rows[0]
            numbered = self._numbered.setdefault((reservation.client, reservation.number), [])
            if batch.subject not in numbered:
                numbered.append(batch.subject)
        self.batches[batch.subject] = Kept(epoch, batch.header.sender, reservation)

    def _drop(self, subject: Hash) -> Record:
        kept = self.batches.pop(subject)
        if kept.reservation is not None:
            key = (kept.reservation.client, kept.reservation.number)
            self._numbered[key].remove(subject)
            if not self._numbered[key]:
                del self._numbered[key]
        return Record(BATCH, str(subject), kept.epoch, None)

    def _reserve(self, batch: Batch, state: State | None, epoch: int, time: int) -> list[Record]:
        row: Reservation = batch.table.rows[0]
        if state is None:
            raise EpochClosed(f"reservations wait for the report of epoch {epoch - 1}", epoch=epoch)
        if row.deadline < time:
            late = time - row.deadline
            raise DeadlineExpired(f"the reservation expired {late} s ago", deadline=row.deadline, now=time)
        key = (row.client, row.number)
        before = self._reserved.get(key)
        if before is not None and before.epoch == epoch and before.subject != batch.subject:
            raise Conflict(
                f"another reservation {row.number} of {row.client} was acknowledged in epoch {epoch}",
                number=row.number,
                epoch=epoch,
                subject=str(before.subject),
            )
        last, locks = self._latest(row.client, state, epoch, below=row.number)
        context = ReservationContext(self._domain, self._parameters_of(epoch), self._judges)
        reason = judge_reservation(state, locks, last, row, context)
        if reason != GOOD:
            raise _refusal(reason, row, state, last)
        if before is not None and before.epoch == epoch:
            return []
        self._reserved[key] = Reserved(epoch, batch.subject)
        return [Record(RESERVED, f"{row.client} {row.number}", epoch, bytes(batch.subject))]

    def _latest(self, client: Address, state: State, epoch: int, below: int) -> tuple[int, Mapping[Hash, LockState]]:
        """A client's newest reservation below a number, and its locks: in the state, or certified for `epoch`."""
        last = state.clients.get(client, new_client(client)).reservation
        locks = state.locks.get(client, {})
        while last + 1 < below:
            candidates = self._numbered.get((client, last + 1), ())
            held = [s for s in candidates if s in self.held and self.held[s].epoch == epoch]
            kept = self.batches[held[0]] if held else None
            if kept is None or kept.reservation is None:
                break
            last, locks = last + 1, locks_of(kept.reservation, locks, epoch)
        return last, locks

    def hold(self, certificate: Certificate, epoch: int) -> list[Record]:
        """What to write before this (valid) certificate is said to be held for `epoch`. EpochClosed, Overloaded."""
        kept = self.batches.get(certificate.subject)
        if certificate.epoch > epoch or certificate.epoch + CERTIFICATE_EPOCHS < epoch:
            raise EpochClosed(f"the certificate names epoch {certificate.epoch}, open is {epoch}", epoch=epoch)
        if certificate.epoch < epoch and (kept is None or kept.reservation is not None):
            raise EpochClosed(f"a reservation counts only in its own epoch; open is {epoch}", epoch=epoch)
        known = self.held.get(certificate.subject)
        if known is not None and known.epoch >= certificate.epoch:
            return []
        if known is None:
            signers = certificate.signers.bit_count()
            self._usage.hold(certificate.subject, *self._holder(certificate.subject), epoch, signers)
        self.held[certificate.subject] = certificate
        return [Record(HELD, str(certificate.subject), certificate.epoch, certificate.to_bytes())]

    def take_back(
        self, certificates: Iterable[Certificate], batches: Mapping[Hash, tuple[Batch, bytes]], epoch: int
    ) -> list[Record]:
        """What to write so that certificates of a revoked epoch are held again, with their batches."""
        records = []
        for certificate in certificates:
            subject = certificate.subject
            if subject in batches:
                records += self.keep(*batches[subject], epoch)
            if subject not in self.held:
                self.held[subject] = certificate
                self._usage.restore_held(subject, *self._holder(subject))
                records.append(Record(HELD, str(subject), certificate.epoch, certificate.to_bytes()))
        return records

    def observable(self, epoch: int) -> tuple[Certificate, ...]:
        """The certificates to observe for `epoch`, by subject."""
        return tuple(self.held[s] for s in sorted(self.held) if self._counts_in(s, epoch))

    def _counts_in(self, subject: Hash, epoch: int) -> bool:
        certificate, kept = self.held[subject], self.batches.get(subject)
        if certificate.epoch < epoch and kept is not None and kept.reservation is not None:
            return False
        return epoch - CERTIFICATE_EPOCHS <= certificate.epoch <= epoch

    def close(self, epoch: int, committed: Iterable[Hash]) -> list[Record]:
        """What to delete once `epoch` is committed with these subjects in its manifest."""
        usage = self._usage
        gone = {s for s in committed if s in self.held and self.held[s].epoch <= epoch}
        gone |= {s for s in self.held if self.held[s].epoch <= epoch and not self._counts_in(s, epoch + 1)}
        records = [Record(HELD, str(s), self.held.pop(s).epoch, None) for s in sorted(gone)]
        for subject in gone:
            usage.release(subject)
        old = [s for s, kept in self.batches.items() if kept.epoch + CERTIFICATE_EPOCHS <= epoch and s not in self.held]
        records += [self._drop(s) for s in old]
        past = [key for key, reserved in self._reserved.items() if reserved.epoch <= epoch]
        records += [Record(RESERVED, f"{c} {n}", self._reserved.pop((c, n)).epoch, None) for c, n in past]
        return records


def _refusal(reason: str, row: Reservation, state: State, last: int) -> FreeholdError:
    if reason == WRONG_SIGNATURE:
        return WrongSignature(f"the reservation is not signed by {row.client}")
    if reason == OVERCOMMITTED:
        client = state.clients.get(row.client, new_client(row.client))
        wanted, left = compute_commitment(state, row), client.paid_in - client.spent
        return InsufficientCredits(
            f"the reservation promises {wanted} credits (1e-18), {left} are there after epoch {state.epoch.epoch}",
            missing=str(wanted - left),
            needed=str(wanted),
            available=str(left),
            epoch=state.epoch.epoch,
        )
    if reason == RESERVATION_GAP and row.number > last + 1:
        return Conflict(
            f"reservation {row.number} comes before the certificate of {last + 1} is held", number=last, reason=reason
        )
    words = {
        RESERVATION_GAP: f"reservation {row.number} is in the past: the last one is {last}",
        DUPLICATE_LOCK: "a lease stands twice in the reservation",
        LOCK_FELL: "a lock falls without its node's signature",
    }
    return Refused(words.get(reason, reason), number=last, reason=reason)
