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

from freehold.protocol.units import Hash
from tests.contracts.budgets import DEADLINE, budget
from tests.contracts.model import Model
from tests.contracts.world import NEVER, TOKEN, Account, World, hexed, key_of, proof_of, tree_of, tuple_of

PARTIES = ("alice", "bob", "carol")
HOLDERS = (*PARTIES, "treasury", "ledger", "staking", "credits", "emission", "payout")
KEYS = {name: key_of(name) for name in PARTIES}
NODES = [key_of(f"stateful node {i}") for i in range(3)]

parties = st.sampled_from(PARTIES)
nodes = st.integers(0, len(NODES) - 1)
tokens = st.one_of(st.integers(0, 3), st.integers(0, 400 * TOKEN))
# Shares are counted in eighths.
fractions = st.integers(0, 8)
# Parts of what there is: mostly some of it, at times nothing, all of it, or more.
parts = st.sampled_from((4, 1, 7, 8, 9, 0))
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
        for name in ("ledger", "staking", "credits", "emission"):
            self.address[name] = getattr(self.world, name).address
        self.address["treasury"] = str(self.world.treasury)
        self.address["payout"] = str(Address("0x" + "77" * 20))
        self.payouts: dict[str, str] = {}
        self.reports: list[Any] = []
        self.model = Model(self.world.settings, boa.env.timestamp)

    def teardown(self) -> None:
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
            for spender in (self.world.credits, self.world.staking):
                self.world.token.approve(spender, NEVER, sender=self.address[name])
        for node, operator in enumerate(("alice", "bob")):
            self.register(operator, node)
            self.stake(operator, node, 2)
            self.buy(operator, 1, False, 0)

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
        report = self.world.report(self.accounts(model.earned), revenue=minted[1], price=price)
        assert report.subsidy == minted[0]
        self.world.submit(report)
        self.reports.append(report)

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
        good = self.world.report(self.accounts(self.model.earned), accounts_root=Hash(b"\x01" * 31 + b"\x00"))
        report = self.world.report(**{name: getattr(good, name) for name in good.__struct_fields__} | changes)
        if report != good:
            with boa.reverts():
                self.world.submit(report)

    @precondition(lambda self: self.reports)
    @rule(data=st.data())
    def post_again(self, data: st.DataObject) -> None:
        with boa.reverts():
            self.world.submit(data.draw(st.sampled_from(self.reports)))

    @rule(member=st.integers(0, 3))
    def equivocate(self, member: int) -> None:
        one, other = self.world.report(), self.world.report(price=7)
        signatures = [self.world.sign(report, [member])[1] for report in (one, other)]
        address = hexed(self.world.members[member].address)
        arguments = (tuple_of(one), signatures[0], tuple_of(other), signatures[1])
        if self.world.oracle.equivocated(address, one.epoch, 0, 0):
            with boa.reverts("oracle: recorded"):
                self.world.oracle.record_equivocation(*arguments)
        else:
            self.world.oracle.record_equivocation(*arguments)

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
        self.model.activate()
        expected = self.model.claim(account, self.payouts.get(name, name))
        accounts = self.active_accounts()
        proof = proof_of(tree_of(accounts), account)
        arguments = (account, self.address[name], *accounts[account].sums, proof)
        self.agree(expected, lambda: self.world.ledger.claim(*arguments))

    def active_accounts(self) -> list[Account]:
        """The accounts that the active report committed to."""
        epoch = self.model.active_epoch
        if self.model.active is None:
            return self.accounts(self.model.earned)
        earned, spent = self.model.active.earned, [self.reports[epoch - 1].credits_spent, 0, 0]
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
        self.slash(None, node, slashed)
        self.pass_epochs(1, 4)
        self.withdraw(None, node)

    @rule(caller=callers, node=nodes, part=parts)
    def slash(self, caller: str | None, node: int, part: int) -> None:
        operator = self.caller_of(node, caller)
        position = self.model.positions[operator, node]
        arguments = (self.address[operator], self.at(node), (position.bond + position.thawing) * part // 8)
        with boa.reverts("staking: only slasher"):
            self.world.staking.slash(*arguments, sender=self.address[operator])
        expected = self.model.slash(operator, node, arguments[2])
        self.agree(expected, lambda: self.world.staking.slash(*arguments, sender=self.world.slasher))

    def at(self, node: int) -> str:
        return hexed(NODES[node].address)

    # What must always hold

    @invariant()
    def token_holds(self) -> None:
        balances = {name: self.world.token.balanceOf(self.address[name]) for name in HOLDERS}
        supply = self.world.token.totalSupply()
        assert balances == {name: self.model.balances[name] for name in HOLDERS}
        assert sum(balances.values()) == supply == self.model.supply <= self.world.settings.cap

    @invariant()
    def emission_holds(self) -> None:
        emission, model = self.world.emission, self.model
        assert emission.last_epoch() == model.active_epoch
        assert emission.total_subsidy() == model.subsidy_minted
        assert emission.total_subsidy() <= sum(model.schedule(e) for e in range(1, model.active_epoch + 1))
        assert emission.total_revenue() == model.revenue_minted <= model.burned_for_credits

    @invariant()
    def credits_hold(self) -> None:
        credits, model = self.world.credits, self.model
        for name in PARTIES:
            assert credits.paid_in(self.address[name]) == model.paid_in[name]
            assert credits.burned(self.address[name]) == model.spent_on_credits[name]
        assert credits.totals() == (sum(model.paid_in.values()), model.burned_for_credits)

    @invariant()
    def registry_holds(self) -> None:
        for node in range(len(NODES)):
            operator = self.model.operators.get(node)
            found = self.world.registry.operator_of(self.at(node))
            assert found == (self.address[operator] if operator else "0x" + "00" * 20)
            assert self.world.registry.retired(self.at(node)) == (node in self.model.retired)

    @invariant()
    def staking_holds(self) -> None:
        held = self.world.token.balanceOf(self.world.staking)
        assert sum(p.bond + p.thawing for p in self.model.positions.values()) <= held
        for (operator, node), position in self.model.positions.items():
            found = self.world.staking.position(self.address[operator], self.at(node))
            assert tuple(found) == (position.bond, position.thawing, position.ends)

    @invariant()
    def oracle_and_ledger_hold(self) -> None:
        model, totals = self.model, self.world.ledger.totals()
        assert self.world.oracle.prices() == (*model.prices, model.priced_at)
        assert (totals.posted_epoch, totals.active_epoch) == (model.posted_epoch, model.active_epoch)
        assert totals.tokens_earned == sum(model.earned.values())
        assert totals.credits_spent == model.credits_spent <= self.world.credits.total_paid_in()
        assert totals.revenue <= self.world.credits.total_burned()
        minted, paid = model.subsidy_minted + model.revenue_minted, sum(model.paid.values())
        assert paid <= minted <= totals.tokens_earned
        for account, name in enumerate(PARTIES):
            assert self.world.ledger.paid(self.address[name]) == model.paid[account] <= model.earned[account]


@pytest.mark.hypothesis
@pytest.mark.timeout(DEADLINE)
def test_the_contracts_do_what_their_mirror_does_and_keep_what_must_hold(deployed: World) -> None:
    run_state_machine_as_test(type("Deployed", (Network,), {"world": deployed}), settings=budget(25, 40))
