"""Batches of evidence: a signed header that commits to rows of one kind, and the rows.

On the wire: 4 bytes length of the header ‖ header as canonical JSON ‖ the table's columns. A member acknowledges
only what `decode_batch` takes, so every certified batch decodes everywhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from freehold.protocol.errors import BodyTooLarge, MalformedMessage
from freehold.protocol.keys import Key, check_signed_by
from freehold.protocol.messages import BatchHeader, Close, Lease, Reservation, Voucher
from freehold.protocol.service import Judge
from freehold.protocol.tables import Parts, Table
from freehold.protocol.typed import Domain, Message
from freehold.protocol.units import Hash

BATCH_LIMIT = 16 * 2**20  # bytes on the wire
ROWS_LIMIT = 100_000
HEADER_LIMIT = 4096

RESERVATION, LEASE, VOUCHER, CLOSE = "reservation", "lease", "voucher", "close"
MARKET_KINDS: dict[str, type[Message]] = {RESERVATION: Reservation, LEASE: Lease, VOUCHER: Voucher, CLOSE: Close}
SENDER_FIELDS = {RESERVATION: "client"}


class Batch(NamedTuple):
    """A decoded batch."""

    header: BatchHeader
    table: Table[Any]

    @property
    def subject(self) -> Hash:
        """The batch's id: what members acknowledge."""
        return self.header.struct_hash()


class Kinds(NamedTuple):
    """Which rows a network takes: their types by kind, the field that must be the batch's sender, and which kinds a
    judge reads table by table."""

    types: Mapping[str, type[Message]]
    senders: Mapping[str, str]
    streamed: frozenset[str] = frozenset()


def kinds_of(judges: Mapping[str, Judge]) -> Kinds:
    """The market's kinds and those of the services. A service's row is counted only from the node it names."""
    types, senders, streamed = dict(MARKET_KINDS), dict(SENDER_FIELDS), set[str]()
    for judge in judges.values():
        types |= judge.kinds
        senders |= judge.sender_fields
        streamed |= judge.streamed
    return Kinds(types, senders, frozenset(streamed))


def make_batch(kind: str, table: Table[Any], key: Key, domain: Domain) -> Batch:
    """A batch of these rows, signed by its sender."""
    header = BatchHeader(sender=key.address, kind=kind, count=len(table), root=table.root)
    signature = key.sign(header, domain)
    return Batch(BatchHeader(**{**_fields(header), "sender_signature": signature}), table)


def _fields(header: BatchHeader) -> dict[str, Any]:
    return {name: getattr(header, name) for name in header.__struct_fields__}


def encode_batch(batch: Batch) -> bytes:
    """The batch on the wire."""
    header = batch.header.to_bytes()
    return len(header).to_bytes(4) + header + batch.table.encode()


def header_size(start: bytes) -> int:
    """How many bytes a batch's header takes, with the 4 before it, by these 4. MalformedMessage."""
    size = int.from_bytes(start[:4])
    if len(start) < 4 or size > HEADER_LIMIT:
        raise MalformedMessage("the batch does not begin with the length of its header")
    return 4 + size


def decode_header(head: bytes, kinds: Kinds) -> BatchHeader:
    """The header that a batch begins with: all that can be said of it before a signature, or a row, is looked at.

    Raises MalformedMessage.
    """
    size = header_size(head)
    if len(head) < size:
        raise MalformedMessage("the batch is truncated")
    header = BatchHeader.from_bytes(head[4:size])
    if header.kind not in kinds.types:
        raise MalformedMessage(f"no rows of kind {header.kind!r} are taken here")
    if not 0 < header.count <= ROWS_LIMIT:
        raise MalformedMessage(f"a batch has 1 to {ROWS_LIMIT} rows, not {header.count}")
    if header.kind == RESERVATION and header.count != 1:
        raise MalformedMessage("a reservation travels alone")
    return header


def decode_batch(data: bytes, kinds: Kinds, domain: Domain) -> Batch:
    """The batch behind `encode_batch`'s form, its signature, count, root and sender checked.

    Raises BodyTooLarge, MalformedMessage (also for a truncated batch), WrongSignature.
    """
    if len(data) > BATCH_LIMIT:
        raise BodyTooLarge(f"a batch has at most {BATCH_LIMIT} bytes", limit=BATCH_LIMIT, size=len(data))
    header = decode_header(data, kinds)
    check_signed_by(header, header.sender_signature, header.sender, domain)
    table = Table.decode(kinds.types[header.kind], data[header_size(data) :])
    check_rows(header, table, kinds)
    return Batch(header, table)


def check_rows(header: BatchHeader, table: Table[Any], kinds: Kinds) -> None:
    """MalformedMessage unless these are the rows that the header commits to, and its sender may send them."""
    if len(table) != header.count or table.root != header.root:
        raise MalformedMessage("the batch's rows are not those that its header commits to")
    field = kinds.senders.get(header.kind)
    if field and (table.column(field) != np.frombuffer(header.sender, np.uint8)).any():
        raise MalformedMessage(f"a {header.kind} row must be sent by its {field}")


def collect_rows(batches: Iterable[Batch], kinds: Kinds) -> dict[str, Any]:
    """All rows by kind, batches in the order given: a Table with each row once, or Parts for a kind that is streamed.

    A batch is anything with a header and a table; a streamed one's table is read when a judge comes to it.
    """
    by_kind: defaultdict[str, list[Batch]] = defaultdict(list)
    for batch in batches:
        by_kind[batch.header.kind].append(batch)
    rows: dict[str, Any] = {}
    for kind, message in kinds.types.items():
        if kind in kinds.streamed:
            rows[kind] = Parts(message, by_kind[kind])
        else:
            rows[kind] = Table.concat(message, [batch.table for batch in by_kind[kind]]).distinct()
    return rows
