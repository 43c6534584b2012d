"""A quorum that lies, over a real chain: one watcher proves it, the signers lose their bonds, and epochs go on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freehold.chain.contracts import Members, Oracle, Token
from freehold.oracle import engine, process
from freehold.oracle.setup import Setup
from freehold.oracle.watch import Seen, Watcher
from freehold.protocol import epoch as protocol_epoch
from freehold.protocol.epoch import Settlement
from freehold.protocol.keys import Key
from freehold.protocol.state import AccountState, State
from freehold.protocol.tables import Table
from freehold.protocol.units import ONE, Address, Hash
from freehold.services.judging import JUDGES
from tests.local.chains import key
from tests.oracle.real_network import DEADLINE, MEMBERS, RealNetwork, real_network

LYING = 4  # the epoch whose first report is wrong
HONEST = 3  # the position of the only member that does not lie
CHALLENGER = key(6)
BOND = 500 * ONE


class Accomplices(dict[str, Any]):
    """Judges that mark a member as one that lies: what it settles is `lie` of the truth."""


def lie(truth: Settlement) -> Settlement:
    """The first account's earnings go to the last one: every sum is right, and a total has shrunk."""
    rows = list(truth.state.accounts)
    stolen = rows[0].tokens_earned
    rows[0] = msgspec.structs.replace(rows[0], tokens_earned=0)
    rows[-1] = msgspec.structs.replace(rows[-1], tokens_earned=rows[-1].tokens_earned + stolen)
    values = {name: getattr(truth.state, name) for name in State.__dataclass_fields__}
    state = State(**(values | {"accounts": Table.of(AccountState, rows)}))
    root = state.accounts_tree().root
    report = msgspec.structs.replace(truth.report, accounts_root=Hash(root.hash + b"\x00"), state_root=state.root())
    return Settlement(report, state, truth.verdicts, truth.contributions, truth.payments, truth.rewards)


def settle_or_lie(
    previous: Any, manifest: Any, batches: Any, anchor: Any, judges: Mapping[str, Any], domain: Any
) -> Any:
    truth = protocol_epoch.settle(previous, manifest, batches, anchor, judges, domain)
    wrong = isinstance(judges, Accomplices) and manifest.epoch == LYING and manifest.attempt == 0
    return lie(truth) if wrong else truth


@pytest.mark.timeout(150)
def test_a_lying_quorum_is_proven_wrong_slashed_and_settled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_setup(network: Any, members: Any, own: Key, view_timeout: float) -> Setup:
        setup = truthful(network, members, own, view_timeout)
        lies = own.address != Key(MEMBERS[HONEST]).address
        return replace(setup, judges=Accomplices(JUDGES)) if lies else setup

    truthful = process.make_setup
    monkeypatch.setattr(process, "make_setup", make_setup)
    monkeypatch.setattr(engine, "settle", settle_or_lie)
    asyncio.run(scenario(tmp_path))


async def scenario(tmp_path: Path) -> None:
    async with real_network(tmp_path, member_bond=BOND, dispute_bond=10 * ONE) as network:
        at, rpc = network.network.contracts, network.rpc
        token, members, oracle = Token(rpc, at["token"]), Members(rpc, at["members"]), Oracle(rpc, at["oracle"])
        challenger = Key(CHALLENGER)
        await network.sender.transact(token.transfer(challenger.address, 100 * ONE))
        seen: list[Seen] = []
        watcher = Watcher(network.network, rpc, network.dial, challenger, seen.append, poll=0.05)
        watching = asyncio.create_task(watcher.run())
        try:
            async with asyncio.timeout(2 * DEADLINE):
                while (await members.position(Key(MEMBERS[0]).address)).bond == BOND:
                    await asyncio.sleep(0.05)
                    if watching.done():
                        await watching
            assert {s.what for s in seen if s.epoch == LYING and s.attempt == 0} >= {"contested", "challenged"}
            await network.wait_for_epoch(LYING + 2)
            assert await oracle.attempt_of(LYING) == 1
            await told(seen, "verified", LYING, 1)
            assert not [s for s in seen if s.what == "contested" and (s.epoch, s.attempt) != (LYING, 0)]
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        for i, secret in enumerate(MEMBERS):
            left = (await members.position(Key(secret).address)).bond
            assert left == (BOND if i == HONEST else 0), f"member {i}"
        taken = 3 * BOND
        balance = await token.balance_of(challenger.address)
        assert balance == 100 * ONE + taken // 5
        harmed = await harmed_account(network)
        assert await token.balance_of(harmed) == taken // 5


async def told(seen: list[Seen], what: str, epoch: int, attempt: int) -> None:
    async with asyncio.timeout(DEADLINE):
        while not any((s.what, s.epoch, s.attempt) == (what, epoch, attempt) for s in seen):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def harmed_account(network: RealNetwork) -> Address:
    """Whose earnings the lie took: account 0's."""
    accounts = [await network.get(0, f"/v1/accounts/{Key(secret).address}") for secret in MEMBERS]
    (first,) = [a["account"]["account"] for a in accounts if a["account"]["index"] == "0"]
    return Address(first)
