"""Reservations: what a client has promised in all never exceeds what it has paid in.

A member signs number s once an epoch, after the certificate of s-1; settlement applies the same rule to what the
manifest certifies. A lock falls only with the node's signature, or `lock_release` reports after its lease closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from freehold.protocol.certificates import CERTIFICATE_EPOCHS
from freehold.protocol.keys import is_signed_by
from freehold.protocol.messages import Lock, LockRelease, Reservation
from freehold.protocol.parameters import Parameters
from freehold.protocol.service import Judge
from freehold.protocol.state import ClientState, LeaseState, LockState, State
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address, Hash
from freehold.protocol.verdicts import (
    DUPLICATE_LOCK,
    GOOD,
    LOCK_FELL,
    OVERCOMMITTED,
    RESERVATION_GAP,
    TOO_MANY_LOCKS,
    WRONG_SIGNATURE,
)

LOCKS_LIMIT = 1000  # in one reservation


class ReservationContext(NamedTuple):
    """Where and when a reservation is judged."""

    domain: Domain
    parameters: Parameters
    judges: Mapping[str, Judge]

    def is_owing(self, state: State, lease: LeaseState) -> bool:
        """Whether work that was done under a lease may still come to be paid."""
        judge, rows = self.judges.get(lease.service), state.services.get(lease.service)
        return judge is not None and rows is not None and lease.lease in judge.owing(rows)


def new_client(client: Address) -> ClientState:
    """A client nobody has seen spend or reserve."""
    return ClientState(client=client, reservation=0, paid_in=0, burned=0, spent=0, released=0)


def compute_commitment(state: State, reservation: Reservation) -> int:
    """Credits that the reservation promises beyond what is settled: sum of max(0, lock - settled)."""
    total = 0
    for lock in reservation.locks:
        lease = state.leases.get(lock.lease)
        own = lease is not None and lease.client == reservation.client
        total += max(0, lock.amount - (lease.settled if lease is not None and own else 0))
    return total


def judge_reservation(
    state: State,
    locks: Mapping[Hash, LockState],
    last: int,
    reservation: Reservation,
    context: ReservationContext,
) -> str:
    """GOOD, or the reason why not. `locks` are the client's latest, `last` is its latest number."""
    client = reservation.client
    if len(reservation.locks) > LOCKS_LIMIT:
        return TOO_MANY_LOCKS
    if not is_signed_by(reservation, reservation.client_signature, client, context.domain):
        return WRONG_SIGNATURE
    if reservation.number != last + 1:
        return RESERVATION_GAP
    wanted = {lock.lease: lock for lock in reservation.locks}
    if len(wanted) != len(reservation.locks):
        return DUPLICATE_LOCK
    if any(not _may_fall(state, old, wanted.get(old.lease), reservation, context) for old in locks.values()):
        return LOCK_FELL
    credits = state.clients.get(client, new_client(client))
    if not credits.paid_in or compute_commitment(state, reservation) > credits.paid_in - credits.spent:
        return OVERCOMMITTED
    return GOOD


def _may_fall(
    state: State, old: LockState, new: Lock | None, reservation: Reservation, context: ReservationContext
) -> bool:
    if new is not None and new.amount >= old.amount:
        return True
    lease, epoch = state.leases.get(old.lease), state.epoch.epoch
    if lease is None or lease.client != old.client:
        # No node can be serving under it: a lease that its node knows to be covered is in the state by then.
        return epoch >= old.since + CERTIFICATE_EPOCHS
    if lease.closed and epoch >= lease.closed + context.parameters.lock_release:
        return not context.is_owing(state, lease)
    if new is None:
        return False
    release = LockRelease(client=reservation.client, number=reservation.number, lease=old.lease, amount=new.amount)
    return is_signed_by(release, new.node_signature, lease.node, context.domain)


def locks_of(reservation: Reservation, before: Mapping[Hash, LockState], epoch: int) -> dict[Hash, LockState]:
    """The locks that a reservation counted in `epoch` sets, by lease; a lock of nothing is none."""
    return {
        lock.lease: LockState(
            lease=lock.lease,
            client=reservation.client,
            amount=lock.amount,
            since=before[lock.lease].since if lock.lease in before else epoch,
        )
        for lock in reservation.locks
        if lock.amount
    }
