"""A member of the quorum as a state machine without I/O: `on(event)` gives the effects that follow, in order.

    chain ----> ChainView ----> anchor: close the epoch, open its Round ----> manifest, Settle, Vote, Submit
                         +----> accepted: commit what the chain took, and only that; replay it where it was missed
    clients --> Gathering: acknowledge batches, hold certificates

Epoch e is the one after the last final accepted report. A member closes e by signing its observation, and from then
on its open epoch is e+1: it signs nothing more that names e. What it signs is on disk before it is sent (`effects`),
so a restarted member goes on from its records and never contradicts itself.

Invariant: a member commits exactly the reports that the chain has accepted and finalised, after settling them itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from freehold.oracle.chain_view import AcceptedEpoch, ChainView
from freehold.oracle.checks import Checks, epoch_of, sender_of
from freehold.oracle.effects import Commit, Effect, Persist, Reply, Send, Settle, Signed
from freehold.oracle.events import (
    BatchFetched,
    BatchReceived,
    BundleFetched,
    CertificateReceived,
    ChainAdvanced,
    Event,
    MessageReceived,
    PeerMessage,
    PriceSeen,
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
    VIEW,
    VOTE,
    Record,
)
from freehold.oracle.round import Round, Said, signatures_of
from freehold.oracle.setup import Setup
from freehold.protocol.batches import Batch
from freehold.protocol.bundle import Bundle, check_report_signatures
from freehold.protocol.epoch import certified_subjects
from freehold.protocol.errors import Corrupt, FreeholdError, Unavailable
from freehold.protocol.messages import Acknowledgement, Holding, Manifest, Report, Vote
from freehold.protocol.reservations import ReservationContext
from freehold.protocol.state import AnchorData, State, genesis
from freehold.protocol.units import Address, Hash

SNAPSHOT_BLOCKS = 256
SETTLEMENTS = 4  # kept at once, one a view
UNSIGNED_TRIES = 2  # of each peer, until an accepted report is committed without all of its signatures


class Committed:
    """The last epoch that this member has committed: the state after it, and its report (none after epoch 0)."""

    def __init__(self, state: State, report: Report | None) -> None:
        self.state = state
        self.report = report

    @property
    def epoch(self) -> int:
        """Its number; 0 before the first report."""
        return self.state.epoch.epoch


class Member:
    """`committed` and `records` are what the store has kept; both empty at the first start."""

    def __init__(
        self,
        setup: Setup,
        committed: Committed | None = None,
        records: Iterable[tuple[Record, Batch | None]] = (),
    ) -> None:
        start = setup.start.block
        self.setup = setup
        self.committed = committed or Committed(genesis(start.number, start.hash, start.time), None)
        self.chain = ChainView(setup.start)
        self.gathering = Gathering(ReservationContext(setup.domain, setup.start.parameters), self.standing_of)
        self.checks = Checks(setup.members, setup.domain)
        self.round: Round | None = None
        self.fault = ""
        self.equivocations: list[str] = []
        self._out: list[Effect] = []
        self._fetching = Fetching(setup.others, setup.position, setup.timing.retransmit, self._out)
        self._said: dict[int, Said] = {}
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

    def _restore(self, record: Record, batch: Batch | None) -> None:
        if record.kind in (BATCH, HELD, RESERVED):
            self.gathering.restore(record, batch)
        elif record.kind in (OBSERVATION, VIEW, MANIFEST, VOTE) and record.epoch > self.committed.epoch:
            self._said.setdefault(record.epoch, Said(record.epoch)).restore(record)
        elif record.kind == EQUIVOCATION:
            self.equivocations.append(record.key)
        elif record.kind == CHAIN and record.data is not None:
            self.chain = ChainView.from_bytes(record.data, self.setup.start.parameters)

    # -- what others may ask --------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The open epoch: what this member signs names no earlier one."""
        closed = max((e for e, said in self._said.items() if said.observation is not None), default=0)
        return max(self.chain.epoch, self.committed.epoch + 1, closed + 1)

    @property
    def is_level(self) -> bool:
        """Whether everything that the chain has accepted is committed here."""
        return not self._backlog and self.chain.epoch == self.committed.epoch + 1

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
        if not self.is_level:
            return "wait"
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
                accepted = self.chain.process_block(final)
            except Corrupt as error:
                self.fault = error.message
                return
            if accepted is not None and accepted.accepted.report.epoch > self.committed.epoch:
                self._backlog.append(accepted)
        if self.is_level and self.chain.block.number >= self._snapshot_block + SNAPSHOT_BLOCKS:
            self._out.append(Persist((self._snapshot(),)))

    def _snapshot(self) -> Record:
        self._snapshot_block = self.chain.block.number
        return Record(CHAIN, "", self.committed.epoch, self.chain.to_bytes())

    def _on_batch(self, event: BatchReceived) -> None:
        batch, epoch = event.batch, self.epoch
        try:
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
        if self.round is not None and self.is_level:
            self.round.on_tick(now)

    def _on_message(self, message: PeerMessage) -> None:
        sender, epoch = sender_of(message, self.setup.members), epoch_of(message)
        if sender == self.setup.key.address or epoch > self.chain.epoch + 1:
            return
        try:
            self.checks.check_signer(message)
        except FreeholdError:
            return
        if epoch <= self.committed.epoch:
            self._answer_laggard(sender)
        elif self.round is not None and self.round.epoch == epoch:
            self.round.on_message(message)
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
        if bundle is None or bundle.manifest.struct_hash() != head.report.manifest:
            self._fail_bundle(event.epoch)
            return
        self._bundles[event.epoch] = bundle
        self._unsettleable.discard(head.report.manifest)

    def _fail_bundle(self, epoch: int) -> None:
        if self._fetching.fail(epoch) >= UNSIGNED_TRIES * len(self.setup.others):
            self._unsigned = epoch

    def _on_settled(self, event: Settled) -> None:
        if self._settling == event.manifest:
            self._settling = None
        if event.epoch != self.committed.epoch + 1:
            return
        if event.settlement is None:
            self._unsettleable.add(event.manifest)
            if self._bundles.pop(event.epoch, None):
                self._fail_bundle(event.epoch)
            return
        self._settled[event.manifest] = event
        if len(self._settled) > SETTLEMENTS:
            del self._settled[next(iter(self._settled))]
        if self.round is not None and not self._backlog:
            manifest = next((m for m in self.round.to_settle() if m.struct_hash() == event.manifest), None)
            if manifest is not None:
                self.round.vote(manifest, event.settlement.report)

    # -- what follows ---------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Commit what the chain has taken, close the epoch when its anchor is final, settle what waits for it."""
        while self._backlog and not self.fault and self._commit_head():
            continue
        if self.is_level and self.round is None and self.chain.anchor is not None and self._has_time:
            self._open_round()
        if self._settling is None and not self.fault:
            self._start_settling()

    def _open_round(self) -> None:
        assert self.chain.anchor is not None
        epoch = self.chain.epoch
        said = self._said.setdefault(epoch, Said(epoch))
        self.round = Round(self.setup, self.checks, said, self.chain.anchor, self._out, self._has_batches)
        self.round.open(self.gathering.observable(epoch), self.price, self._now)
        early = [message for message in self._early.values() if epoch_of(message) == epoch]
        self._early = {key: message for key, message in self._early.items() if epoch_of(message) > epoch}
        for message in early:
            self.round.on_message(message)

    def _has_batches(self, manifest: Manifest) -> bool:
        """Whether everything that the manifest certifies is here; the rest is asked for."""
        missing = [s for s in certified_subjects(manifest) if s not in self.gathering.batches]
        for subject in missing:
            self._fetching.want(subject)
        return not missing

    def _start_settling(self) -> None:
        if self._backlog:
            head = self._backlog[0]
            manifest = self._manifest_of(head.accepted.report)
            if manifest is None or head.accepted.report.manifest in self._settled.keys() | self._unsettleable:
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
        self._out.append(Settle(self.committed.state, manifest, anchor, bundle.batches if bundle else {}))

    def _manifest_of(self, report: Report) -> Manifest | None:
        known = list(self.round.manifests.values()) if self.round else []
        if report.epoch in self._said:
            known += self._said[report.epoch].manifests.values()
        if report.epoch in self._bundles:
            known.append(self._bundles[report.epoch].manifest)
        return next((m for m in known if m.epoch == report.epoch and m.struct_hash() == report.manifest), None)

    def _commit_head(self) -> bool:
        """Commit the oldest accepted epoch that is not committed yet, if all that it takes is here."""
        head = self._backlog[0]
        report = head.accepted.report
        if report.epoch <= self.committed.epoch:
            self._backlog.popleft()
            return True
        manifest, settled = self._manifest_of(report), self._settled.get(report.manifest)
        if manifest is None or report.manifest in self._unsettleable:
            self._fetching.want(report.epoch)
        if manifest is None or settled is None or settled.settlement is None:
            return False
        if settled.settlement.report != report:
            self.fault = f"epoch {report.epoch}: the chain took a report that does not follow from its manifest"
            return False
        signatures = self._signatures_of(head)
        if signatures is None and self._unsigned != report.epoch:
            self._fetching.want(report.epoch)
            return False
        self._backlog.popleft()
        self._commit(head, manifest, settled, signatures or (0, b""))
        return True

    def _signatures_of(self, head: AcceptedEpoch) -> tuple[int, bytes] | None:
        """Who signed the accepted report: by the transaction, by the votes seen, or by a peer's bundle."""
        accepted, report = head.accepted, head.accepted.report
        if accepted.signatures:
            return accepted.signers, accepted.signatures
        if self.round is not None and self.round.epoch == report.epoch:
            votes = self.round.votes_for(report.struct_hash(), report.view)
            if votes:
                return signatures_of(votes, self.setup.members)
        bundle = self._bundles.get(report.epoch)
        if bundle is None:
            return None
        try:
            check_report_signatures(report, bundle.signers, bundle.signatures, self.setup.members, self.setup.domain)
        except FreeholdError:
            del self._bundles[report.epoch]
            self._fail_bundle(report.epoch)
            return None
        return bundle.signers, bundle.signatures

    def _commit(self, head: AcceptedEpoch, manifest: Manifest, settled: Settled, signatures: tuple[int, bytes]) -> None:
        assert settled.settlement is not None
        report, epoch = head.accepted.report, head.accepted.report.epoch
        bundle = Bundle(
            self.setup.domain,
            self.setup.members,
            head.anchor,
            head.previous,
            self.committed.state,
            manifest,
            settled.batches,
            report,
            *signatures,
        )
        records = self.gathering.close(epoch, certified_subjects(manifest)) + self._forget(epoch)
        self._finished = ()
        if self.round is not None and self.round.epoch == epoch:
            self._finished = self.round.votes_for(report.struct_hash(), report.view)
        self.committed = Committed(settled.settlement.state, report)
        self.round = None
        self._settled.clear()
        self._unsettleable.clear()
        self._bundles.clear()
        self._settling = None
        self._fetching.keep_only(self.gathering.held)
        if self.is_level:
            records.append(self._snapshot())
        self._out.append(Commit(bundle, settled.settlement, tuple(records)))

    def _forget(self, epoch: int) -> list[Record]:
        """Delete what was said about epochs that are over: nobody can be contradicted there any more."""
        records = []
        for over in [e for e in self._said if e <= epoch]:
            said = self._said.pop(over)
            records += [Record(OBSERVATION, str(over), over, None), Record(VIEW, str(over), over, None)]
            records += [Record(MANIFEST, f"{over} {view}", over, None) for view in said.manifests]
            records += [Record(VOTE, f"{over} {view}", over, None) for view in said.votes]
        return records
