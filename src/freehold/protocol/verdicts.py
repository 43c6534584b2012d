"""Verdicts: what a pure function says of one piece of evidence, or of its absence.

A verdict is a value that is kept, published in the bundle and shown by `freehold why`; it is never an exception.
Reasons are stable words. A service adds its own in its `terms.py`.
"""

from __future__ import annotations

from freehold.protocol.typed import Message
from freehold.protocol.units import Address, Amount, Hash, Uint64

GOOD = "good"
SILENT = "silent"  # an obligation that nobody answered: unpaid, never slashed
SLEPT = "slept"  # the same, when nodes with more than a third of what was owed were silent
MALFORMED = "malformed"  # the batch does not decode to rows of its kind
WRONG_SIGNATURE = "wrong_signature"
WRONG_EPOCH = "wrong_epoch"  # a proof for, or a reservation certified in, another epoch
UNOBLIGED = "unobliged"  # a proof that nobody asked for
SUPERSEDED = "superseded"  # a newer one counts
UNKNOWN_LEASE = "unknown_lease"
UNKNOWN_KIND = "unknown_kind"
EXPIRED = "expired"
KNOWN = "known"  # already in the state
CLOSED_LEASE = "closed_lease"
WRONG_MODE = "wrong_mode"  # a voucher for a stream, or the other way round
UNREGISTERED_NODE = "unregistered_node"
RESERVATION_GAP = "reservation_gap"  # not the number after the last one
LOCK_FELL = "lock_fell"  # a lock is smaller without the node's release
DUPLICATE_LOCK = "duplicate_lock"
TOO_MANY_LOCKS = "too_many_locks"
UNLOCKED = "unlocked"  # the client has locked nothing for this lease
TOO_LARGE = "too_large"  # more than one lease may hold
OVERCOMMITTED = "overcommitted"  # locks exceed the credits the client has


class Verdict(Message, frozen=True):
    """One row of an epoch's verdicts. `subject` is the evidence row's hash, or the obligation's id."""

    epoch: Uint64
    service: str  # empty for the market's own rows
    kind: str
    subject: Hash
    lease: Hash
    node: Address
    reason: str
    measure: Uint64


class Contribution(Message, frozen=True):
    """Work that was proven, in the service's measure: for a lease by its node, which its client's stream pays; or for
    nobody's lease (zero) by an account, which the coverage pool pays."""

    service: str
    lease: Hash
    account: Address
    measure: Uint64


class Reward(Message, frozen=True):
    """Subsidy that no client's payment matches: of the coverage pool, or (service "oracle") of the members'."""

    service: str
    account: Address
    measure: Uint64
    subsidy: Amount


class Slash(Message, frozen=True):
    """A node's bond is answerable for something proven wrong: `subject` names it, `harmed` is whose work it was.

    A judge fills in `service`, `node`, `subject` and `harmed`; settlement the rest: who staked, and how much goes.
    """

    service: str
    node: Address
    operator: Address
    subject: Hash
    harmed: Address
    amount: Amount


class Payment(Message, frozen=True):
    """One lease's arithmetic in one epoch, from what was owed to the tokens that come of it (`shares.py`)."""

    lease: Hash
    client: Address
    node: Address
    operator: Address
    service: str
    measure: Uint64
    price: Amount
    owed: Amount
    credits: Amount
    released: Amount
    earned: Amount
    burned: Amount
    subsidy: Amount
