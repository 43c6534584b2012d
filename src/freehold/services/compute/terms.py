"""Compute's terms: its price's unit, what parties sign, what is evidence, and what its state is.

A compute lease is a stream: work done under it is paid without its client being there. Each piece of work is an order,
signed by the client, and a receipt for it, signed by the node: which task, which inputs, what came out, how much it
took. A receipt waits one epoch in the state, in which its client may dispute it, and is paid in the next. A dispute
shows two receipts of different nodes for the same task and inputs that contradict each other: one of them is wrong.
Referees drawn by the beacon run it again; the wrong one is not paid and its node is slashed (`court.py`).

A measure is nanoseconds of one processor: for a WebAssembly module its fuel, which is exact and the same everywhere,
counted as one nanosecond each; for anything else the time that it took, by as many processors as it asked for.
"""

from __future__ import annotations

from freehold.protocol.typed import Message
from freehold.protocol.units import UNSIGNED, ZERO_HASH, Address, Amount, Hash, Signature, Uint8, Uint32, Uint64

NAME = "compute"
UNITS_PER_PRICE = 3600 * 10**9  # a price is for an hour of one processor

RECEIPT, DISPUTE, OPINION = "compute.receipt", "compute.dispute", "compute.opinion"

REFEREES = 3  # drawn for a case, and again as many for each further round
ROUNDS = 3  # of referees, after which a case that they cannot decide is dropped and both receipts are paid
SEATS_AT_ONCE = 8  # for an operator, on average: what referees owe does not grow with how much is disputed
CASES_AT_ONCE = 1024  # open ones of a client; what it disputes beyond them is paid
KEPT_EPOCHS = 64  # the furthest that an order's `until` may lie ahead: its receipt stands in the state until then

OVER_ORDER = "over_order"  # a receipt for more than its order allows
UNORDERED = "unordered"  # its order is not the client's, or not for this lease
LATE = "late"  # its order has run out
EARLY = "early"  # its order names an epoch too far ahead
NO_CONTRADICTION = "no_contradiction"  # a dispute whose receipts may both be right
DISPUTED = "disputed"  # one of its receipts has been disputed before
CROWDED = "crowded"  # its client has as many cases open as it may have
WRONG_RESULT = "wrong_result"  # the referees found otherwise: not paid, and slashed
UNDECIDED = "undecided"  # the referees did not agree
UNFOUNDED = "unfounded"  # an opinion whose output does not say what its bits say


class Order(Message, frozen=True):
    """One piece of work. Its id is its struct hash; `number` tells orders of one lease apart.

    `task` is the task's hash (`tasks.py`), `most` the largest measure it may be billed, and `until` the last epoch in
    which a receipt for it counts.
    """

    lease: Hash
    number: Uint64
    task: Hash
    most: Uint64
    until: Uint64
    client_signature: Signature = UNSIGNED


class Receipt(Message, frozen=True):
    """What a node says came of an order. It carries the order's fields and the client's signature over the Order.

    `input` is the root over the contents of its inputs, `output` the hash of what came out (`tasks.py`), `steps` the
    row root over the hashes of the state after each step, zero where the task has none. Evidence, sent by the node.
    """

    node: Address
    lease: Hash
    number: Uint64
    task: Hash
    most: Uint64
    until: Uint64
    input: Hash
    output: Hash
    steps: Hash
    measure: Uint64
    client_signature: Signature = UNSIGNED
    node_signature: Signature = UNSIGNED

    def claim(self) -> Hash:
        """What it says by EXACT."""
        return claim_of(self.input, self.output, self.measure)

    def order(self) -> Order:
        """The order that it is for, as its client signed it."""
        return Order(
            lease=self.lease,
            number=self.number,
            task=self.task,
            most=self.most,
            until=self.until,
            client_signature=self.client_signature,
        )


class Claim(Message, frozen=True):
    """What a receipt says by EXACT, as one hash: what it was run on, what came out, how it ended (`tasks.Result`), and
    what it took; for a deterministic task all of it is the same anywhere."""

    input: Hash
    output: Hash
    measure: Uint64


def claim_of(input: Hash, output: Hash, measure: int) -> Hash:
    """What two receipts by EXACT contradict each other in, and a referee's run agrees with or not."""
    return Claim(input=input, output=output, measure=measure).struct_hash()


class Step(Message, frozen=True):
    """The first step at which two receipts differ: its index, the state before it, which both have (the input, for the
    first step), and the state after it by each; with their paths in the receipts' `steps` (32 bytes a level), which are
    both over `count` steps (`proof.make_step`)."""

    index: Uint32
    count: Uint32
    before: Hash
    first: Hash
    second: Hash
    first_path: bytes  # of the leaf at `index`
    second_path: bytes
    first_before: bytes  # of the leaf at `index - 1`; empty for the first step
    second_before: bytes


class Dispute(Message, frozen=True):
    """A client shows two receipts of its own orders, of different nodes, for one task, that contradict each other.
    Evidence, sent by the client.

    `steps` may hold one Step where both receipts commit to as many steps: only that step is run again; empty: all.
    `kind` is what referees go by (`EXACT`, or `NEAR`: by the metric that the task declares). Both receipts must be for
    one input, but by EXACT of the whole task: there a wrong input is a wrong receipt, if the task names its inputs.
    """

    client: Address
    first: Receipt
    second: Receipt
    kind: Uint8
    steps: tuple[Step, ...]

    def case(self) -> Hash:
        """The id of what it opens: the same whichever receipt comes first."""
        low, high = sorted([self.first.order().struct_hash(), self.second.order().struct_hash()])
        return CaseKey(low=low, high=high).struct_hash()


EXACT, NEAR = 1, 2  # what a dispute, and so a referee, goes by


class CaseKey(Message, frozen=True):
    """What a case's id is the struct hash of: its two orders' ids, the smaller first."""

    low: Hash
    high: Hash


class Opinion(Message, frozen=True):
    """What a referee found when it ran a case again: bit 0 of `good` for the first receipt, bit 1 for the second.

    `output` is what came out at the referee; of a step, the leaf of its state. By a case of kind EXACT a receipt is
    good if it has the same output; both bits are also what a referee says who cannot tell (`court.py`). Two bits more
    say whose node is not to answer for its receipt with its bond (SPARED). Evidence, sent by the referee in each epoch
    in which its seat stands.
    """

    epoch: Uint64
    case: Hash
    node: Address
    output: Hash
    good: Uint8


BOTH = 3  # an opinion's `good`: both receipts may be right
SPARED = 4  # times a receipt's bit: not good, for it claims no result, or by NEAR for it was not shown: unpaid alone

JOB, CASE, SEAT = 1, 2, 3  # what a row of the state is
WAITING, PAID, HELD, WRONG, UPHELD = 1, 2, 3, 4, 5  # how a job stands


class WorkState(Message, frozen=True):
    """A row of compute's state, in the order of (role, id, node).

    JOB    a receipt that was counted: `id` is its order's, `first` its client, `first_output` its output; kept until
           `until`, so that no order is paid twice
    CASE   a dispute that is being decided, `round` says how often referees were drawn: `node` is the client
    SEAT   a referee's place in a case, with all that the case says: `node` owes an opinion in each epoch to `until`
    `first` and `second` are the nodes of a case's receipts, `first_output` and `second_output` what they differ in,
    `input` what is run again: the receipts' input, or the state before the step; zero where receipts are for different
    inputs. `epoch` is when the row came.
    """

    role: Uint8
    id: Hash
    node: Address
    lease: Hash
    task: Hash
    input: Hash
    first: Address
    second: Address
    first_output: Hash
    second_output: Hash
    first_order: Hash
    second_order: Hash
    step: Uint32  # 1 + the index of the step that is to be run again; 0: the whole task
    kind: Uint8
    measure: Uint64
    epoch: Uint64
    until: Uint64
    round: Uint32
    stand: Uint8


class Seat(Message, frozen=True):
    """An obligation: this referee's opinion on this case."""

    epoch: Uint64
    case: Hash
    node: Address


class Bid(Message, frozen=True):
    """What a node would do an order for: `price` credits for UNITS_PER_PRICE of the measure, until `expiry`.

    `request` is the hash of what was asked (`bidding.py`); `properties` the node's own, as canonical JSON. The node
    signs; nobody but the client that asked sees it before it has chosen.
    """

    node: Address
    client: Address
    request: Hash
    price: Amount
    properties: bytes
    expiry: Uint64
    node_signature: Signature = UNSIGNED


NO_STEPS = ZERO_HASH
