"""A witness of a schedule: it sees every message that leaves an honest member, over all its crashes, every durable
write, and every report that the chain takes, and objects at once to what must not be.

    left      two observations over an anchor, two manifests, seals or reports of one view, a view that fell, a vote
              that its seal does not open or that Q members have not sealed for, an answer for a closed epoch
    written   a commit of anything but a report that the chain has taken and that follows; a vote forgotten before the
              chain has taken a report of its attempt, or a later one
    taken     a report that is not what a plain `settle` makes of its manifest; a manifest without a certificate that
              f+1 honest members had on disk when they observed
    at last   what an honest member promised to observe and did not; a vote for what does not follow

Invariant: it looks only at messages, disks and the chain, never into a member's memory.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from freehold.oracle.chain_view import AcceptedEpoch
from freehold.oracle.hidden import compute_seal
from freehold.oracle.records import HELD, OBSERVATION, VOTE, Record
from freehold.protocol.batches import RESERVATION
from freehold.protocol.certificates import CERTIFICATE_EPOCHS, faults, quorum
from freehold.protocol.epoch import Settlement, certified_subjects, check_manifest
from freehold.protocol.keys import is_signed_by
from freehold.protocol.messages import Certificate, Holding, Manifest, Observation, Report, Seal, ViewChange, Vote
from freehold.protocol.state import genesis
from freehold.protocol.units import Address, Hash
from tests.oracle.simulation import DOMAIN, settle_once

if TYPE_CHECKING:
    from freehold.oracle.effects import Commit, Signed
    from tests.oracle.simulation import Host, World

Place = tuple[int, int, int]  # epoch, attempt, view


class Witness:
    """Of one world. Every method raises AssertionError with what is broken."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._observed: dict[tuple[Address, int, Hash], Observation] = {}
        self._proposed: dict[tuple[Address, Place], Hash] = {}
        self._sealed: dict[Place, dict[Address, Hash]] = defaultdict(dict)
        self._voted: dict[Place, dict[Address, Report]] = defaultdict(dict)
        self._views: dict[tuple[Address, int, int], int] = {}
        self._closed: dict[Address, int] = defaultdict(int)
        self._promised: dict[tuple[Address, int], set[Hash]] = defaultdict(set)
        self._had: dict[int, dict[Address, frozenset[Hash]]] = defaultdict(dict)
        self._states: dict[Hash | None, Any] = {}
        self.good: dict[Hash, Settlement] = {}
        self.taken: dict[int, int] = {}  # the latest attempt at each epoch of which the chain took a report
        self.settled = 0
        self.messages = 0
        self.calm_views: list[int] = []  # of the epochs that began after the faults had stopped
        self._last_was_calm = False

    # -- what leaves honest members ------------------------------------------------------------------------------

    def on_said(self, host: Host, message: object) -> None:
        """A message of an honest member goes out, to whomever; those of others that it passes on are not its own."""
        me = host.key.address
        self.messages += 1
        if isinstance(message, Manifest):
            place = (message.epoch, message.attempt, message.view)
            if is_signed_by(message, message.leader_signature, me, DOMAIN):
                hash_ = message.struct_hash()
                assert self._proposed.setdefault((me, place), hash_) == hash_, f"{host.index}: two manifests of {place}"
        elif getattr(message, "member", None) != me:
            return
        elif isinstance(message, Observation):
            known = self._observed.setdefault((me, message.epoch, message.anchor), message)
            assert known.row_hash() == message.row_hash(), f"{host.index}: two observations of {message.epoch}"
            self._closed[me] = max(self._closed[me], message.epoch)
        elif isinstance(message, ViewChange):
            key = (me, message.epoch, message.attempt)
            assert self._views.get(key, 0) <= message.view, f"{host.index}: its view fell in {key}"
            self._views[key] = message.view
        elif isinstance(message, Seal):
            place = (message.epoch, message.attempt, message.view)
            assert self._sealed[place].setdefault(me, message.seal) == message.seal, f"{host.index}: two seals {place}"
        elif isinstance(message, Vote):
            self._on_vote(host, message)

    def _on_vote(self, host: Host, vote: Vote) -> None:
        report, me = vote.report, vote.member
        place = (report.epoch, report.attempt, report.view)
        assert self._voted[place].setdefault(me, report) == report, f"{host.index}: two reports of {place}"
        seal = compute_seal(vote.salt, report.struct_hash(), me)
        assert self._sealed[place].get(me) == seal, f"{host.index}: its vote does not open its seal of {place}"
        members = self._world.chain.view.members_of(report.epoch)
        liars = sum(member not in self._honest for member in members)
        sealed = sum(member in members for member in self._sealed[place])
        assert sealed + liars >= quorum(len(members)), f"{host.index}: voted in {place} before Q members sealed"

    @property
    def _honest(self) -> set[Address]:
        return {host.key.address for host in self._world.honest}

    def on_answered(self, host: Host, answer: Signed) -> None:
        """An honest member's acknowledgement or holding goes out."""
        me = host.key.address
        assert answer.epoch > self._closed[me], f"{host.index}: signs for epoch {answer.epoch} after closing it"
        holding = Holding(epoch=answer.epoch, subject=answer.subject)
        if is_signed_by(holding, answer.signature, me, DOMAIN):
            self._promised[me, answer.epoch].add(answer.subject)

    # -- what honest members write -------------------------------------------------------------------------------

    def on_written(self, host: Host, record: Record) -> None:
        """A record is about to be durable on an honest member's disk."""
        if record.kind == VOTE and record.data is None:
            epoch, attempt, _ = map(int, record.key.split(" "))
            assert self.taken.get(epoch, -1) >= attempt, f"{host.index}: forgets what it signed in {record.key}"
        if record.kind != OBSERVATION or record.data is None or host.key.address in self._had[record.epoch]:
            return
        held = [Certificate.from_bytes(one.data or b"") for one in host.disk.values() if one.kind == HELD]
        self._had[record.epoch][host.key.address] = frozenset(c.subject for c in held if self._counts(c, record.epoch))

    def _counts(self, certificate: Certificate, epoch: int) -> bool:
        batch = self._world.batches.get(certificate.subject)
        if batch is not None and batch.header.kind == RESERVATION:
            return certificate.epoch == epoch
        return epoch - CERTIFICATE_EPOCHS <= certificate.epoch <= epoch

    def on_committed(self, host: Host, effect: Commit) -> None:
        """An honest member commits an epoch."""
        report = effect.bundle.report
        assert report.struct_hash() in self.good, f"{host.index}: commits a report that the chain never took"
        root = self.good[report.struct_hash()].state.root()
        assert effect.settlement.state.root() == root, f"{host.index}: commits another state"

    # -- what the chain takes ------------------------------------------------------------------------------------

    def on_accepted(self, accepted: AcceptedEpoch) -> None:
        """The chain took a report that no dishonest quorum made: it is what anybody would compute."""
        report, world = accepted.accepted.report, self._world
        block = world.start.block
        state = genesis(block.number, block.hash, block.time)
        if accepted.previous is not None:
            state = self.good[accepted.previous.struct_hash()].state
        manifest = world.manifests[report.manifest]
        check_manifest(manifest, accepted.anchor, DOMAIN)
        subjects = certified_subjects(manifest)
        settlement = settle_once(state, manifest, {s: world.batches[s] for s in subjects}, accepted.anchor)
        assert settlement.report == report, f"epoch {report.epoch}: a wrong root was taken"
        self.good[report.struct_hash()] = settlement
        self._check_observed(accepted, set(subjects))
        self.settled += 1
        if self._last_was_calm:
            self.calm_views.append(report.view)
        self._last_was_calm = world.is_calm

    def _check_observed(self, accepted: AcceptedEpoch, subjects: set[Hash]) -> None:
        epoch, members = accepted.accepted.report.epoch, accepted.anchor.members
        before: set[Hash] = set()
        for one in self._world.chain.accepted[: epoch - 1]:
            manifest = self._world.manifests.get(one.accepted.report.manifest)
            before |= set(certified_subjects(manifest)) if manifest else set()
        holders: dict[Hash, int] = defaultdict(int)
        for member, had in self._had[epoch].items():
            if (member, epoch, accepted.anchor.struct_hash()) in self._observed and member in members:
                for subject in had:
                    holders[subject] += 1
        for subject, count in holders.items():
            if count > faults(len(members)) and subject not in before:
                assert subject in subjects, f"{subject}, held by {count}, is left out of epoch {epoch}"

    def check_promises(self) -> None:
        """At the end: whatever an honest member signed to hold stands in its observation, or in an earlier manifest."""
        committed: list[set[Hash]] = [set()]
        for accepted in self._world.chain.accepted:
            manifest = self._world.manifests[accepted.accepted.report.manifest]
            committed.append(committed[-1] | set(certified_subjects(manifest)))
        for (member, epoch, _), observation in self._observed.items():
            stands = {certificate.subject for certificate in observation.certificates}
            before = committed[min(epoch, len(committed)) - 1]
            missing = self._promised[member, epoch] - stands - before
            assert not missing, f"{member} promised to observe {missing} in epoch {epoch}"

    def check_votes(self) -> None:
        """At the end: no honest member ever signed another report than the one that follows from its manifest."""
        anchors = {one.anchor.struct_hash(): one for one in self._world.chain.accepted}
        for votes in self._voted.values():
            for member, report in votes.items():
                accepted, manifest = anchors.get(report.anchor_hash), self._world.manifests.get(report.manifest)
                if accepted is None or manifest is None or report.previous != accepted.accepted.report.previous:
                    continue
                block = self._world.start.block
                state = genesis(block.number, block.hash, block.time)
                if accepted.previous is not None:
                    state = self.good[accepted.previous.struct_hash()].state
                batches = {s: self._world.batches[s] for s in certified_subjects(manifest)}
                plain = settle_once(state, manifest, batches, accepted.anchor).report
                assert plain == report, f"{member} signed a report that does not follow"
