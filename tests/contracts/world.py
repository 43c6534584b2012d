"""All contracts deployed together in titanoboa, with the keys of their parties: what contract tests stand on.

Addresses refer to each other in a circle, so they are predicted from the deployer's nonce, as on a real chain. Every
helper takes its defaults from the contracts' own state, so that a test names only what it is about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import boa
from eth_utils import keccak
from rlp import encode as rlp_encode

from freehold.protocol.keys import Key
from freehold.protocol.merkle import ACCOUNTS, SumNode, SumTree
from freehold.protocol.messages import Report
from freehold.protocol.typed import Domain, fields_of
from freehold.protocol.units import Address, Hash

ROOT = Path(__file__).resolve().parents[2]
ORDER = (
    *("Registry", "Token", "Emission", "Credits", "Oracle", "Ledger", "Staking"),
    *("Members", "Collector", "OpeningProof", "Disputes", "Fleets", "Slasher"),
)
TOKEN = 10**18
SECP256K1_N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
NEVER = 2**256 - 1


class Settings(NamedTuple):
    """A network's choice, small enough that tests cross every boundary."""

    members: int = 4
    cap: int = 1_000_000_000 * TOKEN
    initial_supply: int = 100_000_000 * TOKEN
    initial_subsidy: int = 1_000 * TOKEN
    halving_epochs: int = 4
    dispute_window: int = 100
    thaw_epochs: int = 3
    max_price_age: int = 3_600
    initial_price: int = 2 * TOKEN
    parameters: bytes = b'{"epoch_seconds":20}'
    epoch_length: int = 50
    freeze_lengths: int = 12
    claim_epochs: int = 1_000_000
    pause_limit: int = 500
    notice_epochs: int = 2
    member_bond: int = 100 * TOKEN
    tau: int = 100_000
    dispute_bond: int = 10 * TOKEN
    reveal_seconds: int = 60
    answer_reports: int = 3

    @property
    def hold_seconds(self) -> int:
        """How long holds outlast a freeze's begin."""
        return (self.answer_reports + 1) * self.epoch_length + 2 * self.reveal_seconds


def key_of(name: str) -> Key:
    """The same key for the same name, in every run."""
    return Key(keccak(text=f"freehold test {name}"))


def hexed(address: bytes) -> str:
    """An address as titanoboa takes it."""
    return "0x" + bytes(address).hex()


@cache
def deployer_of(name: str) -> Any:
    """The compiled contract; titanoboa keeps it on disk between runs."""
    folder = ROOT / "contracts"
    source = next(path for path in (*folder.glob("*.vy"), *folder.glob("*/*.vy")) if path.stem == name)
    return boa.load_partial(str(source))


def create_address(sender: str, nonce: int) -> str:
    """The address of the contract that `sender` creates with its transaction `nonce`."""
    return hexed(keccak(rlp_encode([bytes.fromhex(sender[2:]), nonce]))[12:])


def tuple_of(report: Report) -> tuple[Any, ...]:
    """A report as the contracts' ABI takes it."""
    return tuple(getattr(report, field.name) for field in fields_of(Report))


# What stands for the report before the first.
EMPTY_REPORT = tuple(bytes(32) if field.solidity == "bytes32" else 0 for field in fields_of(Report))


class Account(NamedTuple):
    """One position of the accounts tree."""

    address: Address
    tokens_earned: int = 0
    credits_earned: int = 0
    credits_spent: int = 0

    @property
    def sums(self) -> tuple[int, int, int]:
        return self.tokens_earned, self.credits_earned, self.credits_spent


def leaf_of(index: int, account: Account) -> SumNode:
    """The leaf hash covers position, address and sums."""
    return ACCOUNTS.leaf(index.to_bytes(8) + account.address, account.sums)


def tree_of(accounts: Sequence[Account]) -> SumTree:
    """The positional tree over accounts, in their order."""
    return SumTree(ACCOUNTS, [leaf_of(i, account) for i, account in enumerate(accounts)])


def proof_of(tree: SumTree, index: int) -> bytes:
    """The siblings of a position as the Ledger takes them."""
    return b"".join(ACCOUNTS.pack(node) for node in tree.proof(index))


class World:
    """Every contract of one network, deployed, and the keys of its members."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = s = settings or Settings()
        self.members = [key_of(f"member {i}") for i in range(s.members)]
        self.treasury = boa.env.generate_address()
        self.governor = boa.env.generate_address()
        self.guardian = boa.env.generate_address()
        nonce = boa.env.evm.vm.state.get_nonce(boa.env.eoa.canonical_address)
        at = {name: create_address(boa.env.eoa, nonce + i) for i, name in enumerate(ORDER)}
        members = [hexed(key.address) for key in self.members]
        self.registry = deployer_of("Registry").deploy()
        self.token = deployer_of("Token").deploy(
            "Freehold", "FHD", at["Emission"], s.cap, self.treasury, s.initial_supply
        )
        self.emission = deployer_of("Emission").deploy(
            self.token, at["Ledger"], at["Credits"], at["Collector"], s.initial_subsidy, s.halving_epochs
        )
        self.credits = deployer_of("Credits").deploy(self.token, at["Oracle"], s.max_price_age)
        self.oracle = deployer_of("Oracle").deploy(
            *(at["Ledger"], at["Members"], at["Disputes"], self.governor),
            *(s.parameters, s.initial_price, s.notice_epochs),
        )
        self.ledger = deployer_of("Ledger").deploy(
            *(self.oracle, self.emission, self.credits, self.registry, self.token),
            *(at["Collector"], at["Disputes"], self.guardian),
            *(s.dispute_window, s.epoch_length, s.freeze_lengths, s.claim_epochs, s.pause_limit, s.hold_seconds),
        )
        self.staking = deployer_of("Staking").deploy(
            self.token, self.registry, self.ledger, at["Slasher"], s.thaw_epochs
        )
        self.membership = deployer_of("Members").deploy(
            *(self.token, self.oracle, self.ledger, at["Disputes"], self.governor),
            *(members, s.member_bond, s.thaw_epochs, s.notice_epochs),
        )
        self.collector = deployer_of("Collector").deploy(self.oracle, self.ledger, self.emission, self.registry, s.tau)
        self.opening_proof = deployer_of("OpeningProof").deploy()
        self.disputes = deployer_of("Disputes").deploy(
            *(self.oracle, self.ledger, self.membership, self.registry, self.token, self.opening_proof),
            *(s.dispute_bond, s.reveal_seconds, s.answer_reports),
        )
        self.fleets = deployer_of("Fleets").deploy()
        self.slashing = deployer_of("Slasher").deploy(self.oracle, self.ledger, self.staking)
        self.slasher = self.slashing.address
        for name in ORDER:
            assert self.contract(name).address.lower() == at[name]
        self.domain = Domain(boa.env.evm.patch.chain_id, Address(self.oracle.address))

    def contract(self, name: str) -> Any:
        """The contract of that name."""
        others = {"Members": self.membership, "OpeningProof": self.opening_proof, "Slasher": self.slashing}
        return others[name] if name in others else getattr(self, name.lower())

    def fund(self, to: str, amount: int) -> None:
        """Tokens from the treasury."""
        self.token.transfer(to, amount, sender=self.treasury)

    def buy(self, client: str, tokens: int) -> int:
        """Fund a client and let it buy credits for all of that; the credits."""
        self.fund(client, tokens)
        self.token.approve(self.credits, tokens, sender=client)
        return int(self.credits.buy(tokens, 0, NEVER, sender=client))

    def report(self, over: Sequence[Account] | None = None, **changes: Any) -> Report:
        """The next valid report over these accounts, whose growth is subsidy unless `revenue` says otherwise."""
        totals = self.ledger.totals()
        fields: dict[str, Any] = {
            "epoch": totals.posted_epoch + 1,
            "attempt": self.oracle.attempt_of(totals.posted_epoch + 1),
            "view": 0,
            "anchor_block": 1,
            "previous": Hash(self.oracle.last_report_hash()),
            "accounts_root": Hash(b"\x01" * 31 + b"\x00"),
            "accounts": 1,
            "tokens_earned": totals.tokens_earned,
            "credits_earned": totals.credits_earned,
            "credits_spent": totals.credits_spent,
            "revenue": 0,
            "price": self.settings.initial_price,
            "collected": Hash(self.ledger.collected()),
            "parameters": Hash(self.oracle.parameters_at(totals.posted_epoch + 1)),
        }
        for name in ("anchor_hash", "beacon", "manifest", "verdicts_root", "state_root", "slashes_root"):
            fields[name] = Hash(keccak(text=name))
        if over is not None:
            root = tree_of(over).root
            fields["accounts_root"] = Hash(root.hash + b"\x00")
            fields["accounts"] = len(over)
            fields["tokens_earned"], fields["credits_earned"], fields["credits_spent"] = root.sums
        fields |= changes
        uncounted = self.ledger.uncounted()
        grown = fields["tokens_earned"] - totals.tokens_earned - uncounted
        fields.setdefault("subsidy", max(0, grown - fields["revenue"]))
        if "tokens_earned" not in changes and over is None:
            fields["tokens_earned"] = totals.tokens_earned + uncounted + fields["subsidy"] + fields["revenue"]
        return Report(**fields)

    def sign(self, report: Report, who: Sequence[int] = (0, 1, 2), domain: Domain | None = None) -> tuple[int, bytes]:
        """The bitmap of `who`, and their signatures in the order given."""
        digest = report.digest(domain or self.domain)
        signatures = b"".join(bytes(self.members[i].sign_digest(digest)) for i in who)
        return sum(1 << i for i in set(who)), signatures

    def submit(self, report: Report, who: Sequence[int] | None = None) -> None:
        """Submit a report under the signatures of `who`, or of the first quorum."""
        self.oracle.submit(tuple_of(report), *self.sign(report, who or range(self.oracle.quorum(report.epoch))))

    def post(self, over: Sequence[Account] | None = None, **changes: Any) -> Report:
        """Build, sign and submit the next report."""
        report = self.report(over, **changes)
        self.submit(report)
        return report

    def activate(self) -> int:
        """Let the dispute window pass and activate what is due."""
        boa.env.time_travel(seconds=self.settings.dispute_window)
        return int(self.ledger.activate())

    def revoke(self, epoch: int, before: Report | None = None) -> None:
        """Take back a pending report and all after it, as Disputes does on a proof."""
        given = tuple_of(before) if before else EMPTY_REPORT
        self.oracle.revoke(epoch, given, sender=self.disputes.address)

    def freeze(self) -> None:
        """Let the chain be silent for as long as it takes, and freeze."""
        boa.env.time_travel(seconds=self.settings.freeze_lengths * self.settings.epoch_length + 1)
        self.ledger.freeze()

    def claim(self, accounts: Sequence[Account], index: int) -> int:
        """Claim for one position; the tokens paid."""
        account = accounts[index]
        proof = proof_of(tree_of(accounts), index)
        return int(self.ledger.claim(index, hexed(account.address), *account.sums, proof))

    def register(self, operator: str, node: Key, endpoint: str = "http://node", payout: str = "0x" + "00" * 20) -> None:
        """Register a node whose key signs for `operator`."""
        signature = self.sign_registration(operator, node, endpoint, payout)
        self.registry.register(hexed(node.address), endpoint, payout, NEVER, signature, sender=operator)

    def sign_registration(self, operator: str, node: Key, endpoint: str, payout: str, **changes: Any) -> bytes:
        """The node key's signature under RegisterNode; `changes`: nonce, deadline, chain_id, contract, about."""
        fields = b"address operator,address node,string endpoint,address payout,uint256 nonce,uint256 deadline"
        words = [
            keccak(b"RegisterNode(" + fields + b")"),
            word(operator),
            word(changes.get("about", hexed(node.address))),
            keccak(text=endpoint),
            word(payout),
            changes.get("nonce", 0).to_bytes(32),
            changes.get("deadline", NEVER).to_bytes(32),
        ]
        separator = domain_separator(
            "Freehold Registry",
            changes.get("chain_id", boa.env.evm.patch.chain_id),
            changes.get("contract", self.registry.address),
        )
        digest = keccak(b"\x19\x01" + separator + keccak(b"".join(words)))
        return bytes(node.sign_digest(Hash(digest)))

    def sign_permit(self, owner: Key, spender: Any, amount: int, deadline: int = NEVER) -> tuple[int, bytes, bytes]:
        """v, r, s of an ERC-2612 permit with the owner's current nonce."""
        kind = b"Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
        nonce = self.token.nonces(hexed(owner.address))
        words = [keccak(kind), word(hexed(owner.address)), word(spender.address)]
        words += [value.to_bytes(32) for value in (amount, nonce, deadline)]
        digest = keccak(b"\x19\x01" + self.token.DOMAIN_SEPARATOR() + keccak(b"".join(words)))
        signature = owner.sign_digest(Hash(digest))
        return signature[64], signature[:32], signature[32:64]


def logs_of(contract: Any, name: str) -> list[Any]:
    """The events of that name which the last call of a contract caused, in order."""
    return [log for log in contract.get_logs() if type(log).__name__ == name]


@contextmanager
def forked() -> Iterator[int]:
    """The same contracts on a chain that split off; its chain id."""
    chain_id = boa.env.evm.patch.chain_id
    boa.env.evm.patch.chain_id = chain_id + 1
    try:
        yield chain_id + 1
    finally:
        boa.env.evm.patch.chain_id = chain_id


def word(address: str) -> bytes:
    """An address as a 32-byte word."""
    return bytes.fromhex(address[2:]).rjust(32, b"\x00")


def domain_separator(name: str, chain_id: int, contract: str) -> bytes:
    """The EIP-712 domain separator of version "1"."""
    kind = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
    return keccak(kind + keccak(text=name) + keccak(b"1") + chain_id.to_bytes(32) + word(contract))


def flip_s(signature: bytes) -> bytes:
    """The other signature of the same key over the same digest: the one with a high s."""
    s = SECP256K1_N - int.from_bytes(signature[32:64])
    return signature[:32] + s.to_bytes(32) + bytes([55 - signature[64]])
