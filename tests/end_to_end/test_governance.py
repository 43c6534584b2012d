"""The levers, over a real network: other parameters and another member by epoch, and a pause; epochs never stop."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from freehold.chain.contracts import Token
from freehold.protocol.bundle import decode_bundle, replay
from freehold.protocol.errors import NotFound
from freehold.protocol.keys import Key
from freehold.protocol.shares import MEMBERS_SERVICE
from freehold.protocol.units import ONE, Address
from freehold.services.judging import JUDGES
from tests.end_to_end.levers import Watching, ask, chain_time, freehold, keep_wallets, pass_time, read
from tests.local.chains import key
from tests.oracle.real_network import DEADLINE, MEMBERS, SETTINGS, RealNetwork, real_network

SHORT = SETTINGS._replace(epoch_length=10, answering_window=4, dispute_window=20)
PARAMETERS = SHORT.parameters()
BOND = 500 * ONE
NEWCOMER, GOVERNOR, GUARDIAN, STRANGER = (key(i) for i in (6, 7, 8, 9))
LEAVER, JOINER = 0, 4  # positions in the list of those that run
CHANGES = {"tau": 50_000, "member_share": 200_000, "challenges": 4}
KEPT = {name: getattr(PARAMETERS, name) for name in CHANGES}
PAUSE = 150


@pytest.mark.timeout(150)
def test_governance_and_a_pause_while_epochs_go_on(tmp_path: Path) -> None:
    asyncio.run(scenario(tmp_path))


async def scenario(directory: Path) -> None:
    keep_wallets(directory, governor=GOVERNOR, guardian=GUARDIAN, stranger=STRANGER, leaver=MEMBERS[LEAVER])
    governor, guardian = Key(GOVERNOR).address, Key(GUARDIAN).address
    async with real_network(
        directory, parameters=PARAMETERS, member_bond=BOND, governor=governor, guardian=guardian, notice_epochs=2
    ) as network:
        watching = Watching(network)
        try:
            await network.wait_for_epoch(1)
            first = await schedule_parameters(network)
            joins = await schedule_member(network, first)
            await network.start(network.enlist(NEWCOMER))
            await pause(network)
            last = await find_newcomer(network, joins)
            await leave(network, joins)
            await check_bundles(network, first, joins, last)
            await watching.verify(last)
        finally:
            await watching.stop()


async def schedule_parameters(network: RealNetwork) -> int:
    """Only the governor, with notice, and nothing that contracts have fixed; the first epoch."""
    file = network.directory / "changes.json"
    file.write_text(json.dumps(CHANGES))
    shown = await ask(network, "parameters", "show")
    assert shown["governor"] == str(Key(GOVERNOR).address)
    assert [one["parameters"] for one in shown["sets"]] == [PARAMETERS.to_json()]
    first = shown["earliest"] + 4  # a few epochs may pass before it is sent
    given = ("parameters", "schedule", str(file), "--yes", "--from")
    refused = await freehold(network, *given, str(first), "--wallet", "stranger")
    assert refused.error["details"]["holder"] == str(Key(GOVERNOR).address)
    early = await freehold(network, *given, str(shown["earliest"] - 1), "--wallet", "governor")
    assert early.error["details"]["earliest"] >= shown["earliest"]
    file.write_text(json.dumps({"freeze_lengths": 1}))
    fixed = await freehold(network, *given, str(first), "--wallet", "governor")
    assert "freeze_lengths is fixed" in fixed.error["message"]
    file.write_text(json.dumps(CHANGES))
    told = await ask(network, *given, str(first), "--wallet", "governor")
    before = PARAMETERS.to_json()
    assert told["changes"] == {name: [before[name], value] for name, value in CHANGES.items()}
    return first


async def schedule_member(network: RealNetwork, after: int) -> int:
    """The newcomer bonds, is listed, and takes the leaver's place; the first epoch of that set."""
    newcomer = Key(NEWCOMER)
    chosen = [*(str(Key(secret).address) for secret in MEMBERS[LEAVER + 1 :]), str(newcomer.address)]
    shown = await ask(network, "members", "show")
    joins = max(shown["earliest"] + 4, after + 2)
    given = ("members", "schedule", *chosen, "--yes", "--from", str(joins))
    refused = await freehold(network, *given, "--wallet", "governor")
    assert "has bonded 0 tokens" in refused.error["message"]
    assert "members bond" in refused.error["hint"]
    token = Token(network.rpc, network.network.contracts["token"])
    await network.sender.transact(token.transfer(Key(STRANGER).address, BOND))
    await ask(network, "members", "bond", str(newcomer.address), str(BOND // ONE), "--yes", "--wallet", "stranger")
    stranger = await freehold(network, *given, "--wallet", "stranger")
    assert stranger.error["details"]["holder"] == shown["governor"]
    scheduled = await read(network, *given, "--wallet", "governor")
    assert scheduled == f"from epoch {joins} on, 3 of 4 members sign\n"
    shown = await ask(network, "members", "show")
    assert [one["members"] for one in shown["sets"]][-1] == chosen
    assert f"from epoch {joins} (to come), 3 of 4 sign:\n  {chosen[0]}" in await read(network, "members", "show")
    table = (await read(network, "parameters", "show")).splitlines()
    assert table[0].split() == ["PARAMETER", "FROM", "EPOCH", "1", "FROM", "EPOCH", str(after)]
    assert ["tau", str(PARAMETERS.tau), str(CHANGES["tau"])] in [line.split() for line in table]
    return int(joins)


async def pause(network: RealNetwork) -> None:
    """Claims and activation stop, and nothing else; both resume by themselves."""
    ledger = network.ledger
    assert (await freehold(network, "pause", "99999999", "--yes")).error["code"] == "invalid_input"
    refused = await freehold(network, "pause", "60", "--yes", "--wallet", "stranger")
    assert refused.error["details"]["holder"] == str(Key(GUARDIAN).address)
    await pass_time(network, (await ledger.pending(1)).activates_at)  # something can be claimed
    claim = ("claim", "--as", str(Key(MEMBERS[1]).address), "--from", "stranger")
    await ask(network, *claim)

    until = (await ask(network, "pause", str(PAUSE), "--yes", "--wallet", "guardian"))["paused_until"]
    active, posted = await ledger.active_epoch(), await ledger.posted_epoch()
    assert "paused" in (await ask(network, *claim))["why"]
    assert any("paused" in problem for problem in (await freehold(network, "status")).envelope["data"]["problems"])
    await network.wait_for_epoch(posted + 2)
    await network.buy_credits(10 * ONE)
    assert await ledger.active_epoch() == active
    assert await chain_time(network) < until
    await pass_time(network, until)
    assert int((await ask(network, *claim))["claimed"]) > 0
    assert await ledger.active_epoch() > active
    assert "too recent" in (await freehold(network, "pause", "60", "--yes", "--wallet", "guardian")).error["message"]
    assert await read(network, "unpause", "--wallet", "guardian") == "nothing is paused\n"


async def find_newcomer(network: RealNetwork, joins: int) -> int:
    """The newcomer, which began with an empty disk, observes and signs; the epoch in which it has done both."""
    newcomer, observed, signed = Key(NEWCOMER).address, False, False
    epoch = joins
    async with asyncio.timeout(2 * DEADLINE):
        while True:
            await network.wait_for_epoch(epoch)
            bundle = decode_bundle(await fetch(network, JOINER, epoch), JUDGES)
            place = bundle.anchor.members.index(newcomer)
            observed |= newcomer in [one.member for one in bundle.manifest.observations]
            signed |= bool(bundle.signers >> place & 1)
            if observed and signed:
                return epoch
            epoch += 1


async def fetch(network: RealNetwork, i: int, epoch: int) -> bytes:
    """Member i's bundle of an epoch, once it has it."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                return await network.dial.peer(network.urls[i]).get_bytes(f"/v1/bundles/{epoch}")
            except NotFound:
                await asyncio.sleep(0.02)


async def leave(network: RealNetwork, joins: int) -> None:
    """Who left takes its bond out once no report of its time can be revoked any more, and follows the chain idly."""
    await ask(network, "claim", "--as", str(Key(MEMBERS[1]).address), "--from", "stranger")  # activates what is due
    if await network.ledger.active_epoch() + 1 < joins:
        early = await freehold(network, "members", "thaw", str(BOND // ONE), "--yes", "--wallet", "leaver")
        assert "stay bonded" in early.error["message"]
        await pass_time(network, (await network.ledger.pending(joins)).activates_at)
        await ask(network, "claim", "--as", str(Key(MEMBERS[1]).address), "--from", "stranger")
    thawing = await ask(network, "members", "thaw", str(BOND // ONE), "--yes", "--wallet", "leaver")
    assert (thawing["bond"], thawing["thawing"]) == ("0", str(BOND))
    await fetch(network, LEAVER, await network.ledger.posted_epoch())


async def check_bundles(network: RealNetwork, first: int, joins: int, last: int) -> None:
    """Every epoch's bundle replays by its own members and parameters, and its observers are paid by them."""
    leaver, newcomer = Key(MEMBERS[LEAVER]).address, Key(NEWCOMER).address
    earned: dict[Address, int] = {}
    for epoch in range(1, last + 1):
        data = await fetch(network, 1, epoch)
        bundle, settlement = decode_bundle(data, JUDGES), await asyncio.to_thread(replay, data, JUDGES)
        parameters = bundle.anchor.parameters
        assert {name: getattr(parameters, name) for name in CHANGES} == (CHANGES if epoch >= first else KEPT)
        assert (newcomer if epoch >= joins else leaver) in bundle.anchor.members
        assert (leaver if epoch >= joins else newcomer) not in bundle.anchor.members
        paid = {r.account: r.subsidy for r in settlement.rewards if r.service == MEMBERS_SERVICE}
        assert set(paid) == {one.member for one in bundle.manifest.observations}
        assert set(paid.values()) == {parameters.initial_subsidy * parameters.member_share // 10**6 // 4}
        for account, amount in paid.items():
            earned[account] = earned.get(account, 0) + amount
    assert {row.account: row.tokens_earned for row in settlement.state.accounts if row.tokens_earned} == earned
    assert earned[newcomer] > 0
    for epoch in (first - 1, first, joins - 1, joins):
        assert (await ask(network, "epoch", "replay", str(epoch)))["on_chain"]
