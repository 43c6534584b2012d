# pragma version 0.4.3
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title A permit that cannot be used against its signer
@license GNU Affero General Public License v3.0 only
@notice Anyone may send a pending permit first, so that the one inside the signer's own call fails. The allowance
        then stands all the same: the failure is ignored, and the pull that follows checks the allowance.
"""


@internal
def _try_permit(
    token: address, owner: address, amount: uint256, deadline: uint256, v: uint8, r: bytes32, s: bytes32
):
    success: bool = raw_call(
        token,
        abi_encode(
            owner,
            self,
            amount,
            deadline,
            v,
            r,
            s,
            method_id=method_id("permit(address,address,uint256,uint256,uint8,bytes32,bytes32)"),
        ),
        revert_on_failure=False,
    )
