"""Reservations: what a client has promised in all never exceeds what it has paid in.

A member signs number s once an epoch, after the certificate of s-1; settlement applies the same rule to what the
manifest certifies. A lock falls only with the node's signature, or `lock_release` reports after its lease closed.
"""

from __future__ import annotations

from typing import NamedTuple

from freehold.protocol.keys import is_signed_by
from freehold.protocol.messages import LockRelease, Reservation
from freehold.protocol.parameters import Parameters
from freehold.protocol.state import ClientState, LockState, State
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


class ReservationContext(NamedTuple):
    """Where and when a reservation is judged."""

    domain: Domain
    parameters: Parameters


def new_client(client: Address) -> ClientState:
    """A client nobody has seen spend or reserve."""
    return ClientState(client=client, reservation=0, paid_in=0, burned=0, spent=0, released=0)


def compute_commitment(state: State, reservation: Reservation) -> int:
    """Credits that the reservation promises beyond what is settled: sum of max(0, lock - settled)."""
    total = 0
    for lock in reservation.locks:
        lease = state.leases.get(lock.lease)
        total += max(0, lock.amount - (lease.settled if lease else 0))
    return total


def judge_reservation(
    state: State, locks: dict[Hash, LockState], last: int, reservation: Reservation, context: ReservationContext
) -> str:
    """GOOD, or the reason why not. `locks` are the client's latest, `last` is its latest number."""
    client = reservation.client
    if not is_signed_by(reservation, reservation.client_signature, client, context.domain):
        return WRONG_SIGNATURE
    if reservation.number != last + 1:
        return RESERVATION_GAP
    if len({lock.lease for lock in reservation.locks}) != len(reservation.locks):
        return DUPLICATE_LOCK
    if any(not _may_fall(state, old, reservation, context) for old in locks.values()):
        return LOCK_FELL
    credits = state.clients.get(client, new_client(client))
    if compute_commitment(state, reservation) > credits.paid_in - credits.spent:
        return OVERCOMMITTED
    return GOOD


def _may_fall(state: State, old: LockState, reservation: Reservation, context: ReservationContext) -> bool:
    new = next((lock for lock in reservation.locks if lock.lease == old.lease), None)
    if new is not None and new.amount >= old.amount:
        return True
    lease = state.leases.get(old.lease)
    if lease and lease.closed and state.epoch.epoch >= lease.closed + context.parameters.lock_release:
        return True
    if new is None or lease is None:
        return lease is None and old.amount == 0
    release = LockRelease(client=reservation.client, number=reservation.number, lease=old.lease, amount=new.amount)
    return is_signed_by(release, new.node_signature, lease.node, context.domain)


def locks_of(reservation: Reservation) -> dict[Hash, LockState]:
    """The locks that a reservation sets, by lease."""
    return {
        lock.lease: LockState(lease=lock.lease, client=reservation.client, amount=lock.amount)
        for lock in reservation.locks
    }
