# pragma version 0.4.3
# pragma nonreentrancy on
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title Operators and their nodes
@license GNU Affero General Public License v3.0 only
@notice A node is its key's address. The key itself signs who operates it, where it is reached and who is paid, so nobody
        can claim another's key. Endpoints live in events only: settlement folds events.
        Invariants: a key has at most one operator, ever; only that operator changes or retires it; a retired key never
        lives again.
"""

from snekmate.utils import ecdsa
from snekmate.utils import eip712_domain_separator

initializes: eip712_domain_separator
exports: eip712_domain_separator.eip712Domain

event NodeRegistered:
    operator: indexed(address)
    node: indexed(address)
    endpoint: String[200]
    payout: address


event EndpointUpdated:
    operator: indexed(address)
    node: indexed(address)
    endpoint: String[200]
    payout: address


event NodeRetired:
    operator: indexed(address)
    node: indexed(address)


event PayoutSet:
    operator: indexed(address)
    payout: address


REGISTER_TYPE_HASH: constant(bytes32) = keccak256(
    "RegisterNode(address operator,address node,string endpoint,address payout,uint256 nonce,uint256 deadline)"
)

# Kept after retirement: the operator still thaws the bond of a retired node.
operator_of: public(HashMap[address, address])
retired: public(HashMap[address, bool])
nonces: public(HashMap[address, uint256])
_payouts: HashMap[address, address]


@deploy
def __init__():
    eip712_domain_separator.__init__("Freehold Registry", "1")


@external
def register(node: address, endpoint: String[200], payout: address, deadline: uint256, signature: Bytes[65]):
    """
    @notice The caller becomes the operator of `node`, whose key signed exactly these arguments with the caller as
            operator and `nonces(node)` as nonce.
    @param payout Where all claims of the operator go; the zero address leaves that as it is.
    """
    assert block.timestamp <= deadline, "registry: expired"
    assert len(endpoint) > 0, "registry: no endpoint"
    assert self.operator_of[node] == empty(address), "registry: key in use"
    nonce: uint256 = self.nonces[node]
    digest: bytes32 = eip712_domain_separator._hash_typed_data_v4(
        keccak256(abi_encode(REGISTER_TYPE_HASH, msg.sender, node, keccak256(endpoint), payout, nonce, deadline))
    )
    assert len(signature) == 65, "registry: signature length"
    assert ecdsa._recover_sig(digest, signature) == node, "registry: not signed by node"

    self.nonces[node] = nonce + 1
    self.operator_of[node] = msg.sender
    if payout != empty(address) and payout != self._payout_of(msg.sender):
        self._payouts[msg.sender] = payout
        log PayoutSet(operator=msg.sender, payout=payout)
    log NodeRegistered(operator=msg.sender, node=node, endpoint=endpoint, payout=self._payout_of(msg.sender))


@external
def update_endpoint(node: address, endpoint: String[200]):
    self._check_operator(node)
    assert len(endpoint) > 0, "registry: no endpoint"
    log EndpointUpdated(operator=msg.sender, node=node, endpoint=endpoint, payout=self._payout_of(msg.sender))


@external
def set_payout(payout: address):
    """
    @notice Where all claims of the caller go from now on; its own address is the default.
    """
    assert payout != empty(address), "registry: no payout"
    self._payouts[msg.sender] = payout
    log PayoutSet(operator=msg.sender, payout=payout)


@external
def retire(node: address):
    """
    @notice For good: this key can never be registered again.
    """
    self._check_operator(node)
    self.retired[node] = True
    log NodeRetired(operator=msg.sender, node=node)


@external
@view
def payout_of(account: address) -> address:
    """
    @notice Where claims of `account` go: the account itself until it says otherwise.
    """
    return self._payout_of(account)


@external
@view
def is_live(operator: address, node: address) -> bool:
    """
    @notice Whether `operator` operates `node` now.
    """
    return operator != empty(address) and self.operator_of[node] == operator and not self.retired[node]


@internal
@view
def _payout_of(account: address) -> address:
    payout: address = self._payouts[account]
    return account if payout == empty(address) else payout


@internal
@view
def _check_operator(node: address):
    assert self.operator_of[node] == msg.sender, "registry: not the operator"
    assert not self.retired[node], "registry: retired"
