# pragma version 0.4.3
# pragma nonreentrancy on
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title Slasher: what settlement proved wrong costs its node's bond
@license GNU Affero General Public License v3.0 only
@notice A report's slashes root is the row root (rows.vy) over its slashes. Once the report is active, and so can be
        revoked no more, anyone shows a row of it, and Staking takes what the row says. It can be shown while the Oracle
        remembers the report: for 64 epochs. A report does not say how many slashes it has, and under a wrong count a row
        may be proven at another index: so what was taken is remembered by row, and a report's rows are all different.
        Invariants: a row of a report counts once; none counts before its report is active.
"""

from modules import reports
from modules import rows


interface Oracle:
    def report_hash(epoch: uint64) -> bytes32: view


interface Ledger:
    def active_epoch() -> uint64: view


interface Staking:
    def slash(operator: address, node: address, amount: uint96, harmed: address) -> uint96: nonpayable


event NodeSlashed:
    epoch: indexed(uint64)
    node: indexed(address)
    operator: indexed(address)
    subject: bytes32
    harmed: address
    amount: uint96


struct Slash:
    service: String[64]
    node: address
    operator: address
    subject: bytes32
    harmed: address
    amount: uint96


SLASH_TYPE_HASH: constant(bytes32) = keccak256(
    "Slash(string service,address node,address operator,bytes32 subject,address harmed,uint96 amount)"
)

oracle: public(immutable(address))
ledger: public(immutable(address))
staking: public(immutable(address))

# By report and row hash: whether it was taken.
slashed: public(HashMap[bytes32, HashMap[bytes32, bool]])


@deploy
def __init__(oracle_: address, ledger_: address, staking_: address):
    assert oracle_ != empty(address), "slasher: zero oracle"
    assert ledger_ != empty(address), "slasher: zero ledger"
    assert staking_ != empty(address), "slasher: zero staking"
    oracle = oracle_
    ledger = ledger_
    staking = staking_


@external
def slash(
    report: reports.Report, count: uint32, index: uint32, row: Slash, proof: DynArray[bytes32, rows.MAX_DEPTH]
) -> uint96:
    """
    @param count How many slashes the report has; `index` is this one's position, `proof` its siblings, bottom up.
    @return What was taken: less than the row says if less was there.
    """
    report_hash: bytes32 = reports._struct_hash(report)
    assert report_hash == staticcall Oracle(oracle).report_hash(report.epoch), "slasher: not the report"
    assert report.epoch <= staticcall Ledger(ledger).active_epoch(), "slasher: not active"
    row_hash: bytes32 = self._row_hash(row)
    assert rows._row_root(count, index, row_hash, proof) == report.slashes_root, "slasher: not in the report"
    assert not self.slashed[report_hash][row_hash], "slasher: slashed"
    self.slashed[report_hash][row_hash] = True
    taken: uint96 = extcall Staking(staking).slash(row.operator, row.node, row.amount, row.harmed)
    log NodeSlashed(
        epoch=report.epoch,
        node=row.node,
        operator=row.operator,
        subject=row.subject,
        harmed=row.harmed,
        amount=taken,
    )
    return taken


@internal
@pure
def _row_hash(row: Slash) -> bytes32:
    """
    keccak256(struct hash): a slash bears no signatures.
    """
    return keccak256(
        keccak256(
            abi_encode(
                SLASH_TYPE_HASH,
                keccak256(row.service),
                row.node,
                row.operator,
                row.subject,
                row.harmed,
                row.amount,
            )
        )
    )
