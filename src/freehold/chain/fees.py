"""What a transaction offers for its gas: enough for the market of now, never more than the cap.

A legacy chain (no base fee in its headers) has one gas price; elsewhere there are a fee and, within it, a tip. Nodes
take another transaction of the same nonce only for at least 10 % more in every field (geth, anvil), some for 12.5 %.

Invariant: no offer exceeds the cap, and each that replaces another raises every field by 12.5 % or more.
"""

from __future__ import annotations

from statistics import median_low
from typing import Any, NamedTuple

from freehold.chain.errors import FeeTooHigh, RpcRefused
from freehold.chain.rpc import Rpc
from freehold.chain.wire import get_field, quantity

BASE_FEE_FACTOR = 2  # covers six full blocks of EIP-1559's 12.5 % rises
LEAST_TIP = 1_000_000_000  # wei a gas, where the RPC ends suggest none


class Fees(NamedTuple):
    """`most` wei a gas in all; of it `tip` for the proposer, None on a legacy chain, where `most` is what is paid."""

    most: int
    tip: int | None

    def fields(self) -> dict[str, int]:
        """As a transaction has them."""
        if self.tip is None:
            return {"type": 0, "gasPrice": self.most}
        return {"type": 2, "maxFeePerGas": self.most, "maxPriorityFeePerGas": self.tip}


class Market(NamedTuple):
    """What the chain asks for now: `base` is None on a legacy chain, whose gas price is then `tip`."""

    base: int | None
    tip: int

    @property
    def least(self) -> int:
        """Below this a transaction waits."""
        return (self.base or 0) + self.tip

    def offer(self, cap: int | None) -> Fees:
        """Fees with room for the base fee to rise, as far as the cap allows. FeeTooHigh if that is not even enough."""
        check_cap(self.least, cap)
        wanted = self.least if self.base is None else BASE_FEE_FACTOR * self.base + self.tip
        most = wanted if cap is None else min(wanted, cap)
        return Fees(most, None if self.base is None else self.tip)

    def replace(self, old: Fees, cap: int | None) -> Fees | None:
        """Fees that replace `old` because the market rose above them; None if it did not. FeeTooHigh."""
        tip = 0 if old.tip is None else old.tip
        if old.most >= self.least and (self.base is None or tip >= self.tip):
            return None
        offer = Market(self.base, self.tip).offer(cap)
        most = max(offer.most, raise_by_eighth(old.most))
        check_cap(most, cap)
        return Fees(most, None if old.tip is None else max(self.tip, raise_by_eighth(tip)))


def check_cap(fee: int, cap: int | None) -> None:
    """FeeTooHigh where `fee` is above the cap."""
    if cap is not None and fee > cap:
        raise FeeTooHigh(f"the chain asks for {fee} wei a gas, and the cap is {cap}", fee=str(fee), cap=str(cap))


def raise_by_eighth(fee: int) -> int:
    """12.5 % more, rounded up."""
    return fee + -(-fee // 8)


async def ask_market(rpc: Rpc) -> Market:
    """The market as the ends see it: of several the middle (lower) one, so that no single end can make us overpay."""

    def read(results: list[Any]) -> int | None:
        block = results[0]
        get_field(block, "number")
        return None if block.get("baseFeePerGas") is None else quantity(block["baseFeePerGas"])

    bases = await rpc.survey([("eth_getBlockByNumber", ["latest", False])], read)
    known = [base for base in bases if base is not None]
    if not known:
        return Market(None, await _ask_price(rpc, "eth_gasPrice"))
    try:
        tip = await _ask_price(rpc, "eth_maxPriorityFeePerGas")
    except RpcRefused:
        tip = LEAST_TIP
    return Market(median_low(known), tip)


async def _ask_price(rpc: Rpc, method: str) -> int:
    return median_low(await rpc.survey([(method, [])], lambda results: quantity(results[0])))
