"""A quorum that lies, over a real chain: one watcher proves it, the signers lose their bonds, and epochs go on.

So it does where the members hide what they claim: it demands an account, and what it is shown is the proof.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freehold.chain.contracts import Members, Oracle, Token
from freehold.chain.contracts.disputes import Demanded
from freehold.chain.follower import Follower
from freehold.net.client import Dial, Peer, Pin
from freehold.oracle import engine, process
from freehold.oracle.court import Court
from freehold.oracle.setup import Setup
from freehold.oracle.watch import Seen, Watcher
from freehold.oracle.watching import Demand
from freehold.protocol import epoch as protocol_epoch
from freehold.protocol.disputes import DEMAND_LEAF, answer_leaf
from freehold.protocol.epoch import Settlement
from freehold.protocol.errors import NotFound
from freehold.protocol.keys import Key
from freehold.protocol.state import AccountState, State
from freehold.protocol.tables import Table
from freehold.protocol.units import ONE, ZERO_HASH, Hash
from freehold.services.judging import JUDGES
from tests.local.chains import key
from tests.oracle.real_network import DEADLINE, MEMBERS, RealNetwork, real_network

LYING = 4  # the epoch whose first report is wrong
HONEST = 3  # the position of the only member that does not lie
CHALLENGER, ACCOMPLICE = key(6), key(7)
BOND = 500 * ONE


class Accomplices(dict[str, Any]):
    """Judges that mark a member as one that lies: what it settles is `lie` of the truth."""


LIES: list[Settlement] = []


def lie(truth: Settlement) -> Settlement:
    """The richest account's earnings go to another one: every sum is right, and a total has shrunk."""
    rows = list(truth.state.accounts)
    robbed = min(rows, key=lambda row: (-row.tokens_earned, row.index)).index
    other = (robbed + 1) % len(rows)
    stolen = rows[robbed].tokens_earned
    rows[robbed] = msgspec.structs.replace(rows[robbed], tokens_earned=0)
    rows[other] = msgspec.structs.replace(rows[other], tokens_earned=rows[other].tokens_earned + stolen)
    values = {name: getattr(truth.state, name) for name in State.__dataclass_fields__}
    state = State(**(values | {"accounts": Table.of(AccountState, rows)}))
    root = state.accounts_tree().root
    report = msgspec.structs.replace(truth.report, accounts_root=Hash(root.hash + b"\x00"), state_root=state.root())
    return Settlement(report, state, truth.verdicts, truth.contributions, truth.payments, truth.rewards, truth.slashes)


def settle_or_lie(
    previous: Any, manifest: Any, batches: Any, anchor: Any, judges: Mapping[str, Any], domain: Any
) -> Any:
    truth = protocol_epoch.settle(previous, manifest, batches, anchor, judges, domain)
    if not isinstance(judges, Accomplices) or manifest.epoch != LYING or manifest.attempt:
        return truth
    LIES.append(lie(truth))
    return LIES[-1]


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch) -> None:
    """All members but HONEST settle epoch LYING's first attempt wrong."""

    def make_setup(network: Any, members: Any, own: Key, view_timeout: float) -> Setup:
        setup = truthful(network, members, own, view_timeout)
        lies = own.address != Key(MEMBERS[HONEST]).address
        return replace(setup, judges=Accomplices(JUDGES)) if lies else setup

    truthful = process.make_setup
    LIES.clear()
    monkeypatch.setattr(process, "make_setup", make_setup)
    monkeypatch.setattr(engine, "settle", settle_or_lie)


class Discreet(Dial):
    """Reaches members that show nobody their states."""

    def __init__(self, dial: Dial) -> None:
        super().__init__()
        self._session = dial.session

    def peer(self, url: str, pin: Hash | Pin = ZERO_HASH) -> Peer:
        return DiscreetPeer(self, url, pin)


class DiscreetPeer(Peer):
    """A member that does not know its states."""

    async def get_bytes(self, path: str, *arguments: Any, **options: Any) -> bytes:
        if path.startswith("/v1/states/"):
            raise NotFound("no state here")
        return await super().get_bytes(path, *arguments, **options)


@pytest.mark.timeout(150)
@pytest.mark.usefixtures("lying")
def test_a_lying_quorum_is_proven_wrong_slashed_and_settled_again(tmp_path: Path) -> None:
    asyncio.run(scenario(tmp_path, is_hidden=False))


@pytest.mark.timeout(150)
@pytest.mark.usefixtures("lying")
def test_a_quorum_that_hides_its_lie_is_proven_wrong_by_its_answer(tmp_path: Path) -> None:
    asyncio.run(scenario(tmp_path, is_hidden=True))


async def scenario(tmp_path: Path, is_hidden: bool) -> None:
    async with real_network(tmp_path, member_bond=BOND, dispute_bond=10 * ONE) as network:
        at, rpc = network.network.contracts, network.rpc
        token, members, oracle = Token(rpc, at["token"]), Members(rpc, at["members"]), Oracle(rpc, at["oracle"])
        challenger = Key(CHALLENGER)
        await network.sender.transact(token.transfer(challenger.address, 100 * ONE))
        seen: list[Seen] = []
        dial = Discreet(network.dial) if is_hidden else network.dial
        watcher = Watcher(network.network, rpc, dial, challenger, seen.append, poll=0.05)
        running = [asyncio.create_task(watcher.run()), asyncio.create_task(answer_with_lies(network))]
        try:
            async with asyncio.timeout(2 * DEADLINE):
                while (await members.position(Key(MEMBERS[0]).address)).bond == BOND:
                    await asyncio.sleep(0.05)
                    for task in running:
                        if task.done():
                            await task
            expected = ["contested", "demanded", "answered", "challenged"] if is_hidden else ["contested", "challenged"]
            assert [s.what for s in seen if (s.epoch, s.attempt) == (LYING, 0) and s.what != "revoked"] == expected
            await network.wait_for_epoch(LYING + 2)
            assert await oracle.attempt_of(LYING) == 1
            await told(seen, "verified", LYING, 1)
            assert not [s for s in seen if s.what == "contested" and (s.epoch, s.attempt) != (LYING, 0)]
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        for i, secret in enumerate(MEMBERS):
            left = (await members.position(Key(secret).address)).bond
            assert left == (BOND if i == HONEST else 0), f"member {i}"
        taken, bonds = 3 * BOND, 10 * ONE if is_hidden else 0  # who answered took the demand's bond
        assert await token.balance_of(challenger.address) == 100 * ONE + taken // 5 - bonds
        robbed = next(row.account for row in LIES[0].state.accounts if not row.tokens_earned)
        assert await token.balance_of(robbed) == taken // 5


async def answer_with_lies(network: RealNetwork) -> None:
    """An accomplice answers every demand on chain as the wrong report has it."""
    court = Court(network.rpc, network.network, Key(ACCOMPLICE))
    depth = network.network.parameters.finality_depth
    follower = Follower(network.rpc, [court.disputes], finality_depth=depth, interval=0.05)
    async for batch in follower.run(network.network.deployment_block):
        for event in batch.events:
            if isinstance(event.value, Demanded):
                lied = next(lied for lied in LIES if lied.report.struct_hash() == event.value.report_hash)
                shown = answer_leaf(lied.state.accounts.rows, event.value.position)
                await court.answer(lied.report, event.value.challenger, shown)


async def told(seen: list[Seen], what: str, epoch: int, attempt: int) -> None:
    async with asyncio.timeout(DEADLINE):
        while not any((s.what, s.epoch, s.attempt) == (what, epoch, attempt) for s in seen):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.timeout(150)
def test_members_answer_what_is_demanded_of_an_honest_report(tmp_path: Path) -> None:
    asyncio.run(demanding(tmp_path))


async def demanding(tmp_path: Path) -> None:
    """Somebody demands a leaf and lets nobody but the members answer: the report stays, and the bond is theirs."""
    async with real_network(tmp_path, dispute_bond=10 * ONE) as network:
        at, rpc = network.network.contracts, network.rpc
        token, oracle = Token(rpc, at["token"]), Oracle(rpc, at["oracle"])
        challenger = Key(CHALLENGER)
        await network.sender.transact(token.transfer(challenger.address, 100 * ONE))
        await network.wait_for_epoch(2)
        court = Court(rpc, network.network, challenger)
        report = await network.last_report()
        await court.demand(report, Demand(DEMAND_LEAF, 0))
        async with asyncio.timeout(DEADLINE):
            while await court.is_demanded(report.epoch, report.struct_hash(), challenger.address):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await network.wait_for_epoch(report.epoch + 2)
        assert await oracle.attempt_of(report.epoch) == 0
        assert await token.balance_of(challenger.address) == 90 * ONE
        paid = [await token.balance_of(Key(secret).address) for secret in MEMBERS]
        assert sum(paid) == 10 * ONE
