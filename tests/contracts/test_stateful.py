"""Everything at once, in any order: the contracts against their mirror, and what must always hold.

Each rule asks the mirror first: where it says None, the call must revert and change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import boa
import pytest
from boa.util.abi import Address
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from freehold.protocol.messages import Report
from freehold.protocol.units import Hash
from tests.contracts.budgets import DEADLINE, budget
from tests.contracts.model import Model
from tests.contracts.test_collector import Freezing, client_of, lease_of, lock_of, sign, state_of
from tests.contracts.world import (
    NEVER,
    TOKEN,
    Account,
    Settings,
    World,
    hexed,
    key_of,
    logs_of,
    proof_of,
    tree_of,
    tuple_of,
)

PARTIES = ("alice", "bob", "carol")
NOBODY = "0x" + "00" * 20
MEMBERS = [key_of(f"member {i}") for i in range(6)]
HOLDERS = (
    *(*PARTIES, "treasury", "ledger", "staking", "membership", "credits", "emission", "payout"),
    *(f"member {i}" for i in range(len(MEMBERS))),
)
KEYS = {name: key_of(name) for name in PARTIES}
NODES = [key_of(f"stateful node {i}") for i in range(3)]
# What every report's state says of carol's one lease with the first node, and of carol.
LEASE = lease_of(1, client=KEYS["carol"].address, node=NODES[0].address, settled=0)
LOCKED, LEFT, BASIS = 90 * TOKEN, 80 * TOKEN, 30 * TOKEN
STATE = state_of([LEASE], [lock_of(LEASE, LOCKED)], [client_of(KEYS["carol"], paid_in=LEFT, burned=BASIS)])
SETTINGS = Settings(claim_epochs=4, freeze_lengths=4)

parties = st.sampled_from(PARTIES)
nodes = st.integers(0, len(NODES) - 1)
tokens = st.one_of(st.integers(0, 3), st.integers(0, 400 * TOKEN))
# Shares are counted in eighths.
fractions = st.integers(0, 8)
# Parts of what there is: mostly some of it, at times nothing, all of it, or more.
parts = st.sampled_from((4, 1, 7, 8, 9, 0))
members = st.integers(0, len(MEMBERS) - 1)
# Mostly who may; at times anyone.
callers = st.sampled_from((None, None, None, None, *PARTIES))


class Network(RuleBasedStateMachine):
    """One network, its parties and strangers."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.anchor = ExitStack()
        self.anchor.enter_context(boa.env.anchor())
        self.address = {name: str(Address(hexed(KEYS[name].address))) for name in PARTIES}
        for name in ("ledger", "staking", "membership", "credits", "emission"):
            self.address[name] = getattr(self.world, name).address
        self.address |= {f"member {i}": str(Address(hexed(key.address))) for i, key in enumerate(MEMBERS)}
        self.address["treasury"] = str(self.world.treasury)
        self.address["payout"] = str(Address("0x" + "77" * 20))
        self.payouts: dict[str, str] = {}
        # By epoch, those that were not revoked; and those that were.
        self.reports: dict[int, Report] = {}
        self.revoked: list[Report] = []
        self.model = Model(self.world.settings, boa.env.timestamp)
        self.steps = 0

    def teardown(self) -> None:
        try:
            self.everything_else_holds()
        finally:
            self.world.members = MEMBERS[:4]
            self.anchor.close()

    def agree(self, expected: int | None, call: Callable[[], Any]) -> None:
        """The call returns what the mirror says, or reverts where it says None."""
        if expected is None:
            with boa.reverts():
                call()
        else:
            returned = call()
            assert returned is None or returned == expected

    @initialize()
    def begin(self) -> None:
        for name in PARTIES:
            self.world.fund(self.address[name], 1_000 * TOKEN)
            self.model.move("treasury", name, 1_000 * TOKEN)
            for spender in (self.world.credits, self.world.staking, self.world.membership):
                self.world.token.approve(spender, NEVER, sender=self.address[name])
        for node, operator in enumerate(("alice", "bob")):
            self.register(operator, node)
            self.stake(operator, node, 2)
            self.buy(operator, 1, False, 0)
        for member in range(5):
            self.bond("alice" if member % 2 else "carol", member, 100 * TOKEN)

    # Clients

    @rule(client=parties, part=parts, dust=st.booleans(), slack=st.integers(-1, 0))
    def buy(self, client: str, part: int, dust: bool, slack: int) -> None:
        tokens = part if dust else self.model.balances[client] * part // 8
        least = max(0, tokens * min(self.model.prices) // TOKEN + slack)
        expected = self.model.buy(client, tokens, least)
        self.agree(expected, lambda: self.world.credits.buy(tokens, least, NEVER, sender=self.address[client]))

    # Members

    @rule(
        subsidy=fractions,
        revenue=fractions,
        spent=fractions,
        split=st.lists(st.integers(0, 5), min_size=3, max_size=3),
        price=st.integers(1, 5 * TOKEN),
    )
    def post(self, subsidy: int, revenue: int, spent: int, split: list[int], price: int) -> None:
        model = self.model
        minted = [model.schedule(model.posted_epoch + 1) * subsidy // 8, model.revenue_left() * revenue // 8]
        total, weight = sum(minted), sum(split) or 1
        shares = {account: total * part // weight for account, part in enumerate(split)}
        shares[0] += total - sum(shares.values())
        model.credits_spent += (sum(model.paid_in.values()) - model.credits_spent) * spent // 8
        model.post(shares, *minted, price)
        report = self.next_report(self.accounts(model.earned), revenue=minted[1], price=price)
        assert (report.epoch, report.subsidy) == (model.posted_epoch, minted[0])
        self.world.submit(report)
        self.reports[report.epoch] = report

    def next_report(self, over: list[Account], **changes: Any) -> Report:
        """The next report, which its epoch's members sign."""
        epoch = self.world.ledger.posted_epoch() + 1
        self.world.members = [MEMBERS[i] for i in self.model.set_at(epoch)]
        return self.world.report(over, state_root=STATE.root(), **changes)

    @rule(count=st.integers(1, 4), subsidy=fractions)
    def pass_epochs(self, count: int, subsidy: int) -> None:
        for _ in range(count):
            self.post(subsidy, 8, 8, [1, 2, 3], TOKEN)
            self.pass_time(self.world.settings.dispute_window)
            self.activate()

    def accounts(self, earned: dict[int, int]) -> list[Account]:
        spent = [self.model.credits_spent, 0, 0]
        return [Account(KEYS[name].address, earned[i], 0, spent[i]) for i, name in enumerate(PARTIES)]

    @rule(
        changes=st.sampled_from(
            [
                {"epoch": 1},
                {"attempt": 1},
                {"price": 0},
                {"previous": Hash(bytes(32))},
                {"subsidy": 1},
                {"revenue": 1},
                {"tokens_earned": 0},
                {"credits_spent": 2**95},
                {"accounts": 0},
            ]
        )
    )
    def post_what_is_wrong(self, changes: dict[str, Any]) -> None:
        grown = {i: self.model.earned[i] + self.model.uncounted.get(i, 0) for i in range(3)}
        good = self.next_report(self.accounts(grown), accounts_root=Hash(b"\x01" * 31 + b"\x00"))
        report = self.world.report(**{name: getattr(good, name) for name in good.__struct_fields__} | changes)
        if report != good:
            self.world.members = [MEMBERS[i] for i in self.model.set_at(report.epoch)]
            with boa.reverts():
                self.world.submit(report)

    @precondition(lambda self: self.reports or self.revoked)
    @rule(data=st.data())
    def post_again(self, data: st.DataObject) -> None:
        report = data.draw(st.sampled_from([*self.reports.values(), *self.revoked]))
        self.world.members = [MEMBERS[i] for i in self.model.set_at(report.epoch)]
        with boa.reverts():
            self.world.submit(report)

    @rule(place=st.integers(0, 3))
    def equivocate(self, place: int) -> None:
        one, other = self.next_report([]), self.next_report([], price=7)
        members = self.model.set_at(one.epoch)
        member = members[place % len(members)]
        signatures = [self.world.sign(report, [place % len(members)])[1] for report in (one, other)]
        arguments = (tuple_of(one), signatures[0], tuple_of(other), signatures[1])
        record = self.world.oracle.record_equivocation
        if self.world.oracle.equivocated(self.address[f"member {member}"], one.epoch, one.attempt, 0):
            with boa.reverts("oracle: recorded"):
                record(*arguments, sender=self.address["alice"])
        else:
            record(*arguments, sender=self.address["alice"])
            self.model.slash_member(member, None, None)

    # Who the members are, and what they risk

    @rule(first=st.integers(0, 5), count=st.integers(1, 5), ahead=st.integers(1, 5))
    def schedule_set(self, first: int, count: int, ahead: int) -> None:
        members = tuple((first + i) % len(MEMBERS) for i in range(count))
        epoch = self.model.highest + ahead
        if len(self.model.sets) > 6:
            return
        given = ([self.address[f"member {i}"] for i in members], epoch)
        allowed = 0 if self.model.schedule_set(members, epoch) else None
        self.agree(allowed, lambda: self.world.membership.schedule(*given, sender=self.world.governor))

    @rule(payer=parties, member=members, amount=tokens)
    def bond(self, payer: str, member: int, amount: int) -> None:
        given = (self.address[f"member {member}"], amount)
        expected = self.model.bond(payer, member, amount)
        self.agree(expected, lambda: self.world.membership.bond(*given, sender=self.address[payer]))

    @rule(member=members, part=parts)
    def thaw_bond(self, member: int, part: int) -> None:
        amount = self.model.bonds[member].bond * part // 8
        sender = self.address[f"member {member}"]
        self.agree(self.model.thaw_bond(member, amount), lambda: self.world.membership.thaw(amount, sender=sender))

    @rule(member=members)
    def withdraw_bond(self, member: int) -> None:
        sender = self.address[f"member {member}"]
        self.agree(self.model.withdraw_bond(member), lambda: self.world.membership.withdraw(sender=sender))

    # Disputes, silence, pauses

    @precondition(lambda self: self.model.pending)
    @rule(back=st.integers(-1, 4), member=members, harmed=st.sampled_from([None, *PARTIES]))
    def revoke(self, back: int, member: int, harmed: str | None) -> None:
        epoch = self.model.posted_epoch - back
        if epoch < 1:
            return
        expected = self.model.revoke(epoch)
        before = self.reports.get(epoch - 1)
        self.agree(expected, lambda: self.world.revoke(epoch, before))
        if expected is not None:
            self.revoked += [self.reports.pop(epoch + i) for i in range(expected)]
            arguments = [self.address[name] if name else NOBODY for name in (f"member {member}", "bob", harmed)]
            taken = self.world.membership.slash(*arguments, sender=self.world.disputes.address)
            assert taken == self.model.slash_member(member, "bob", harmed)

    @rule(
        subsidy=fractions,
        holds=st.integers(0, 2),
        wait=st.sampled_from([0, 50, 99, 100]),
        back=st.integers(0, 2),
        member=members,
    )
    def dispute(self, subsidy: int, holds: int, wait: int, back: int, member: int) -> None:
        """The whole way: two reports, holds, a proof, and the epochs settled again."""
        for _ in range(2):
            self.post(subsidy, 8, 8, [1, 2, 3], TOKEN)
        for _ in range(holds):
            self.hold(1)
        self.pass_time(wait)
        self.activate()
        self.revoke(back, member, "carol")
        self.post(subsidy, 4, 8, [3, 2, 1], TOKEN)
        self.release(0)
        self.pass_time(SETTINGS.dispute_window)
        self.activate()
        self.claim(1)

    @precondition(lambda self: self.model.pending)
    @rule(back=st.integers(-1, 3))
    def hold(self, back: int) -> None:
        epoch = max(0, self.model.posted_epoch - back)
        expected = self.model.hold(epoch)
        self.agree(expected, lambda: self.world.ledger.hold(epoch, sender=self.world.disputes.address))

    @precondition(lambda self: any(report.holds for report in self.model.pending))
    @rule(back=st.integers(-1, 3))
    def release(self, back: int) -> None:
        epoch = max(0, self.model.posted_epoch - back)
        self.model.release(epoch)
        self.world.ledger.release(epoch, sender=self.world.disputes.address)

    @rule(seconds=st.sampled_from([1, 60, 500, 501]))
    def pause(self, seconds: int) -> None:
        expected = self.model.pause(seconds)
        self.agree(expected, lambda: self.world.ledger.pause(seconds, sender=self.world.guardian))

    @precondition(lambda self: self.model.paused_until)
    @rule()
    def unpause(self) -> None:
        self.agree(self.model.unpause(), lambda: self.world.ledger.unpause(sender=self.world.guardian))

    @rule(wait=st.booleans())
    def freeze(self, wait: bool) -> None:
        if wait:
            self.pass_time(SETTINGS.freeze_lengths * SETTINGS.epoch_length + 1)
        self.agree(self.model.freeze(), lambda: self.world.ledger.freeze())

    @rule()
    def post_without_collections(self) -> None:
        report = self.next_report(self.accounts(self.model.earned), collected=Hash(b"\x03" * 32), subsidy=0)
        if self.model.resume():
            self.world.submit(report)
            (event,) = logs_of(self.world.oracle, "Resumed")
            assert (event.epoch, event.attempt) == (report.epoch, report.attempt + 1)
        else:
            with boa.reverts("ledger: collected"):
                self.world.submit(report)

    @rule(amount=st.integers(0, LOCKED * 5 // 4))
    def collect(self, amount: int) -> None:
        network = Freezing(self.world, STATE)
        network.report = self.reports.get(self.model.active_epoch)
        operator = self.model.operators.get(0)
        if network.report is None or operator is None:
            return
        name = self.payouts.get(operator, operator)
        given = network.arguments(amount, LEASE)
        given["signature"] = sign(KEYS["carol"], LEASE.lease, amount, self.world.domain)
        expected = self.model.collect(PARTIES.index(operator), name, min(amount, LOCKED), LEFT, BASIS)
        self.agree(expected, lambda: self.world.collector.collect(*given.values()))

    @rule(amount=st.integers(LOCKED // 8, LOCKED), back=st.booleans())
    def go_out(self, amount: int, back: bool) -> None:
        """The whole way: silence, a freeze, what is pending activates, vouchers are collected, perhaps the way back."""
        self.pass_epochs(1, 4)
        self.buy("alice", 2, False, 0)
        self.freeze(True)
        self.activate()
        for part in (amount // 2, amount):
            self.collect(part)
            self.claim(0)
        if back:
            self.post_without_collections()
            self.pass_epochs(1, 4)
            self.claim(0)

    @rule(first=st.integers(0, 5), count=st.integers(2, 5), leaver=members)
    def change_members(self, first: int, count: int, leaver: int) -> None:
        """The whole way: a set is bonded, scheduled, and takes over; a member leaves with its bond, if it may."""
        for member in range(len(MEMBERS)):
            missing = SETTINGS.member_bond - self.model.bonds[member].bond
            if missing > 0:
                self.bond("carol", member, missing)
        self.schedule_set(first, count, SETTINGS.notice_epochs + 1)
        self.pass_epochs(SETTINGS.notice_epochs + 1, 4)
        self.thaw_bond(leaver, 8)
        self.pass_epochs(SETTINGS.thaw_epochs, 4)
        self.withdraw_bond(leaver)

    # Time, and what anyone may do

    @rule(seconds=st.sampled_from([1, 99, 100, 101, 3_600]))
    def pass_time(self, seconds: int) -> None:
        boa.env.time_travel(seconds=seconds)
        self.model.now += seconds

    @rule()
    def activate(self) -> None:
        assert self.world.ledger.due_epoch() == self.model.activate() == self.world.ledger.activate()

    @rule(account=st.integers(0, 2))
    def claim(self, account: int) -> None:
        name = PARTIES[account]
        expected = self.model.claim(account, self.payouts.get(name, name))
        accounts = self.active_accounts()
        proof = proof_of(tree_of(accounts), account)
        arguments = (account, self.address[name], *accounts[account].sums, proof)
        self.agree(expected, lambda: self.world.ledger.claim(*arguments))

    def active_accounts(self) -> list[Account]:
        """The accounts that the active report committed to."""
        if not self.model.active_epoch:
            return self.accounts(self.model.earned)
        earned, spent = self.model.active.earned, [self.model.active.credits_spent, 0, 0]
        return [Account(KEYS[name].address, earned[i], 0, spent[i]) for i, name in enumerate(PARTIES)]

    @rule(receiver=st.sampled_from(HOLDERS), amount=tokens)
    def donate(self, receiver: str, amount: int) -> None:
        self.world.fund(self.address[receiver], amount)
        self.model.move("treasury", receiver, amount)

    @rule(amount=tokens)
    def burn(self, amount: int) -> None:
        self.world.token.burn(amount, sender=self.address["treasury"])
        self.model.balances["treasury"] -= amount
        self.model.burned += amount

    # Operators

    @rule(operator=parties, node=nodes)
    def register(self, operator: str, node: int) -> None:
        expected = None if node in self.model.operators else 0
        self.agree(expected, lambda: self.world.register(self.address[operator], NODES[node]))
        self.model.operators.setdefault(node, operator)

    def caller_of(self, node: int, caller: str | None) -> str:
        """The caller named, or else the operator of the node."""
        return caller or self.model.operators.get(node, "carol")

    @rule(caller=callers, node=nodes)
    def retire(self, caller: str | None, node: int) -> None:
        operator = self.caller_of(node, caller)
        expected = 0 if self.model.is_operator(operator, node) else None
        self.agree(expected, lambda: self.world.registry.retire(self.at(node), sender=self.address[operator]))
        if expected == 0:
            self.model.retired.add(node)

    @rule(operator=parties)
    def set_payout(self, operator: str) -> None:
        self.world.registry.set_payout(self.address["payout"], sender=self.address[operator])
        self.payouts[operator] = "payout"

    @rule(caller=callers, node=nodes, part=parts)
    def stake(self, caller: str | None, node: int, part: int) -> None:
        operator = self.caller_of(node, caller)
        amount = self.model.balances[operator] * part // 8
        expected = self.model.stake(operator, node, amount)
        self.agree(expected, lambda: self.world.staking.stake(self.at(node), amount, sender=self.address[operator]))

    @rule(caller=callers, node=nodes, part=parts)
    def thaw(self, caller: str | None, node: int, part: int) -> None:
        operator = self.caller_of(node, caller)
        amount = self.model.positions[operator, node].bond * part // 8
        expected = self.model.thaw(operator, node, amount)
        self.agree(expected, lambda: self.world.staking.thaw(self.at(node), amount, sender=self.address[operator]))

    @rule(caller=callers, node=nodes)
    def withdraw(self, caller: str | None, node: int) -> None:
        operator = self.caller_of(node, caller)
        expected = self.model.withdraw(operator, node)
        self.agree(expected, lambda: self.world.staking.withdraw(self.at(node), sender=self.address[operator]))

    @rule(node=nodes, part=parts, slashed=parts)
    def leave(self, node: int, part: int, slashed: int) -> None:
        """The whole way out, with a slash on it."""
        self.thaw(None, node, part)
        self.pass_epochs(self.world.settings.thaw_epochs - 1, 8)
        self.withdraw(None, node)
        self.slash(None, node, slashed, "bob")
        self.pass_epochs(1, 4)
        self.withdraw(None, node)

    @rule(caller=callers, node=nodes, part=parts, harmed=st.sampled_from(["bob", None]))
    def slash(self, caller: str | None, node: int, part: int, harmed: str | None) -> None:
        operator = self.caller_of(node, caller)
        position = self.model.positions[operator, node]
        amount = (position.bond + position.thawing) * part // 8
        arguments = (self.address[operator], self.at(node), amount, self.address[harmed] if harmed else NOBODY)
        with boa.reverts("staking: only slasher"):
            self.world.staking.slash(*arguments, sender=self.address[operator])
        expected = self.model.slash(operator, node, amount, harmed)
        self.agree(expected, lambda: self.world.staking.slash(*arguments, sender=self.world.slasher))

    def at(self, node: int) -> str:
        return hexed(NODES[node].address)

    # What must always hold

    @invariant()
    def all_holds(self) -> None:
        """Mostly only where money and reports are: reading everything is dear."""
        self.steps += 1
        self.token_holds()
        self.oracle_and_ledger_hold()
        if self.steps % 4 == 0:
            self.everything_else_holds()

    def everything_else_holds(self) -> None:
        self.emission_holds()
        self.credits_hold()
        self.registry_holds()
        self.staking_holds()
        self.members_hold()

    def token_holds(self) -> None:
        balances = {name: self.world.token.balanceOf(self.address[name]) for name in HOLDERS}
        supply = self.world.token.totalSupply()
        assert balances == {name: self.model.balances[name] for name in HOLDERS}
        assert sum(balances.values()) == supply == self.model.supply <= self.world.settings.cap

    def emission_holds(self) -> None:
        emission, model = self.world.emission, self.model
        assert emission.last_epoch() == model.active_epoch
        assert emission.total_subsidy() == model.subsidy_minted
        assert emission.total_subsidy() <= sum(model.schedule(e) for e in range(1, model.active_epoch + 1))
        assert emission.total_revenue() == model.revenue_minted <= model.burned_for_credits

    def credits_hold(self) -> None:
        credits, model = self.world.credits, self.model
        for name in PARTIES:
            assert credits.paid_in(self.address[name]) == model.paid_in[name]
            assert credits.burned(self.address[name]) == model.spent_on_credits[name]
        assert credits.totals() == (sum(model.paid_in.values()), model.burned_for_credits)

    def registry_holds(self) -> None:
        for node in range(len(NODES)):
            operator = self.model.operators.get(node)
            found = self.world.registry.operator_of(self.at(node))
            assert found == (self.address[operator] if operator else "0x" + "00" * 20)
            assert self.world.registry.retired(self.at(node)) == (node in self.model.retired)

    def staking_holds(self) -> None:
        held = self.world.token.balanceOf(self.world.staking)
        assert sum(p.bond + p.thawing for p in self.model.positions.values()) <= held
        for (operator, node), position in self.model.positions.items():
            found = self.world.staking.position(self.address[operator], self.at(node))
            assert tuple(found) == (position.bond, position.thawing, position.ends)

    def members_hold(self) -> None:
        world, model = self.world, self.model
        assert sum(p.bond + p.thawing for p in model.bonds.values()) <= world.token.balanceOf(world.membership)
        for member, position in model.bonds.items():
            found = world.membership.position(self.address[f"member {member}"])
            assert tuple(found) == (position.bond, position.thawing, position.ends)
        for epoch in (model.active_epoch + 1, model.posted_epoch + 1, model.highest + 4):
            expected = [self.address[f"member {i}"] for i in model.set_at(epoch)]
            assert world.membership.members_at(epoch) == expected

    def oracle_and_ledger_hold(self) -> None:
        ledger, model, totals = self.world.ledger, self.model, self.world.ledger.totals()
        assert self.world.oracle.prices() == (*model.prices, model.priced_at)
        assert (totals.posted_epoch, totals.active_epoch) == (model.posted_epoch, model.active_epoch)
        assert ledger.nominal_epoch() == model.nominal_epoch
        assert (ledger.frozen(), ledger.frozen_at()) == (bool(model.frozen_at), model.frozen_at)
        assert self.world.oracle.attempt_of(model.posted_epoch + 1) == model.attempts[model.posted_epoch + 1]
        assert totals.tokens_earned == sum(model.earned.values())
        assert ledger.uncounted() == sum(model.uncounted.values())
        assert totals.credits_spent == model.credits_spent <= self.world.credits.total_paid_in()
        assert totals.revenue <= self.world.credits.total_burned()
        minted, paid = model.subsidy_minted + model.revenue_minted, sum(model.paid.values())
        assert paid <= minted <= totals.tokens_earned + ledger.uncounted()
        for account, name in enumerate(PARTIES):
            assert ledger.paid(self.address[name]) == model.paid[account]
            ahead = model.collected_on[model.active_epoch][account]
            assert model.paid[account] <= model.active.earned.get(account, 0) + ahead


@pytest.fixture(scope="module")
def limited() -> World:
    return World(SETTINGS)


@pytest.mark.hypothesis
@pytest.mark.timeout(DEADLINE)
def test_the_contracts_do_what_their_mirror_does_and_keep_what_must_hold(limited: World) -> None:
    run_state_machine_as_test(type("Deployed", (Network,), {"world": limited}), settings=budget(10, 50))
