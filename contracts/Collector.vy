# pragma version 0.4.3
# pragma nonreentrancy on
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title The way out: vouchers paid on chain while the network is frozen
@license GNU Affero General Public License v3.0 only
@notice Anyone shows a voucher beside the lease's, the lock's and the client's rows of the state that the active report
        committed to, and the node's operator is paid as an epoch would have paid it, but for the subsidy.
        Invariants: of a lease at most min(voucher, lock) - settled is paid, and of a client no more than it has left, over
        all collections on one state; the Ledger's chain of them is part of the next report, so nothing collected is
        settled again; tokens come out of the client's cost basis, less tau.
"""

from modules import reports
from modules import rows
from modules import typed
from snekmate.utils import ecdsa

VOUCHER_MODE: constant(uint8) = 2
MAX_TABLES_DEPTH: constant(uint256) = 8
_MILLION: constant(uint256) = 10**6

VOUCHER_TYPE_HASH: constant(bytes32) = keccak256("Voucher(bytes32 lease,uint96 amount)")
LEASE_TYPE_HASH: constant(bytes32) = keccak256(
    "LeaseState(bytes32 lease,address client,address node,string service,uint8 mode,uint96 price,uint64 deadline,uint96 settled,uint64 opened,uint64 lapsed,uint64 closed)"
)
LOCK_TYPE_HASH: constant(bytes32) = keccak256("LockState(bytes32 lease,address client,uint96 amount,uint64 since)")
CLIENT_TYPE_HASH: constant(bytes32) = keccak256(
    "ClientState(address client,uint64 reservation,uint96 paid_in,uint96 burned,uint96 spent,uint96 released)"
)


interface Oracle:
    def report_hash(epoch: uint64) -> bytes32: view


interface Ledger:
    def active_epoch() -> uint64: view
    def note_collection(
        lease: bytes32, client: address, operator: address, credits: uint96, released: uint96, tokens: uint96
    ) -> bytes32: nonpayable


interface Emission:
    def mint_collected(owner: address, amount: uint96): nonpayable


interface Registry:
    def operator_of(node: address) -> address: view
    def payout_of(account: address) -> address: view


event Collected:
    lease: indexed(bytes32)
    client: indexed(address)
    operator: indexed(address)
    credits: uint96
    released: uint96
    tokens: uint96
    chain: bytes32


# A lease as the state has it; the field order is that of protocol/state.py.
struct LeaseState:
    lease: bytes32
    client: address
    node: address
    service: String[64]
    mode: uint8
    price: uint96
    deadline: uint64
    settled: uint96
    opened: uint64
    lapsed: uint64
    closed: uint64


struct LockState:
    lease: bytes32
    client: address
    amount: uint96
    since: uint64


struct ClientState:
    client: address
    reservation: uint64
    paid_in: uint96
    burned: uint96
    spent: uint96
    released: uint96


# Where a row stands: at `index` of the table's `count` rows, and the table at `table` of the state's `tables`.
struct Place:
    tables: uint32
    table: uint32
    table_proof: DynArray[bytes32, MAX_TABLES_DEPTH]
    root: bytes32
    count: uint32
    index: uint32
    proof: DynArray[bytes32, rows.MAX_DEPTH]


struct Amounts:
    credits: uint256
    released: uint256


oracle: public(immutable(address))
ledger: public(immutable(address))
emission: public(immutable(address))
registry: public(immutable(address))
tau: public(immutable(uint32))

# By the epoch whose state they were collected on: credits of a lease, and a client's credits and cost basis.
_of_lease: HashMap[uint64, HashMap[bytes32, uint256]]
_of_client: HashMap[uint64, HashMap[address, Amounts]]


@deploy
def __init__(oracle_: address, ledger_: address, emission_: address, registry_: address, tau_: uint32):
    """
    @param tau_ Of every credit, the parts per million that burn for good.
    """
    assert convert(tau_, uint256) < _MILLION, "collector: tau"
    oracle = oracle_
    ledger = ledger_
    emission = emission_
    registry = registry_
    tau = tau_


@external
def collect(
    report: reports.Report,
    lease: LeaseState,
    lease_at: Place,
    lock: LockState,
    lock_at: Place,
    client: ClientState,
    client_at: Place,
    amount: uint96,
    signature: Bytes[65],
) -> uint96:
    """
    @notice Only while the network is frozen and nothing is pending (the Ledger sees to it). Anyone may call for anyone.
    @param report The active one.
    @param amount What the client signed as the lease's voucher: cumulative.
    @return Tokens paid.
    """
    epoch: uint64 = staticcall Ledger(ledger).active_epoch()
    report_hash: bytes32 = reports._struct_hash(report)
    assert epoch > 0 and report_hash == staticcall Oracle(oracle).report_hash(epoch), "collector: not active"
    self._check_row(report.state_root, "leases", self._lease_hash(lease), lease_at)
    self._check_row(report.state_root, "locks", keccak256(abi_encode(LOCK_TYPE_HASH, lock)), lock_at)
    self._check_row(report.state_root, "clients", keccak256(abi_encode(CLIENT_TYPE_HASH, client)), client_at)
    assert lease.mode == VOUCHER_MODE, "collector: not by voucher"
    assert lock.lease == lease.lease and lock.client == lease.client, "collector: other lock"
    assert client.client == lease.client, "collector: other client"
    digest: bytes32 = typed._digest(oracle, keccak256(abi_encode(VOUCHER_TYPE_HASH, lease.lease, amount)))
    assert len(signature) == 65, "collector: signature length"
    assert ecdsa._recover_sig(digest, signature) == lease.client, "collector: not signed by client"

    of_lease: uint256 = self._of_lease[epoch][lease.lease]
    of_client: Amounts = self._of_client[epoch][lease.client]
    due: uint256 = convert(min(amount, lock.amount), uint256)
    settled: uint256 = convert(lease.settled, uint256) + of_lease
    left: uint256 = convert(client.paid_in - client.spent, uint256) - of_client.credits
    basis: uint256 = convert(client.burned - client.released, uint256) - of_client.released
    credits: uint256 = min(due - min(due, settled), left)
    assert credits > 0, "collector: nothing left"
    released: uint256 = basis if credits == left else basis * credits // left
    tokens: uint256 = released * (_MILLION - convert(tau, uint256)) // _MILLION
    assert tokens > 0, "collector: worth nothing"

    self._of_lease[epoch][lease.lease] = of_lease + credits
    self._of_client[epoch][lease.client] = Amounts(
        credits=of_client.credits + credits, released=of_client.released + released
    )
    operator: address = staticcall Registry(registry).operator_of(lease.node)
    assert operator != empty(address), "collector: no operator"
    chain_: bytes32 = extcall Ledger(ledger).note_collection(
        lease.lease,
        lease.client,
        operator,
        convert(credits, uint96),
        convert(released, uint96),
        convert(tokens, uint96),
    )
    log Collected(
        lease=lease.lease,
        client=lease.client,
        operator=operator,
        credits=convert(credits, uint96),
        released=convert(released, uint96),
        tokens=convert(tokens, uint96),
        chain=chain_,
    )
    extcall Emission(emission).mint_collected(staticcall Registry(registry).payout_of(operator), convert(tokens, uint96))
    return convert(tokens, uint96)


@external
@view
def collected_of(epoch: uint64, lease: bytes32) -> uint96:
    """
    @return Credits of `lease` collected on the state of `epoch`.
    """
    return convert(self._of_lease[epoch][lease], uint96)


@internal
@pure
def _lease_hash(lease: LeaseState) -> bytes32:
    return keccak256(
        abi_encode(
            LEASE_TYPE_HASH,
            lease.lease,
            lease.client,
            lease.node,
            keccak256(lease.service),
            lease.mode,
            lease.price,
            lease.deadline,
            lease.settled,
            lease.opened,
            lease.lapsed,
            lease.closed,
        )
    )


@internal
@pure
def _check_row(state_root: bytes32, table: String[64], struct_hash: bytes32, at: Place):
    """
    A row of the state has no signatures: its row hash is the hash of its struct hash.
    """
    assert rows._row_root(at.count, at.index, keccak256(struct_hash), at.proof) == at.root, "collector: row"
    tables: bytes32 = rows._row_root(at.tables, at.table, rows._table_row(table, at.count, at.root), at.table_proof)
    assert tables == state_root, "collector: table"
