# pragma version 0.4.3
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title The report of one epoch
@license GNU Affero General Public License v3.0 only
@notice The one definition that Oracle and Ledger share. Field order is that of the EIP-712 type. `view_` is
        named `view` in the type; Vyper keeps that word for itself.
"""

struct Report:
    epoch: uint64
    attempt: uint32
    view_: uint32
    anchor_block: uint64
    anchor_hash: bytes32
    beacon: bytes32
    previous: bytes32
    manifest: bytes32
    verdicts_root: bytes32
    state_root: bytes32
    accounts_root: bytes32
    accounts: uint64
    tokens_earned: uint96
    credits_earned: uint96
    credits_spent: uint96
    slashes_root: bytes32
    subsidy: uint96
    revenue: uint96
    price: uint96
    collected: bytes32
    parameters: bytes32


REPORT_TYPE_HASH: constant(bytes32) = keccak256(
    "Report(uint64 epoch,uint32 attempt,uint32 view,uint64 anchor_block,bytes32 anchor_hash,bytes32 beacon,bytes32 previous,bytes32 manifest,bytes32 verdicts_root,bytes32 state_root,bytes32 accounts_root,uint64 accounts,uint96 tokens_earned,uint96 credits_earned,uint96 credits_spent,bytes32 slashes_root,uint96 subsidy,uint96 revenue,uint96 price,bytes32 collected,bytes32 parameters)"
)


@internal
@pure
def _struct_hash(report: Report) -> bytes32:
    return keccak256(abi_encode(REPORT_TYPE_HASH, report))
