"""All members go silent: anybody freezes, what is earned still leaves, and when they are back nothing is paid twice."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freehold.chain.contracts import Collector, Credits, Emission, Members, Oracle, Token
from freehold.protocol.bundle import decode_bundle, replay
from freehold.protocol.errors import NotFound
from freehold.protocol.keys import Key
from freehold.protocol.state import AccountState, State
from freehold.protocol.units import ONE, Address
from freehold.services.judging import JUDGES
from tests.end_to_end.levers import (
    OPERATOR,
    VoucherLease,
    Watching,
    ask,
    chain_time,
    freehold,
    keep_wallets,
    pass_time,
    posted_after,
    read,
    register_node,
)
from tests.local.chains import key
from tests.oracle.real_network import DEADLINE, MEMBERS, SETTINGS, RealNetwork, real_network

# The window is longer than the silence that freezes: so reports are still pending when it does.
SHORT = SETTINGS._replace(epoch_length=10, answering_window=4, dispute_window=100)
PARAMETERS = msgspec.structs.replace(SHORT.parameters(), freeze_lengths=4, thaw_epochs=24)
# Credits of the one lease: settled by reports, the first voucher since, the lock, and what was signed beyond it.
SETTLED, FIRST, LOCK, SIGNED = 10 * ONE, 30 * ONE, 50 * ONE, 80 * ONE
BOND, SPARE = 500 * ONE, 100 * ONE
ANYBODY, SPARING = key(8), Key(MEMBERS[0])


@pytest.mark.timeout(150)
def test_everything_leaves_a_silent_network_once(tmp_path: Path) -> None:
    asyncio.run(scenario(tmp_path))


async def scenario(directory: Path) -> None:
    keep_wallets(directory, anybody=ANYBODY, treasury=key(0), sparing=SPARING.secret)
    async with real_network(directory, parameters=PARAMETERS, member_bond=BOND) as network:
        lease = await prepare(network)
        node = str(await lease.keep(FIRST))
        refused = await freehold(network, "freeze", "--yes", "--wallet", "anybody")
        assert refused.error["code"] == "refused"
        assert refused.error["details"]["freezes_at"] > refused.error["details"]["time"]
        assert "not frozen" in (await freehold(network, "collect", "--node", node, "--yes")).error["message"]

        last, bundle = await silence(network)
        await pass_time(network, await network.ledger.freezes_at() + 1)
        await freeze(network, last)
        state = replay(bundle.read_bytes(), JUDGES).state
        await claim_everything(network, state, bundle)
        paid = await collect(network, state, lease, bundle)
        await thaw(network)
        await come_back(network, lease, last, paid)


async def prepare(network: RealNetwork) -> VoucherLease:
    """A lease that has settled once, and a member with more bond than it needs."""
    await network.buy_credits(200 * ONE)
    await register_node(network)
    await posted_after(network, 2)  # the anchor of the open epoch knows the node and the credits
    lease = VoucherLease(network, LOCK, await chain_time(network) + 100_000)
    await network.wait_for_epoch(await lease.open(SETTLED))
    bonded = await read(network, "members", "bond", str(SPARING.address), "100", "--yes", "--wallet", "treasury")
    assert bonded == f"{SPARING.address} has bonded 600 tokens\n"
    return lease


async def silence(network: RealNetwork) -> tuple[int, Path]:
    """All members stop. The last epoch, and its bundle, which somebody kept while two of them were left."""
    for i in (0, 1):
        await network.stop(i)
    file = network.directory / "kept.bundle"
    while True:
        kept = await network.ledger.posted_epoch()
        await ask(network, "epoch", "replay", str(kept), "--save", str(file))
        for i in (2, 3):
            await network.stop(i)
        await pass_time(network, await chain_time(network) + 2)
        if await network.ledger.posted_epoch() == kept:
            return kept, file
        for i in (2, 3):  # one more report was under way
            await network.start(i)


async def freeze(network: RealNetwork, last: int) -> None:
    """Anybody may; what is pending becomes active by time."""
    told = await ask(network, "freeze", "--yes", "--wallet", "anybody")
    assert told["did"]
    assert told["pending"] > 0
    early = await freehold(network, "collect", "--node", str(network.directory / "node" / "node.json"), "--yes")
    assert "not all active" in early.error["message"]
    await pass_time(network, told["activates_at"])
    told = await ask(network, "freeze", "--yes", "--wallet", "anybody")
    assert (told["did"], told["active"], told["pending"]) == (False, last, 0)
    assert f"epoch {last} is active" in await read(network, "freeze", "--yes", "--wallet", "anybody")
    assert any("frozen" in problem for problem in (await freehold(network, "status")).envelope["data"]["problems"])


async def claim_everything(network: RealNetwork, state: State, bundle: Path) -> None:
    """Members answer nothing, and every account is claimed by the kept bundle."""
    token = Token(network.rpc, network.network.contracts["token"])
    for row in state.accounts:
        before = await token.balance_of(row.account)
        await claim(network, row, bundle)
        assert await token.balance_of(row.account) == before + row.tokens_earned
        assert await network.ledger.paid(row.account) == row.tokens_earned
    assert {OPERATOR.address, SPARING.address} <= {row.account for row in state.accounts if row.tokens_earned}


async def claim(network: RealNetwork, row: AccountState, bundle: Path | None = None) -> dict[str, Any]:
    given = () if bundle is None else ("--bundle", str(bundle))
    told = await ask(network, "claim", "--as", str(row.account), "--from", "anybody", *given)
    return dict(told)


async def collect(network: RealNetwork, state: State, lease: VoucherLease, bundle: Path) -> int:
    """Two vouchers pay what the lock has left, by the chain's own arithmetic, one by a kept bundle and the other by
    rows of a member that lives; and only once."""
    at, (client,) = network.network.contracts, state.clients.values()
    token, emission = Token(network.rpc, at["token"]), Emission(network.rpc, at["emission"])
    before, revenue = await token.balance_of(OPERATOR.address), await emission.total_revenue()
    left, basis, total = client.paid_in - client.spent, client.burned - client.released, 0
    node = ("collect", "--node", str(await lease.keep(FIRST)), "--yes", "--wallet", "anybody")
    nobody = await freehold(network, *node)
    assert nobody.error["code"] == "unavailable"
    assert "--bundle" in nobody.error["hint"]
    for amount, given in ((FIRST, ("--bundle", str(bundle))), (SIGNED, ())):
        if not given:
            await lease.keep(amount)
            await network.start(3)
            await serves(network, 3, state.epoch.epoch)
        (paid,) = (await ask(network, *node, *given))["vouchers"]
        credits = min(amount, LOCK) - (SETTLED if given else FIRST)
        released = basis * credits // left
        tokens = released * (10**6 - PARAMETERS.tau) // 10**6
        assert (int(paid["credits"]), int(paid["tokens"]), paid["why"]) == (credits, tokens, "paid")
        left, basis, total = left - credits, basis - released, total + tokens
        assert await token.balance_of(OPERATOR.address) == before + total
        assert await network.ledger.uncounted() == total == await emission.total_revenue() - revenue
        again = await read(network, *node, *given)
        assert f"all that its {'voucher' if given else 'lock'} covers is paid" in again
        assert again.endswith(f"\n0 tokens were paid, on the state of epoch {state.epoch.epoch}\n")
    return total


async def serves(network: RealNetwork, i: int, epoch: int) -> None:
    """Until member i has the epoch."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                await network.get(i, f"/v1/reports/{epoch}")
                return
            except NotFound:
                await asyncio.sleep(0.02)


async def thaw(network: RealNetwork) -> None:
    """A member in office takes out what it has beyond its bond: lengths of time count as epochs now."""
    members = Members(network.rpc, network.network.contracts["members"])
    too_much = await freehold(network, "members", "thaw", "101", "--yes", "--wallet", "sparing")
    assert "100 can thaw" in too_much.error["message"]
    before = await network.ledger.nominal_epoch()
    begun = await ask(network, "members", "thaw", "100", "--yes", "--wallet", "sparing")
    after = await network.ledger.nominal_epoch()
    assert before <= begun["ends"] - PARAMETERS.thaw_epochs <= after
    early = await freehold(network, "members", "withdraw", "--wallet", "sparing")
    assert early.error["details"]["ends"] == begun["ends"]
    await pass_time(network, await chain_time(network) + PARAMETERS.thaw_epochs * PARAMETERS.epoch_length)
    assert await network.ledger.nominal_epoch() >= begun["ends"]
    withdrawn = await read(network, "members", "withdraw", "--wallet", "sparing")
    assert withdrawn == f"{SPARE // ONE} tokens are back at {SPARING.address}\n"
    assert (await members.position(SPARING.address)).bond == BOND


async def come_back(network: RealNetwork, lease: VoucherLease, last: int, collected: int) -> None:
    """The first report was anchored before the collection, so it ends the freeze and its epoch settles again."""
    at, ledger = network.network.contracts, network.ledger
    oracle, collector = Oracle(network.rpc, at["oracle"]), Collector(network.rpc, at["collector"])
    for i in range(3):
        await network.start(i)
    watching = Watching(network)
    try:
        await network.wait_for_epoch(last + 1)
        assert not await ledger.frozen()
        assert await oracle.attempt_of(last + 1) == 1
        assert await ledger.uncounted() == 0
        # The voucher reaches the members as well, and is settled already.
        await network.wait_for_epoch(await lease.certify("voucher", lease.voucher(SIGNED), OPERATOR))
        end = await posted_after(network, 2)
        await watching.verify(end)
    finally:
        await watching.stop()
    assert await collector.collected_of(last, lease.id) == LOCK - SETTLED

    data = await network.dial.peer(network.urls[0]).get_bytes(f"/v1/bundles/{last + 1}")
    before, settled = decode_bundle(data, JUDGES).state, replay(data, JUDGES)
    rows = decode_bundle(data, JUDGES).anchor.collections
    assert [(row.lease, row.credits) for row in rows] == [(lease.id, FIRST - SETTLED), (lease.id, LOCK - FIRST)]
    assert sum(row.tokens for row in rows) == collected
    assert settled.report.collected == await ledger.collected()
    assert settled.state.leases[lease.id].settled == LOCK
    assert settled.state.clients[lease.client.address].spent == LOCK
    assert earned(settled.state, OPERATOR.address) == earned(before, OPERATOR.address) + collected
    final = await network.dial.peer(network.urls[0]).get_bytes(f"/v1/bundles/{end}")
    state = replay(final, JUDGES).state
    assert state.leases[lease.id].settled == LOCK
    assert earned(state, OPERATOR.address) == earned(settled.state, OPERATOR.address)
    await check_sums(network, settled.state)


def earned(state: State, account: Address) -> int:
    return next((row.tokens_earned for row in state.accounts if row.account == account), 0)


async def check_sums(network: RealNetwork, state: State) -> None:
    """Everybody gets its whole leaf, what was collected included, and no more; revenue is within what was burned."""
    ledger, epoch = network.ledger, state.epoch.epoch
    await pass_time(network, (await ledger.pending(epoch)).activates_at)
    for row in state.accounts:
        await claim(network, row)
        assert await ledger.paid(row.account) >= row.tokens_earned
    active = await ledger.active_epoch()
    data = await network.dial.peer(network.urls[0]).get_bytes(f"/v1/bundles/{active}")
    leaves = {row.account: row.tokens_earned for row in replay(data, JUDGES).state.accounts}
    for account, leaf in leaves.items():
        assert await ledger.paid(account) <= leaf
    assert await Emission(network.rpc, network.network.contracts["emission"]).total_revenue() <= await burned(network)


async def burned(network: RealNetwork) -> int:
    return await Credits(network.rpc, network.network.contracts["credits"]).total_burned()
