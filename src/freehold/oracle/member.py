"""A member of the quorum as a state machine without I/O: `on(event)` gives the effects that follow, in order.

    chain ----> ChainView ----> anchor: close the epoch, open its Round ----> manifest, Settle, Seal, Vote, Submit
                         +----> accepted: commit what the chain took, and only that; replay it where it was missed
                         +----> revoked: go back to before it, and settle again, attempt + 1
    clients --> Gathering: acknowledge batches, hold certificates

Epoch e is the one after the last final accepted report. A member closes e by signing its observation, and from then
on its open epoch is e+1: it signs nothing more that names e. What it signs is on disk before it is sent (`effects`),
so a restarted member goes on from its records and never contradicts itself. One that is in no set of the epoch follows,
replays and serves, and signs nothing.

A report that does not follow from its manifest, or is about another anchor than the chain has (then no manifest is
waited for), makes its epoch *contested*: it is not committed, and nothing is signed
for later epochs until it is revoked. If it becomes active instead, that is a fault: this member stops.

Invariant: a member commits exactly the reports that the chain has accepted and finalised, after settling them itself,
except that it may begin with a state that an accepted report commits to.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping

from freehold.oracle.chain_records import Activated, Resumed, Revoked
from freehold.oracle.chain_view import PENDING, AcceptedEpoch, ChainView
from freehold.oracle.checks import Checks, PeerMessage, attempt_of, epoch_of, sender_of
from freehold.oracle.committed import Committed
from freehold.oracle.effects import Commit, Contest, Effect, Persist, Reply, Rollback, Send, Settle, Signed, Uncommit
from freehold.oracle.events import (
    BatchFetched,
    BatchReceived,
    BundleFetched,
    CertificateReceived,
    ChainAdvanced,
    Event,
    MessageReceived,
    PriceSeen,
    RolledBack,
    Settled,
    Tick,
)
from freehold.oracle.fetching import Fetching
from freehold.oracle.gathering import Gathering
from freehold.oracle.quotas import Standing
from freehold.oracle.records import (
    BATCH,
    CHAIN,
    EQUIVOCATION,
    HELD,
    MANIFEST,
    OBSERVATION,
    RESERVED,
    REVOKED,
    SEAL,
    VIEW,
    VOTE,
    Record,
)
from freehold.oracle.round import Round, Said, Work, signatures_of
from freehold.oracle.setup import Setup
from freehold.protocol.batches import Batch
from freehold.protocol.beacon import compute_beacon
from freehold.protocol.bundle import Bundle, check_report_signatures
from freehold.protocol.certificates import faults
from freehold.protocol.epoch import certified_subjects
from freehold.protocol.errors import Corrupt, FreeholdError, Unavailable
from freehold.protocol.messages import Acknowledgement, Holding, Manifest, Observation, Vote
from freehold.protocol.parameters import Parameters
from freehold.protocol.state import AnchorData, genesis
from freehold.protocol.units import ZERO_HASH, Address, Hash

SNAPSHOT_BLOCKS = 256
SETTLEMENTS = 4  # kept at once, one a view
UNSIGNED_TRIES = 2  # of each peer, until an accepted report is committed without all of its signatures


class Member:
    """`committed` and `records` are what the store has kept; both empty at the first start."""

    def __init__(
        self,
        setup: Setup,
        committed: Committed | None = None,
        records: Iterable[tuple[Record, Batch | None]] = (),
    ) -> None:
        self.setup = setup
        self.me = setup.key.address
        self.committed = committed or self._nothing()
        self.chain = ChainView(setup.start)
        self.gathering = Gathering(setup.domain, self.parameters_of, self.standing_of, setup.judges)
        self.checks = Checks(self.members_of, setup.domain)
        self.round: Round | None = None
        self.fault = ""
        self.contested = 0
        self.equivocations: list[str] = []
        self.work: Work = Counter()
        self._out: list[Effect] = []
        self._fetching = Fetching(setup.timing.retransmit, self._out)
        self._said: dict[tuple[int, int], Said] = {}
        self._observed: dict[int, dict[Hash, Observation]] = {}
        self._floors: dict[int, int] = {}
        self._rollback: int | None = None
        self._oldest: dict[Address, int] = {}
        self._backlog: deque[AcceptedEpoch] = deque()
        self._bundles: dict[int, Bundle] = {}
        self._settled: dict[Hash, Settled] = {}
        self._settling: Hash | None = None
        self._unsettleable: set[Hash] = set()
        self._early: dict[tuple[Address, type], PeerMessage] = {}
        self._finished: tuple[Vote, ...] = ()
        self._answered: dict[Address, int] = {}
        self._unsigned = 0
        self._price = 0
        self._now = 0
        self._has_time = False
        for record, batch in records:
            self._restore(record, batch)
        self._snapshot_block = self.chain.block.number
        self._meet()

    def _nothing(self) -> Committed:
        start = self.setup.start.block
        return Committed(genesis(start.number, start.hash, start.time), None)

    def _restore(self, record: Record, batch: Batch | None) -> None:
        if record.kind in (BATCH, HELD, RESERVED):
            self.gathering.restore(record, batch)
        elif record.kind == OBSERVATION and record.data is not None:
            observation = Observation.from_bytes(record.data)
            self._observed.setdefault(record.epoch, {})[observation.anchor] = observation
        elif record.kind in (VIEW, MANIFEST, SEAL, VOTE):
            self._said_of(record.epoch, int(record.key.split(" ")[1])).restore(record)
        elif record.kind == REVOKED:
            self._floors[record.epoch] = int(record.data or b"0")
        elif record.kind == EQUIVOCATION:
            self.equivocations.append(record.key)
        elif record.kind == CHAIN and record.data is not None:
            self.chain = ChainView.from_bytes(record.data, self.setup.start)

    def _said_of(self, epoch: int, attempt: int) -> Said:
        return self._said.setdefault((epoch, attempt), Said(epoch, attempt))

    # -- what others may ask --------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The open epoch: what this member signs names no earlier one."""
        closed = max([*self._observed, *self._floors], default=0)
        return max(self.chain.epoch, self.committed.epoch + 1, closed + 1)

    @property
    def is_level(self) -> bool:
        """Whether everything that the chain has accepted is committed here."""
        return not self._backlog and self._rollback is None and self.chain.epoch == self.committed.epoch + 1

    @property
    def beacon(self) -> Hash | None:
        """The open epoch's beacon, once its block is final and the epoch before it is committed here."""
        block = self.chain.beacon
        if block is None or self.chain.epoch != self.committed.epoch + 1 or self._rollback is not None:
            return None
        return compute_beacon(block.hash, self.committed.state.epoch.reveals)

    @property
    def peers(self) -> tuple[Address, ...]:
        """The other members: of the set in force, and of those that are scheduled."""
        epoch = self.chain.epoch
        later = [one.members for one in self.chain.membership if one.from_epoch > epoch]
        known = dict.fromkeys(member for members in (self.chain.members_of(epoch), *later) for member in members)
        return tuple(member for member in known if member != self.me)

    def members_of(self, epoch: int) -> tuple[Address, ...]:
        """The members of an epoch, as far as the chain has scheduled them."""
        return self.chain.members_of(epoch)

    def parameters_of(self, epoch: int) -> Parameters:
        """The parameters of an epoch, as far as the chain has scheduled them."""
        return self.chain.parameters_of(epoch)

    def is_member_in(self, epoch: int) -> bool:
        """Whether this member signs for that epoch."""
        return self.me in self.chain.members_of(epoch)

    def standing_of(self, sender: Address) -> Standing:
        """What a sender of evidence has at stake, as of the last final block."""
        if self.chain.is_bonded(sender):
            return Standing.BONDED
        return Standing.KNOWN if self.chain.is_known(sender) else Standing.STRANGE

    @property
    def price(self) -> int:
        """The price this member would observe: the one it was last told, or the one before that everybody knows."""
        last = self.chain.last_report
        return self._price or (last.price if last else self.setup.start.parameters.initial_price)

    @property
    def step(self) -> str:
        """What the epoch that is to be settled next waits for."""
        if self.contested:
            return "contest"
        if not self.is_level:
            return "wait"
        if not self.is_member_in(self.chain.epoch):
            return "follow"
        return self.round.step if self.round else "gather"

    # -- events ---------------------------------------------------------------------------------------------------

    def on(self, event: Event) -> list[Effect]:
        """Process one event; the effects that follow from it, in the order in which they must happen."""
        if isinstance(event, ChainAdvanced):
            self._on_chain(event)
        elif isinstance(event, BatchReceived):
            self._on_batch(event)
        elif isinstance(event, CertificateReceived):
            self._on_certificate(event)
        elif isinstance(event, MessageReceived):
            self._on_message(event.message)
        elif isinstance(event, Tick):
            self._on_tick(event.now)
        elif isinstance(event, PriceSeen):
            self._price = event.price
        elif isinstance(event, BatchFetched):
            self._on_batch_fetched(event)
        elif isinstance(event, BundleFetched):
            self._on_bundle_fetched(event)
        elif isinstance(event, RolledBack):
            self._on_rolled_back(event)
        else:
            self._on_settled(event)
        self._advance()
        self.equivocations += [
            record.key
            for effect in self._out
            if isinstance(effect, Persist)
            for record in effect.records
            if record.kind == EQUIVOCATION and record.key not in self.equivocations
        ]
        effects = list(self._out)
        self._out.clear()
        return effects

    def _on_chain(self, event: ChainAdvanced) -> None:
        for final in event.blocks:
            if self.fault:
                return
            try:
                happened = self.chain.process_block(final)
            except Corrupt as error:
                self.fault = error.message
                return
            for one in happened:
                if isinstance(one, AcceptedEpoch):
                    self._on_accepted(one)
                elif isinstance(one, Revoked):
                    self._on_revoked(one)
                elif isinstance(one, Resumed):
                    self._start_over(one.epoch)
                elif isinstance(one, Activated):
                    self._check_contested()
        self._meet()
        if self.is_level and self.chain.block.number >= self._snapshot_block + SNAPSHOT_BLOCKS:
            self._out.append(Persist((self._snapshot(),)))

    def _meet(self) -> None:
        """Ask those who are members now."""
        members = self.chain.members_of(self.chain.epoch)
        self._fetching.meet(self.peers, members.index(self.me) if self.me in members else 0)

    def _on_accepted(self, epoch: AcceptedEpoch) -> None:
        done = self.committed.epoch if self._rollback is None else self._rollback
        if epoch.accepted.report.epoch > done:
            self._backlog.append(epoch)

    def _on_revoked(self, revoked: Revoked) -> None:
        """Forget what was accepted from this epoch on; where it is committed here, go back to before it."""
        self._backlog = deque(head for head in self._backlog if head.accepted.report.epoch < revoked.epoch)
        self._start_over(revoked.epoch)
        last = self.committed
        if last.epoch >= revoked.epoch and last.attempt < self.chain.attempt_of(last.epoch):
            before = revoked.epoch - 1
            if self._rollback is None or before < self._rollback:
                self._rollback = before
                self._out.append(Rollback(before))

    def _start_over(self, epoch: int) -> None:
        """This epoch, and what was begun after it, is to be settled in another attempt."""
        if self.contested >= epoch:
            self.contested = 0
        if self.round is not None and self.round.epoch >= epoch:
            self.round = None
        self._clear()

    def _clear(self) -> None:
        self._settled.clear()
        self._unsettleable.clear()
        self._bundles.clear()
        self._settling = None
        self._fetching.keep_only(self.gathering.held)

    def _check_contested(self) -> None:
        if self.contested and self.chain.active >= self.contested:
            self.fault = (
                f"epoch {self.contested}: a report that does not follow from the chain and its manifest became "
                "active; nobody revoked it. This member signs nothing any more"
            )

    def _snapshot(self) -> Record:
        self._snapshot_block = self.chain.block.number
        return Record(CHAIN, "", self.committed.epoch, self.chain.to_bytes())

    def _check_signs(self, epoch: int) -> None:
        """Unavailable where this member signs nothing that names `epoch`."""
        if self.fault:
            raise Unavailable(f"this member has stopped: {self.fault}", epoch=epoch)
        if self.contested or self._rollback is not None:
            at = self.contested or self.chain.epoch
            raise Unavailable(f"epoch {at} is to be settled again; this member signs nothing until then", epoch=epoch)
        if not self.is_member_in(epoch):
            raise Unavailable(f"{self.me} is no member in epoch {epoch}", epoch=epoch)

    def _on_batch(self, event: BatchReceived) -> None:
        batch, epoch = event.batch, self.epoch
        try:
            self._check_signs(epoch)
            if self.chain.epoch > self.committed.epoch + 1:
                raise Unavailable("this member is catching up", epoch=epoch, committed=self.committed.epoch)
            state = self.committed.state if epoch == self.committed.epoch + 1 else None
            records = self.gathering.acknowledge(batch, event.data, epoch, state, self.chain.block.time)
        except FreeholdError as error:
            self._out.append(Reply(event.reply, error))
            return
        self._fetching.end(batch.subject)
        self._write(records)
        acknowledgement = Acknowledgement(epoch=epoch, subject=batch.subject)
        signature = self.setup.key.sign(acknowledgement, self.setup.domain)
        self._out.append(Reply(event.reply, Signed(epoch, batch.subject, signature)))

    def _on_certificate(self, event: CertificateReceived) -> None:
        certificate, epoch = event.certificate, self.epoch
        try:
            self._check_signs(epoch)
            self.checks.check_certificate(certificate)
            records = self.gathering.hold(certificate, epoch)
        except FreeholdError as error:
            self._out.append(Reply(event.reply, error))
            return
        self._write(records)
        if certificate.subject not in self.gathering.batches:
            self._fetching.want(certificate.subject)
        signature = self.setup.key.sign(Holding(epoch=epoch, subject=certificate.subject), self.setup.domain)
        self._out.append(Reply(event.reply, Signed(epoch, certificate.subject, signature)))

    def _write(self, records: list[Record]) -> None:
        if records:
            self._out.append(Persist(tuple(records)))

    def _on_tick(self, now: int) -> None:
        self._now, self._has_time = now, True
        self._fetching.on_tick(now)
        if self.round is not None and self.is_level and not self.fault:
            self.round.on_tick(now)

    def _on_message(self, message: PeerMessage) -> None:
        epoch, attempt = epoch_of(message), attempt_of(message)
        if not 1 <= epoch <= self.chain.epoch + 1:
            return
        sender = sender_of(message, self.chain.members_of(epoch))
        if sender == self.me:
            return
        try:
            self.checks.check_signer(message)
        except FreeholdError:
            return
        is_over = epoch <= self.committed.epoch and self._rollback is None
        if self.round is not None and self.round.epoch == epoch and attempt in (None, self.round.attempt):
            self.round.on_message(message)
        elif is_over and (attempt or 0) <= self.chain.attempt_of(epoch):
            self._answer_laggard(sender)
        else:
            self._early[sender, type(message)] = message

    def _answer_laggard(self, peer: Address) -> None:
        """A peer that is still at the epoch before: the signed report shows it that there is nothing left to do."""
        due = self._answered.get(peer)
        if self._finished and (due is None or self._now >= due):
            self._answered[peer] = self._now + self.setup.timing.retransmit
            self._out.extend(Send(peer, vote) for vote in self._finished)

    def _on_batch_fetched(self, event: BatchFetched) -> None:
        if event.found is None:
            self._fetching.fail(event.subject)
            return
        batch, data = event.found
        if not self._fetching.end(event.subject):
            return
        self._write(self.gathering.keep(batch, data, self.epoch))

    def _on_bundle_fetched(self, event: BundleFetched) -> None:
        head = self._backlog[0].accepted if self._backlog else None
        if head is None or head.report.epoch != event.epoch:
            self._fetching.end(event.epoch)
            return
        bundle = event.found
        if event.oldest is not None:
            self._oldest[event.peer] = event.oldest
        manifest = head.report.manifest
        if bundle is None or bundle.manifest.struct_hash() != manifest or bundle.previous != self._backlog[0].previous:
            self._fail_bundle(event.epoch)
            return
        self._bundles[event.epoch] = bundle
        self._unsettleable.discard(manifest)

    def _fail_bundle(self, epoch: int) -> None:
        tries = self._fetching.fail(epoch)
        if tries >= UNSIGNED_TRIES * len(self.peers):
            self._unsigned = epoch
        if tries >= len(self.peers):
            self._skip(epoch)

    def _skip(self, epoch: int) -> None:
        """Nobody has this epoch's bundle any more: go on from the first that at least one honest member has.

        The state that it begins with is the one that the accepted report before it commits to.
        """
        said = sorted(oldest for peer, oldest in self._oldest.items() if peer in self.peers)
        place = faults(len(self.chain.members_of(self.chain.epoch)))
        later = [head for head in self._backlog if len(said) > place and head.accepted.report.epoch >= said[place]]
        if later and said[place] > epoch:
            self._backlog = deque(later)
            self._oldest.clear()
            self._fetching.end(epoch)

    def _on_settled(self, event: Settled) -> None:
        if self._settling == event.manifest:
            self._settling = None
        if event.epoch != self.committed.epoch + 1:
            return
        if event.settlement is None and event.is_manifest:
            self._unsettleable.add(event.manifest)
            if self._bundles.pop(event.epoch, None):
                self._fail_bundle(event.epoch)
            return
        self._settled[event.manifest] = event
        if len(self._settled) > SETTLEMENTS:
            del self._settled[next(iter(self._settled))]
        if self.round is not None and event.settlement is not None and self.is_level and not self.fault:
            manifest = next((m for m in self.round.to_settle() if m.struct_hash() == event.manifest), None)
            if manifest is not None:
                self.round.seal(manifest, event.settlement.report)

    def _on_rolled_back(self, event: RolledBack) -> None:
        """The committed epochs after this one are void. What their manifests certified is held again, so that it is
        observed again, and none of their attempts is signed for once more."""
        if event.epoch != self._rollback:
            return
        last, self._rollback, self._finished = self.committed.epoch, None, ()
        self.committed = event.committed or self._nothing()
        records = []
        for epoch in range(event.epoch + 1, last + 1):
            self._floors[epoch] = max(self.chain.attempt_of(epoch), self._floors.get(epoch, 0))
            records.append(Record(REVOKED, str(epoch), epoch, str(self._floors[epoch]).encode()))
        for manifest in event.manifests:
            said = self._said_of(manifest.epoch, manifest.attempt)
            said.manifests[manifest.view] = manifest
            records.append(Record(MANIFEST, said.key(manifest.view), manifest.epoch, manifest.to_bytes()))
            certificates = [c for observation in manifest.observations for c in observation.certificates]
            records += self.gathering.take_back(certificates, event.batches, self.epoch)
        self._out.append(Uncommit(self.committed.epoch, tuple(records)))

    # -- what follows ---------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Commit what the chain has taken, close the epoch when its anchor is final, settle what waits for it."""
        if self._rollback is not None:
            return
        while self._backlog and not self.fault and self._commit_head():
            continue
        if self.is_level and self.round is None and not self.fault:
            self._open_round()
        if self._settling is None and not self.fault:
            self._start_settling()

    def _open_round(self) -> None:
        epoch, attempt, anchor = self.chain.epoch, self.chain.attempt, self.chain.anchor
        if anchor is None or not self._has_time or self.me not in anchor.members:
            return
        if attempt < self._floors.get(epoch, 0):  # an old block, read again: the chain goes on to revoke this attempt
            return
        observed = self._observed.setdefault(epoch, {})
        said, revoked = self._said_of(epoch, attempt), self._find_manifest(epoch, self.chain.revoked_manifest)
        has = self._has_batches
        self.round = Round(self.setup, self.checks, said, observed, anchor, self._out, has, self.work, revoked)
        before = self.committed.state.members.get(self.me)
        committed = before.commitment if before else ZERO_HASH
        self.round.open(self.gathering.observable(epoch), self.price, committed, self._now)
        early, self._early = self._early, {}
        for key, message in early.items():
            at = (epoch_of(message), attempt_of(message))
            if at in ((epoch, None), (epoch, attempt)):
                self.round.on_message(message)
            elif (at[0], at[1] or 0) > (epoch, attempt):
                self._early[key] = message

    def _find_manifest(self, epoch: int, manifest: Hash | None) -> Manifest | None:
        """The manifest with this hash, where it was seen in any attempt at the epoch."""
        known = [m for said in self._said.values() if said.epoch == epoch for m in said.manifests.values()]
        if self.round is not None and self.round.epoch == epoch:
            known += self.round.manifests.values()
        if epoch in self._bundles:
            known.append(self._bundles[epoch].manifest)
        return next((m for m in known if m.epoch == epoch and m.struct_hash() == manifest), None)

    def _has_batches(self, manifest: Manifest) -> bool:
        """Whether everything that the manifest certifies is here; the rest is asked for."""
        missing = [s for s in certified_subjects(manifest) if s not in self.gathering.batches]
        for subject in missing:
            self._fetching.want(subject)
        return not missing

    def _start_settling(self) -> None:
        if self._backlog:
            head = self._backlog[0]
            wanted = head.accepted.report.manifest
            manifest = self._find_manifest(head.accepted.report.epoch, wanted)
            if manifest is None or manifest.epoch != self.committed.epoch + 1 or self.contested:
                return
            if wanted in self._settled.keys() | self._unsettleable:
                return
            bundle = self._bundles.get(manifest.epoch)
            if bundle is not None or self._has_batches(manifest):
                self._settle(manifest, head.anchor, bundle)
        elif self.round is not None:
            for manifest in self.round.to_settle():
                if manifest.struct_hash() not in self._unsettleable and self._has_batches(manifest):
                    self._settle(manifest, self.round.anchor, None)
                    return

    def _settle(self, manifest: Manifest, anchor: AnchorData, bundle: Bundle | None) -> None:
        self._settling = manifest.struct_hash()
        known = self.round.manifests.values() if self.round else ()
        is_checked = any(manifest is one for one in known)
        batches = bundle.batches if bundle else {}
        self._out.append(Settle(self.committed.state, manifest, anchor, batches, is_checked))

    def _commit_head(self) -> bool:
        """Commit the oldest accepted epoch that is not committed yet, if all that it takes is here."""
        head = self._backlog[0]
        report = head.accepted.report
        if report.epoch <= self.committed.epoch:
            self._backlog.popleft()
            return True
        if self.contested:
            return False
        manifest, settled = self._find_manifest(report.epoch, report.manifest), self._settled.get(report.manifest)
        if not head.is_anchored:
            self._contest(head, manifest, settled)
            return False
        if report.epoch > self.committed.epoch + 1 and not self._adopt(head):
            return False
        if manifest is None or report.manifest in self._unsettleable:
            self._fetching.want(report.epoch)
        if manifest is None or settled is None:
            return False
        if settled.settlement is None or settled.settlement.report != report:
            self._contest(head, manifest, settled)
            return False
        signatures = self._signatures_of(head)
        if signatures is None and self._unsigned != report.epoch:
            self._fetching.want(report.epoch)
            return False
        self._backlog.popleft()
        self._commit(head, manifest, settled, signatures or (0, b""))
        return True

    def _adopt(self, head: AcceptedEpoch) -> bool:
        """Begin with the state before this epoch, from its bundle: the accepted report before commits to it."""
        bundle = self._bundles.get(head.accepted.report.epoch)
        if bundle is None or head.previous is None:
            self._fetching.want(head.accepted.report.epoch)
            return False
        self.committed = Committed(bundle.state, head.previous)
        return True

    def _contest(self, head: AcceptedEpoch, manifest: Manifest | None, settled: Settled | None) -> None:
        report = head.accepted.report
        self.contested, self.round = report.epoch, None
        if manifest is not None and settled is not None:
            signatures = self._signatures_of(head) or (head.accepted.signers, b"")
            batches = {s: settled.batches[s] for s in certified_subjects(manifest) if s in settled.batches}
            self._out.append(Contest(self._bundle(head, manifest, batches, signatures)))
        self._check_contested()

    def _bundle(
        self, head: AcceptedEpoch, manifest: Manifest, batches: Mapping[Hash, Batch], signatures: tuple[int, bytes]
    ) -> Bundle:
        return Bundle(
            self.setup.domain,
            head.anchor,
            head.previous,
            self.committed.state,
            manifest,
            batches,
            head.accepted.report,
            *signatures,
        )

    def _signatures_of(self, head: AcceptedEpoch) -> tuple[int, bytes] | None:
        """Who signed the accepted report: by the transaction, by the votes seen, or by a peer's bundle."""
        accepted, report = head.accepted, head.accepted.report
        if accepted.signatures:
            return accepted.signers, accepted.signatures
        if self.round is not None and self.round.epoch == report.epoch:
            votes = self.round.votes_for(report.struct_hash(), report.view)
            if votes:
                return signatures_of(votes, head.anchor.members)
        bundle = self._bundles.get(report.epoch)
        if bundle is None:
            return None
        try:
            check_report_signatures(report, bundle.signers, bundle.signatures, head.anchor.members, self.setup.domain)
        except FreeholdError:
            del self._bundles[report.epoch]
            self._fail_bundle(report.epoch)
            return None
        return bundle.signers, bundle.signatures

    def _commit(self, head: AcceptedEpoch, manifest: Manifest, settled: Settled, signatures: tuple[int, bytes]) -> None:
        assert settled.settlement is not None
        report, epoch = head.accepted.report, head.accepted.report.epoch
        bundle = self._bundle(head, manifest, settled.batches, signatures)
        records = self.gathering.close(epoch, certified_subjects(manifest)) + self._forget(epoch)
        self._finished = ()
        if self.round is not None and self.round.epoch == epoch:
            self._finished = self.round.votes_for(report.struct_hash(), report.view)
        self.committed = Committed(settled.settlement.state, report)
        self.round = None
        self._clear()
        if self.is_level:
            records.append(self._snapshot())
        self._out.append(Commit(bundle, settled.settlement, tuple(records)))

    def _forget(self, epoch: int) -> list[Record]:
        """Delete what was said about attempts that are over: the chain has taken one, and if that is revoked, signs
        the next. Observations are needed again then, so they stay until the epoch is final for good. What was said
        about an attempt still to come stays too: where old blocks are read again, the chain goes on to revoke this one.
        """
        records = []
        for over in [key for key in self._said if key[0] <= epoch and self._is_over(*key)]:
            records += self._said.pop(over).forget()
        final = min(epoch, max(self.chain.active, self.chain.epoch - 1 - PENDING))
        for e in [e for e in self._observed if e <= final]:
            records += [Record(OBSERVATION, f"{e} {anchor}", e, None) for anchor in self._observed.pop(e)]
        for e in [e for e in self._floors if e <= final]:
            del self._floors[e]
            records.append(Record(REVOKED, str(e), e, None))
        return records

    def _is_over(self, epoch: int, attempt: int) -> bool:
        return epoch <= self.chain.active or attempt <= self.chain.attempt_of(epoch)
