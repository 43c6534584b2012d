"""Members that lie: one of four may do any of these. Each changes what its honest half wanted to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from freehold.oracle.checks import PeerMessage
from freehold.oracle.effects import Broadcast, Effect, Reply, Send, Settle, Signed
from freehold.oracle.events import BatchReceived, CertificateReceived, Event
from freehold.protocol.batches import Batch
from freehold.protocol.bundle import Bundle
from freehold.protocol.messages import Acknowledgement, Holding, Manifest, Observation, Report, Seal, ViewChange, Vote
from freehold.protocol.typed import keccak
from freehold.protocol.units import ONE, ZERO_HASH, Address, Signature
from tests.oracle.simulation import DOMAIN, MEMBERS, Host, World


class Liar(Host):
    """Has a member's key, and every message that it ever saw or made."""

    def __init__(self, world: World, index: int) -> None:
        self.seen: list[PeerMessage] = []
        super().__init__(world, index)

    def outgoing(self, effects: list[Effect]) -> list[Effect]:
        lies: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Broadcast):
                self.seen.append(effect.message)
                lies += self.say(effect.message)
            else:
                lies.append(effect)
        return lies

    def say(self, message: PeerMessage) -> list[Effect]:
        return [self.to_all(message)]

    @property
    def others(self) -> tuple[Address, ...]:
        return tuple(member for member in MEMBERS if member != self.key.address)

    def to_all(self, message: PeerMessage) -> Effect:
        return Broadcast(message, self.others)

    def to_some(self, message: PeerMessage, other: PeerMessage | None = None) -> list[Effect]:
        """One thing to some, another (or nothing) to the rest."""
        some = [peer for peer in self.others if self.world.random.random() < 0.5]
        lies: list[Effect] = [Send(peer, message) for peer in some]
        return lies + ([Send(p, other) for p in self.others if p not in some] if other else [])

    def sign(self, message: Any, field: str = "member_signature") -> Any:
        return msgspec.structs.replace(message, **{field: self.key.sign(message, DOMAIN)})


class Silent(Liar):
    def outgoing(self, effects: list[Effect]) -> list[Effect]:
        return [e for e in effects if not isinstance(e, Broadcast | Send | Reply)]

    def serve_batch(self, found: tuple[Batch, bytes] | None) -> None:
        return None

    def serve_bundle(self, found: Bundle | None) -> None:
        return None


class Crashing(Host):
    """Honest, and down again after every few effects, for good and all."""

    def do(self, effect: Effect) -> None:
        super().do(effect)
        if self.world.random.random() < 0.1:
            self.crash()
            self.world.after(self.world.random.randint(10, 2_000), self.start)


class TwoObservations(Liar):
    def say(self, message: PeerMessage) -> list[Effect]:
        if not isinstance(message, Observation):
            return [self.to_all(message)]
        half = tuple(c for c in message.certificates if self.world.random.random() < 0.5)
        other = msgspec.structs.replace(message, certificates=half, price=message.price * 1000)
        return self.to_some(message, self.sign(other))


class Withholding(Liar):
    """Observes nothing, and names an absurd price."""

    def say(self, message: PeerMessage) -> list[Effect]:
        if not isinstance(message, Observation):
            return [self.to_all(message)]
        return [self.to_all(self.sign(msgspec.structs.replace(message, certificates=(), price=1)))]


class Hoarding(Liar):
    """Observes every certificate that anybody ever made, also those that its epoch's manifest left out."""

    def say(self, message: PeerMessage) -> list[Effect]:
        if not isinstance(message, Observation):
            return [self.to_all(message)]
        made = [c for request in self.world.requests for c in request.certificates.values() if c.epoch <= message.epoch]
        return [self.to_all(self.sign(msgspec.structs.replace(message, certificates=tuple(made))))]


class SelectiveLeader(Liar):
    """Shows manifests and votes to some only."""

    def say(self, message: PeerMessage) -> list[Effect]:
        return self.to_some(message) if isinstance(message, Manifest | Vote) else [self.to_all(message)]


class TwoManifests(Liar):
    def say(self, message: PeerMessage) -> list[Effect]:
        if not isinstance(message, Manifest) or self.member is None or self.member.round is None:
            return [self.to_all(message)]
        known = list(self.member.round.observations.values())
        self.world.random.shuffle(known)
        other = msgspec.structs.replace(message, observations=tuple(known[: len(message.observations)]))
        other = self.sign(other, "leader_signature")
        self.world.manifests[other.struct_hash()] = other
        return self.to_some(message, other)


class Garbage(Liar):
    def say(self, message: PeerMessage) -> list[Effect]:
        field = "leader_signature" if isinstance(message, Manifest) else "member_signature"
        noise = Signature(self.world.random.randbytes(64) + bytes([self.world.random.choice([27, 28, 99])]))
        lie: Any = msgspec.structs.replace(message, **{field: noise})
        if isinstance(message, Observation) and message.certificates:
            first = msgspec.structs.replace(message.certificates[0], signatures=self.world.random.randbytes(195))
            lie = self.sign(msgspec.structs.replace(message, certificates=(first, *message.certificates[1:])))
        elif isinstance(message, Manifest):
            few = msgspec.structs.replace(message, observations=message.observations[:-1] * 2)
            lie = self.sign(few, "leader_signature")
        elif isinstance(message, ViewChange):
            lie = self.sign(msgspec.structs.replace(message, view=2**32 - 1))
        return [self.to_all(lie)]

    def serve_bundle(self, found: Bundle | None) -> Bundle | None:
        if found is None:
            return None
        return self.world.random.choice([found._replace(batches={}), found._replace(signatures=bytes(195))])


class Replaying(Liar):
    """Says again whatever it, or anybody, ever said."""

    def handle(self, event: Event) -> None:
        message = getattr(event, "message", None)
        if message is not None:
            self.seen.append(message)
        super().handle(event)

    def say(self, message: PeerMessage) -> list[Effect]:
        old = [self.world.random.choice(self.seen) for _ in range(5)]
        return [self.to_all(m) for m in (*old, message, *old)]


class WrongVotes(Liar):
    """Signs two reports a view, or one that does not follow."""

    def say(self, message: PeerMessage) -> list[Effect]:
        if not isinstance(message, Vote):
            return [self.to_all(message)]
        wrong = msgspec.structs.replace(message.report, state_root=keccak(b"wrong"), subsidy=ONE)
        return self.to_some(message, self._vote(wrong)) + self.to_some(self._vote(wrong))

    def _vote(self, report: Report) -> Vote:
        signature = self.key.sign(report, DOMAIN)
        return Vote(report=report, salt=ZERO_HASH, member=self.key.address, member_signature=signature)


class Copying(Liar):
    """Seals nothing, or anything, and votes at once for whatever report it first sees another's vote for."""

    def handle(self, event: Event) -> None:
        message = getattr(event, "message", None)
        if isinstance(message, Vote) and self.member is not None and message.member != self.key.address:
            signature = self.key.sign(message.report, DOMAIN)
            self.do(self.to_all(msgspec.structs.replace(message, member=self.key.address, member_signature=signature)))
        super().handle(event)

    def say(self, message: PeerMessage) -> list[Effect]:
        if isinstance(message, Vote):
            return []
        if not isinstance(message, Seal):
            return [self.to_all(message)]
        lies = [msgspec.structs.replace(message, seal=keccak(bytes([i]))) for i in range(2)]
        return self.to_some(self.sign(lies[0]), self.sign(lies[1]))


class SignsAnything(Liar):
    """Acknowledges and holds whatever it is asked to, for every epoch near, and keeps nothing."""

    def handle(self, event: Event) -> None:
        if not isinstance(event, BatchReceived | CertificateReceived) or self.member is None:
            super().handle(event)
            return
        epoch = max(1, self.member.epoch + self.world.random.choice([-1, 0, 0, 0, 1]))
        if isinstance(event, BatchReceived):
            message: Any = Acknowledgement(epoch=epoch, subject=event.batch.subject)
        else:
            message = Holding(epoch=epoch, subject=event.certificate.subject)
        signed = Signed(message.epoch, message.subject, self.key.sign(message, DOMAIN))
        self.do(Reply(event.reply, signed))


class WrongSettling(Liar):
    """Computes something else from what is true: an operator that changed its own code."""

    def do(self, effect: Effect) -> None:
        if isinstance(effect, Settle):
            effect = effect._replace(anchor=msgspec.structs.replace(effect.anchor, buyers=()))
        super().do(effect)


class Mixed(Liar):
    """Something else every time."""

    def say(self, message: PeerMessage) -> list[Effect]:
        return self.world.random.choice(TALKERS).say(self, message)

    _vote = WrongVotes._vote


TALKERS: list[Any] = [
    Liar, TwoObservations, Withholding, Hoarding, SelectiveLeader, TwoManifests, Garbage, Replaying, WrongVotes,
    Copying,
]  # fmt: skip
KINDS: list[type[Host]] = [
    Silent, Crashing, TwoObservations, Withholding, Hoarding, SelectiveLeader, TwoManifests, Garbage, Replaying,
    WrongVotes, Copying, SignsAnything, WrongSettling, Mixed,
]  # fmt: skip


@dataclass(frozen=True)
class With:
    """Makes the hosts of a world in which one member is of this kind."""

    kind: type[Host]

    def __call__(self, world: World, index: int) -> Host:
        return (self.kind if index == world.seed % len(MEMBERS) else Host)(world, index)
