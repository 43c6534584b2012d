"""What a contract call costs as a whole transaction, measured in titanoboa's EVM.

Intrinsic gas, refunds and the calldata floor are the rules of EIP-2028, 3529, 3860 and 7623. Invariant: every account
and slot but the sender's account is cold when a measured call begins, as in a transaction of its own (EIP-2929).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import boa


class Row(NamedTuple):
    """One line of the table; `ceiling` is what the design demands, 0 for none."""

    transaction: str
    case: str
    gas: int
    ceiling: int = 0


def intrinsic_gas(data: bytes) -> tuple[int, int]:
    """What calldata costs before execution, and the floor under the whole transaction (EIP-2028, EIP-7623)."""
    tokens = 4 * len(data) - 3 * data.count(0)
    return 21_000 + 4 * tokens, 21_000 + 10 * tokens


def total_gas(data: bytes, executed: int, refunded: int) -> int:
    """The gas of a call transaction: refunds give back at most a fifth (EIP-3529)."""
    intrinsic, floor = intrinsic_gas(data)
    used = intrinsic + executed
    return max(used - min(refunded, used // 5), floor)


def measure(contract: Any, function: str, *arguments: Any, sender: str | None = None) -> int:
    """Run one call and return the gas of the transaction it would be. Not under an anchor: that keeps slots warm."""
    method = getattr(contract, function)
    # A transaction of its own: nothing is warm, and refunds count from the values of now.
    boa.env.evm.vm.state.lock_changes()
    boa.env.evm.reset_access_counters()
    boa.env.evm.vm.state.mark_address_warm(bytes.fromhex((sender or boa.env.eoa)[2:]))
    data = method.prepare_calldata(*arguments)
    method(*arguments, sender=sender)
    computation = contract._computation
    return total_gas(data, computation.get_gas_used(), computation.get_gas_refund())
