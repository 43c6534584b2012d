"""The first block of the testnet, and what Clique's rules (EIP-225) make of the number of its signers.

Of any `floor(n/2) + 1` consecutive blocks no two have the same signer. So that many blocks on top of each other bear
the signatures of more than half of the signers; and with fewer signers alive than that, no block follows any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from freehold.protocol.units import Address

VANITY, SEAL = bytes(32), bytes(65)  # what stands before and after the signers in the first block's extra data
COINS = 10_000 * 10**18  # wei of each funded account
GAS_LIMIT = 30_000_000
# The newest fork that Clique goes along with: go-ethereum's own verifier refuses Shanghai under it.
FORK = "london"
FORKS = (
    "homestead", "eip150", "eip155", "eip158", "byzantium", "constantinople", "petersburg", "istanbul", "berlin", FORK,
)  # fmt: skip


def compute_majority(signers: int) -> int:
    """How many consecutive blocks have different signers, and how many signers must live for blocks to follow."""
    return signers // 2 + 1


def build_genesis(chain_id: int, period: int, signers: Sequence[Address], funded: Sequence[Address]) -> dict[str, Any]:
    """geth's genesis file: blocks `period` seconds apart by `signers`, who own nothing; coins for `funded`."""
    if len(signers) != len(set(signers)) or not signers:
        raise ValueError("a chain needs signers, each once")
    config: dict[str, Any] = {f"{fork}Block": 0 for fork in FORKS}
    config |= {"chainId": chain_id, "clique": {"period": period, "epoch": 30_000}}
    return {
        "config": config,
        "difficulty": "0x1",
        "gasLimit": hex(GAS_LIMIT),
        "extraData": "0x" + (VANITY + b"".join(sorted(bytes(s) for s in signers)) + SEAL).hex(),
        "alloc": {str(address): {"balance": hex(COINS)} for address in funded},
    }
