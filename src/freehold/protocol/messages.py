"""What parties sign and send: the market's messages, the quorum's messages, and the report.

A type of its own for each action, everything that matters inside the signature. `*_signature` fields travel along
but are not signed (`typed.py`). A service's own rows are defined in its `terms.py`.
"""

from __future__ import annotations

from typing import Annotated

from freehold.protocol.typed import ROOTED, Message
from freehold.protocol.units import UNSIGNED, Address, Amount, Hash, Signature, Uint8, Uint32, Uint64

STREAM = 1  # paid at a rate while the work is proven
VOUCHER = 2  # paid by what the client signed for as it consumed
MODES = {STREAM: "stream", VOUCHER: "voucher"}


class Offer(Message, frozen=True):
    """A node's offer of a service. Prices are credits per unit of the service's terms; capacity is in its unit.

    `fingerprint` is the SHA-256 of the certificate that the endpoint shows; zero where it is spoken to over http.
    """

    node: Address
    service: str
    endpoint: str
    fingerprint: Hash
    place: str
    stream_price: Amount
    voucher_price: Amount
    capacity: Uint64
    expiry: Uint64
    node_signature: Signature = UNSIGNED


class Lease(Message, frozen=True):
    """An order accepted: both sign. Its id is its struct hash; `number` tells leases of one pair apart."""

    client: Address
    node: Address
    service: str
    mode: Uint8
    price: Amount
    number: Uint64
    deadline: Uint64
    client_signature: Signature = UNSIGNED
    node_signature: Signature = UNSIGNED


class LockRelease(Message, frozen=True):
    """What a node signs so that a client's lock for its lease may fall to `amount`."""

    client: Address
    number: Uint64
    lease: Hash
    amount: Amount


class Lock(Message, frozen=True):
    """A lifetime cap for one lease. `node_signature` is over the LockRelease, needed only where the lock falls."""

    lease: Hash
    amount: Amount
    node_signature: Signature = UNSIGNED


class Reservation(Message, frozen=True):
    """Number `number` of a client replaces the one before and lists every lock."""

    client: Address
    number: Uint64
    locks: tuple[Lock, ...]
    deadline: Uint64
    client_signature: Signature = UNSIGNED


class Voucher(Message, frozen=True):
    """The client owes at most `amount` in all for this lease: cumulative."""

    lease: Hash
    amount: Amount
    client_signature: Signature = UNSIGNED


class Close(Message, frozen=True):
    """The client ends a lease."""

    lease: Hash
    client_signature: Signature = UNSIGNED


class BatchHeader(Message, frozen=True):
    """Rows of one kind, committed to by their Merkle root (`tables.py`). Its struct hash is the batch's id."""

    sender: Address
    kind: str
    count: Uint32
    root: Hash
    sender_signature: Signature = UNSIGNED


class Acknowledgement(Message, frozen=True):
    """A member has the batch on disk, and counts it towards `epoch`. Q of them are a certificate."""

    epoch: Uint64
    subject: Hash


class Holding(Message, frozen=True):
    """A member has the certificate on disk and will observe it for `epoch`."""

    epoch: Uint64
    subject: Hash


class Certificate(Message, frozen=True):
    """Q members' signatures over one Acknowledgement: bit i of `signers` is member i, signatures in that order."""

    epoch: Uint64
    subject: Hash
    signers: Uint32
    signatures: bytes


class Observation(Message, frozen=True):
    """What one member holds and sees when it closes an epoch. After it, the member signs nothing that names it.

    It commits to its certificates by their root: however many there are, one is shown on chain by its path.

    `commitment` is the hash of a secret; `reveal` is the secret that its commitment in the manifest of the epoch before
    hides, zero if it had none there: what they come to makes the next beacon (`beacon.py`).
    """

    epoch: Uint64
    anchor: Hash  # struct hash of the epoch's AnchorData
    price: Amount
    commitment: Hash
    reveal: Hash
    certificates: Annotated[tuple[Certificate, ...], ROOTED]
    member: Address
    member_signature: Signature = UNSIGNED


class Manifest(Message, frozen=True):
    """Q observations: they define what the epoch settles. A revoked epoch's next attempt has another leader's signature
    over the same observations."""

    epoch: Uint64
    attempt: Uint32
    view: Uint32
    observations: tuple[Observation, ...]
    leader_signature: Signature = UNSIGNED


class ViewChange(Message, frozen=True):
    """A member has entered `view`: the leaders before it were too slow."""

    epoch: Uint64
    attempt: Uint32
    view: Uint32
    member: Address
    member_signature: Signature = UNSIGNED


class Seal(Message, frozen=True):
    """A member has settled this view's manifest: `seal` hides its report's hash until its vote shows the salt.

    seal = keccak(salt ‖ struct hash of the report ‖ member). Votes are sent once Q seals are here: nobody can copy one.
    """

    epoch: Uint64
    attempt: Uint32
    view: Uint32
    seal: Hash
    member: Address
    member_signature: Signature = UNSIGNED


class Report(Message, frozen=True):
    """What an epoch comes to. The Oracle contract has the same type, field for field."""

    epoch: Uint64
    attempt: Uint32
    view: Uint32
    anchor_block: Uint64
    anchor_hash: Hash
    beacon: Hash
    previous: Hash
    manifest: Hash
    verdicts_root: Hash
    state_root: Hash
    accounts_root: Hash
    accounts: Uint64
    tokens_earned: Amount
    credits_earned: Amount
    credits_spent: Amount
    slashes_root: Hash
    subsidy: Amount
    revenue: Amount
    price: Amount
    collected: Hash
    parameters: Hash


class Vote(Message, frozen=True):
    """A member's signature over a report. One a member and (epoch, attempt, view); two are equivocation.

    `salt` opens the member's seal; nobody signs it.
    """

    report: Report
    salt: Hash
    member: Address
    member_signature: Signature = UNSIGNED  # over the report, not over this


class Request(Message, frozen=True):
    """What a sender signs of each HTTP request: replayed elsewhere, later or with another body it is refused."""

    method: str
    path: str
    body: Hash
    recipient: Address
    nonce: Hash
    deadline: Uint64
