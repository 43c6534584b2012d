"""EIP-712 digests by eth-account: the judge of the contracts' own, and of the tests' hand-made ones."""

from __future__ import annotations

from typing import Any

from eth_account.messages import encode_typed_data
from eth_utils import keccak

REPORT = (
    "uint64 epoch,uint32 attempt,uint32 view,uint64 anchor_block,bytes32 anchor_hash,bytes32 beacon,bytes32 previous,"
    "bytes32 manifest,bytes32 verdicts_root,bytes32 state_root,bytes32 accounts_root,uint64 accounts,"
    "uint96 tokens_earned,uint96 credits_earned,uint96 credits_spent,bytes32 slashes_root,uint96 subsidy,"
    "uint96 revenue,uint96 price,bytes32 collected,bytes32 parameters"
)
REGISTER = "address operator,address node,string endpoint,address payout,uint256 nonce,uint256 deadline"
PERMIT = "address owner,address spender,uint256 value,uint256 nonce,uint256 deadline"


def digest_of(kind: str, fields: str, message: dict[str, Any], name: str, chain_id: int, contract: str) -> bytes:
    """The digest of `kind(fields)` under the domain (name, "1", chain_id, contract)."""
    members = [field.split() for field in fields.split(",")]
    signable = encode_typed_data(
        domain_data={"name": name, "version": "1", "chainId": chain_id, "verifyingContract": contract},
        message_types={kind: [{"name": field, "type": solidity} for solidity, field in members]},
        message_data=message,
    )
    return bytes(keccak(b"\x19" + signable.version + signable.header + signable.body))
