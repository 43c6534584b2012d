"""The contracts on a real anvil: computed addresses, wiring, and failures that say what stands and what not."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from freehold.chain.contracts.oracle import Deployed
from freehold.chain.deploy import ORDER, DeployConfig, Deployment, check, deploy, predict
from freehold.chain.errors import DeploymentFailed
from freehold.chain.follower import Follower
from freehold.chain.rpc import Rpc
from freehold.chain.transactor import Sender
from freehold.protocol.errors import InvalidInput, MalformedMessage
from freehold.protocol.keys import Key
from freehold.protocol.typed import keccak
from freehold.protocol.units import AMOUNT_LIMIT, Address
from tests.local.chains import key, local_chain

CONFIG = DeployConfig(
    members=tuple(Key(key(index)).address for index in range(1, 5)),
    parameters=b'{"epoch_length":20}',
    initial_price=10**18,
    treasury=Key(key(5)).address,
    initial_supply=10**26,
    initial_subsidy=10**21,
    halving_epochs=1_000,
    dispute_window=10,
    thaw_epochs=2,
    max_price_age=100,
    epoch_length=20,
    freeze_lengths=6,
    claim_epochs=4,
    answer_reports=3,
    tau=100_000,
    governor=Key(key(6)).address,
    guardian=Key(key(7)).address,
    notice_epochs=2,
    pause_limit=600,
    member_bond=10**20,
    dispute_bond=10**19,
    reveal_seconds=30,
)


def test_deploys_wired_and_twice_from_one_account(tmp_path: Path) -> None:
    async def main() -> None:
        async with local_chain(tmp_path) as chain, Rpc(chain.url, chain_id=31337) as rpc:
            at = await deploy(rpc, key(0), CONFIG, confirmations=1)
            assert at._replace(block=0) == predict(31337, Key(key(0)).address, 0)
            contracts = at.contracts(rpc)
            assert await contracts.token.balance_of(CONFIG.treasury) == CONFIG.initial_supply
            assert await contracts.token.total_supply() == CONFIG.initial_supply
            assert await contracts.members.members_at(1) == CONFIG.members
            assert await contracts.oracle.quorum(1) == 3
            assert await contracts.oracle.last_report_hash() == keccak(CONFIG.parameters)
            assert await contracts.ledger.totals() == (0, 0, 0, 0, 0, 0)
            domain = await contracts.oracle.eip712_domain()
            assert domain[1:5] == ("Freehold", "1", 31337, at.oracle)
            # The parameters are in the events from the deployment's block on, for anyone.
            follower = Follower(rpc, contracts, finality_depth=1, interval=0.01)
            async for batch in follower.run(at.block):
                published = [event.value for event in batch.events if isinstance(event.value, Deployed)]
                if published:
                    assert published == [Deployed(CONFIG.parameters)]
                    break
            before = await rpc.header(at.block - 1)
            assert before is not None
            assert await rpc.get_logs(0, at.block - 1, list(at[2:])) == []
            second = await deploy(rpc, key(0), CONFIG, confirmations=0)
            assert second._replace(block=0) == predict(31337, Key(key(0)).address, len(ORDER))
            assert not set(second[2:]) & set(at[2:])
            # The check tells a network from another one.
            other = CONFIG._replace(dispute_window=11, members=CONFIG.members[::-1])
            with pytest.raises(DeploymentFailed, match=r"Ledger\.dispute_window is 10, not 11; Members\.members_at is"):
                await check(rpc, other, at)
            with pytest.raises(DeploymentFailed, match=r"no code at .* \(Staking\)"):
                await check(rpc, CONFIG, at._replace(staking=Address(b"\x01" * 20)))
            with pytest.raises(DeploymentFailed, match=r"Ledger\.oracle is"):
                await check(rpc, CONFIG, at._replace(oracle=second.oracle))

    asyncio.run(main())


def test_a_constructor_that_refuses_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        zero_member = (*CONFIG.members[:3], Address(bytes(20)))
        async with local_chain(tmp_path) as chain, Rpc(chain.url) as rpc:
            with pytest.raises(DeploymentFailed, match=r"Members was not deployed: .*members: zero member") as caught:
                await deploy(rpc, key(0), CONFIG._replace(members=zero_member))
            assert caught.value.details["failed"] == "Members"
            assert caught.value.details["sent"] == [kind.NAME for kind in ORDER[:7]]
            # What went out before it stands in the way of nothing: the next try takes later nonces.
            assert (await deploy(rpc, key(0), CONFIG)).block > 0

    asyncio.run(main())


def test_a_key_that_is_used_elsewhere_meanwhile_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with local_chain(tmp_path) as chain, Rpc(chain.url) as rpc:
            send = Sender.send

            async def late(self: Sender, call: Any, **options: Any) -> Any:
                monkeypatch.setattr(Sender, "send", send)
                await Sender(rpc, key(0)).transact(call)  # another process's transaction takes the first nonce
                return await send(self, call, **options)

            monkeypatch.setattr(Sender, "send", late)
            with pytest.raises(DeploymentFailed, match="is the key used elsewhere"):
                await deploy(rpc, key(0), CONFIG)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"members": ()}, "needs members"),
        ({"members": CONFIG.members[:1] * 4}, "each once"),
        ({"members": tuple(Address(bytes([i]) * 20) for i in range(1, 33))}, "at most 31 members"),
        ({"parameters": b""}, "must be 1 to 4096"),
        ({"parameters": b"x" * 4097}, "must be 1 to 4096"),
        ({"initial_price": 0}, "initial_price must be 1"),
        ({"thaw_epochs": 0}, "thaw_epochs must be 1"),
        ({"token_symbol": "FREEHOLD"}, "longer than 5"),
        ({"initial_supply": AMOUNT_LIMIT}, "below the cap"),
        ({"initial_subsidy": AMOUNT_LIMIT // 2_000}, "below the cap"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_in_words(change: dict[str, Any], words: str) -> None:
    CONFIG.check()
    with pytest.raises(InvalidInput, match=words):
        CONFIG._replace(**change).check()


def test_the_network_files_part_comes_back_as_it_went() -> None:
    at = predict(31337, Key(key(0)).address, 5)._replace(block=12)
    text = json.dumps(at.to_json())
    assert Deployment.from_json(json.loads(text)) == at
    assert json.loads(text)["contracts"]["oracle"] == str(at.oracle)
    good = at.to_json()
    for bad in (
        {}, {**good, "contracts": {}}, {**good, "block": "x"}, {**good, "contracts": 7}, [],
        {**good, "contracts": {**good["contracts"], "token": "0x12"}},
        {**good, "contracts": {**good["contracts"], "unknown": "0x" + "00" * 20}},
    ):  # fmt: skip
        with pytest.raises(MalformedMessage):
            Deployment.from_json(bad)  # type: ignore[arg-type]
