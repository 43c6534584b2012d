"""What a member wants done. Adapters do it, in the order given.

Invariant that adapters keep: everything in a Persist (or Commit, or Uncommit) is durable before any later effect is
begun, also those of later events. So nothing leaves a member that it could forget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from freehold.oracle.checks import PeerMessage
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
    """Send to every other member of the epoch, as well as can be."""

    message: PeerMessage
    peers: tuple[Address, ...]


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
    """Settle this manifest, in a thread; the answer comes as Settled. Batches not given are in the store.

    `is_checked`: its signatures have been checked here; otherwise `check_manifest` comes first.
    """

    previous: State
    manifest: Manifest
    anchor: AnchorData
    batches: Mapping[Hash, Batch]
    is_checked: bool


class Contest(NamedTuple):
    """Keep the bundle of a report that does not follow from its manifest, as evidence, where there is room."""

    bundle: Bundle


class Rollback(NamedTuple):
    """Read what was committed up to `epoch`, and the bundles after it; the answer comes as RolledBack."""

    epoch: int


class Uncommit(NamedTuple):
    """Forget the committed epochs above `epoch` (their bundles stay as evidence) and write these, all or none."""

    epoch: int
    records: tuple[Record, ...]


class Submit(NamedTuple):
    """Send the report to the Oracle contract. Somebody else may have been quicker."""

    report: Report
    signers: int
    signatures: bytes


class Accuse(NamedTuple):
    """A member signed two reports for one (epoch, attempt, view): show both to the Oracle contract."""

    first: Vote
    second: Vote


Effect = (
    Persist
    | Commit
    | Uncommit
    | Reply
    | Broadcast
    | Send
    | FetchBatch
    | FetchBundle
    | Settle
    | Contest
    | Rollback
    | Submit
    | Accuse
)
