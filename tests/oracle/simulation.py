"""Members in one process over a fake net, clock, disk and chain, driven by one seed.

    net     drops, delays, reorders and duplicates messages; partitions come and go
    disk    keeps what a Persist or Commit wrote whole, and nothing else; a crash may fall after every single effect
    clock   one heap of events in milliseconds: nothing waits, nothing is random but the seed
    chain   `fake_chain.py`: takes reports, now and then a wrong one; revokes wrong ones, now and then a good one

A schedule is World(seed, ...).run(): faults until `calm`, then a net that works, until every epoch up to the target
is committed by every honest member. `World.check` then compares what happened with what has to hold.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from freehold.oracle.chain_records import FinalBlock
from freehold.oracle.chain_view import Start
from freehold.oracle.committed import Committed
from freehold.oracle.effects import (
    Accuse,
    Broadcast,
    Commit,
    Contest,
    Effect,
    FetchBatch,
    FetchBundle,
    Persist,
    Reply,
    Rollback,
    Send,
    Settle,
    Signed,
    Submit,
    Uncommit,
)
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
from freehold.oracle.member import Member
from freehold.oracle.records import BATCH, Record
from freehold.oracle.setup import Setup, Timing
from freehold.protocol.batches import CLOSE, RESERVATION, Batch, decode_batch, encode_batch, kinds_of, make_batch
from freehold.protocol.bundle import Bundle, check_start
from freehold.protocol.certificates import make_certificate, quorum
from freehold.protocol.epoch import Settlement, certified_subjects, check_manifest, settle
from freehold.protocol.errors import FreeholdError
from freehold.protocol.keys import Key, is_signed_by
from freehold.protocol.messages import (
    Acknowledgement,
    Certificate,
    Close,
    Holding,
    Lock,
    Manifest,
    Observation,
    Report,
    Reservation,
    Seal,
    Vote,
)
from freehold.protocol.state import AnchorData, State
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain, keccak
from freehold.protocol.units import ONE, Address, Hash, Signature
from tests.oracle.fake_chain import KEYS, MEMBERS, START, FakeChain

DOMAIN = Domain(31337, Address(b"\x0c" * 20))
CLIENTS = [Key(keccak(f"client {i}".encode())) for i in range(2)]
NODE = Key(keccak(b"node"))
TIMING = Timing(view=1_500, retransmit=300, submit=300)
KINDS = kinds_of({})
TICK, BLOCK, LIMIT = 250, 1_000, 400_000
CREDITS = 100 * ONE

_SETTLED: dict[tuple[Hash, Hash, Hash], Settlement] = {}


def settle_once(previous: State, manifest: Manifest, batches: dict[Hash, Batch], anchor: AnchorData) -> Settlement:
    """`settle`, remembered by all that it depends on: the members of a schedule compute the same thing."""
    key = (previous.root(), manifest.struct_hash(), anchor.struct_hash())
    if key not in _SETTLED:
        _SETTLED[key] = settle(previous, manifest, batches, anchor, {}, DOMAIN)
    return _SETTLED[key]


def forget_settled() -> None:
    """Between tests: what is remembered belongs to one version of the code."""
    _SETTLED.clear()


class Faults(NamedTuple):
    """How hostile the world is until `calm`: chances are per message, effect or second."""

    calm: int = 12_000
    drop: float = 0.1
    duplicate: float = 0.05
    slow: int = 150  # milliseconds that a message takes at most
    partition: float = 0.1
    crash: float = 0.003
    down: int = 3_000
    lie: float = 0  # that a dishonest quorum has its own report taken; it is revoked some blocks later
    revoke: float = 0  # that a good report is revoked: a demand that nobody answered


HOSTILE = Faults()
QUIET = Faults(calm=6_000, drop=0, duplicate=0, slow=60, partition=0, crash=0)
CRASHING = Faults(drop=0.02, duplicate=0.02, slow=80, partition=0.02, crash=0.03, down=800)
REVOKING = Faults(calm=25_000, drop=0.03, slow=80, partition=0.03, crash=0.01, down=800, lie=0.3, revoke=0.1)


class Host:
    """One member's process: the machine, its queue of effects, and the disk that outlives it."""

    def __init__(self, world: World, index: int) -> None:
        self.world, self.index, self.key = world, index, KEYS[index]
        self.setup = Setup(self.key, DOMAIN, world.start, {}, TIMING)
        self.disk: dict[tuple[str, str], Record] = {}
        self.batches: dict[Hash, tuple[Batch, bytes]] = {}
        self.bundles: dict[int, Bundle] = {}
        self.evidence: dict[int, Bundle] = {}
        self.states: dict[int, Committed] = {}
        self.member: Member | None = None
        self.life = 0
        self.said: list[Observation | Seal | Vote] = []
        self._queue: list[Effect] = []
        self._pumping = False
        self._fed = 0
        self.start()

    @property
    def alive(self) -> bool:
        return self.member is not None

    def start(self) -> None:
        if self.member is not None:
            return
        records = [(r, self.batches[Hash(r.key)][0] if r.kind == BATCH else None) for r in self.disk.values()]
        self.member = Member(self.setup, self.states[max(self.states)] if self.states else None, records)
        self._fed = self.member.chain.block.number
        self.handle(PriceSeen(ONE + self.index))
        self._tick(self.life)

    def crash(self) -> None:
        self.member = None
        self.life += 1
        self._queue.clear()

    def _tick(self, life: int) -> None:
        if self.life != life or self.member is None:
            return
        final = self.visible_blocks()
        until = min(len(final), self._fed + self.world.random.randint(0, 3))
        if until > self._fed:
            blocks, self._fed = final[self._fed : until], until
            self.handle(ChainAdvanced(tuple(blocks)))
        self.handle(Tick(self.clock()))
        self.world.after(TICK, lambda: self._tick(life))

    def visible_blocks(self) -> list[FinalBlock]:
        """The final blocks that this member's chain client has."""
        return self.world.chain.final

    def clock(self) -> int:
        """Milliseconds, as this member's own clock shows them."""
        return self.world.now

    def handle(self, event: Event) -> None:
        if self.member is None:
            return
        self._queue += self.outgoing(self.member.on(event))
        if self._queue and not self._pumping:
            self._pump()

    def outgoing(self, effects: list[Effect]) -> list[Effect]:
        """What a liar's host changes."""
        return effects

    def _pump(self) -> None:
        """Effects one by one; now and then the disk takes a while, and the rest waits in the queue."""
        self._pumping = True
        life = self.life
        while self._queue and self.life == life:
            effect = self._queue.pop(0)
            self.do(effect)
            if self.world.chance(self.world.faults.crash) and self.world.may_crash(self):
                self.crash()
                self.world.after(self.world.random.randint(10, self.world.faults.down), self.start)
            elif isinstance(effect, Persist) and self._queue and self.world.chance(0.3):
                self.world.after(self.world.random.randint(1, 40), lambda: self._resume(life))
                return
        self._pumping = False

    def _resume(self, life: int) -> None:
        self._pumping = False
        if self.life == life:
            self._pump()

    def do(self, effect: Effect) -> None:
        world, life = self.world, self.life
        if isinstance(effect, Persist | Commit | Uncommit):
            self._write(effect)
        elif isinstance(effect, Contest):
            self.evidence[effect.bundle.report.epoch] = effect.bundle
        elif isinstance(effect, Rollback):
            world.after(world.random.randint(1, 200), lambda: self._roll_back(effect, life))
        elif isinstance(effect, Broadcast):
            for peer in effect.peers:
                world.post(self, world.host(peer), MessageReceived(effect.message))
        elif isinstance(effect, Send):
            world.post(self, world.host(effect.peer), MessageReceived(effect.message))
        elif isinstance(effect, Reply):
            world.answer(self, effect)
        elif isinstance(effect, FetchBatch | FetchBundle):
            world.fetch(self, effect)
        elif isinstance(effect, Settle):
            world.after(world.random.randint(1, 200), lambda: self._settle(effect, life))
        elif isinstance(effect, Submit):
            world.note_submit(self, effect)
        else:
            assert isinstance(effect, Accuse)
            world.accused.add(effect.first.member)
        if isinstance(effect, Broadcast | Send):
            if isinstance(effect.message, Manifest):
                world.manifests[effect.message.struct_hash()] = effect.message
            elif isinstance(effect.message, Observation | Seal | Vote):
                self.said.append(effect.message)

    def _write(self, effect: Persist | Commit | Uncommit) -> None:
        for record in effect.records:
            if record.data is None:
                self.disk.pop((record.kind, record.key), None)
                continue
            self.disk[record.kind, record.key] = record
            if record.kind == BATCH:
                subject = Hash(record.key)
                batch = self.world.batches.get(subject) or decode_batch(record.data, KINDS, DOMAIN)
                self.batches[subject] = (batch, record.data)
        if isinstance(effect, Commit):
            epoch = effect.bundle.report.epoch
            self.states[epoch] = Committed(effect.settlement.state, effect.bundle.report)
            self.bundles[epoch] = effect.bundle
            for old in [e for e in self.bundles if e <= epoch - self.world.retention]:
                del self.bundles[old]
        elif isinstance(effect, Uncommit):
            self.states = {epoch: state for epoch, state in self.states.items() if epoch <= effect.epoch}
            self.bundles = {epoch: bundle for epoch, bundle in self.bundles.items() if epoch <= effect.epoch}

    def _roll_back(self, effect: Rollback, life: int) -> None:
        if self.life != life:
            return
        committed, first = self.states.get(effect.epoch), self.bundles.get(effect.epoch + 1)
        if committed is None and first is not None and first.previous is not None:
            committed = Committed(first.state, first.previous)
        after = [bundle for epoch, bundle in sorted(self.bundles.items()) if epoch > effect.epoch]
        batches = {s: (batch, encode_batch(batch)) for bundle in after for s, batch in bundle.batches.items()}
        self.handle(RolledBack(effect.epoch, committed, tuple(bundle.manifest for bundle in after), batches))

    def _settle(self, effect: Settle, life: int) -> None:
        if self.life != life:
            return
        batches = {s: b for s in certified_subjects(effect.manifest) for b in [self._find(effect, s)] if b is not None}
        settlement, failure, is_manifest = None, "", effect.is_checked
        try:
            if not is_manifest:
                check_manifest(effect.manifest, effect.anchor, DOMAIN)
                is_manifest = True
            settlement = settle_once(effect.previous, effect.manifest, batches, effect.anchor)
        except FreeholdError as error:
            failure = error.message
        hash_ = effect.manifest.struct_hash()
        self.handle(Settled(effect.manifest.epoch, hash_, settlement, batches, failure, is_manifest))

    def serve_batch(self, found: tuple[Batch, bytes] | None) -> tuple[Batch, bytes] | None:
        """What a liar's host changes."""
        return found

    def serve_bundle(self, found: Bundle | None) -> Bundle | None:
        """What a liar's host changes."""
        return found

    def _find(self, effect: Settle, subject: Hash) -> Batch | None:
        if subject in effect.batches:
            return effect.batches[subject]
        return self.batches[subject][0] if (BATCH, str(subject)) in self.disk else None


def _check(bundle: Bundle | None) -> Bundle | None:
    """As the engine does: nothing that begins with another state than the report before commits to."""
    try:
        if bundle is not None:
            check_start(bundle)
    except FreeholdError:
        return None
    return bundle


class Request:
    """A client's batch on its way to being held: sends, collects, and starts over while epochs change under it."""

    def __init__(self, world: World, batch: Batch) -> None:
        self.world, self.batch, self.subject = world, batch, batch.subject
        self.data = encode_batch(batch)
        self.acknowledged: dict[int, dict[Address, Signature]] = defaultdict(dict)
        self.holdings: dict[int, dict[Address, Signature]] = defaultdict(dict)
        self.certificate: Certificate | None = None
        self.certificates: dict[int, Certificate] = {}
        self.held: set[int] = set()
        self.tries = 0
        self._try()

    def _try(self) -> None:
        if self.held or self.tries > 30:
            return
        self.tries += 1
        for host in self.world.hosts:
            if self.certificate is None or self.world.chance(0.3):
                self.world.ask(host, lambda reply: BatchReceived(self.batch, self.data, reply), self._on_acknowledged)
            if self.certificate is not None:
                held = self.certificate
                self.world.ask(host, lambda reply, c=held: CertificateReceived(c, reply), self._on_held)
        self.world.after(self.world.random.randint(200, 900), self._try)

    def _on_acknowledged(self, member: Address, answer: Signed | FreeholdError) -> None:
        if isinstance(answer, FreeholdError):
            return
        message = Acknowledgement(epoch=answer.epoch, subject=self.subject)
        if not is_signed_by(message, answer.signature, member, DOMAIN):
            return
        members = self.world.chain.view.members_of(answer.epoch)
        signatures = self.acknowledged[answer.epoch]
        if member in members:
            signatures[member] = answer.signature
        if len(signatures) >= quorum(len(members)) and answer.epoch not in self.certificates:
            self.certificates[answer.epoch] = make_certificate(message, signatures, members)
            self.certificate = self.certificates[max(self.certificates)]

    def _on_held(self, member: Address, answer: Signed | FreeholdError) -> None:
        if isinstance(answer, FreeholdError):
            return
        message = Holding(epoch=answer.epoch, subject=self.subject)
        members = self.world.chain.view.members_of(answer.epoch)
        if member in members and is_signed_by(message, answer.signature, member, DOMAIN):
            self.holdings[answer.epoch][member] = answer.signature
            if len(self.holdings[answer.epoch]) >= quorum(len(members)):
                self.held.add(answer.epoch)


class World:
    """One schedule."""

    def __init__(
        self,
        seed: int,
        faults: Faults = HOSTILE,
        make_host: Callable[[World, int], Host] = Host,
        target: int = 2,
        load: int = 6,
        hosts: int = len(MEMBERS),
        retention: int = 1000,
        start: Start = START,
    ) -> None:
        self.seed, self.faults, self.target, self.retention = seed, faults, target, retention
        self.random, self.start = random.Random(seed), start
        self.now = 0
        self.is_calm = False
        self.chain = FakeChain(DOMAIN, start)
        self.chain.corrupt = self._lie
        self.lies: set[int] = set()
        self.batches: dict[Hash, Batch] = {}
        self.manifests: dict[Hash, Manifest] = {}
        self.requests: list[Request] = []
        self.accused: set[Address] = set()
        self.acknowledged: dict[tuple[Address, Address, int, int], Hash] = {}
        self.signed: list[str] = []
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self._replies: dict[int, tuple[Request | None, Callable[[Address, Any], None]]] = {}
        self._cut: set[frozenset[int]] = set()
        self.chain.register(CLIENTS[1].address, NODE.address, ONE)
        for client in CLIENTS:
            self.chain.buy(client.address, CREDITS)
        self.hosts = [make_host(self, i) for i in range(hosts)]
        self.honest = [host for host in self.hosts if type(host) is Host]
        self._mine()
        self._change_net()
        for i in range(load):
            self.after(self.random.randint(500, faults.calm), lambda i=i: self._client(i))
        self.after(faults.calm, self._calm_down)

    # -- the world's machinery

    def after(self, delay: int, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay, self._count, action))

    def chance(self, probability: float) -> bool:
        return not self.is_calm and self.random.random() < probability

    def host(self, member: Address) -> Host:
        return next(host for host in self.hosts if host.key.address == member)

    def may_crash(self, host: Host) -> bool:
        return True

    def run(self) -> World:
        while self._heap and self.now < LIMIT and not self.is_done():
            self.now, _, action = heapq.heappop(self._heap)
            action()
        return self

    def run_until(self, time: int) -> None:
        while self._heap and self._heap[0][0] <= time:
            self.now, _, action = heapq.heappop(self._heap)
            action()

    def is_done(self) -> bool:
        accepted = self.chain.accepted
        if not self.is_calm or self.lies or not all(host.alive for host in self.honest):
            return False
        last = max([self.target, *(epoch for request in self.requests for epoch in request.held)])
        for host in self.honest:
            committed = host.member.committed
            if not last <= committed.epoch <= len(accepted) or host.member.contested:
                return False
            if accepted[committed.epoch - 1].accepted.report != committed.report:
                return False
        return True

    def _calm_down(self) -> None:
        self.is_calm = True
        self._cut.clear()

    def _mine(self) -> None:
        if self.random.random() < 0.1:
            self.chain.shows_signatures = not self.chain.shows_signatures
        if self.chain.pending and not self.lies and self.chance(self.faults.revoke):
            self.chain.revoke(self.random.choice(self.chain.pending))
        self.chain.mine()
        self.after(BLOCK, self._mine)

    def _lie(self, report: Report) -> Report | None:
        return self.lie(report) if not self.lies and self.chance(self.faults.lie) else None

    def lie(self, report: Report) -> Report:
        """Another report for the same epoch, for the chain to take instead; it is revoked some blocks later."""
        self.lies.add(report.epoch)
        self.after(self.random.randint(1, 7) * BLOCK, lambda: self._revoke_lie(report.epoch))
        return msgspec.structs.replace(report, state_root=keccak(b"a lie"), subsidy=report.subsidy + 1)

    def _revoke_lie(self, epoch: int) -> None:
        self.lies.discard(epoch)
        self.chain.revoke(epoch)

    def _change_net(self) -> None:
        self._cut.clear()
        if self.chance(self.faults.partition * 4):
            count = len(self.hosts)
            lonely = self.random.randrange(count)
            self._cut = {frozenset({lonely, other}) for other in range(count) if other != lonely}
        if not self.is_calm:
            self.after(self.random.randint(500, 4_000), self._change_net)

    def _is_lost(self, source: int, target: int) -> bool:
        return frozenset({source, target}) in self._cut or self.chance(self.faults.drop)

    def _delay(self) -> int:
        return self.random.randint(1, 20 if self.is_calm else self.faults.slow)

    def post(self, source: Host, target: Host, event: Event) -> None:
        for _ in range(2 if self.chance(self.faults.duplicate) else 1):
            if not self._is_lost(source.index, target.index):
                self.after(self._delay(), lambda: target.handle(event))

    def fetch(self, source: Host, effect: FetchBatch | FetchBundle) -> None:
        life, target = source.life, self.host(effect.peer)

        def come_back(event: Event) -> None:
            if source.life == life:
                source.handle(event)

        def serve() -> None:
            lost = not target.alive or self._is_lost(source.index, target.index)
            if isinstance(effect, FetchBatch):
                known = (BATCH, str(effect.subject)) in target.disk and not lost
                found = target.batches[effect.subject] if known else None
                event: Event = BatchFetched(effect.subject, effect.peer, target.serve_batch(found))
            else:
                bundle = None if lost else target.bundles.get(effect.epoch, target.evidence.get(effect.epoch))
                oldest = min(target.bundles, default=None) if bundle is None and not lost else None
                served = target.serve_bundle(bundle)
                event = BundleFetched(effect.epoch, effect.peer, _check(served), oldest)
            self.after(self._delay(), lambda: come_back(event))

        self.after(self._delay(), serve)

    # -- clients

    def ask(self, host: Host, make: Callable[[int], Event], then: Callable[[Address, Any], None]) -> None:
        if self.chance(self.faults.drop):
            return
        self._count += 1
        reply = self._count
        self._replies[reply] = (None, then)
        self.after(self._delay(), lambda: host.handle(make(reply)))

    def answer(self, host: Host, effect: Reply) -> None:
        self._note_answer(host, effect)
        _, then = self._replies.pop(effect.reply, (None, None))
        if then is not None and not self.chance(self.faults.drop):
            self.after(self._delay(), lambda: then(host.key.address, effect.answer))

    def _client(self, i: int) -> None:
        key = self.random.choice(CLIENTS)
        if self.random.random() < 0.5:
            table = Table.of(Close, [Close(lease=keccak(f"lease {i}".encode()))])
            batch = make_batch(CLOSE, table, NODE, DOMAIN)
        else:
            batch = self.make_reservation(key, i)
        self.batches[batch.subject] = batch
        self.requests.append(Request(self, batch))

    def make_reservation(self, key: Key, i: int) -> Batch:
        """The number that the client believes to be next, and sometimes more credits than there are."""
        members = [host.member for host in self.honest if host.alive]
        last = max(
            (
                m.committed.state.clients[key.address].reservation
                for m in members
                if key.address in m.committed.state.clients
            ),
            default=0,
        )
        number = last + self.random.choice([1, 1, 1, 2])
        lease = keccak(f"lease of {key.address}".encode())
        lock = Lock(lease=lease, amount=number * ONE + i + self.random.choice([0, 0, CREDITS]))
        row = Reservation(client=key.address, number=number, locks=(lock,), deadline=10**9)
        signature = key.sign(row, DOMAIN)
        row = Reservation(client=row.client, number=number, locks=row.locks, deadline=10**9, client_signature=signature)
        return make_batch(RESERVATION, Table.of(Reservation, [row]), key, DOMAIN)

    # -- what is remembered for the checks

    def _note_answer(self, host: Host, effect: Reply) -> None:
        if host not in self.honest or isinstance(effect.answer, FreeholdError):
            return
        batch = self.batches.get(effect.answer.subject)
        acknowledgement = Acknowledgement(epoch=effect.answer.epoch, subject=effect.answer.subject)
        if batch is None or not is_signed_by(acknowledgement, effect.answer.signature, host.key.address, DOMAIN):
            return
        if any(isinstance(m, Observation) and m.epoch >= effect.answer.epoch for m in host.said):
            self.signed.append(f"{host.index} acknowledged for epoch {effect.answer.epoch} after closing it")
        if batch.header.kind == RESERVATION:
            row = batch.table.rows[0]
            key = (host.key.address, row.client, row.number, effect.answer.epoch)
            if self.acknowledged.setdefault(key, batch.subject) != batch.subject:
                self.signed.append(f"{host.index} acknowledged two reservations {key}")

    def note_submit(self, host: Host, effect: Submit) -> None:
        if not self.chance(self.faults.drop):
            self.chain.submit(*effect)
