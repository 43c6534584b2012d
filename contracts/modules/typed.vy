# pragma version 0.4.3
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title What a key signs in this network
@license GNU Affero General Public License v3.0 only
@notice EIP-712 digests under the network's one domain, which is the Oracle's: for contracts that are shown evidence.
"""

_DOMAIN_TYPE_HASH: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)


@internal
@view
def _digest(oracle: address, struct_hash: bytes32) -> bytes32:
    """
    The digest of a message with this struct hash, on this chain.
    """
    separator: bytes32 = keccak256(
        abi_encode(_DOMAIN_TYPE_HASH, keccak256("Freehold"), keccak256("1"), chain.id, oracle)
    )
    return keccak256(concat(0x1901, separator, struct_hash))
