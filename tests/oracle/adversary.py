"""A seeded adversary: it has the keys of up to f members, sees what they see, and changes what they do as it goes.

    Plan            what a seed decides: 4 or 7 members, who is corrupt, how bad net, clocks and disks are, and what
                    the chain and its governor do meanwhile (revocations, a freeze, other members or parameters)
    HonestHost      a real member whose clock runs at its own rate and jumps, whose disk is full at times, which
                    writes as the engine does (all that waits in one commit), and dies before and after writes
    CorruptHost     a real member whose every message passes through the adversary's tactics of the moment
    ByzantineWorld  the schedule, with a Witness

The tactics: silence, deafness, delay, part of the audience, another message to each, other numbers, garbage, old
messages, forged ones, copied votes, reports that it completes and submits itself, acknowledgements of anything, a disk
that forgets. It keeps on when the faults stop; only net, disks and crashes get better then.

Invariant: nobody but the corrupt signs with a corrupt member's key, and the corrupt have no other keys.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from freehold.oracle.chain_records import FinalBlock
from freehold.oracle.chain_view import Start
from freehold.oracle.checks import PeerMessage
from freehold.oracle.effects import (
    Broadcast,
    Commit,
    Effect,
    Persist,
    Reply,
    Send,
    Signed,
    Uncommit,
)
from freehold.oracle.events import BatchReceived, CertificateReceived, Event, MessageReceived
from freehold.oracle.round import signatures_of
from freehold.protocol.batches import CLOSE, Batch, make_batch
from freehold.protocol.bundle import Bundle
from freehold.protocol.certificates import faults, quorum
from freehold.protocol.messages import (
    Acknowledgement,
    Certificate,
    Close,
    Holding,
    Manifest,
    Observation,
    Report,
    Seal,
    Vote,
)
from freehold.protocol.tables import Table
from freehold.protocol.typed import keccak
from freehold.protocol.units import ONE, ZERO_HASH, Address, Hash, Signature
from tests.oracle.fake_chain import KEYS, PARAMETERS, START
from tests.oracle.invariants import check
from tests.oracle.simulation import DOMAIN, NODE, Faults, Host, Request, World
from tests.oracle.witness import Witness

AFTERWARDS = 2  # epochs that have to settle once the faults have stopped
SEEN = 400  # messages that the adversary remembers
MOOD = (500, 6_000)  # milliseconds after which a corrupt member behaves in another way


@dataclass(frozen=True)
class Plan:
    """What a seed decides before anything happens."""

    members: int
    corrupt: frozenset[int]
    faults: Faults
    skew: float  # how far clocks run apart: rates are 1/skew to skew
    disk_full: float  # the chance, a second, that an honest disk fills up
    write_crash: float  # that a member dies right before, or right after, a durable write
    lag: int  # blocks that members' chain clients are behind at most, until the faults stop
    other_members: bool
    other_parameters: bool
    freeze: bool
    load: int
    target: int


def make_plan(seed: int, target: int) -> Plan:
    draw = random.Random(f"plan {seed}")
    members = 7 if draw.random() < 0.2 else 4
    most = faults(members)
    count = most if draw.random() < 0.85 else draw.randint(0, most)
    rough = draw.random() < 0.7
    revoking = draw.random() < 0.3
    hostile = Faults(
        calm=draw.randint(6, 10) * 1_000 + 4_000 * target,
        drop=draw.choice([0, 0.02, 0.1, 0.2]) if rough else 0,
        duplicate=draw.choice([0, 0.05, 0.3]) if rough else 0,
        slow=draw.choice([40, 150, 600, 1_500]),
        partition=draw.choice([0, 0.03, 0.1]) if rough else 0,
        crash=draw.choice([0, 0.001, 0.004]),
        down=draw.choice([300, 800, 3_000]),
        lie=0.15 if revoking else 0,
        revoke=0.04 if revoking else 0,
    )
    return Plan(
        members=members,
        corrupt=frozenset(draw.sample(range(members), count)),
        faults=hostile,
        skew=draw.choice([1, 1.2, 2]),
        disk_full=draw.choice([0, 0, 0.01, 0.04]),
        write_crash=draw.choice([0, 0, 0.01, 0.05]),
        lag=draw.choice([0, 0, 4, 12]),
        other_members=members == 4 and draw.random() < 0.25,
        other_parameters=draw.random() < 0.25,
        freeze=draw.random() < 0.1,
        load=draw.randint(1, 3) * target // 2 + 2,
        target=target,
    )


class HonestHost(Host):
    """A member on a machine that is not to be relied on."""

    world: ByzantineWorld

    def __init__(self, world: ByzantineWorld, index: int) -> None:
        draw = world.random
        self._rate = draw.uniform(1 / world.plan.skew, world.plan.skew)
        self._ahead = draw.randint(0, 10**6)
        self._full_until = 0
        self._lag = draw.randint(0, world.plan.lag)
        super().__init__(world, index)

    def clock(self) -> int:
        if self.world.chance(0.002 * (self.world.plan.skew - 1)):
            self._ahead += self.world.random.randint(0, 20_000)
        return self._ahead + int(self.world.now * self._rate)

    def visible_blocks(self) -> list[FinalBlock]:
        final = super().visible_blocks()
        return final if self.world.is_calm else final[: max(self._fed, len(final) - self._lag)]

    def handle(self, event: Event) -> None:
        if self.world.chance(self.world.plan.disk_full / 20):
            self._full_until = self.world.now + self.world.random.randint(100, 4_000)
        super().handle(event)

    def outgoing(self, effects: list[Effect]) -> list[Effect]:
        queue = [*self._queue, *effects]
        self._queue.clear()
        return group(queue)

    def do(self, effect: Effect) -> None:
        if not isinstance(effect, Persist | Commit | Uncommit):
            self._note(effect)
            super().do(effect)
            return
        chance, plan = self.world.chance, self.world.plan
        if chance(plan.write_crash) or (self.world.now < self._full_until and not self.world.is_calm):
            self._die()  # nothing is written; a process whose disk fails ends
            return
        for record in effect.records:
            self.world.witness.on_written(self, record)
        if isinstance(effect, Commit):
            self.world.witness.on_committed(self, effect)
        super().do(effect)
        if chance(plan.write_crash):
            self._die()

    def _die(self) -> None:
        self.crash()
        self.world.after(self.world.random.randint(10, self.world.faults.down), self.start)

    def _note(self, effect: Effect) -> None:
        if isinstance(effect, Broadcast | Send):
            self.world.witness.on_said(self, effect.message)
        elif isinstance(effect, Reply) and isinstance(effect.answer, Signed):
            self.world.witness.on_answered(self, effect.answer)


def group(queue: list[Effect]) -> list[Effect]:
    """As the engine does it: everything that is to be written before the next Commit goes into one transaction."""
    grouped: list[Effect] = []
    part: list[Effect] = []
    for effect in [*queue, None]:
        if effect is not None and not isinstance(effect, Commit | Uncommit):
            part.append(effect)
            continue
        records = [r for one in part if isinstance(one, Persist) for r in one.records]
        grouped += [Persist(tuple(records))] if records else []
        grouped += [one for one in part if not isinstance(one, Persist)]
        grouped += [effect] if effect is not None else []
        part = []
    return grouped


class Adversary:
    """What the corrupt members share: every message and certificate that any of them has seen."""

    def __init__(self, world: ByzantineWorld) -> None:
        self.world, self.random = world, world.random
        self.seen: list[PeerMessage] = []
        self.certificates: list[Certificate] = []
        self.observations: dict[tuple[int, Hash], dict[Address, Observation]] = defaultdict(dict)
        self.votes: dict[Hash, dict[Address, Vote]] = defaultdict(dict)
        self.completed: set[Hash] = set()

    @property
    def keys(self) -> dict[Address, Any]:
        return {KEYS[i].address: KEYS[i] for i in sorted(self.world.plan.corrupt)}

    def see(self, message: PeerMessage) -> None:
        """One of the corrupt has received or made this."""
        self.seen.append(message)
        if len(self.seen) > SEEN:
            del self.seen[self.random.randrange(SEEN)]
        if isinstance(message, Observation):
            self.observations[message.epoch, message.anchor].setdefault(message.member, message)
        elif isinstance(message, Vote):
            self.votes[message.report.struct_hash()][message.member] = message
            if message.report.epoch and self.random.random() < 0.3:
                self.complete(message.report)

    def complete(self, report: Report) -> None:
        """Add the corrupt signatures to a report, and submit it where that makes a quorum."""
        members = self.world.chain.view.members_of(report.epoch)
        votes = dict(self.votes[report.struct_hash()])
        for member, key in self.keys.items():
            signature = key.sign(report, DOMAIN)
            votes[member] = Vote(report=report, salt=ZERO_HASH, member=member, member_signature=signature)
        chosen = [votes[m] for m in members if m in votes][: quorum(len(members))]
        if len(chosen) == quorum(len(members)) and report.struct_hash() not in self.completed:
            self.completed.add(report.struct_hash())
            self.world.chain.submit(report, *signatures_of(tuple(chosen), members))

    def sign(self, message: Any, member: Address, field: str = "member_signature") -> Any:
        """The message with this corrupt member's signature."""
        return msgspec.structs.replace(message, **{field: self.keys[member].sign(message, DOMAIN)})

    # -- other messages than the member meant ---------------------------------------------------------------------

    def vary(self, message: PeerMessage, member: Address) -> PeerMessage:
        """Another message of the same kind, validly signed by this member."""
        if isinstance(message, Observation):
            return self._vary_observation(message, member)
        if isinstance(message, Manifest):
            return self._vary_manifest(message, member)
        if isinstance(message, Vote):
            return self._vary_vote(message, member)
        if isinstance(message, Seal):
            return self.sign(msgspec.structs.replace(message, seal=keccak(self.random.randbytes(4))), member)
        view = self.random.choice([0, message.view + 1, message.view + 40, 2**32 - 1])
        return self.sign(msgspec.structs.replace(message, view=view), member)

    def _vary_observation(self, message: Observation, member: Address) -> Observation:
        draw = self.random
        known = {c.subject: c for c in (*message.certificates, *self.certificates)}
        some = tuple(known[s] for s in sorted(known) if draw.random() < 0.5 and known[s].epoch <= message.epoch)
        return self.sign(
            msgspec.structs.replace(
                message,
                certificates=some,
                price=draw.choice([1, message.price, message.price * 1000, 2**95]),
                commitment=draw.choice([message.commitment, ZERO_HASH, keccak(draw.randbytes(2))]),
                reveal=draw.choice([message.reveal, ZERO_HASH, keccak(draw.randbytes(2))]),
                anchor=message.anchor if draw.random() < 0.9 else keccak(b"elsewhere"),
            ),
            member,
        )

    def _vary_manifest(self, message: Manifest, member: Address) -> Manifest:
        draw = self.random
        known = dict(self.observations[message.epoch, message.observations[0].anchor])
        for other in self.keys:
            if other in known and draw.random() < 0.5:
                known[other] = self._vary_observation(known[other], other)
        chosen = draw.sample(list(known.values()), min(len(message.observations), len(known)))
        if draw.random() < 0.1:
            chosen = chosen[:-1] + chosen[:1]
        manifest = msgspec.structs.replace(message, observations=tuple(chosen))
        return self.sign(manifest, member, "leader_signature")

    def _vary_vote(self, message: Vote, member: Address) -> Vote:
        draw, report = self.random, message.report
        others = [vote.report for votes in self.votes.values() for vote in votes.values()]
        wrong = draw.choice(
            [
                report,
                msgspec.structs.replace(report, state_root=keccak(b"wrong"), subsidy=report.subsidy + ONE),
                msgspec.structs.replace(report, accounts_root=keccak(b"mine"), tokens_earned=2**95),
                msgspec.structs.replace(report, price=1),
                draw.choice(others or [report]),
            ]
        )
        return self.vote(wrong, member, draw.choice([message.salt, ZERO_HASH]))

    def vote(self, report: Report, member: Address, salt: Hash) -> Vote:
        signature = self.keys[member].sign(report, DOMAIN)
        return Vote(report=report, salt=salt, member=member, member_signature=signature)

    def shift(self, message: PeerMessage, member: Address) -> PeerMessage:
        """The same with another epoch, attempt or view, validly signed."""
        draw = self.random
        field = draw.choice(["epoch"] if isinstance(message, Observation) else ["epoch", "attempt", "view"])
        old = getattr(message.report if isinstance(message, Vote) else message, field)
        change = {field: max(0, old + draw.choice([-1, 1, 1, 2, 33]))}
        if isinstance(message, Vote):
            return self.vote(msgspec.structs.replace(message.report, **change), member, message.salt)
        name = "leader_signature" if isinstance(message, Manifest) else "member_signature"
        return self.sign(msgspec.structs.replace(message, **change), member, name)

    def spoil(self, message: PeerMessage) -> PeerMessage:
        """The same with a signature that is none, or another's."""
        name = "leader_signature" if isinstance(message, Manifest) else "member_signature"
        noise = Signature(self.random.randbytes(64) + bytes([self.random.choice([27, 28, 99])]))
        if isinstance(message, Observation) and message.certificates and self.random.random() < 0.5:
            first = msgspec.structs.replace(message.certificates[0], signatures=self.random.randbytes(195))
            noise, message = message.member_signature, msgspec.structs.replace(message, certificates=(first,))
        return msgspec.structs.replace(message, **{name: noise})

    def forge(self, message: PeerMessage) -> PeerMessage:
        """The same in an honest member's name."""
        names = [host.key.address for host in self.world.honest]
        if isinstance(message, Manifest) or not names:
            return self.spoil(message)
        return msgspec.structs.replace(message, member=self.random.choice(names))


class CorruptHost(Host):
    """A member in the adversary's hands: the real state machine runs, and the tactics of the moment decide what of it
    others come to see. It may lose its disk, and go on."""

    world: ByzantineWorld

    def __init__(self, world: ByzantineWorld, index: int) -> None:
        self._mood: list[Callable[[PeerMessage], list[Effect]]] = []
        self._flags: set[str] = set()
        self._speed = 1.0
        super().__init__(world, index)
        self._change_mood()

    @property
    def adversary(self) -> Adversary:
        return self.world.adversary

    def _change_mood(self) -> None:
        draw = self.world.random
        tactics = [
            self._tell, self._tell, self._tell_some, self._tell_late, self._tell_each, self._tell_each, self._shift,
            self._spoil, self._replay, self._forge, self._keep_quiet, self._tell_two,
        ]  # fmt: skip
        self._mood = draw.sample(tactics, draw.randint(1, 4))
        flags = ["deaf", "silent", "signs anything", "copies", "refuses", "serves nothing", "serves rubbish"]
        self._flags = {flag for flag in flags if draw.random() < 0.12}
        self._speed = draw.choice([0.1, 1, 1, 10])
        if draw.random() < 0.1:
            self.crash()
            if draw.random() < 0.5:
                self.disk, self.batches = {}, {}
            self.world.after(draw.randint(10, 3_000), self.start)
        self.world.after(draw.randint(*MOOD), self._change_mood)

    def clock(self) -> int:
        return int(self.world.now * 10 * self._speed)

    # -- what comes in

    def handle(self, event: Event) -> None:
        draw = self.world.random
        if isinstance(event, MessageReceived):
            self.adversary.see(event.message)
            if "copies" in self._flags and isinstance(event.message, Vote):
                self._copy(event.message)
        if isinstance(event, CertificateReceived):
            self.adversary.certificates.append(event.certificate)
        if isinstance(event, BatchReceived | CertificateReceived) and "signs anything" in self._flags and self.member:
            epoch = max(1, self.member.epoch + draw.choice([-1, 0, 0, 0, 1]))
            if isinstance(event, BatchReceived):
                message: Any = Acknowledgement(epoch=epoch, subject=event.batch.subject)
            else:
                message = Holding(epoch=epoch, subject=event.certificate.subject)
            self.do(Reply(event.reply, Signed(epoch, message.subject, self.key.sign(message, DOMAIN))))
            return
        if "deaf" not in self._flags or not isinstance(event, MessageReceived):
            super().handle(event)

    def _copy(self, vote: Vote) -> None:
        """Sign whatever an honest member signed, without having settled anything."""
        if vote.member not in self.adversary.keys:
            own = self.adversary.vote(vote.report, self.key.address, ZERO_HASH)
            self.do(Broadcast(own, tuple(self._others)))

    # -- what goes out

    def outgoing(self, effects: list[Effect]) -> list[Effect]:
        lies: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Broadcast | Send):
                self.adversary.see(effect.message)
                if "silent" not in self._flags:
                    lies += self.world.random.choice(self._mood)(effect.message)
            elif not (isinstance(effect, Reply) and self._flags & {"silent", "refuses"}):
                lies.append(effect)
        return lies

    @property
    def _others(self) -> list[Address]:
        return [host.key.address for host in self.world.hosts if host is not self]

    def _to_all(self, message: PeerMessage) -> Effect:
        return Broadcast(message, tuple(self._others))

    def _is_own(self, message: PeerMessage) -> bool:
        return isinstance(message, Manifest) or message.member == self.key.address

    def _tell(self, message: PeerMessage) -> list[Effect]:
        return [self._to_all(message)]

    def _keep_quiet(self, message: PeerMessage) -> list[Effect]:
        """Withholds this kind of message for once."""
        return []

    def _tell_some(self, message: PeerMessage) -> list[Effect]:
        return [Send(peer, message) for peer in self._others if self.world.random.random() < 0.5]

    def _tell_late(self, message: PeerMessage) -> list[Effect]:
        for peer in self._others:
            target = self.world.host(peer)
            wait = self.world.random.choice([0, 500, 2_000, 8_000])
            self.world.after(wait, lambda target=target: self.world.post(self, target, MessageReceived(message)))
        return []

    def _tell_each(self, message: PeerMessage) -> list[Effect]:
        """Another one to every member."""
        if not self._is_own(message):
            return self._tell(message)
        lies: list[Effect] = []
        for peer in self._others:
            other = message if self.world.random.random() < 0.3 else self._vary(message)
            lies.append(Send(peer, other))
        return lies

    def _tell_two(self, message: PeerMessage) -> list[Effect]:
        """Two to everybody, in an order of each one's own."""
        if not self._is_own(message):
            return self._tell(message)
        both, lies = [message, self._vary(message)], []
        for peer in self._others:
            self.world.random.shuffle(both)
            lies += [Send(peer, one) for one in both]
        return lies

    def _vary(self, message: PeerMessage) -> PeerMessage:
        return self.adversary.vary(message, self.key.address)

    def _shift(self, message: PeerMessage) -> list[Effect]:
        if not self._is_own(message):
            return self._tell(message)
        return [self._to_all(self.adversary.shift(message, self.key.address)), self._to_all(message)]

    def _spoil(self, message: PeerMessage) -> list[Effect]:
        return [self._to_all(self.adversary.spoil(message))]

    def _forge(self, message: PeerMessage) -> list[Effect]:
        return [self._to_all(self.adversary.forge(message)), self._to_all(message)]

    def _replay(self, message: PeerMessage) -> list[Effect]:
        draw = self.world.random
        old = [draw.choice(self.adversary.seen) for _ in range(3)]
        return [Send(draw.choice(self._others), one) for one in old] + [self._to_all(message)]

    def serve_batch(self, found: tuple[Batch, bytes] | None) -> tuple[Batch, bytes] | None:
        return None if self._flags & {"serves nothing", "serves rubbish"} else found

    def serve_bundle(self, found: Bundle | None) -> Bundle | None:
        if found is None or "serves nothing" in self._flags:
            return None
        if "serves rubbish" not in self._flags:
            return found
        draw = self.world.random
        others = [m for m in self.world.manifests.values() if m.epoch == found.report.epoch]
        return draw.choice(
            [
                found._replace(batches={}),
                found._replace(signatures=bytes(195)),
                found._replace(manifest=draw.choice(others) if others else found.manifest),
                draw.choice([found, *self.bundles.values()]),
            ]
        )


class HiddenRequest(Request):
    """A client in league with the corrupt: its certificate goes to them, and to no more than some others."""

    def __init__(self, world: ByzantineWorld, batch: Batch) -> None:
        self._told = set(world.random.sample(range(len(world.hosts)), world.random.randint(0, 2)))
        super().__init__(world, batch)

    def _try(self) -> None:
        if self.certificate is None:
            super()._try()
            return
        world: Any = self.world
        world.adversary.certificates.append(self.certificate)
        for i in self._told:
            held = self.certificate
            world.ask(world.hosts[i], lambda reply, c=held: CertificateReceived(c, reply), self._on_held)


class ByzantineWorld(World):
    """One seed's schedule. `plan` is what the seed decides; `witness` has watched all of it."""

    def __init__(self, seed: int, target: int = 8, make_honest: type[HonestHost] = HonestHost) -> None:
        self.plan = plan = make_plan(seed, target)
        self.random = random.Random(seed)
        self.adversary, self.witness = Adversary(self), Witness(self)
        members = tuple(key.address for key in KEYS[: plan.members])
        hosts = plan.members + (1 if plan.other_members else 0)
        self._hidden = 0
        self._taken = 0

        def make(world: World, index: int) -> Host:
            return (CorruptHost if index in plan.corrupt else make_honest)(self, index)

        super().__init__(
            seed, plan.faults, make, plan.target, plan.load, hosts, start=Start(START.block, PARAMETERS, members)
        )
        self.honest = [host for host in self.hosts if host.index not in plan.corrupt]
        self.adversary.random = self.random
        self._govern(members)

    def _govern(self, members: tuple[Address, ...]) -> None:
        plan, draw = self.plan, self.random
        if plan.other_members:
            leaver = draw.randrange(plan.members)
            later = tuple(member for i, member in enumerate(members) if i != leaver)
            self.chain.schedule_members(draw.randint(3, plan.target - 1), (*later, KEYS[plan.members].address))
        if plan.other_parameters:
            changed = msgspec.structs.replace(PARAMETERS, member_share=200_000, epoch_length=4)
            self.chain.schedule_parameters(draw.randint(2, plan.target - 1), changed)
        if plan.freeze:
            start = draw.randint(5_000, plan.faults.calm)
            self.after(start, self.chain.freeze)
            self.after(start + draw.randint(4, 10) * 1_000, self._resume)

    def _resume(self) -> None:
        if self.chain.view.frozen_at is not None:
            self.chain.resume()

    def post(self, source: Host, target: Host, event: Event) -> None:
        if isinstance(event, MessageReceived) and isinstance(event.message, Manifest):
            self.manifests[event.message.struct_hash()] = event.message
        super().post(source, target, event)

    def _calm_down(self) -> None:
        super()._calm_down()
        self.target = max(self.target, len(self.chain.accepted) + AFTERWARDS)

    def _client(self, i: int) -> None:
        if self.plan.corrupt and self.random.random() < 0.25:
            batch = make_batch(CLOSE, Table.of(Close, [Close(lease=keccak(f"hidden {i}".encode()))]), NODE, DOMAIN)
            self.batches[batch.subject] = batch
            self.requests.append(HiddenRequest(self, batch))
        else:
            super()._client(i)

    def _mine(self) -> None:
        revoked, stood = len(self.chain.revoked), len(self.chain.accepted)
        super()._mine()
        if len(self.chain.revoked) != revoked or len(self.chain.accepted) < stood:
            stood = min(stood, len(self.chain.accepted))
        for accepted in self.chain.accepted[stood:]:
            report = accepted.accepted.report
            self.witness.taken[report.epoch] = max(report.attempt, self.witness.taken.get(report.epoch, 0))
            if report.epoch not in self.lies:
                self.witness.on_accepted(accepted)


def run_seed(seed: int, target: int = 8, make_honest: type[HonestHost] = HonestHost) -> ByzantineWorld:
    """The seed's schedule, run and checked. What fails says how to replay it."""
    world: ByzantineWorld | None = None
    try:
        world = ByzantineWorld(seed, target, make_honest)
        world.run()
        check(world)
        world.witness.check_promises()
        world.witness.check_votes()
    except Exception as error:
        at = f", at {world.now} ms of it" if world else ""
        error.add_note(
            f"FREEHOLD_SEED={seed} pytest tests/oracle/test_byzantine.py replays it{at}: {make_plan(seed, target)}"
        )
        raise
    return world
