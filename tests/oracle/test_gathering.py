"""What a member acknowledges and holds, and what it refuses, with what."""

from __future__ import annotations

from typing import Any

import pytest

from freehold.oracle import quotas
from freehold.oracle.gathering import Gathering
from freehold.oracle.quotas import Quota, Standing
from freehold.oracle.records import BATCH, HELD, RESERVED, Record
from freehold.protocol.batches import CLOSE, RESERVATION, Batch, encode_batch, make_batch
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
from freehold.protocol.reservations import new_client
from freehold.protocol.state import ClientState, LockState, State, genesis
from freehold.protocol.tables import Table
from freehold.protocol.typed import keccak
from freehold.protocol.units import ZERO_HASH, Address, Hash
from tests.oracle.fake_chain import PARAMETERS
from tests.oracle.simulation import CLIENTS, DOMAIN, KEYS, MEMBERS, NODE

CLIENT, OTHER = CLIENTS
EPOCH, NOW = 5, 1_000
SMALL = {
    Standing.BONDED: Quota(batches=9, rows=90, size=900, held=9),
    Standing.KNOWN: Quota(batches=3, rows=90, size=900, held=3),
    Standing.STRANGE: Quota(batches=2, rows=90, size=900, held=2),
}
LEASE, SECOND = keccak(b"lease"), keccak(b"second")


def known(_: Address) -> Standing:
    return Standing.KNOWN


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
    gathering = Gathering(DOMAIN, lambda _: PARAMETERS, known, {})
    if refusal is None:
        assert [record.kind for record in take(gathering, batch, after=after)] == [RESERVED, BATCH]
        return
    with pytest.raises(refusal):
        take(gathering, batch, after=after)
    assert not gathering.batches


def test_missing_credits_are_named() -> None:
    with pytest.raises(InsufficientCredits) as refused:
        take(Gathering(DOMAIN, lambda _: PARAMETERS, known, {}), reserve(1, 130))
    assert refused.value.details["missing"] == "30"


def test_one_reservation_a_number_and_epoch() -> None:
    gathering = Gathering(DOMAIN, lambda _: PARAMETERS, known, {})
    first, second = reserve(1, 10), reserve(1, 11)
    take(gathering, first)
    assert take(gathering, first) == []
    with pytest.raises(Conflict):
        take(gathering, second)
    assert [r.kind for r in take(gathering, second, EPOCH + 1)] == [RESERVED, BATCH]


def test_a_restart_remembers_which_reservation_it_was() -> None:
    before, gathering = (
        Gathering(DOMAIN, lambda _: PARAMETERS, known, {}),
        Gathering(DOMAIN, lambda _: PARAMETERS, known, {}),
    )
    batch = reserve(1, 10)
    records = take(before, batch) + before.hold(certify(batch), EPOCH)
    for record in records:
        gathering.restore(record, batch if record.kind == BATCH else None)
    with pytest.raises(Conflict):
        take(gathering, reserve(1, 11))
    take(gathering, reserve(2, 10))
    assert gathering.observable(EPOCH) == before.observable(EPOCH)


def test_numbers_follow_each_other_within_an_epoch_once_the_one_before_is_held() -> None:
    gathering = Gathering(DOMAIN, lambda _: PARAMETERS, known, {})
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
        Gathering(DOMAIN, lambda _: PARAMETERS, known, {}).acknowledge(reserve(1, 1), b"", EPOCH, None, NOW)
    assert refused.value.details["epoch"] == EPOCH
    Gathering(DOMAIN, lambda _: PARAMETERS, known, {}).acknowledge(close(1), b"", EPOCH, None, NOW)


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
    gathering = Gathering(DOMAIN, lambda _: PARAMETERS, known, {})
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
    gathering = Gathering(DOMAIN, lambda _: PARAMETERS, known, {})
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


def standing_of(sender: Address) -> Standing:
    return {CLIENT.address: Standing.KNOWN, NODE.address: Standing.BONDED}.get(sender, Standing.STRANGE)


@pytest.fixture
def gathering(monkeypatch: pytest.MonkeyPatch) -> Gathering:
    """With small quotas: of CLIENT, of NODE, which is bonded, and of all others together."""
    monkeypatch.setattr(quotas, "QUOTAS", SMALL)
    return Gathering(DOMAIN, lambda _: PARAMETERS, standing_of, {})


def test_a_senders_batches_are_bounded_in_each_epoch_also_those_sent_again(gathering: Gathering) -> None:
    for i in range(3):
        take(gathering, close(i))
    assert take(gathering, close(0)) == []
    with pytest.raises(Overloaded, match="3 batches"):
        take(gathering, close(3))
    for i in range(3):
        take(gathering, close(i), EPOCH + 1)
    with pytest.raises(Overloaded):
        take(gathering, close(3), EPOCH + 1)
    take(gathering, close(3), EPOCH + 2)


def test_a_senders_bytes_and_rows_are_bounded(gathering: Gathering) -> None:
    take(gathering, close(0), data=bytes(600))
    with pytest.raises(Overloaded, match="900 bytes"):
        take(gathering, close(1), data=bytes(301))
    take(gathering, close(1), data=bytes(300))
    many = Table.of(Close, [Close(lease=keccak(i.to_bytes(4))) for i in range(91)])
    with pytest.raises(Overloaded, match="90 rows"):
        take(gathering, make_batch(CLOSE, many, CLIENT, DOMAIN), EPOCH + 1)


def test_strangers_share_one_quota(gathering: Gathering) -> None:
    take(gathering, close(0, OTHER))
    take(gathering, close(1, KEYS[0]))
    with pytest.raises(Overloaded):
        take(gathering, close(2, KEYS[1]))
    with pytest.raises(Refused, match="bought no credits"):
        take(gathering, close(0, OTHER), EPOCH + 1, data=bytes(901))


def test_a_senders_certificates_are_bounded_until_they_are_let_go(gathering: Gathering) -> None:
    for epoch in (EPOCH, EPOCH + 1):
        for i in range(2):
            batch = close(2 * epoch + i)
            take(gathering, batch, epoch)
            if (epoch, i) == (EPOCH + 1, 1):
                with pytest.raises(Overloaded):
                    gathering.hold(certify(batch, epoch), epoch)
                gathering.close(EPOCH, [close(2 * EPOCH).subject])
            gathering.hold(certify(batch, epoch), epoch)


def test_others_leave_room_for_bonded_nodes(gathering: Gathering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "BATCHES_LIMIT", 4)
    monkeypatch.setattr(quotas, "HELD_LIMIT", 4)
    for batch in (close(0), close(1)):
        take(gathering, batch)
        gathering.hold(certify(batch), EPOCH)
    with pytest.raises(Overloaded):
        take(gathering, close(2))
    with pytest.raises(Overloaded):
        gathering.hold(certify(close(3)), EPOCH)
    for batch in (close(2, NODE), close(3, NODE)):
        take(gathering, batch)
        gathering.hold(certify(batch), EPOCH)
    with pytest.raises(Overloaded):
        take(gathering, close(4, NODE))


def test_what_was_held_before_a_restart_is_let_go_like_the_rest(gathering: Gathering) -> None:
    batch = close(0)
    records = take(gathering, batch) + gathering.hold(certify(batch), EPOCH)
    again = Gathering(DOMAIN, lambda _: PARAMETERS, standing_of, {})
    for record in records:
        again.restore(record, batch if record.kind == BATCH else None)
    assert again.close(EPOCH, [batch.subject])
    assert not again._usage._holders
    assert not again._usage._held


def refusal_of(gathering: Gathering, batch: Batch) -> type[FreeholdError] | None:
    """What `gathering` says of a batch before it has read its rows."""
    try:
        gathering.check_quota(batch.header, len(encode_batch(batch)), EPOCH)
    except FreeholdError as error:
        return type(error)
    return None


@pytest.mark.parametrize("sender", [CLIENT, NODE, OTHER])
def test_a_restart_gives_nobody_its_quota_back(gathering: Gathering, sender: Key) -> None:
    written: list[tuple[Record, Batch]] = []
    taken = 0
    while refusal_of(gathering, more := close(taken, sender)) is None:
        written += [(record, more) for record in take(gathering, more, data=encode_batch(more))]
        taken += 1
    assert taken > 0
    again = Gathering(DOMAIN, lambda _: PARAMETERS, standing_of, {})
    for record, batch in reversed(written):
        again.restore(record, batch)
    assert refusal_of(again, more) is Overloaded
    assert (again._usage._batches, again._usage._size) == (gathering._usage._batches, gathering._usage._size)
    assert take(again, close(0, sender)) == []  # what it has already costs nothing
    take(again, more, EPOCH + 1, data=encode_batch(more))


def test_certificates_held_before_a_restart_count_for_their_senders(gathering: Gathering) -> None:
    records: list[tuple[Record, Batch | None]] = []
    held = quotas.QUOTAS[Standing.KNOWN].held
    for i in range(held):
        batch = close(i)
        records += [(record, batch) for record in take(gathering, batch)]
        records += [(record, None) for record in gathering.hold(certify(batch), EPOCH)]
    again = Gathering(DOMAIN, lambda _: PARAMETERS, standing_of, {})
    for record, restored in reversed(records):
        again.restore(record, restored)
    more = close(held, NODE)
    take(again, more)
    again.hold(certify(more), EPOCH)  # others have theirs
    with pytest.raises(Overloaded):
        take(again, close(held))
    assert again._usage._held[CLIENT.address] == held
