"""One epoch's agreement at one member: from its observation to a report that Q members signed.

Views have no locks: several may gather Q votes, and the chain's first accepted report counts (design, section 4.8).
What must hold is less: one observation an epoch, one manifest a leader and view, one vote a member and view, each on
disk before it is sent; a restarted member finds them in its records and goes on from there. A vote may be given in
any view up to the member's own, so that members whose clocks drove them apart still meet.

Memory is bounded by members x views: per member one observation, its highest view, its votes in at most VIEW_WINDOW
views ahead; per view one manifest.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from freehold.oracle.checks import Checks, sender_of
from freehold.oracle.effects import Accuse, Broadcast, Effect, Persist, Send, Submit
from freehold.oracle.events import PeerMessage
from freehold.oracle.records import EQUIVOCATION, MANIFEST, OBSERVATION, VIEW, VOTE, Record
from freehold.oracle.setup import Setup
from freehold.protocol.certificates import leader
from freehold.protocol.errors import FreeholdError
from freehold.protocol.messages import Certificate, Manifest, Observation, Report, ViewChange, Vote
from freehold.protocol.state import AnchorData
from freehold.protocol.typed import canonical_json
from freehold.protocol.units import Address, Hash

VIEW_WINDOW = 32  # views ahead of this member's own for which it remembers what peers send
LONGEST_VIEW = 6  # doublings of a view's time
RETRANSMIT_DOUBLINGS = 3
RESUBMIT = 8  # turns until a report that the chain has not taken is submitted again


class Said:
    """What this member has written down about one epoch: all that it must not contradict."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.observation: Observation | None = None
        self.view = 0
        self.manifests: dict[int, Manifest] = {}
        self.votes: dict[int, Vote] = {}

    def restore(self, record: Record) -> None:
        """Take up a record of this epoch."""
        data = record.data or b""
        if record.kind == OBSERVATION:
            self.observation = Observation.from_bytes(data)
        elif record.kind == VIEW:
            self.view = ViewChange.from_bytes(data).view
        elif record.kind == MANIFEST:
            manifest = Manifest.from_bytes(data)
            self.manifests[manifest.view] = manifest
        elif record.kind == VOTE:
            vote = Vote.from_bytes(data)
            self.votes[vote.report.view] = vote


class Round:
    """`out` takes the effects. `has_batches` says whether a manifest's batches are all here (and fetches the rest)."""

    def __init__(
        self,
        setup: Setup,
        checks: Checks,
        said: Said,
        anchor: AnchorData,
        out: list[Effect],
        has_batches: Callable[[Manifest], bool],
    ) -> None:
        self.setup, self.checks, self.said, self.anchor = setup, checks, said, anchor
        self.epoch = anchor.epoch
        self.anchor_hash = anchor.struct_hash()
        self.observations: dict[Address, Observation] = {}
        self.manifests: dict[int, Manifest] = dict(said.manifests)
        self.votes: dict[int, dict[Address, Vote]] = {}
        self.certified: tuple[Vote, ...] = ()
        self._out, self._has_batches = out, has_batches
        self._views: dict[Address, int] = {}
        self._ahead: dict[Address, Manifest] = {}
        self._accused: set[Address] = set()
        self._deadline: int | None = None
        self._retransmit_at: int | None = None
        self._pause = setup.timing.retransmit
        self._submit_at: int | None = None
        self._answered: dict[Address, int] = {}
        self._now = 0

    # -- what this member says ------------------------------------------------------------------------------------

    def open(self, certificates: tuple[Certificate, ...], price: int, now: int) -> None:
        """Close the epoch: sign what this member holds and sees, unless it did so before a restart."""
        self._now = now
        said, key = self.said, self.setup.key
        if said.observation is None:
            observation = Observation(
                epoch=self.epoch, anchor=self.anchor_hash, price=price, certificates=certificates, member=key.address
            )
            signature = key.sign(observation, self.setup.domain)
            said.observation = msgspec.structs.replace(observation, member_signature=signature)
            self._persist(OBSERVATION, str(self.epoch), said.observation.to_bytes())
        self.observations[key.address] = said.observation
        self._views[key.address] = said.view
        for view, vote in said.votes.items():
            self.votes.setdefault(view, {})[key.address] = vote
        self._out.append(Broadcast(said.observation))
        self._start_view()
        self._propose()

    def _persist(self, kind: str, key: str, data: bytes) -> None:
        self._out.append(Persist((Record(kind, key, self.epoch, data),)))

    def _start_view(self) -> None:
        timing = self.setup.timing
        self._deadline = self._now + (timing.view << min(self.said.view, LONGEST_VIEW))
        self._pause = timing.retransmit
        self._retransmit_at = self._now + self._pause

    def _enter(self, view: int) -> None:
        self.said.view = view
        self._views[self.setup.key.address] = view
        change = self._view_change()
        self._persist(VIEW, str(self.epoch), change.to_bytes())
        self._out.append(Broadcast(change))
        self._start_view()
        ahead, self._ahead = self._ahead, {}
        for manifest in ahead.values():
            self.on_message(manifest)
        self._propose()

    def _view_change(self) -> ViewChange:
        key = self.setup.key
        change = ViewChange(epoch=self.epoch, view=self.said.view, member=key.address)
        return msgspec.structs.replace(change, member_signature=key.sign(change, self.setup.domain))

    def _propose(self) -> None:
        view, key = self.said.view, self.setup.key
        if leader(self.epoch, view, self.setup.members) != key.address:
            return
        if view in self.said.manifests:
            self._out.append(Broadcast(self.said.manifests[view]))
            return
        if len(self.observations) < self.setup.quorum:
            return
        chosen = tuple(self.observations.values())[: self.setup.quorum]
        manifest = Manifest(epoch=self.epoch, view=view, observations=chosen)
        signature = key.sign(manifest, self.setup.domain)
        manifest = msgspec.structs.replace(manifest, leader_signature=signature)
        self.said.manifests[view] = self.manifests[view] = manifest
        self._persist(MANIFEST, f"{self.epoch} {view}", manifest.to_bytes())
        self._out.append(Broadcast(manifest))

    def vote(self, manifest: Manifest, report: Report) -> None:
        """Sign the report that this manifest settles to: once in its view, on disk before it is sent."""
        view, key = manifest.view, self.setup.key
        if view in self.said.votes:
            return
        vote = Vote(report=report, member=key.address, member_signature=key.sign(report, self.setup.domain))
        self.said.votes[view] = vote
        records = [Record(VOTE, f"{self.epoch} {view}", self.epoch, vote.to_bytes())]
        if view not in self.said.manifests:
            self.said.manifests[view] = manifest
            records.append(Record(MANIFEST, f"{self.epoch} {view}", self.epoch, manifest.to_bytes()))
        self._out.append(Persist(tuple(records)))
        self._out.append(Broadcast(vote))
        self._count(vote)

    # -- what peers say -------------------------------------------------------------------------------------------

    def on_message(self, message: PeerMessage) -> None:
        """A peer's message about this epoch, its signer checked. What is wrong with it is a reason to ignore it."""
        try:
            if isinstance(message, Observation):
                self._on_observation(message)
            elif isinstance(message, Manifest):
                self._on_manifest(message)
            elif isinstance(message, ViewChange):
                self._on_view_change(message)
            else:
                self._on_vote(message)
        except FreeholdError:
            return

    def _on_observation(self, message: Observation) -> None:
        if message.member in self.observations:
            return
        self.checks.check_observation(message, self.anchor_hash)
        self.observations[message.member] = message
        self._propose()

    def _on_manifest(self, message: Manifest) -> None:
        if message.view in self.manifests or message.view > self.said.view + VIEW_WINDOW:
            return
        if message.view > self.said.view:
            self._ahead[sender_of(message, self.setup.members)] = message
            return
        self.checks.check_manifest(message, self.anchor_hash)
        self.manifests[message.view] = message
        self._has_batches(message)

    def _on_view_change(self, message: ViewChange) -> None:
        if message.view > self._views.get(message.member, 0):
            self._views[message.member] = message.view
        highest = sorted(self._views.values(), reverse=True)
        if len(highest) > self.setup.faults and highest[self.setup.faults] > self.said.view:
            self._enter(highest[self.setup.faults])
        self._answer(message.member, self.certified)

    def _on_vote(self, message: Vote) -> None:
        report = message.report
        if report.attempt != 0 or report.view > self.said.view + VIEW_WINDOW:
            return
        known = self.votes.get(report.view, {}).get(message.member)
        if known is None:
            self._count(message)
        elif known.report != report and message.member not in self._accused:
            self._accused.add(message.member)
            both = canonical_json([known.to_json(), message.to_json()])
            self._persist(EQUIVOCATION, f"{message.member} {self.epoch} {report.view}", both)
            self._out.append(Accuse(known, message))

    def _answer(self, peer: Address, messages: tuple[PeerMessage, ...]) -> None:
        if peer == self.setup.key.address or self._answered.get(peer, -1) + self.setup.timing.retransmit > self._now:
            return
        if messages:
            self._answered[peer] = self._now
            self._out.extend(Send(peer, message) for message in messages)

    def _count(self, vote: Vote) -> None:
        votes = self.votes.setdefault(vote.report.view, {})
        votes[vote.member] = vote
        self.certified = self.certified or self.votes_for(vote.report.struct_hash(), vote.report.view)
        if self.certified and self._submit_at is None:
            view = self.certified[0].report.view
            turn = (self.setup.position - (self.epoch + view)) % len(self.setup.members)
            self._submit_at = self._now + turn * self.setup.timing.submit
            self._submit()

    def votes_for(self, report: Hash, view: int) -> tuple[Vote, ...]:
        """Q votes over this report in the members' order; none where there are fewer."""
        votes = self.votes.get(view, {})
        chosen = [votes[m] for m in self.setup.members if m in votes and votes[m].report.struct_hash() == report]
        return tuple(chosen[: self.setup.quorum]) if len(chosen) >= self.setup.quorum else ()

    # -- time -----------------------------------------------------------------------------------------------------

    def on_tick(self, now: int) -> None:
        """Submit when it is this member's turn, send again what may be lost, and give up on a slow leader."""
        self._now = now
        self._submit()
        if not self.certified and self._deadline is not None and now >= self._deadline:
            self._enter(self.said.view + 1)
        elif self._retransmit_at is not None and now >= self._retransmit_at:
            self._retransmit()

    def _submit(self) -> None:
        if self._submit_at is None or self._now < self._submit_at:
            return
        self._submit_at = self._now + RESUBMIT * self.setup.timing.submit
        self._out.append(Submit(self.certified[0].report, *signatures_of(self.certified, self.setup.members)))

    def _retransmit(self) -> None:
        self._pause = min(2 * self._pause, self.setup.timing.retransmit << RETRANSMIT_DOUBLINGS)
        self._retransmit_at = self._now + self._pause
        if self.said.observation is not None:
            self._out.append(Broadcast(self.said.observation))
        if self.said.view:
            self._out.append(Broadcast(self._view_change()))
        view = self.said.view
        if view in self.said.manifests and leader(self.epoch, view, self.setup.members) == self.setup.key.address:
            self._out.append(Broadcast(self.said.manifests[view]))
        for voted in sorted(self.said.votes, reverse=True)[:2]:
            self._out.append(Broadcast(self.said.votes[voted]))

    def to_settle(self) -> list[Manifest]:
        """Manifests that this member has not voted on yet and may: the newest view first."""
        return [self.manifests[v] for v in sorted(self.manifests, reverse=True) if v not in self.said.votes]

    @property
    def step(self) -> str:
        """Where the epoch stands, in a word."""
        if self.certified:
            return "submit"
        if self.said.view in self.said.votes:
            return "sign"
        if self.said.view in self.manifests:
            return "settle"
        return "manifest" if len(self.observations) >= self.setup.quorum else "observe"


def signatures_of(votes: tuple[Vote, ...], members: tuple[Address, ...]) -> tuple[int, bytes]:
    """(bitmap of the signers, their signatures) of votes that stand in the members' order."""
    signers = sum(1 << members.index(vote.member) for vote in votes)
    return signers, b"".join(vote.member_signature for vote in votes)
