"""What can happen to a member. Adapters turn the world into these; nothing else reaches the state machine.

Bytes are decoded before they become events (`batches.decode_batch`, `bundle.decode_bundle`), so that the machine
does no heavy work. `reply` is the adapter's own handle for the answer. Times are milliseconds of a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from freehold.oracle.chain_records import FinalBlock
from freehold.oracle.checks import PeerMessage
from freehold.oracle.committed import Committed
from freehold.protocol.batches import Batch
from freehold.protocol.bundle import Bundle
from freehold.protocol.epoch import Settlement
from freehold.protocol.messages import Certificate, Manifest
from freehold.protocol.units import Address, Hash


class ChainAdvanced(NamedTuple):
    """The next final blocks, ascending, without a gap."""

    blocks: tuple[FinalBlock, ...]


class BatchReceived(NamedTuple):
    """A client's or node's batch, decoded, and its bytes on the wire."""

    batch: Batch
    data: bytes
    reply: int


class CertificateReceived(NamedTuple):
    """A certificate that somebody asks this member to hold."""

    certificate: Certificate
    reply: int


class MessageReceived(NamedTuple):
    """A peer's message; it is signed in itself, so whoever delivered it does not matter."""

    message: PeerMessage


class Tick(NamedTuple):
    """Time passes."""

    now: int


class PriceSeen(NamedTuple):
    """US dollars (1e18) per token, as this member sees it now."""

    price: int


class BatchFetched(NamedTuple):
    """What a peer answered to Fetch of a batch: None where it had none, or nothing that is it."""

    subject: Hash
    peer: Address
    found: tuple[Batch, bytes] | None


class BundleFetched(NamedTuple):
    """What a peer answered to Fetch of a bundle: None where it had none, or nothing that decodes and begins with the
    state that its report before commits to. `oldest`: the first epoch of which the peer says to have one, if it does.
    """

    epoch: int
    peer: Address
    found: Bundle | None
    oldest: int | None = None


class Settled(NamedTuple):
    """The outcome of Settle; `settlement` is None where the manifest cannot be settled (`failure` says why).

    `is_manifest` is False where it is none that honest members would have settled: `check_manifest` refuses it.
    """

    epoch: int
    manifest: Hash
    settlement: Settlement | None
    batches: Mapping[Hash, Batch]
    failure: str
    is_manifest: bool = True


class RolledBack(NamedTuple):
    """The outcome of Rollback: what was committed up to `epoch` (None: it is not here any more), and the manifests and
    batches, as they came, of the epochs after it."""

    epoch: int
    committed: Committed | None
    manifests: tuple[Manifest, ...]
    batches: Mapping[Hash, tuple[Batch, bytes]]


Event = (
    ChainAdvanced
    | BatchReceived
    | CertificateReceived
    | MessageReceived
    | Tick
    | PriceSeen
    | BatchFetched
    | BundleFetched
    | Settled
    | RolledBack
)
