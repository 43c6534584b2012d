"""Why an account was paid what it was paid: every step of one epoch's settlement, for one subject, as JSON-ready facts.

Everything here is recomputed from the bundle (`protocol/bundle.py`), never asked of anybody: verdicts, what they
proved, each payment's and reward's arithmetic, the account before and after, its leaf and proof. What only a service
can say, each service says itself (`services/explaining.py`), found by the registry. Amounts are base units.
Invariant: each step's result is computed here from its inputs and equals what settlement says, or it is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from freehold.cli.bundles import Checked
from freehold.cli.explain_rewards import explain_rewards
from freehold.protocol.bundle import Bundle
from freehold.protocol.emission import compute_pools
from freehold.protocol.epoch import Settlement, compute_owed, make_context
from freehold.protocol.errors import NotFound, ReplayMismatch
from freehold.protocol.merkle import ACCOUNTS, SumNode, is_sum_proof
from freehold.protocol.messages import MODES, STREAM
from freehold.protocol.parameters import MILLION
from freehold.protocol.reservations import new_client
from freehold.protocol.service import Judge
from freehold.protocol.state import AccountState
from freehold.protocol.tables import Table
from freehold.protocol.units import Address, Hash, mul_div
from freehold.protocol.verdicts import GOOD, SILENT, SLEPT, Payment, Verdict
from freehold.services.explaining import Explainer, are_cells
from freehold.services.judging import EXPLAINERS, JUDGES

REASONS = {
    GOOD: "verified",
    SILENT: "no answer came within the epoch: unpaid, never slashed",
    SLEPT: "no answer, when more than a third of what was owed went unanswered: unpaid, and harmless",
}


def explain(checked: Checked, subject: Address | Hash) -> dict[str, Any]:
    """The subject's part in the epoch of this bundle. NotFound if it knows nobody of this address, or no work of this
    id."""
    if isinstance(subject, Hash):
        return find_work(checked.bundle, checked.settlement, JUDGES, subject)
    return Explanation(checked.bundle, checked.settlement, JUDGES, subject).to_json()


def find_work(bundle: Bundle, settlement: Settlement, judges: Mapping[str, Judge], subject: Hash) -> dict[str, Any]:
    """A piece of work by its id, as its service tells it, with the payments of the lease that it was done for.
    NotFound."""
    for name, service in make_explainers(bundle, settlement, judges).items():
        if (told := service.find(subject)) is None:
            continue
        paid = [p for p in settlement.payments if p.service == name and str(p.lease) == told.get("lease")]
        own = [Explanation(bundle, settlement, judges, payment.node).payment(payment) for payment in paid]
        facts = {"epoch": bundle.anchor.epoch, "subject": str(subject), "service": name}
        return {**facts, **told, "payments": own}
    raise NotFound(
        f"epoch {bundle.anchor.epoch} knows no piece of work, case or lease {subject}",
        hint="A piece of work is known in the epochs from the one that took its evidence until it runs out.",
    )


def make_explainers(bundle: Bundle, settlement: Settlement, judges: Mapping[str, Judge]) -> dict[str, Explainer]:
    """Each service's own, by name."""
    return {name: EXPLAINERS[name](name, bundle, settlement, judges) for name in sorted(judges)}


class Explanation:
    """One subject's part in one settlement. `subject` is an operator, a node, a client, a member of the quorum, or what
    a service knows: an owner of devices, a device."""

    def __init__(self, bundle: Bundle, settlement: Settlement, judges: Mapping[str, Judge], subject: Address) -> None:
        self.bundle = bundle
        self.settlement = settlement
        self.judges = judges
        self.subject = subject
        known = {o.node: o.operator for o in bundle.state.operators.values()}
        known |= {n.node: n.operator for n in bundle.anchor.nodes}
        self.nodes = {node for node, operator in known.items() if subject in (node, operator)}
        self.services = make_explainers(bundle, settlement, judges)
        owners = (one.owner_of(subject) for one in self.services.values() if subject not in known)
        self.account = next((owner for owner in owners if owner), known.get(subject, subject))

    def to_json(self) -> dict[str, Any]:
        """All of it. NotFound if the epoch knows nobody of this address."""
        payments = list(self._payments_of())
        rewards = explain_rewards(self.bundle, self.settlement, self.account)
        told = {name: one.describe(self.subject, self.account, self.nodes) for name, one in self.services.items()}
        services = {name: facts for name, facts in told.items() if facts is not None}
        account, member = self._account(), self._member()
        known = (self.nodes, payments, account, services, member)
        if not any(known):
            raise NotFound(
                f"epoch {self.bundle.anchor.epoch} knows no operator, node, client, member or device {self.subject}",
                hint="`freehold operator list` shows the operators, `freehold fleet list` the fleets.",
            )
        totals = self._totals(payments, rewards)
        self._check_totals(totals, account)
        return {
            "epoch": self.bundle.anchor.epoch,
            "subject": str(self.subject),
            "account": str(self.account),
            "nodes": [self._node(node) for node in sorted(self.nodes)],
            "member": member,
            "services": services,
            "verdicts": [self._verdict(v) for v in self._verdicts],
            "contributions": [self._contribution(c) for c in self._of_nodes(self.settlement.contributions, "account")],
            "payments": [self.payment(p) for p in payments],
            "rewards": rewards,
            "totals": totals,
            "zero": [] if int(totals["tokens"]) else self._zero(payments, services, member),
            "settled": account,
        }

    def _of_nodes(self, table: Table[Any], field: str) -> Table[Any]:
        return table.filter(are_cells(table.column(field), *self.nodes))

    @cached_property
    def _verdicts(self) -> Table[Verdict]:
        return self._of_nodes(self.settlement.verdicts, "node")

    def _payments_of(self) -> Table[Payment]:
        table = self.settlement.payments
        mine = are_cells(table.column("node"), *self.nodes)
        for field in ("operator", "client"):
            mine |= are_cells(table.column(field), self.subject)
        return table.filter(mine)

    def _member(self) -> dict[str, Any] | None:
        if self.subject not in self.bundle.anchor.members:
            return None
        observed = any(o.member == self.subject for o in self.bundle.manifest.observations)
        return {"observed": observed, "members": len(self.bundle.anchor.members)}

    def _node(self, node: Address) -> dict[str, Any]:
        record = next((n for n in self.bundle.anchor.nodes if n.node == node), None)
        before = self.bundle.state.operators.get(node)
        bond = record.bond if record else 0
        return {
            "node": str(node),
            "registered": record is not None,
            "endpoint": record.endpoint if record else None,
            "bond": str(bond),
            "bonded": bond >= self.bundle.anchor.parameters.minimum_bond,
            "held_before": before.holdings if before else 0,
            "leases": sum(lease.node == node and not lease.closed for lease in self.bundle.state.leases.values()),
        }

    def _verdict(self, verdict: Verdict) -> dict[str, Any]:
        obligation = self._obligations.get(verdict.subject)
        return {
            "service": verdict.service or "market",
            "kind": verdict.kind,
            "subject": str(verdict.subject),
            "lease": str(verdict.lease),
            "node": str(verdict.node),
            "reason": verdict.reason,
            "means": self._means(verdict),
            "obligation": obligation,
        }

    @cached_property
    def _obligations(self) -> dict[Hash, dict[str, Any]]:
        """What was asked of its nodes, by id."""
        drawn: dict[Hash, dict[str, Any]] = {}
        for judge in self.judges.values():
            bundle, leases = self.bundle, self.settlement.state.leases
            context = make_context(bundle.state, bundle.anchor, judge, bundle.domain, leases)
            rows = judge.obligations(context)
            if "node" in rows.columns:
                drawn |= {row.row_hash(): row.to_json() for row in self._of_nodes(rows, "node")}
        return drawn

    def _contribution(self, contribution: Any) -> dict[str, Any]:
        return {
            "service": contribution.service,
            "lease": str(contribution.lease),
            "node": str(contribution.account),
            "measure": contribution.measure,
            **self.services[contribution.service].measured(contribution),
        }

    def payment(self, payment: Payment) -> dict[str, Any]:
        """A payment with every step of its arithmetic, each recomputed."""
        previous, after, parameters = self.bundle.state, self.settlement.state, self.bundle.anchor.parameters
        lease_before = previous.leases.get(payment.lease)
        mode = ({**previous.leases, **after.leases})[payment.lease].mode
        settled = lease_before.settled if lease_before else 0
        lock = after.locks.get(payment.client, {}).get(payment.lease)
        release = self._release(payment)
        caps = mul_div(payment.burned, parameters.beta, MILLION) if self._is_bonded(payment.node) else 0
        wanted = self._wanted()
        pool = compute_pools(parameters, self.bundle.anchor.epoch).matched
        subsidy = caps if wanted <= pool else mul_div(pool, caps, wanted)
        earned = mul_div(payment.released, MILLION - parameters.tau, MILLION)
        _must("subsidy", subsidy, payment.subsidy)
        _must("earned", earned, payment.earned)
        units = self.judges[payment.service].units_per_price
        if mode == STREAM:
            _must("owed", compute_owed(payment.measure, payment.price, units), payment.owed)
        return {
            "lease": str(payment.lease),
            "client": str(payment.client),
            "node": str(payment.node),
            "operator": str(payment.operator),
            "service": payment.service,
            "mode": MODES[mode],
            "measure": payment.measure,
            "price": str(payment.price),
            "units": units,
            "owed": str(payment.owed),
            "lock": str(lock.amount if lock else 0),
            "settled_before": str(settled),
            "credits": str(payment.credits),
            **release,
            "released": str(payment.released),
            "tau_ppm": parameters.tau,
            "earned": str(payment.earned),
            "burned": str(payment.burned),
            "bonded": self._is_bonded(payment.node),
            "beta_ppm": parameters.beta,
            "cap": str(caps),
            "caps_of_all": str(wanted),
            "pool": str(pool),
            "subsidy": str(payment.subsidy),
        }

    def _release(self, payment: Payment) -> dict[str, str]:
        """What this client's spending releases of the tokens it burned for its credits."""
        fresh = new_client(payment.client)
        before = self.bundle.state.clients.get(payment.client, fresh)
        after = self.settlement.state.clients.get(payment.client, fresh)
        spent, left = after.spent - before.spent, after.paid_in - before.spent
        basis = after.burned - before.released
        released = basis if spent == left else mul_div(basis, spent, left)
        _must("release", released, after.released - before.released)
        _must("released", mul_div(released, payment.credits, spent) if spent else 0, payment.released)
        return {
            "client_spent": str(spent),
            "client_left": str(left),
            "client_basis": str(basis),
            "client_released": str(released),
        }

    def _is_bonded(self, node: Address) -> bool:
        least = self.bundle.anchor.parameters.minimum_bond
        return any(n.node == node and n.bond >= least for n in self.bundle.anchor.nodes)

    def _wanted(self) -> int:
        beta = self.bundle.anchor.parameters.beta
        return sum(mul_div(p.burned, beta, MILLION) for p in self.settlement.payments if self._is_bonded(p.node))

    def _totals(self, payments: list[Payment], rewards: list[dict[str, Any]]) -> dict[str, str]:
        mine = [p for p in payments if p.operator == self.account]
        rewarded = sum(int(reward["subsidy"]) for reward in rewards)
        return {
            "revenue": str(sum(p.earned for p in mine)),
            "subsidy": str(sum(p.subsidy for p in mine)),
            "rewards": str(rewarded),
            "tokens": str(sum(p.earned + p.subsidy for p in mine) + rewarded),
            "spent": str(sum(p.credits for p in payments if p.client == self.account)),
        }

    def _check_totals(self, totals: Mapping[str, str], account: dict[str, Any] | None) -> None:
        """What was earned here is what the account grew by, beside what was collected on chain while frozen."""
        if account is None:
            return
        collected = sum(row.tokens for row in self.bundle.anchor.collections if row.operator == self.account)
        before, after = (int(account[when]["tokens_earned"]) for when in ("before", "after"))
        _must("tokens earned", int(totals["tokens"]) + collected, after - before)

    def _zero(
        self, payments: list[Payment], services: Mapping[str, dict[str, Any]], member: dict[str, Any] | None
    ) -> list[str]:
        """Why nothing, where nothing was earned: the first reasons in the order of the settlement's steps."""
        reasons = []
        if member is not None and not self.bundle.anchor.parameters.member_share:
            reasons.append("Members get no share of the schedule in this network.")
        elif member is not None and not member["observed"]:
            reasons.append(
                "The epoch's manifest has Q members' observations, and not this one's: who is in it is paid."
            )
        if self.nodes and not self.nodes & {n.node for n in self.bundle.anchor.nodes}:
            reasons.append("None of its nodes was registered at the epoch's anchor.")
        for name, facts in services.items():
            reasons += self.services[name].zero(facts, self.nodes)
        if not self.nodes:
            return reasons or ["This account runs no node, and nothing of its own is paid for: it can only spend."]
        bad = Counter((v.reason, self._means(v)) for v in self._verdicts if v.reason != GOOD)
        for (reason, means), count in sorted(bad.items()):
            reasons.append(f"{count} x {reason}: {means}.")
        for payment in payments:
            if payment.owed and not payment.credits:
                reasons.append(f"Lease {payment.lease}: {payment.owed} owed, and neither lock nor credits were left.")
            elif payment.credits and not payment.released:
                reasons.append(f"Lease {payment.lease}: so few credits were spent that they release no token.")
        proven = len(self._of_nodes(self.settlement.contributions, "account"))
        if proven and not bad and not payments:
            reasons.append("What it proved in this epoch comes to less than one base unit of credits.")
        return reasons

    def _means(self, verdict: Verdict) -> str:
        service = self.services.get(verdict.service)
        told = service.means(verdict.kind, verdict.reason) if service else None
        return told or REASONS.get(verdict.reason, verdict.reason.replace("_", " "))

    def _account(self) -> dict[str, Any] | None:
        after = _find_account(self.settlement.state.accounts, self.account)
        if after is None:
            return None
        before = _find_account(self.bundle.state.accounts, self.account)
        tree = self.settlement.state.accounts_tree()
        proof = tree.proof(after.index)
        report = self.settlement.report
        root = SumNode(report.accounts_root[:31], (report.tokens_earned, report.credits_earned, report.credits_spent))
        if not is_sum_proof(ACCOUNTS, root, report.accounts, after.index, after.leaf(), proof):
            raise ReplayMismatch("the account's proof does not lead to the report's root", first="accounts")
        return {
            "index": after.index,
            "before": _sums(before),
            "after": _sums(after),
            "leaf": f"0x{after.leaf().hash.hex()}",
            "proof": [f"0x{ACCOUNTS.pack(node).hex()}" for node in proof],
            "root": str(report.accounts_root),
            "accounts": report.accounts,
        }


def _find_account(accounts: Table[AccountState], account: Address) -> AccountState | None:
    places = np.flatnonzero(are_cells(accounts.column("account"), account))
    return accounts.row(int(places[0])) if len(places) else None


def _sums(account: AccountState | None) -> dict[str, str]:
    names = ("tokens_earned", "credits_earned", "credits_spent")
    return {name: str(getattr(account, name) if account else 0) for name in names}


def _must(what: str, computed: int, settled: int) -> None:
    if computed != settled:
        raise ReplayMismatch(f"{what}: computed {computed}, settled {settled}", first=what)
