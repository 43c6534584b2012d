"""What a member acknowledges and holds, and what it refuses, with what."""

from __future__ import annotations

from typing import Any

import pytest

from freehold.oracle.gathering import SENDER_LIMIT, STRANGERS_BYTES, STRANGERS_LIMIT, Gathering
from freehold.oracle.records import BATCH, HELD, RESERVED, Record
from freehold.protocol.batches import CLOSE, RESERVATION, Batch, make_batch
from freehold.protocol.certificates import CERTIFICATE_EPOCHS, make_certificate
from freehold.protocol.errors import (
    Conflict,
    DeadlineExpired,
    EpochClosed,
    FreeholdError,
    InsufficientCredits,
    Overloaded,
    Refused,
    WrongSignature,
)
from freehold.protocol.keys import Key
from freehold.protocol.messages import Acknowledgement, Certificate, Close, Lock, Reservation
from freehold.protocol.reservations import ReservationContext, new_client
from freehold.protocol.state import ClientState, LockState, State, genesis
from freehold.protocol.tables import Table
from freehold.protocol.typed import keccak
from freehold.protocol.units import ZERO_HASH, Hash
from tests.oracle.fake_chain import PARAMETERS
from tests.oracle.simulation import CLIENTS, DOMAIN, KEYS, MEMBERS

CLIENT, OTHER = CLIENTS
CONTEXT = ReservationContext(DOMAIN, PARAMETERS)
EPOCH, NOW = 5, 1_000
LEASE, SECOND = keccak(b"lease"), keccak(b"second")


def state(paid_in: int = 100, reservation: int = 0, locks: dict[Hash, int] | None = None) -> State:
    empty = genesis(0, ZERO_HASH, 0)
    client = new_client(CLIENT.address)
    fields = {name: getattr(client, name) for name in client.__struct_fields__}
    fields |= {"paid_in": paid_in, "reservation": reservation}
    kept = {
        lease: LockState(lease=lease, client=CLIENT.address, amount=n, since=1) for lease, n in (locks or {}).items()
    }
    return State(empty.epoch, clients={CLIENT.address: ClientState(**fields)}, locks={CLIENT.address: kept})


def reserve(number: int, amount: int, signer: Key = CLIENT, lease: Hash = LEASE, **changes: Any) -> Batch:
    fields: dict[str, Any] = {"client": CLIENT.address, "number": number, "deadline": NOW}
    fields |= {"locks": (Lock(lease=lease, amount=amount),)} | changes
    signature = signer.sign(Reservation(**fields), DOMAIN)
    row = Reservation(**fields, client_signature=signature)
    return make_batch(RESERVATION, Table.of(Reservation, [row]), CLIENT, DOMAIN)


def close(i: int, key: Key = CLIENT) -> Batch:
    return make_batch(CLOSE, Table.of(Close, [Close(lease=keccak(i.to_bytes(4)))]), key, DOMAIN)


def certify(batch: Batch, epoch: int = EPOCH) -> Certificate:
    message = Acknowledgement(epoch=epoch, subject=batch.subject)
    return make_certificate(message, {key.address: key.sign(message, DOMAIN) for key in KEYS}, MEMBERS)


def take(
    gathering: Gathering, batch: Batch, epoch: int = EPOCH, after: State | None = None, **options: Any
) -> list[Record]:
    options = {"is_known": True} | options
    return gathering.acknowledge(batch, options.pop("data", b"data"), epoch, after or state(), NOW, **options)


LIMIT_CASES: dict[str, tuple[Batch, State, type[FreeholdError] | None]] = {
    "all that there is": (reserve(1, 100), state(), None),
    "one credit (1e-18) more": (reserve(1, 101), state(), InsufficientCredits),
    "nobody has paid": (reserve(1, 1), genesis(0, ZERO_HASH, 0), InsufficientCredits),
    "the last second": (reserve(1, 1, deadline=NOW), state(), None),
    "a second late": (reserve(1, 1, deadline=NOW - 1), state(), DeadlineExpired),
    "signed by another": (reserve(1, 1, OTHER), state(), WrongSignature),
    "the number after the last": (reserve(3, 1), state(reservation=2), None),
    "a number of the past": (reserve(2, 1), state(reservation=2), Refused),
    "a number to come": (reserve(4, 1), state(reservation=2), Conflict),
    "a lock stays": (reserve(3, 40), state(reservation=2, locks={LEASE: 40}), None),
    "a lock falls": (reserve(3, 39), state(reservation=2, locks={LEASE: 40}), Refused),
    "a lock is left out": (reserve(3, 40, lease=SECOND), state(reservation=2, locks={LEASE: 40}), Refused),
    "a lease twice": (reserve(1, 1, locks=(Lock(lease=LEASE, amount=1),) * 2), state(), Refused),
}


@pytest.mark.parametrize("name", LIMIT_CASES)
def test_reservations_at_their_limits(name: str) -> None:
    batch, after, refusal = LIMIT_CASES[name]
    gathering = Gathering(CONTEXT)
    if refusal is None:
        assert [record.kind for record in take(gathering, batch, after=after)] == [RESERVED, BATCH]
        return
    with pytest.raises(refusal):
        take(gathering, batch, after=after)
    assert not gathering.batches


def test_missing_credits_are_named() -> None:
    with pytest.raises(InsufficientCredits) as refused:
        take(Gathering(CONTEXT), reserve(1, 130))
    assert refused.value.details["missing"] == "30"


def test_one_reservation_a_number_and_epoch() -> None:
    gathering = Gathering(CONTEXT)
    first, second = reserve(1, 10), reserve(1, 11)
    take(gathering, first)
    assert take(gathering, first) == []
    with pytest.raises(Conflict):
        take(gathering, second)
    assert [r.kind for r in take(gathering, second, EPOCH + 1)] == [RESERVED, BATCH]


def test_a_restart_remembers_which_reservation_it_was() -> None:
    before, gathering = Gathering(CONTEXT), Gathering(CONTEXT)
    batch = reserve(1, 10)
    records = take(before, batch) + before.hold(certify(batch), EPOCH)
    for record in records:
        gathering.restore(record, batch if record.kind == BATCH else None)
    with pytest.raises(Conflict):
        take(gathering, reserve(1, 11))
    take(gathering, reserve(2, 10))
    assert gathering.observable(EPOCH) == before.observable(EPOCH)


def test_numbers_follow_each_other_within_an_epoch_once_the_one_before_is_held() -> None:
    gathering = Gathering(CONTEXT)
    first, second = reserve(1, 10), reserve(2, 20)
    take(gathering, first)
    with pytest.raises(Conflict, match="held"):
        take(gathering, second)
    gathering.hold(certify(first), EPOCH)
    with pytest.raises(Refused, match="falls"):
        take(gathering, reserve(2, 9))
    take(gathering, second)


def test_reservations_wait_for_the_report_of_the_epoch_before() -> None:
    with pytest.raises(EpochClosed) as refused:
        Gathering(CONTEXT).acknowledge(reserve(1, 1), b"", EPOCH, None, NOW, is_known=True)
    assert refused.value.details["epoch"] == EPOCH
    Gathering(CONTEXT).acknowledge(close(1), b"", EPOCH, None, NOW, is_known=True)


HOLD_CASES: dict[str, tuple[Batch, int, bool, bool]] = {
    "of this epoch": (close(1), EPOCH, True, True),
    "of this epoch, its batch not here": (close(1), EPOCH, False, True),
    "of an epoch before": (close(1), EPOCH - 1, True, True),
    "of an epoch before, its batch not here": (close(1), EPOCH - 1, False, False),
    "at the limit of its life": (close(1), 10 - CERTIFICATE_EPOCHS, True, True),
    "of an epoch to come": (close(1), 11, True, False),
    "a reservation of this epoch": (reserve(1, 1), EPOCH, True, True),
    "a reservation of an epoch before": (reserve(1, 1), EPOCH - 1, True, False),
}


@pytest.mark.parametrize("name", HOLD_CASES)
def test_certificates_that_may_be_held(name: str) -> None:
    batch, named, is_here, passes = HOLD_CASES[name]
    epoch = 10 if "limit" in name or "to come" in name else EPOCH
    gathering = Gathering(CONTEXT)
    if is_here:
        take(gathering, batch, min(named, epoch))
    if passes:
        (record,) = gathering.hold(certify(batch, named), epoch)
        assert record.kind == HELD
        assert gathering.hold(certify(batch, named), epoch) == []
        assert [c.subject for c in gathering.observable(epoch)] == [batch.subject]
    else:
        with pytest.raises(EpochClosed):
            gathering.hold(certify(batch, named), epoch)
        assert gathering.observable(epoch) == ()


def test_what_is_committed_is_let_go_and_what_missed_is_kept() -> None:
    gathering = Gathering(CONTEXT)
    done, missed, void = close(1), close(2), reserve(1, 1)
    for batch in (done, missed, void):
        take(gathering, batch)
        gathering.hold(certify(batch), EPOCH)
    deleted = gathering.close(EPOCH, [done.subject])
    assert {(r.kind, r.key) for r in deleted} == {
        (HELD, str(done.subject)),
        (HELD, str(void.subject)),
        (RESERVED, f"{CLIENT.address} 1"),
    }
    assert [c.subject for c in gathering.observable(EPOCH + 1)] == [missed.subject]
    for epoch in range(EPOCH + 1, EPOCH + CERTIFICATE_EPOCHS + 1):
        deleted = gathering.close(epoch, [])
    assert len(deleted) == 4  # the certificate that nobody else observed in all its life, and the three batches
    assert not gathering.batches
    assert not gathering.held
    assert not gathering._numbered


def test_senders_are_bounded() -> None:
    gathering = Gathering(CONTEXT)
    for i in range(STRANGERS_LIMIT):
        take(gathering, close(i, OTHER), is_known=False)
    with pytest.raises(Overloaded):
        take(gathering, close(STRANGERS_LIMIT, OTHER), is_known=False)
    with pytest.raises(Refused, match="bought no credits"):
        take(gathering, close(0), EPOCH + 1, is_known=False, data=bytes(STRANGERS_BYTES + 1))
    gathering._counts[CLIENT.address] = SENDER_LIMIT - 1
    take(gathering, close(1), EPOCH + 1)
    with pytest.raises(Overloaded):
        take(gathering, close(2), EPOCH + 1)
    take(gathering, close(2), EPOCH + 2)
