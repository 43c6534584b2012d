"""The network file: which chain, which contracts, which members, which parameters. All that a party must know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold.protocol.errors import InvalidInput, NotFound
from freehold.protocol.parameters import Parameters
from freehold.protocol.typed import Domain
from freehold.protocol.units import ZERO_HASH, Address, Hash

CONTRACTS = (
    *("registry", "token", "emission", "credits", "oracle", "ledger", "staking"),
    *("members", "collector", "opening_proof", "disputes", "fleets", "slasher"),
)


@dataclass(frozen=True)
class MemberRecord:
    """A member of the quorum: its address, its public key (65 bytes, for sealing), where it listens.

    `fingerprint` is that of its certificate; zero where it is spoken to over http, and in the file left out.
    """

    address: Address
    public_key: bytes
    url: str
    fingerprint: Hash = ZERO_HASH

    def to_json(self) -> dict[str, str]:
        """JSON-ready, as the network file has it."""
        value = {"address": str(self.address), "public_key": f"0x{self.public_key.hex()}", "url": self.url}
        return value if self.fingerprint == ZERO_HASH else value | {"fingerprint": str(self.fingerprint)}

    @staticmethod
    def from_json(value: Any) -> MemberRecord:
        """The record behind `to_json`'s form. KeyError, TypeError, ValueError, AttributeError, MalformedMessage."""
        public_key = bytes.fromhex(value["public_key"].removeprefix("0x"))
        fingerprint = Hash(value["fingerprint"]) if "fingerprint" in value else ZERO_HASH
        return MemberRecord(Address(value["address"]), public_key, str(value["url"]), fingerprint)


@dataclass(frozen=True)
class Network:
    """A deployed network. `rpc_url` may be several separated by spaces; in the file they are then a list."""

    name: str
    chain_id: int
    rpc_url: str
    contracts: dict[str, Address]
    deployment_block: int
    deployment_hash: Hash
    deployment_time: int
    members: tuple[MemberRecord, ...]
    parameters: Parameters
    subsidy_policy: str = "matched"

    @property
    def domain(self) -> Domain:
        """Where this network's signatures count."""
        return Domain(self.chain_id, self.contracts["oracle"])

    @property
    def member_addresses(self) -> tuple[Address, ...]:
        """The members in the contract's order."""
        return tuple(member.address for member in self.members)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, as the file has it."""
        return {
            "name": self.name,
            "chain_id": self.chain_id,
            "rpc_url": self.rpc_url if len(self.rpc_url.split()) < 2 else self.rpc_url.split(),
            "contracts": {name: str(address) for name, address in self.contracts.items()},
            "deployment_block": self.deployment_block,
            "deployment_hash": str(self.deployment_hash),
            "deployment_time": self.deployment_time,
            "members": [member.to_json() for member in self.members],
            "parameters": self.parameters.to_json(),
            "subsidy_policy": self.subsidy_policy,
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> Network:
        """The network behind `to_json`'s form; InvalidInput names what is missing or wrong."""
        try:
            network = Network(
                name=str(value["name"]),
                chain_id=int(value["chain_id"]),
                rpc_url=" ".join(value["rpc_url"]) if isinstance(value["rpc_url"], list) else str(value["rpc_url"]),
                contracts={name: Address(value["contracts"][name]) for name in CONTRACTS},
                deployment_block=int(value["deployment_block"]),
                deployment_hash=Hash(value["deployment_hash"]),
                deployment_time=int(value["deployment_time"]),
                members=tuple(MemberRecord.from_json(member) for member in value["members"]),
                parameters=Parameters.from_json(value["parameters"]),
                subsidy_policy=str(value["subsidy_policy"]),
            )
        except KeyError as error:
            raise InvalidInput(f"the network file lacks {error}") from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InvalidInput(f"the network file does not parse: {error}") from None
        network.parameters.check()
        if network.subsidy_policy != "matched":
            raise InvalidInput(f"this release has no subsidy policy {network.subsidy_policy!r}, only 'matched'")
        return network

    @staticmethod
    def load(path: Path) -> Network:
        """The network file at `path`; NotFound or InvalidInput with what to do."""
        try:
            text = path.read_text()
        except FileNotFoundError:
            hint = "Start a local network with `freehold up`, or name a network file with --network."
            raise NotFound(f"there is no network file at {path}", hint=hint) from None
        try:
            return Network.from_json(json.loads(text))
        except json.JSONDecodeError as error:
            raise InvalidInput(f"{path} is not JSON: {error}") from None

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(json.dumps(self.to_json(), indent=2) + "\n")
        temporary.replace(path)
