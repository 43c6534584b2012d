"""Settling an epoch, from top to bottom as in the design: the executable specification.

    settle(previous state, manifest, batches, chain data, judges) -> the report, and every step that led to it

Every member, every replay and the simulator run this function. It is deterministic: no clock, no I/O, no float,
nothing read but its arguments. A bad piece of evidence gives a verdict; an exception means that the caller handed
in a manifest that no quorum can have certified, or chain data of another epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from freehold.protocol.accounts import Accounts, address_cells, amount_cells
from freehold.protocol.amounts import total_of
from freehold.protocol.batches import CLOSE, LEASE, RESERVATION, VOUCHER, Batch, collect_rows, kinds_of
from freehold.protocol.beacon import compute_beacon, compute_reveals
from freehold.protocol.certificates import CERTIFICATE_EPOCHS, check_certificate, median, quorum, subjects_of
from freehold.protocol.emission import compute_pools
from freehold.protocol.errors import Corrupt, MalformedMessage
from freehold.protocol.keys import check_signed_by, is_signed_by
from freehold.protocol.messages import STREAM, Close, Lease, Manifest, Report, Reservation, Voucher
from freehold.protocol.messages import VOUCHER as BY_VOUCHER
from freehold.protocol.reservations import ReservationContext, judge_reservation, locks_of, new_client
from freehold.protocol.service import Context, Judge
from freehold.protocol.shares import compute_coverage, compute_member_rewards, compute_shares
from freehold.protocol.state import (
    AnchorData,
    ClientState,
    EpochState,
    LeaseState,
    LockState,
    MemberState,
    NodeRecord,
    OperatorState,
    State,
    members_at,
)
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain, Message
from freehold.protocol.units import AMOUNT_LIMIT, ZERO_HASH, Address, Hash, check_amount, mul_div
from freehold.protocol.verdicts import (
    CLOSED_LEASE,
    EXPIRED,
    GOOD,
    KNOWN,
    SUPERSEDED,
    UNKNOWN_LEASE,
    UNLOCKED,
    UNREGISTERED_NODE,
    WRONG_EPOCH,
    WRONG_MODE,
    WRONG_SIGNATURE,
    Contribution,
    Payment,
    Reward,
    Slash,
    Verdict,
)

NO_NODE = Address(bytes(20))
LEASE_SECONDS = 366 * 86_400  # a lease's deadline lies at most this far ahead: its row is kept until then
HOLDINGS_LIMIT = 2**64 - 1


@dataclass(frozen=True)
class Settlement:
    """What an epoch comes to, and every step on the way (for `why`)."""

    report: Report
    state: State
    verdicts: Table[Verdict]
    contributions: Table[Contribution]
    payments: Table[Payment]
    rewards: Table[Reward]
    slashes: Table[Slash]


@dataclass
class Draft:
    """An epoch while it is being settled: the next state, taking shape."""

    previous: State
    anchor: AnchorData
    domain: Domain
    accounts: Accounts
    clients: dict[Address, ClientState] = field(default_factory=dict)
    leases: dict[Hash, LeaseState] = field(default_factory=dict)
    locks: dict[Address, Mapping[Hash, LockState]] = field(default_factory=dict)  # by client, by lease
    services: dict[str, Table[Any]] = field(default_factory=dict)
    verdicts: list[Table[Verdict]] = field(default_factory=list)
    said: list[Verdict] = field(default_factory=list)  # the market's, since the last table of verdicts
    contributions: dict[str, Table[Contribution]] = field(default_factory=dict)  # by service
    slashes: list[Slash] = field(default_factory=list)  # as the judges left them

    @property
    def epoch(self) -> int:
        """The number of the epoch being settled."""
        return self.anchor.epoch

    @cached_property
    def registered(self) -> dict[Address, NodeRecord]:
        """The live registrations at the anchor, by node."""
        return {record.node: record for record in self.anchor.nodes}

    def operator_of(self, node: Address) -> Address:
        """Who is paid for a node's work: its operator now, or the last one that is known."""
        known = self.registered.get(node) or self.previous.operators.get(node)
        return known.operator if known else node

    def lock_of(self, client: Address, lease: Hash) -> int:
        """What a client has locked for a lease."""
        lock = self.locks.get(client, {}).get(lease)
        return lock.amount if lock else 0

    def say(self, kind: str, row: Message, reason: str, lease: Hash = ZERO_HASH, measure: int = 0) -> None:
        """Keep the market's verdict on a row."""
        known = self.leases.get(lease)
        verdict = Verdict(
            epoch=self.epoch,
            service="",
            kind=kind,
            subject=row.row_hash(),
            lease=lease,
            node=known.node if known else NO_NODE,
            reason=reason,
            measure=measure,
        )
        self.said.append(verdict)

    def keep(self, verdicts: Iterable[Table[Verdict]] = ()) -> None:
        """Keep a service's verdicts, behind what the market has said before them."""
        if self.said:
            self.verdicts.append(Table.of(Verdict, self.said))
            self.said = []
        self.verdicts += verdicts


def check_manifest(manifest: Manifest, anchor: AnchorData, domain: Domain) -> None:
    """Raise unless the manifest is Q members' signed observations of this anchor, every certificate valid.

    A certificate is judged by the members of the epoch that it names.
    """
    members = anchor.members
    observers = [observation.member for observation in manifest.observations]
    if len(observers) != quorum(len(members)) or len(set(observers)) != len(observers):
        raise MalformedMessage(f"a manifest has {quorum(len(members))} observations of different members")
    for observation in manifest.observations:
        if observation.member not in members:
            raise MalformedMessage(f"{observation.member} is not a member")
        if observation.epoch != manifest.epoch or observation.anchor != anchor.struct_hash():
            raise MalformedMessage(f"{observation.member} observed another epoch or anchor")
        check_signed_by(observation, observation.member_signature, observation.member, domain)
    seen = {c.struct_hash(): c for o in manifest.observations for c in o.certificates}
    for certificate in seen.values():
        if not manifest.epoch - CERTIFICATE_EPOCHS <= certificate.epoch <= manifest.epoch:
            raise MalformedMessage("a certificate names an epoch that is still to come, or long past")
        check_certificate(certificate, members_at(anchor.membership, certificate.epoch), domain)


def certified_subjects(manifest: Manifest) -> list[Hash]:
    """The batches that the manifest makes part of its epoch, in the order in which they are read."""
    return subjects_of([c for observation in manifest.observations for c in observation.certificates])


def settle(
    previous: State,
    manifest: Manifest,
    batches: Mapping[Hash, Batch],
    anchor: AnchorData,
    judges: Mapping[str, Judge],
    domain: Domain,
) -> Settlement:
    """Settle one epoch. The manifest has passed `check_manifest`; `batches` holds every certified subject."""
    if anchor.epoch != previous.epoch.epoch + 1 or manifest.epoch != anchor.epoch:
        raise Corrupt(f"chain data of epoch {anchor.epoch}, manifest of {manifest.epoch}, state {previous.epoch.epoch}")
    subjects = certified_subjects(manifest)
    missing = [subject for subject in subjects if subject not in batches]
    if missing:
        raise Corrupt(f"batch {missing[0]} is certified and not here")
    rows = collect_rows([batches[subject] for subject in subjects], kinds_of(judges))
    draft = Draft(previous, anchor, domain, Accounts(previous.accounts))
    process_purchases(draft)
    process_collections(draft)
    process_reservations(draft, rows[RESERVATION], timely_reservations(manifest, batches), judges)
    process_leases(draft, rows[LEASE], judges)
    process_services(draft, rows, judges)
    payments = compute_streams(draft, judges) + process_vouchers(draft, rows[VOUCHER])
    payments = limit_to_credits(draft, payments)
    process_closes(draft, rows[CLOSE])
    pools = compute_pools(anchor.parameters, draft.epoch)
    shares = compute_shares(
        payments,
        draft.clients,
        frozenset(n.node for n in anchor.nodes if n.bond >= anchor.parameters.minimum_bond),
        pools.matched,
        anchor.parameters,
    )
    coverage = {name: on_nobodys(table) for name, table in draft.contributions.items()}
    observers = [observation.member for observation in manifest.observations]
    rewards = Table.concat(
        Reward,
        [
            compute_coverage(coverage, pools.coverage),
            compute_member_rewards(observers, len(anchor.members), pools.members),
        ],
    )
    draft.clients = shares.clients
    process_settled(draft, shares.payments)
    process_accounts(draft, shares.payments, rewards)
    state = State(
        epoch=EpochState(
            epoch=draft.epoch,
            anchor_block=anchor.anchor_block,
            anchor_hash=anchor.anchor_hash,
            anchor_time=anchor.anchor_time,
            reveals=compute_reveals(manifest.observations, commitments_of(previous)),
        ),
        accounts=draft.accounts.table(),
        clients=draft.clients,
        leases=draft.leases,
        locks=draft.locks,
        operators=compute_operators(draft, judges),
        members={o.member: MemberState(member=o.member, commitment=o.commitment) for o in manifest.observations},
        services=draft.services,
    )
    draft.keep()
    verdicts = Table.concat(Verdict, draft.verdicts)
    slashes = compute_slashes(draft)
    subsidy = check_amount(shares.subsidy + total_of(rewards.column("subsidy")))
    report = make_report(manifest, anchor, previous, state, verdicts, slashes, subsidy, shares.revenue)
    return Settlement(
        report,
        state,
        verdicts,
        Table.concat(Contribution, list(draft.contributions.values())),
        Table.of(Payment, shares.payments),
        rewards,
        slashes,
    )


def commitments_of(state: State) -> dict[Address, Hash]:
    """What members committed to in the manifest of the epoch before."""
    return {member: row.commitment for member, row in state.members.items()}


def process_purchases(draft: Draft) -> None:
    """Take over what clients have bought by the anchor, and the open leases, locks and services as they were."""
    draft.clients = dict(draft.previous.clients)
    for buyer in draft.anchor.buyers:
        client = draft.clients.get(buyer.client, new_client(buyer.client))
        draft.clients[buyer.client] = msgspec.structs.replace(client, paid_in=buyer.paid_in, burned=buyer.burned)
    draft.leases = dict(draft.previous.leases)
    draft.locks = dict(draft.previous.locks)


def process_collections(draft: Draft) -> None:
    """What was paid on chain while the network was frozen is settled: of its lease, its client and its operator."""
    for row in draft.anchor.collections:
        lease = draft.leases.get(row.lease)
        if lease is not None:
            draft.leases[row.lease] = msgspec.structs.replace(lease, settled=lease.settled + row.credits)
        client = draft.clients.get(row.client, new_client(row.client))
        draft.clients[row.client] = msgspec.structs.replace(
            client, spent=client.spent + row.credits, released=client.released + row.released
        )


def timely_reservations(manifest: Manifest, batches: Mapping[Hash, Batch]) -> set[Hash]:
    """The reservations, by row hash, whose certificate names this epoch.

    One that missed its own epoch's manifest is void: its number may meanwhile have been signed again.
    """
    subjects = {c.subject for o in manifest.observations for c in o.certificates if c.epoch == manifest.epoch}
    timely = [batches[subject] for subject in subjects if batches[subject].header.kind == RESERVATION]
    return {row.row_hash() for batch in timely for row in batch.table}


def process_reservations(
    draft: Draft, rows: Table[Reservation], timely: set[Hash], judges: Mapping[str, Judge]
) -> None:
    """Reservations certified for this epoch, in the order of their numbers, replace their clients' locks."""
    context = ReservationContext(draft.domain, draft.anchor.parameters, judges)
    for row in sorted(rows, key=lambda r: (r.client, r.number, r.row_hash())):
        client = draft.clients.get(row.client, new_client(row.client))
        locks = draft.locks.get(row.client, {})
        reason = WRONG_EPOCH
        if row.row_hash() in timely:
            reason = judge_reservation(draft.previous, locks, client.reservation, row, context)
        if reason == GOOD:
            draft.locks[row.client] = locks_of(row, locks, draft.epoch)
            draft.clients[row.client] = msgspec.structs.replace(client, reservation=row.number)
        draft.say(RESERVATION, row, reason)


def process_leases(draft: Draft, rows: Table[Lease], judges: Mapping[str, Judge]) -> None:
    """Leases both signed come into the state; they are challenged and paid from the next epoch on."""
    for row in rows:
        lease = row.struct_hash()
        reason = _judge_lease(draft, row, judges)
        if reason == GOOD:
            draft.leases[lease] = LeaseState(
                lease=lease,
                client=row.client,
                node=row.node,
                service=row.service,
                mode=row.mode,
                price=row.price,
                deadline=row.deadline,
                settled=0,
                opened=draft.epoch,
                lapsed=0,
                closed=0,
            )
        draft.say(LEASE, row, reason, lease)


def _judge_lease(draft: Draft, row: Lease, judges: Mapping[str, Judge]) -> str:
    if row.struct_hash() in draft.leases:
        return KNOWN
    if not draft.anchor.anchor_time <= row.deadline <= draft.anchor.anchor_time + LEASE_SECONDS:
        return EXPIRED
    if row.mode not in (STREAM, BY_VOUCHER) or row.service not in judges:
        return WRONG_MODE
    if row.node not in draft.registered:
        return UNREGISTERED_NODE
    if not draft.lock_of(row.client, row.struct_hash()):
        return UNLOCKED
    if not is_signed_by(row, row.client_signature, row.client, draft.domain):
        return WRONG_SIGNATURE
    return GOOD if is_signed_by(row, row.node_signature, row.node, draft.domain) else WRONG_SIGNATURE


def process_services(draft: Draft, rows: Mapping[str, Table[Any]], judges: Mapping[str, Judge]) -> None:
    """Each service draws its obligations, judges what answered them, and folds its state."""
    for name, judge in sorted(judges.items()):
        context = make_context(draft.previous, draft.anchor, judge, draft.domain, draft.leases)
        own = {kind: rows[kind] for kind in judge.kinds}
        verdicts = judge.judge(judge.obligations(context), own, context)
        folded = judge.fold(own, verdicts, context)
        draft.keep([verdicts])
        draft.services[name], draft.contributions[name] = folded.state, folded.contributions
        draft.slashes += folded.slashes


def make_context(
    previous: State, anchor: AnchorData, judge: Judge, domain: Domain, leases: Mapping[Hash, LeaseState]
) -> Context:
    """What a judge may know of the epoch: a stream pays for at most one nominal length."""
    seconds = max(0, anchor.anchor_time - previous.epoch.anchor_time)
    own = {key: row for key, row in leases.items() if row.service == judge.name}
    return Context(
        epoch=anchor.epoch,
        seconds=min(seconds, anchor.parameters.epoch_length),
        beacon=compute_beacon(anchor.beacon_hash, previous.epoch.reveals),
        parameters=anchor.parameters,
        domain=domain,
        leases={key: row for key, row in own.items() if not row.closed},
        state=previous.services.get(judge.name, Table.of(judge.state_kind)),
        fleets=anchor.fleets,
        changes=anchor.changes,
        nodes=anchor.nodes,
        ended={key: row for key, row in own.items() if row.closed},
    )


def compute_streams(draft: Draft, judges: Mapping[str, Judge]) -> list[Payment]:
    """What streams owe for proven work: floor(measure x price / units), at most what is left of the lock."""
    payments = []
    for contribution in chain.from_iterable(on_leases(table) for table in draft.contributions.values()):
        lease = draft.leases.get(contribution.lease)  # its row may go before work that waited is paid
        if lease is not None and lease.mode == STREAM:
            owed = compute_owed(contribution.measure, lease.price, judges[lease.service].units_per_price)
            payments.append(_payment(draft, lease, owed, contribution.measure))
    return payments


def on_leases(contributions: Table[Contribution]) -> Table[Contribution]:
    """Work for a lease: its client's stream pays it."""
    return contributions.filter(contributions.column("lease").any(axis=1))


def on_nobodys(contributions: Table[Contribution]) -> Table[Contribution]:
    """Work for nobody's lease: the coverage pool pays it."""
    return contributions.filter(~contributions.column("lease").any(axis=1))


def compute_owed(measure: int, price: int, units: int) -> int:
    """floor(measure x price / units), and no more than an amount can be: any lock is far below that."""
    return min(mul_div(measure, price, units), AMOUNT_LIMIT - 1)


def process_vouchers(draft: Draft, rows: Table[Voucher]) -> list[Payment]:
    """A voucher pays max(0, min(voucher, lock) - settled): sent twice, it pays once; the largest of a lease counts."""
    best: dict[Hash, Voucher] = {}
    reasons = [_judge_voucher(draft, row) for row in rows]
    for row, reason in zip(rows, reasons, strict=True):
        if reason == GOOD and (row.lease not in best or row.amount > best[row.lease].amount):
            best[row.lease] = row
    for row, reason in zip(rows, reasons, strict=True):
        counts = reason != GOOD or best[row.lease] is row
        draft.say(VOUCHER, row, reason if counts else SUPERSEDED, row.lease)
    payments = []
    for key in sorted(best):
        lease = draft.leases[key]
        payments.append(_payment(draft, lease, max(0, best[key].amount - lease.settled), 0))
    return payments


def _judge_voucher(draft: Draft, row: Voucher) -> str:
    lease = draft.leases.get(row.lease)
    if lease is None:
        return UNKNOWN_LEASE
    if lease.mode != BY_VOUCHER:
        return WRONG_MODE
    return GOOD if is_signed_by(row, row.client_signature, lease.client, draft.domain) else WRONG_SIGNATURE


def _payment(draft: Draft, lease: LeaseState, owed: int, measure: int) -> Payment:
    cap = draft.lock_of(lease.client, lease.lease)
    return Payment(
        lease=lease.lease,
        client=lease.client,
        node=lease.node,
        operator=draft.operator_of(lease.node),
        service=lease.service,
        measure=measure,
        price=lease.price,
        owed=owed,
        credits=min(owed, max(0, cap - lease.settled)),
        released=0,
        earned=0,
        burned=0,
        subsidy=0,
    )


def limit_to_credits(draft: Draft, payments: Sequence[Payment]) -> list[Payment]:
    """Nobody spends more than it has left, even if its locks (against the rules of reserving) promise more."""
    left = {address: client.paid_in - client.spent for address, client in draft.clients.items()}
    limited = []
    for payment in payments:
        credits = min(payment.credits, left.get(payment.client, 0))
        if credits or payment.owed:
            left[payment.client] = left.get(payment.client, 0) - credits
            limited.append(msgspec.structs.replace(payment, credits=credits))
    return limited


def process_closes(draft: Draft, rows: Table[Close]) -> None:
    """The client may end a lease alone; this epoch's proven work was still paid."""
    for row in rows:
        lease = draft.leases.get(row.lease)
        if lease is None:
            reason = UNKNOWN_LEASE
        elif lease.closed:
            reason = CLOSED_LEASE
        elif not is_signed_by(row, row.client_signature, lease.client, draft.domain):
            reason = WRONG_SIGNATURE
        else:
            reason = GOOD
            draft.leases[row.lease] = msgspec.structs.replace(lease, closed=draft.epoch)
        draft.say(CLOSE, row, reason, row.lease)


def process_settled(draft: Draft, payments: Sequence[Payment]) -> None:
    """Add what was paid to its leases; a stream that used up its lock lapses, and closes after a grace."""
    for payment in payments:
        lease = draft.leases[payment.lease]
        lapsed = lease.lapsed
        if lease.mode == STREAM:
            lapsed = (lease.lapsed or draft.epoch) if payment.credits < payment.owed else 0
        closed = lease.closed
        if lapsed and not closed and draft.epoch >= lapsed + draft.anchor.parameters.lapse_grace:
            closed = draft.epoch
        draft.leases[payment.lease] = msgspec.structs.replace(
            lease, settled=lease.settled + payment.credits, lapsed=lapsed, closed=closed
        )
    for key, lease in list(draft.leases.items()):
        over = lease.closed and draft.epoch > lease.closed + draft.anchor.parameters.lock_release
        if over and lease.deadline < draft.anchor.anchor_time and not draft.lock_of(lease.client, key):
            del draft.leases[key]


def process_accounts(draft: Draft, payments: Sequence[Payment], rewards: Table[Reward]) -> None:
    """Add what was paid to the cumulative totals; new accounts come next, in the order of their addresses."""
    paid = [p for p in payments if p.credits]
    earned = [(p.operator, p.earned + p.subsidy) for p in paid]
    earned += [(row.operator, row.tokens) for row in draft.anchor.collections]
    spent = [(p.client, p.credits) for p in paid] + [(row.client, row.credits) for row in draft.anchor.collections]
    earners, spenders = address_cells(a for a, _ in earned), address_cells(a for a, _ in spent)
    draft.accounts.add_all(np.concatenate([earners, spenders, rewards.column("account")]))
    draft.accounts.earn(earners, amount_cells(amount for _, amount in earned))
    draft.accounts.earn(rewards.column("account"), rewards.column("subsidy"))
    draft.accounts.spend(spenders, amount_cells(amount for _, amount in spent))


def compute_operators(draft: Draft, judges: Mapping[str, Judge]) -> dict[Address, OperatorState]:
    """Registered nodes with their bonds, and whoever still holds something or has a lease, and so answers for work."""
    holdings: dict[Address, int] = {}
    for name, judge in sorted(judges.items()):
        for node, size in judge.holdings(draft.services[name]).items():
            holdings[node] = holdings.get(node, 0) + size
    records = draft.registered
    answering = {n for n, size in holdings.items() if size}
    if gone := draft.previous.operators.keys() - records.keys():
        answering |= gone & {lease.node for lease in draft.leases.values()}
    operators = {}
    for node in sorted(records.keys() | answering):
        record, known = records.get(node), draft.previous.operators.get(node)
        operators[node] = OperatorState(
            node=node,
            operator=draft.operator_of(node),
            bond=record.bond if record else 0,
            holdings=min(holdings.get(node, 0), HOLDINGS_LIMIT),
            reputation=known.reputation if known else 0,
        )
    return operators


def compute_slashes(draft: Draft) -> Table[Slash]:
    """What goes of each bond at most, in the order of nodes and subjects, each once: `wrong_result_slash`.

    The contract takes what is there of it, bonded or thawing (contracts/Staking.vy). The anchor's bond says nothing of
    what thaws: so a node that thaws all of it, or retires, answers as before. Who never registered has none.
    """
    known = draft.registered.keys() | draft.previous.operators.keys()
    found = {(s.node, s.service, s.subject): s for s in reversed(draft.slashes)}
    amount = draft.anchor.parameters.wrong_result_slash
    return Table.of(
        Slash,
        [
            msgspec.structs.replace(row, operator=draft.operator_of(row.node), amount=amount)
            for _, row in sorted(found.items())
            if amount and row.node in known
        ],
    )


def make_report(
    manifest: Manifest,
    anchor: AnchorData,
    previous: State,
    state: State,
    verdicts: Table[Verdict],
    slashes: Table[Slash],
    subsidy: int,
    revenue: int,
) -> Report:
    """The report that members sign."""
    root = state.accounts_tree().root
    tokens_earned, credits_earned, credits_spent = root.sums
    return Report(
        epoch=anchor.epoch,
        attempt=manifest.attempt,
        view=manifest.view,
        anchor_block=anchor.anchor_block,
        anchor_hash=anchor.anchor_hash,
        beacon=compute_beacon(anchor.beacon_hash, previous.epoch.reveals),
        previous=anchor.previous,
        manifest=manifest.struct_hash(),
        verdicts_root=verdicts.root,
        state_root=state.root(),
        accounts_root=Hash(root.hash + b"\x00"),
        accounts=len(state.accounts),
        tokens_earned=tokens_earned,
        credits_earned=credits_earned,
        credits_spent=credits_spent,
        slashes_root=slashes.root,
        subsidy=subsidy,
        revenue=revenue,
        price=median([observation.price for observation in manifest.observations]),
        collected=anchor.collected,
        parameters=anchor.parameters.hash(),
    )
