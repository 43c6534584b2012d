"""One attempt at an epoch at one member: from its observation to a report that Q members signed.

    observation ----> manifest ----> seal ---- Q seals ----> vote ---- Q votes ----> report

Views have no locks: several may gather Q votes, and the chain's first accepted report counts (design, section 4.8).
What must hold is less: one observation an anchor, one manifest a leader and view, one seal and one vote a member and
view, each on disk before it is sent; a restarted member finds them in its records and goes on from there. A vote may
be given in any view up to the member's own, so that members whose clocks drove them apart still meet.

A seal hides the report's hash behind a salt that only its member knows; nobody shows a vote before Q members have
sealed, so a report cannot be copied from another's vote. Q honest members are enough to seal and to vote: f others
stall nothing. Who votes without having sealed signs all the same; `work` says so, and nothing more follows from it.

Memory is bounded by members x views: per member one observation, its highest view, its seals and votes in at most
VIEW_WINDOW views ahead; per view one manifest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec

from freehold.oracle.checks import Checks, PeerMessage, sender_of
from freehold.oracle.effects import Accuse, Broadcast, Effect, Persist, Send, Submit
from freehold.oracle.hidden import compute_seal, derive_salt, derive_secret
from freehold.oracle.records import EQUIVOCATION, MANIFEST, OBSERVATION, SEAL, VIEW, VOTE, Record
from freehold.oracle.setup import Setup
from freehold.protocol.certificates import faults, leader, quorum
from freehold.protocol.errors import FreeholdError
from freehold.protocol.messages import Certificate, Manifest, Observation, Report, Seal, ViewChange, Vote
from freehold.protocol.state import AnchorData
from freehold.protocol.typed import canonical_json, keccak
from freehold.protocol.units import Address, Hash

VIEW_WINDOW = 32  # views ahead of this member's own for which it remembers what peers send
LONGEST_VIEW = 6  # doublings of a view's time
RETRANSMIT_DOUBLINGS = 3
RESUBMIT = 8  # turns until a report that the chain has not taken is submitted again
PROVEN, LATE, UNPROVEN = "proven", "late", "unproven"  # what a vote's seal says of its member's work

Work = Counter[tuple[Address, str]]


class Said:
    """What this member has written down about one attempt at an epoch: all that it must not contradict."""

    def __init__(self, epoch: int, attempt: int) -> None:
        self.epoch, self.attempt = epoch, attempt
        self.view = 0
        self.manifests: dict[int, Manifest] = {}
        self.seals: dict[int, Seal] = {}
        self.votes: dict[int, Vote] = {}

    def key(self, *view: int) -> str:
        """The key of a record about this attempt."""
        return " ".join(str(part) for part in (self.epoch, self.attempt, *view))

    def restore(self, record: Record) -> None:
        """Take up a record of this attempt."""
        data = record.data or b""
        if record.kind == VIEW:
            self.view = ViewChange.from_bytes(data).view
        elif record.kind == MANIFEST:
            manifest = Manifest.from_bytes(data)
            self.manifests[manifest.view] = manifest
        elif record.kind == SEAL:
            seal = Seal.from_bytes(data)
            self.seals[seal.view] = seal
        elif record.kind == VOTE:
            vote = Vote.from_bytes(data)
            self.votes[vote.report.view] = vote

    def forget(self) -> list[Record]:
        """What deletes all of it."""
        records = [Record(VIEW, self.key(), self.epoch, None)]
        for kind, views in ((MANIFEST, self.manifests), (SEAL, self.seals), (VOTE, self.votes)):
            records += [Record(kind, self.key(view), self.epoch, None) for view in views]
        return records


class Round:
    """`observed` are this member's observations of the epoch, by anchor; `revoked` is the manifest of the attempt
    before, where it is known. `has_batches` says whether a manifest's batches are all here (and fetches the rest).
    """

    def __init__(
        self,
        setup: Setup,
        checks: Checks,
        said: Said,
        observed: dict[Hash, Observation],
        anchor: AnchorData,
        out: list[Effect],
        has_batches: Callable[[Manifest], bool],
        work: Work,
        revoked: Manifest | None = None,
    ) -> None:
        self.setup, self.checks, self.said, self.anchor = setup, checks, said, anchor
        self.epoch, self.attempt = said.epoch, said.attempt
        self.members = anchor.members
        self.me = setup.key.address
        self.others = tuple(member for member in self.members if member != self.me)
        self.quorum = quorum(len(self.members))
        self.anchor_hash = anchor.struct_hash()
        self.observations: dict[Address, Observation] = {}
        self.manifests = {v: m for v, m in said.manifests.items() if self._is_over_anchor(m)}
        # Views in which it spoke over another anchor: the report before was revoked meanwhile. One vote each, still.
        self._spent = said.manifests.keys() - self.manifests.keys()
        self.seals: dict[int, dict[Address, Hash]] = {}
        self.votes: dict[int, dict[Address, Vote]] = {}
        self.certified: tuple[Vote, ...] = ()
        self.work = work
        self._observed, self._revoked = observed, revoked
        self._out, self._has_batches = out, has_batches
        self._views: dict[Address, int] = {}
        self._ahead: dict[Address, Manifest] = {}
        self._accused: set[Address] = set()
        self._late: set[tuple[int, Address]] = set()
        self._released: set[int] = set()
        self._unsaid = set(said.seals)  # sealed before a restart, and perhaps never sent
        self._deadline: int | None = None
        self._patient_until = 0
        self._retransmit_at: int | None = None
        self._pause = setup.timing.retransmit
        self._submit_at: int | None = None
        self._answered: dict[Address, int] = {}
        self._now = 0

    # -- what this member says ------------------------------------------------------------------------------------

    def open(self, certificates: tuple[Certificate, ...], price: int, was_committed: Hash, now: int) -> None:
        """Close the epoch: sign what this member holds and sees, unless it did so before a restart.

        `was_committed` is its commitment in the manifest of the epoch before, zero if it had none there.
        """
        self._now = now
        if self.anchor_hash not in self._observed:
            self._observe(certificates, price, was_committed)
        own = self.observations[self.me] = self._observed[self.anchor_hash]
        self._views[self.me] = self.said.view
        for view in self.said.seals.keys() - self._spent:
            self.seals.setdefault(view, {})[self.me] = self.said.seals[view].seal
        self._say(own)
        if max(self._spent, default=-1) >= self.said.view:
            self._enter(max(self._spent) + 1)
        else:
            self._start_view()
            self._propose()

    def _is_over_anchor(self, manifest: Manifest) -> bool:
        return all(observation.anchor == self.anchor_hash for observation in manifest.observations)

    def _observe(self, certificates: tuple[Certificate, ...], price: int, was_committed: Hash) -> None:
        key, domain = self.setup.key, self.setup.domain
        before = derive_secret(key, domain, self.epoch - 1)
        # Over another anchor it has closed the epoch before: what it held then is what it promised to observe. And what
        # a revoked manifest had is not lost, whoever observes: others may rest on it.
        closed = next(iter(self._observed.values()), None)
        held = {c.subject: c for c in (*self._stood(), *(closed.certificates if closed else certificates))}
        observation = Observation(
            epoch=self.epoch,
            anchor=self.anchor_hash,
            price=closed.price if closed else price,
            commitment=keccak(derive_secret(key, domain, self.epoch)),
            reveal=before if keccak(before) == was_committed else Hash(bytes(32)),
            certificates=tuple(held[subject] for subject in sorted(held)),
            member=self.me,
        )
        observation = msgspec.structs.replace(observation, member_signature=key.sign(observation, domain))
        self._observed[self.anchor_hash] = observation
        self._persist(OBSERVATION, f"{self.epoch} {self.anchor_hash}", observation.to_bytes())

    def _stood(self) -> list[Certificate]:
        """The certificates of the revoked manifest that are any."""
        observations = self._revoked.observations if self._revoked else ()
        valid = []
        for certificate in {c.struct_hash(): c for o in observations for c in o.certificates}.values():
            try:
                self.checks.check_counts(certificate, self.epoch)
            except FreeholdError:
                continue
            valid.append(certificate)
        return valid

    def _persist(self, kind: str, key: str, data: bytes) -> None:
        self._out.append(Persist((Record(kind, key, self.epoch, data),)))

    def _say(self, message: PeerMessage) -> None:
        self._out.append(Broadcast(message, self.others))

    def _start_view(self) -> None:
        timing = self.setup.timing
        length = timing.view << min(self.said.view, LONGEST_VIEW)
        self._deadline, self._patient_until = self._now + length, self._now + length // 2
        self._pause = timing.retransmit
        self._retransmit_at = self._now + self._pause

    def _enter(self, view: int) -> None:
        self.said.view = view
        self._views[self.me] = view
        change = self._view_change()
        self._persist(VIEW, self.said.key(), change.to_bytes())
        self._say(change)
        self._start_view()
        ahead, self._ahead = self._ahead, {}
        for manifest in ahead.values():
            self.on_message(manifest)
        self._propose()

    def _view_change(self) -> ViewChange:
        key = self.setup.key
        change = ViewChange(epoch=self.epoch, attempt=self.attempt, view=self.said.view, member=self.me)
        return msgspec.structs.replace(change, member_signature=key.sign(change, self.setup.domain))

    def _is_leader(self) -> bool:
        return leader(self.epoch, self.attempt, self.said.view, self.members) == self.me

    def _propose(self) -> None:
        view = self.said.view
        if not self._is_leader():
            return
        if view in self._spent:
            return
        if view in self.said.manifests:
            self._say(self.said.manifests[view])
            return
        chosen = self._choose()
        if len(chosen) < self.quorum:
            return
        manifest = Manifest(epoch=self.epoch, attempt=self.attempt, view=view, observations=chosen)
        signature = self.setup.key.sign(manifest, self.setup.domain)
        manifest = msgspec.structs.replace(manifest, leader_signature=signature)
        self.said.manifests[view] = self.manifests[view] = manifest
        self._persist(MANIFEST, self.said.key(view), manifest.to_bytes())
        self._say(manifest)

    def _choose(self) -> tuple[Observation, ...]:
        """Those of the revoked manifest, where this member has its batches and they are over this anchor; or its
        observers' new ones, for which half a view is waited: others would reveal another beacon to the next epoch.
        After a turn of all leaders whatever is here will do: a dishonest quorum may have certified what nobody shows.
        """
        known = tuple(self.observations.values())
        if self._revoked is None or self.said.view >= len(self.members):
            return known[: self.quorum]
        before = self._revoked.observations
        if self._is_over_anchor(self._revoked):
            try:
                for observation in before:
                    self.checks.check_observation(observation, self.anchor_hash)
            except FreeholdError:
                return known[: self.quorum]
            if len(before) == self.quorum and self._has_batches(self._revoked):
                return before
        observers = {observation.member for observation in before}
        if self._now < self._patient_until and not observers <= self.observations.keys():
            return ()
        return tuple(sorted(known, key=lambda o: o.member not in observers)[: self.quorum])

    def seal(self, manifest: Manifest, report: Report) -> None:
        """Seal, and sign, the report that this manifest settles to: once in its view, on disk before it is sent."""
        view, key, domain = manifest.view, self.setup.key, self.setup.domain
        if view in self.said.votes:
            return
        salt = derive_salt(key, domain, self.epoch, self.attempt, view)
        hidden = compute_seal(salt, report.struct_hash(), self.me)
        seal = Seal(epoch=self.epoch, attempt=self.attempt, view=view, seal=hidden, member=self.me)
        seal = msgspec.structs.replace(seal, member_signature=key.sign(seal, domain))
        vote = Vote(report=report, salt=salt, member=self.me, member_signature=key.sign(report, domain))
        self.said.seals[view], self.said.votes[view] = seal, vote
        place = self.said.key(view)
        records = [
            Record(SEAL, place, self.epoch, seal.to_bytes()),
            Record(VOTE, place, self.epoch, vote.to_bytes()),
        ]
        if view not in self.said.manifests:
            self.said.manifests[view] = manifest
            records.append(Record(MANIFEST, place, self.epoch, manifest.to_bytes()))
        self._out.append(Persist(tuple(records)))
        self._say(seal)
        self.seals.setdefault(view, {})[self.me] = hidden
        self._release(view)

    def _release(self, view: int) -> None:
        """Show this member's vote once Q members have sealed their own. One that has voted has nothing to hide."""
        sealed = self.seals.get(view, {}).keys() | self.votes.get(view, {}).keys()
        if view not in self._own_votes() or view in self._released or len(sealed) < self.quorum:
            return
        self._released.add(view)
        if view in self._unsaid:
            self._say(self.said.seals[view])
        self._say(self.said.votes[view])
        self._count(self.said.votes[view])

    def _own_votes(self) -> set[int]:
        """The views in which this member voted for what follows from this anchor."""
        return self.said.votes.keys() - self._spent

    # -- what peers say -------------------------------------------------------------------------------------------

    def on_message(self, message: PeerMessage) -> None:
        """A peer's message about this attempt, its signer checked. What is wrong with it is a reason to ignore it."""
        try:
            if isinstance(message, Observation):
                self._on_observation(message)
            elif isinstance(message, Manifest):
                self._on_manifest(message)
            elif isinstance(message, ViewChange):
                self._on_view_change(message)
            elif isinstance(message, Seal):
                self._on_seal(message)
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
        if message.view in self._spent or message.view in self.manifests:
            return
        if message.view > self.said.view + VIEW_WINDOW:
            return
        if message.view > self.said.view:
            self._ahead[sender_of(message, self.members)] = message
            return
        self.checks.check_manifest(message, self.anchor_hash)
        self.manifests[message.view] = message
        self._has_batches(message)

    def _on_view_change(self, message: ViewChange) -> None:
        if message.view > self._views.get(message.member, 0):
            self._views[message.member] = message.view
        highest = sorted(self._views.values(), reverse=True)
        needed = faults(len(self.members))
        if len(highest) > needed and highest[needed] > self.said.view:
            self._enter(highest[needed])
        self._answer(message.member, self.certified)

    def _on_seal(self, message: Seal) -> None:
        if message.view > self.said.view + VIEW_WINDOW:
            return
        seals = self.seals.setdefault(message.view, {})
        if message.member in seals:
            return
        seals[message.member] = message.seal
        if self.votes.get(message.view):
            self._late.add((message.view, message.member))
        vote = self.votes.get(message.view, {}).get(message.member)
        if vote is not None and self._follows(vote.report) and self._judge_work(vote) == LATE:
            self.work[message.member, UNPROVEN] -= 1
            self.work[message.member, LATE] += 1
        self._release(message.view)

    def _on_vote(self, message: Vote) -> None:
        report = message.report
        if report.view > self.said.view + VIEW_WINDOW:
            return
        known = self.votes.get(report.view, {}).get(message.member)
        if known is None:
            self._count(message)
            self._release(report.view)
        elif known.report != report and message.member not in self._accused:
            self._accused.add(message.member)
            both = canonical_json([known.to_json(), message.to_json()])
            self._persist(EQUIVOCATION, f"{message.member} {self.said.key(report.view)}", both)
            self._out.append(Accuse(known, message))

    def _answer(self, peer: Address, messages: tuple[PeerMessage, ...]) -> None:
        if peer == self.me or self._answered.get(peer, -1) + self.setup.timing.retransmit > self._now:
            return
        if messages:
            self._answered[peer] = self._now
            self._out.extend(Send(peer, message) for message in messages)

    def _count(self, vote: Vote) -> None:
        view, member = vote.report.view, vote.member
        self.votes.setdefault(view, {})[member] = vote
        if member != self.me and self._follows(vote.report):
            self.work[member, self._judge_work(vote)] += 1
        self.certified = self.certified or self.votes_for(vote.report.struct_hash(), view)
        if self.certified and self._submit_at is None:
            first = self.epoch + self.attempt + self.certified[0].report.view
            turn = (self.members.index(self.me) - first) % len(self.members)
            self._submit_at = self._now + turn * self.setup.timing.submit
            self._submit()

    def _follows(self, report: Report) -> bool:
        """Whether the chain can take it: not one over a report before that was revoked meanwhile."""
        return report.previous == self.anchor.previous

    def _judge_work(self, vote: Vote) -> str:
        view, member = vote.report.view, vote.member
        if self.seals.get(view, {}).get(member) != compute_seal(vote.salt, vote.report.struct_hash(), member):
            return UNPROVEN
        return LATE if (view, member) in self._late else PROVEN

    def votes_for(self, report: Hash, view: int) -> tuple[Vote, ...]:
        """Q votes over this report in the members' order; none where there are fewer."""
        votes = self.votes.get(view, {})
        known = [votes[m] for m in self.members if m in votes and self._follows(votes[m].report)]
        chosen = [vote for vote in known if vote.report.struct_hash() == report]
        return tuple(chosen[: self.quorum]) if len(chosen) >= self.quorum else ()

    # -- time -----------------------------------------------------------------------------------------------------

    def on_tick(self, now: int) -> None:
        """Submit when it is this member's turn, send again what may be lost, and give up on a slow leader."""
        self._now = now
        self._submit()
        if not self.certified and self._deadline is not None and now >= self._deadline:
            self._enter(self.said.view + 1)
        elif self._retransmit_at is not None and now >= self._retransmit_at:
            self._retransmit()
        if self._revoked is not None and self.said.view not in self.said.manifests:
            self._propose()

    def _submit(self) -> None:
        if self._submit_at is None or self._now < self._submit_at:
            return
        self._submit_at = self._now + RESUBMIT * self.setup.timing.submit
        self._out.append(Submit(self.certified[0].report, *signatures_of(self.certified, self.members)))

    def _retransmit(self) -> None:
        self._pause = min(2 * self._pause, self.setup.timing.retransmit << RETRANSMIT_DOUBLINGS)
        self._retransmit_at = self._now + self._pause
        self._say(self._observed[self.anchor_hash])
        if self.said.view:
            self._say(self._view_change())
        view = self.said.view
        if view in self.said.manifests.keys() - self._spent and self._is_leader():
            self._say(self.said.manifests[view])
        for sealed in sorted(self._own_votes(), reverse=True)[:2]:
            self._say(self.said.seals[sealed])
            if sealed in self._released:
                self._say(self.said.votes[sealed])

    def to_settle(self) -> list[Manifest]:
        """Manifests that this member has not voted on yet and may: the newest view first."""
        return [self.manifests[v] for v in sorted(self.manifests, reverse=True) if v not in self.said.votes]

    @property
    def step(self) -> str:
        """Where the epoch stands, in a word."""
        if self.certified:
            return "submit"
        if self.said.view in self._released:
            return "sign"
        if self.said.view in self._own_votes():
            return "seal"
        if self.said.view in self.manifests:
            return "settle"
        return "manifest" if len(self.observations) >= self.quorum else "observe"


def signatures_of(votes: tuple[Vote, ...], members: tuple[Address, ...]) -> tuple[int, bytes]:
    """(bitmap of the signers, their signatures) of votes that stand in the members' order."""
    signers = sum(1 << members.index(vote.member) for vote in votes)
    return signers, b"".join(vote.member_signature for vote in votes)
