"""What a member wants done. Adapters do it, in the order given.

Invariant that adapters keep: everything in a Persist (or Commit) is durable before any later effect is begun, also
those of later events. So nothing leaves a member that it could forget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from freehold.oracle.events import PeerMessage
from freehold.oracle.records import Record
from freehold.protocol.batches import Batch
from freehold.protocol.bundle import Bundle
from freehold.protocol.epoch import Settlement
from freehold.protocol.errors import FreeholdError
from freehold.protocol.messages import Manifest, Report, Vote
from freehold.protocol.state import AnchorData, State
from freehold.protocol.units import Address, Hash, Signature


class Persist(NamedTuple):
    """Write these records (a record without data: delete it), all or none."""

    records: tuple[Record, ...]


class Commit(NamedTuple):
    """Keep the bundle and the state after its epoch, together with these records, all or none."""

    bundle: Bundle
    settlement: Settlement
    records: tuple[Record, ...]


class Signed(NamedTuple):
    """A member's signature over the Acknowledgement or Holding of `subject` for `epoch`."""

    epoch: int
    subject: Hash
    signature: Signature


class Reply(NamedTuple):
    """Answer a client."""

    reply: int
    answer: Signed | FreeholdError


class Broadcast(NamedTuple):
    """Send to every other member, as well as can be."""

    message: PeerMessage


class Send(NamedTuple):
    """Send to one member, as well as can be."""

    peer: Address
    message: PeerMessage


class FetchBatch(NamedTuple):
    """Ask this peer for a batch; the answer comes as BatchFetched."""

    subject: Hash
    peer: Address


class FetchBundle(NamedTuple):
    """Ask this peer for an epoch's bundle; the answer comes as BundleFetched."""

    epoch: int
    peer: Address


class Settle(NamedTuple):
    """Settle this manifest, in a thread; the answer comes as Settled. Batches not given are in the store."""

    previous: State
    manifest: Manifest
    anchor: AnchorData
    batches: Mapping[Hash, Batch]


class Submit(NamedTuple):
    """Send the report to the Oracle contract. Somebody else may have been quicker."""

    report: Report
    signers: int
    signatures: bytes


class Accuse(NamedTuple):
    """A member signed two reports for one (epoch, attempt, view): show both to the Oracle contract."""

    first: Vote
    second: Vote


Effect = Persist | Commit | Reply | Broadcast | Send | FetchBatch | FetchBundle | Settle | Submit | Accuse
