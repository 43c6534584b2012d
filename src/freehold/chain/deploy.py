"""Deploys a network's contracts to any EVM chain, and checks what stands there afterwards.

The contracts name each other, so every address is computed first (a contract's address follows from the deployer's
address and nonce) and given to the constructors; nothing is wired later, and nobody keeps a right to rewire it. The
transactions go out in their nonces' order without waiting for each other.

Invariant: a Deployment is returned only when every contract has code at its computed address, names the others by
theirs, and the deployment is `confirmations` blocks deep. Otherwise DeploymentFailed says what stands and what not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from freehold.chain.abi import Call, Contract, create_address, creation_code
from freehold.chain.contracts import (
    Collector,
    Credits,
    Disputes,
    Emission,
    Fleets,
    Ledger,
    Members,
    OpeningProof,
    Oracle,
    Registry,
    Slasher,
    Staking,
    Token,
)
from freehold.chain.errors import ChainError, DeploymentFailed
from freehold.chain.rpc import Rpc, quantity
from freehold.chain.transactor import Receipt, Sender, Sent
from freehold.protocol.errors import FreeholdError, InvalidInput, MalformedMessage
from freehold.protocol.keys import Key
from freehold.protocol.typed import keccak
from freehold.protocol.units import AMOUNT_LIMIT, Address

# In the order of their nonces. Emission's constructor asks the Token, so the Token stands first.
ORDER: tuple[type[Contract], ...] = (
    *(Registry, Token, Emission, Credits, Oracle, Ledger, Staking),
    *(Members, Collector, OpeningProof, Disputes, Fleets, Slasher),
)
MAX_MEMBERS = 31  # contracts/Members.vy
MAX_PARAMETERS = 4096  # bytes, contracts/Oracle.vy

# What must not be 0: a constructor would refuse it.
POSITIVE = (
    *("initial_price", "halving_epochs", "thaw_epochs", "epoch_length", "freeze_lengths", "claim_epochs"),
    *("answer_reports", "notice_epochs", "dispute_bond", "reveal_seconds"),
)


class DeployConfig(NamedTuple):
    """What a deployment fixes. Amounts are in base units, times in seconds of chain time.

    `parameters` is the canonical JSON of the network's parameters, which the Oracle publishes and hashes.
    `initial_subsidy` is an epoch's emission, halved every `halving_epochs`; `cap` bounds the supply for good.
    `governor` schedules members and parameters, `notice_epochs` ahead; `guardian` may pause for `pause_limit` at most.
    `tau` is in parts per million.
    """

    members: tuple[Address, ...]
    parameters: bytes
    initial_price: int
    treasury: Address
    initial_supply: int
    initial_subsidy: int
    halving_epochs: int
    dispute_window: int
    thaw_epochs: int
    max_price_age: int
    epoch_length: int
    freeze_lengths: int
    claim_epochs: int
    answer_reports: int
    tau: int
    governor: Address
    guardian: Address
    notice_epochs: int
    pause_limit: int
    member_bond: int
    dispute_bond: int
    reveal_seconds: int
    cap: int = AMOUNT_LIMIT - 1
    token_name: str = "Freehold"
    token_symbol: str = "FHD"

    @property
    def hold_seconds(self) -> int:
        """How long holds outlast a freeze's begin: for a demand's lengths, and twice the time to reveal."""
        return (self.answer_reports + 1) * self.epoch_length + 2 * self.reveal_seconds

    def check(self) -> None:
        """InvalidInput, in words, for what a constructor would refuse without any."""
        if len(self.members) != len(set(self.members)) or not self.members:
            raise InvalidInput(f"a network needs members, each once; these are {len(self.members)}")
        if len(self.members) > MAX_MEMBERS:
            raise InvalidInput(f"a network has at most {MAX_MEMBERS} members; these are {len(self.members)}")
        if not 0 < len(self.parameters) <= MAX_PARAMETERS:
            raise InvalidInput(f"the parameters are {len(self.parameters)} bytes, and must be 1 to {MAX_PARAMETERS}")
        if len(self.token_symbol) > 5:
            raise InvalidInput(f"the token's symbol {self.token_symbol!r} is longer than 5 characters")
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} must be 1 or more")
        emission = 2 * self.initial_subsidy * self.halving_epochs
        if emission > self.cap - self.initial_supply:
            raise InvalidInput(
                f"emission comes to {emission} in the end, and below the cap there is room for "
                f"{self.cap - self.initial_supply}"
            )


class Deployment(NamedTuple):
    """Where a network's contracts are. `block` is the first that holds any of them: events are read from there."""

    chain_id: int
    block: int
    registry: Address
    token: Address
    emission: Address
    credits: Address
    oracle: Address
    ledger: Address
    staking: Address
    members: Address
    collector: Address
    opening_proof: Address
    disputes: Address
    fleets: Address
    slasher: Address

    def to_json(self) -> dict[str, Any]:
        """The part of a network file that says where the network is."""
        contracts = {field_of(kind.NAME): str(self.address_named(kind.NAME)) for kind in ORDER}
        return {"chain_id": self.chain_id, "block": self.block, "contracts": contracts}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The deployment behind `to_json`'s form. MalformedMessage if it is none."""
        try:
            contracts = {name: Address(text) for name, text in value["contracts"].items()}
            return cls(chain_id=int(value["chain_id"]), block=int(value["block"]), **contracts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MalformedMessage(f"this is no deployment: {type(error).__name__} {error}") from None

    def address_named(self, name: str) -> Address:
        """The address of the contract with this name, such as "Oracle"."""
        address: Address = getattr(self, field_of(name))
        return address

    def contracts(self, rpc: Rpc) -> Contracts:
        """The contracts themselves, through `rpc`."""
        return Contracts(
            registry=Registry(rpc, self.registry),
            token=Token(rpc, self.token),
            emission=Emission(rpc, self.emission),
            credits=Credits(rpc, self.credits),
            oracle=Oracle(rpc, self.oracle),
            ledger=Ledger(rpc, self.ledger),
            staking=Staking(rpc, self.staking),
            members=Members(rpc, self.members),
            collector=Collector(rpc, self.collector),
            opening_proof=OpeningProof(rpc, self.opening_proof),
            disputes=Disputes(rpc, self.disputes),
            fleets=Fleets(rpc, self.fleets),
            slasher=Slasher(rpc, self.slasher),
        )


class Contracts(NamedTuple):
    """A network's contracts, ready to be asked. As a tuple: what a Follower follows."""

    registry: Registry
    token: Token
    emission: Emission
    credits: Credits
    oracle: Oracle
    ledger: Ledger
    staking: Staking
    members: Members
    collector: Collector
    opening_proof: OpeningProof
    disputes: Disputes
    fleets: Fleets
    slasher: Slasher


def field_of(name: str) -> str:
    """OpeningProof: opening_proof."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def predict(chain_id: int, deployer: Address, nonce: int) -> Deployment:
    """The addresses that a deployment by `deployer`, whose next nonce is `nonce`, will have."""
    addresses = {field_of(kind.NAME): create_address(deployer, nonce + index) for index, kind in enumerate(ORDER)}
    return Deployment(chain_id=chain_id, block=0, **addresses)


def compute_creations(config: DeployConfig, at: Deployment) -> dict[str, Call]:
    """The creating transaction of each contract, by name, in the order of nonces."""
    c = config
    return {
        "Registry": Registry.create(),
        "Token": Token.create(c.token_name, c.token_symbol, at.emission, c.cap, c.treasury, c.initial_supply),
        "Emission": Emission.create(at.token, at.ledger, at.credits, at.collector, c.initial_subsidy, c.halving_epochs),
        "Credits": Credits.create(at.token, at.oracle, c.max_price_age),
        "Oracle": Oracle.create(
            at.ledger, at.members, at.disputes, c.governor, c.parameters, c.initial_price, c.notice_epochs
        ),
        "Ledger": Ledger.create(
            at.oracle,
            at.emission,
            at.credits,
            at.registry,
            at.token,
            at.collector,
            at.disputes,
            c.guardian,
            c.dispute_window,
            c.epoch_length,
            c.freeze_lengths,
            c.claim_epochs,
            c.pause_limit,
            c.hold_seconds,
        ),
        "Staking": Staking.create(at.token, at.registry, at.ledger, at.slasher, c.thaw_epochs),
        "Members": Members.create(
            at.token,
            at.oracle,
            at.ledger,
            at.disputes,
            c.governor,
            c.members,
            c.member_bond,
            c.thaw_epochs,
            c.notice_epochs,
        ),
        "Collector": Collector.create(at.oracle, at.ledger, at.emission, at.registry, c.tau),
        "OpeningProof": OpeningProof.create(),
        "Disputes": Disputes.create(
            at.oracle,
            at.ledger,
            at.members,
            at.registry,
            at.token,
            at.opening_proof,
            c.dispute_bond,
            c.reveal_seconds,
            c.answer_reports,
        ),
        "Fleets": Fleets.create(),
        "Slasher": Slasher.create(at.oracle, at.ledger, at.staking),
    }


async def deploy(
    rpc: Rpc,
    deployer_key: bytes,
    config: DeployConfig,
    *,
    confirmations: int = 0,
    deadline: float = 120.0,
    artifacts: Path | None = None,
) -> Deployment:
    """Deploy every contract from one account, wait until all are mined, and check them.

    `deadline` is in seconds for each transaction. `artifacts` is a folder with the contracts compiled for this chain's
    fork (scripts/compile_contracts.py --evm-version), where that is older than the package's own artifacts need. The
    deployer's key has no rights afterwards. A deployment that failed half-way is not continued (its addresses are
    bound to the nonces used): deploy again, all anew.
    """
    config.check()
    deployer = Key(deployer_key).address
    sender = Sender(rpc, deployer_key, confirmations=confirmations, deadline=deadline)
    nonce = quantity(await rpc.call("eth_getTransactionCount", [f"0x{deployer.hex()}", "pending"]))
    at = predict(await rpc.chain_id(), deployer, nonce)
    creations = compute_creations(config, at)
    if artifacts is not None:
        creations = with_artifacts(creations, artifacts)
    receipts = await _create(sender, creations, at)
    at = at._replace(block=min(receipt.block_number for receipt in receipts))
    await check(rpc, config, at)
    return at


def with_artifacts(creations: Mapping[str, Call], artifacts: Path) -> dict[str, Call]:
    """The same creations with the code that the folder's artifacts hold; the constructors' arguments stay."""
    return {
        name: call._replace(data=creation_code(name, artifacts) + call.data[len(creation_code(name)) :])
        for name, call in creations.items()
    }


async def _create(sender: Sender, creations: Mapping[str, Call], at: Deployment) -> list[Receipt]:
    sent: dict[str, Sent] = {}
    receipts: dict[str, Receipt] = {}
    try:
        for name, call in creations.items():
            sent[name] = await sender.send(call)
            if create_address(sender.address, sent[name].nonce) != at.address_named(name):
                raise ChainError(f"nonce {sent[name].nonce} was not expected yet; is the key used elsewhere?")
        for name, transaction in sent.items():
            receipts[name] = await sender.wait(transaction)
    except FreeholdError as error:
        failed = next(name for name in creations if name not in (receipts if len(sent) == len(creations) else sent))
        raise DeploymentFailed(
            f"{failed} was not deployed: {error.message}",
            failed=failed,
            sent=list(sent),
            deployed={name: str(receipt.contract) for name, receipt in receipts.items()},
            cause=error.to_json(),
        ) from error
    return list(receipts.values())


async def check(rpc: Rpc, config: DeployConfig, at: Deployment) -> None:
    """DeploymentFailed, naming every difference, unless the contracts stand as `config` and `at` say."""
    differences = [
        f"no code at {at.address_named(kind.NAME)} ({kind.NAME})"
        for kind in ORDER
        if not await _has_code(rpc, kind, at)
    ]
    if not differences:
        for name, (found, expected) in (await _read_wiring(rpc, config, at)).items():
            if found != expected:
                differences.append(f"{name} is {found}, not {expected}")
    if differences:
        raise DeploymentFailed(
            "the deployment is not as it must be: " + "; ".join(differences), differences=differences
        )


async def _has_code(rpc: Rpc, kind: type[Contract], at: Deployment) -> bool:
    return bool(await rpc.code(at.address_named(kind.NAME)))


async def _read_wiring(rpc: Rpc, config: DeployConfig, at: Deployment) -> dict[str, tuple[Any, Any]]:
    """(found, expected) of everything that a constructor fixed and a view tells, by name."""
    c = at.contracts(rpc)
    named: dict[str, dict[str, Any]] = {
        "token": {"minter": at.emission, "cap": config.cap, "name": config.token_name},
        "emission": {
            **_addresses(at, "token", "ledger", "credits", "collector"),
            **_values(config, "initial_subsidy", "halving_epochs"),
        },
        "credits": {**_addresses(at, "token", "oracle"), **_values(config, "max_price_age")},
        "oracle": {
            **_addresses(at, "ledger", "members", "disputes"),
            **_values(config, "governor", "notice_epochs", "initial_price"),
        },
        "ledger": {
            **_addresses(at, "oracle", "emission", "credits", "registry", "token", "collector", "disputes"),
            **_values(config, "guardian", "dispute_window", "epoch_length", "freeze_lengths", "claim_epochs"),
            **_values(config, "pause_limit", "hold_seconds"),
        },
        "staking": {**_addresses(at, "token", "registry", "ledger", "slasher"), **_values(config, "thaw_epochs")},
        "slasher": _addresses(at, "oracle", "ledger", "staking"),
        "members": {
            **_addresses(at, "token", "oracle", "ledger", "disputes"),
            **_values(config, "governor", "member_bond", "thaw_epochs", "notice_epochs"),
        },
        "collector": {**_addresses(at, "oracle", "ledger", "emission", "registry"), **_values(config, "tau")},
        "disputes": {
            **_addresses(at, "oracle", "ledger", "members", "registry", "token", "opening_proof"),
            **_values(config, "reveal_seconds", "answer_reports"),
            "bond": config.dispute_bond,
        },
    }
    wiring = {
        f"{contract.NAME}.{view}": (await getattr(contract, view)(), expected)
        for contract in c
        for view, expected in named.get(field_of(contract.NAME), {}).items()
    }
    return wiring | {
        "Members.members_at": (await c.members.members_at(1), config.members),
        "Oracle.parameters_at": (await c.oracle.parameters_at(1), keccak(config.parameters)),
    }


def _addresses(at: Deployment, *names: str) -> dict[str, Address]:
    return {name: getattr(at, name) for name in names}


def _values(config: DeployConfig, *names: str) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}
