"""Who takes part in the calibration: operators that are honest, or cheat in one of several ways; and the real court.

An honest node differs from others in its settings and fails now and then. A cheat sees its own orders, what its friend
tells it, and what it ran before; of another's result it sees nothing before its own receipt is in, as in the network.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from bench.calibration_work import Output, StepWork, Work, are_near
from freehold.local.parameters import LocalSettings
from freehold.protocol.merkle import row_root
from freehold.protocol.messages import STREAM
from freehold.protocol.service import Context
from freehold.protocol.state import LeaseState, NodeRecord
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain, keccak
from freehold.protocol.units import ZERO_HASH, Address, Hash
from freehold.services.compute.court import Ruling, hold_court, open_case
from freehold.services.compute.proof import Work as State
from freehold.services.compute.terms import EXACT, NAME, Dispute, Opinion, Receipt, Step, WorkState, claim_of

Kind = Literal["honest", "random", "partial", "copied", "lazy", "collusion", "selective", "lowest"]
FAILS = 0.02  # of an honest node's runs
CHEATS = 0.2  # of its runs, that a selective cheat gives away what its record is worth for
EPOCHS = 12  # within which referees decide, or never do
MEASURE = 1  # that each run takes
CLIENT = Address(b"client".rjust(20, b"\0"))


class Party(NamedTuple):
    """An operator with its one node. `friend` is who it cheats with."""

    number: int
    kind: Kind
    friend: int = -1

    @property
    def operator(self) -> Address:
        return Address((1 + self.number).to_bytes(20))

    @property
    def node(self) -> Address:
        return Address((1001 + self.number).to_bytes(20))


class Given(NamedTuple):
    """A receipt: who gave it, for which input it says, and what came out; `is_right`: whether by running it."""

    party: Party
    job: int
    input: Hash
    output: Output
    is_right: bool = True


def answer(party: Party, work: Work, job: int, asked: Sequence[Party], draw: random.Random) -> Given | None:
    """What a party gives back for a job; None where it fails. `asked` are all who have been asked so far."""
    if party.kind == "honest":
        return None if draw.random() < FAILS else Given(party, job, input_of(job), work.right(job, party.number))
    if party.kind == "selective" and draw.random() >= CHEATS:
        return Given(party, job, input_of(job), work.right(job, party.number))
    if party.kind == "copied" and any(one.number == party.friend for one in asked):
        return Given(party, job, input_of(job), work.right(job, party.friend))
    named = job - 1 if party.kind == "lazy" and draw.random() < 0.5 else job  # honest about what it ran on, and useless
    return Given(party, job, input_of(named), _cheat(party, work, job, draw), is_right=False)


def input_of(job: int) -> Hash:
    """The root over a job's inputs."""
    return keccak(b"input" + job.to_bytes(8))


def _cheat(party: Party, work: Work, job: int, draw: random.Random) -> Output:
    if party.kind == "partial":
        return work.partial(job)
    if party.kind in ("copied", "lazy"):  # what somebody, or itself, made of another input
        return work.right(job - 1, party.number)
    if party.kind == "collusion":
        return work.made_up(f"agreed {job}")
    return work.nothing() if party.kind == "lowest" else work.made_up(f"{draw.random()}")


class Courtroom:
    """The judge's court over these parties: referees drawn by a beacon, who run it again each in their own way."""

    def __init__(self, parties: Sequence[Party], seed: int) -> None:
        self.parties = {party.node: party for party in parties}
        self.seed = seed
        parameters = LocalSettings().parameters()
        bond = 2 * parameters.minimum_bond
        nodes = tuple(NodeRecord(p.node, p.operator, p.operator, "", bond) for p in parties)
        leases = {Hash(p.node.rjust(32, b"\0")): _lease(p.node) for p in parties}
        self.context = Context(1, 1, ZERO_HASH, parameters, Domain(1, CLIENT), leases, Table.of(WorkState), nodes=nodes)

    def rule(self, dispute: Dispute, opinion: Callable[[Party, WorkState], tuple[Hash, int]]) -> Ruling | None:
        """What the referees decide, if they do: the real `hold_court`, epoch after epoch."""
        rows = [open_case(dispute, 0)]
        for epoch in range(1, EPOCHS):
            beacon = keccak(b"beacon" + self.seed.to_bytes(8) + dispute.case() + epoch.to_bytes(8))
            context = self.context._replace(epoch=epoch, beacon=beacon)
            state = State(Table.of(WorkState, rows))
            opinions = []
            for seat in state.seats:
                output, good = opinion(self.parties[seat.node], seat)
                opinions.append(Opinion(epoch=epoch, case=seat.id, node=seat.node, output=output, good=good))
            court = hold_court(state, Table.of(Opinion, opinions), context)
            if court.rulings:
                return court.rulings[0]
            rows = [*court.cases, *court.seats]
        return None


def _lease(node: Address) -> LeaseState:
    return LeaseState(Hash(node.rjust(32, b"\0")), CLIENT, node, NAME, STREAM, 1, 2**40, 0, 0, 0, 0)


def referee(
    work: Work, first: Given, second: Given, draw: random.Random
) -> Callable[[Party, WorkState], tuple[Hash, int]]:
    """The opinions of referees on two receipts: honest ones run it again, cheats say what suits them."""

    def opinion(party: Party, seat: WorkState) -> tuple[Hash, int]:
        if party.kind not in ("honest", "copied", "lazy", "selective"):
            if party.friend in (first.party.number, second.party.number):
                lie, good = (seat.first_output, 1) if party.friend == first.party.number else (seat.second_output, 2)
                return (lie, good)
            return output_hash(work.made_up(f"{draw.random()}")), 0
        if seat.step:
            assert isinstance(work, StepWork)
            leaf = work.step(first.job, seat.step - 1, seat.input, party.number)
            return leaf, (leaf == seat.first_output) | (leaf == seat.second_output) << 1
        own = work.right(first.job, party.number)
        said = claim_of(seat.input, output_hash(own), MEASURE) if seat.kind == EXACT else output_hash(own)
        return said, are_near(work, own, first.output) | are_near(work, own, second.output) << 1

    return opinion


def output_hash(output: Output) -> Hash:
    """A receipt's `output`."""
    return keccak(output.data + b"".join(output.leaves))


def receipt_of(given: Given, number: int) -> Receipt:
    """A receipt, unsigned: signatures are what the judge's own tests are about."""
    return Receipt(
        node=given.party.node,
        lease=Hash(given.party.node.rjust(32, b"\0")),
        number=number,
        task=keccak(given.job.to_bytes(8)),
        most=10**9,
        until=EPOCHS,
        input=given.input,
        output=output_hash(given.output),
        steps=row_root(given.output.leaves),
        measure=MEASURE,
    )


def dispute_of(first: Receipt, second: Receipt, kind: int, steps: tuple[Step, ...]) -> Dispute:
    """The client's evidence."""
    return Dispute(client=CLIENT, first=first, second=second, kind=kind, steps=steps)
