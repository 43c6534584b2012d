"""Transactions of one key: a nonce each, signed once, sent until the chain has decided.

An intent gets its nonce and its signature under a lock, and from then on only those very bytes are sent again: when
the answer to the send was lost, or when the chain lost its pool (a restarted node). So an intent counts once at the
most; that it will not count (another transaction took its nonce) is a typed error, and so is not knowing in time.

Invariant: no intent is ever signed under two nonces. One process a key; two are told by TransactionReplaced.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from freehold.chain.abi import Call
from freehold.chain.errors import ChainError, Reverted, RpcRefused, TransactionPending, TransactionReplaced
from freehold.chain.rpc import Log, Rpc, hexadecimal, parse_log, quantity, unhex
from freehold.protocol.keys import Key
from freehold.protocol.units import Address, Hash

GAS_MARGIN_PERCENT = 30  # above the estimate: the state may have changed when the transaction is mined
BASE_FEE_FACTOR = 2  # covers six full blocks of EIP-1559's 12.5 % rises
# A nonce that is used and a receipt that is missing may be two answers of an RPC end in between two blocks.
LOOKS = 3
LEAST_TIP = 1_000_000_000  # wei a gas, where the RPC end suggests none


class Receipt(NamedTuple):
    """What a mined transaction did."""

    transaction: Hash
    block_number: int
    block_hash: Hash
    gas_used: int
    contract: Address | None
    logs: tuple[Log, ...]


@dataclass(frozen=True)
class Sent:
    """A signed transaction on its way: `raw` is all that is ever sent for this intent."""

    call: Call
    nonce: int
    transaction: Hash
    raw: bytes = field(repr=False)


class Sender:
    """Sends one key's transactions.

    `confirmations`: how many blocks must stand above a transaction's before `wait` returns (0: its own is enough; the
    local chain may lose its newest block when killed, so what must not be lost waits for 1). `poll` and `deadline`
    are seconds.
    """

    def __init__(
        self,
        rpc: Rpc,
        private_key: bytes,
        *,
        confirmations: int = 0,
        poll: float = 0.1,
        deadline: float = 60.0,
    ) -> None:
        self.rpc = rpc
        self.address = Key(private_key).address
        self._private_key = private_key
        self._confirmations = confirmations
        self._poll = poll
        self._deadline = deadline
        self._lock = asyncio.Lock()
        self._waiting: dict[int, Sent] = {}

    def __repr__(self) -> str:
        return f"Sender({self.address})"

    async def transact(self, call: Call, *, gas: int | None = None, deadline: float | None = None) -> Receipt:
        """Send, and wait until it is mined. Reverted (before or after it was sent) says why."""
        return await self.wait(await self.send(call, gas=gas), deadline=deadline)

    async def send(self, call: Call, *, gas: int | None = None) -> Sent:
        """Sign and send, without waiting. `gas` is a limit that replaces the estimate."""
        async with self._lock:
            request = self._request(call)
            if gas is None:
                gas = await self._estimate(request)
            fees = await self._fees()
            nonce = await self._next_nonce()
            sent = await self._sign(call, nonce, gas, fees)
            self._waiting[nonce] = sent
            try:
                await self._broadcast(sent)
            except RpcRefused:
                del self._waiting[nonce]
                raise
            except ChainError:
                # The answer was lost, not necessarily the transaction: `wait` finds out, or sends the same bytes.
                return sent
            return sent

    async def wait(self, sent: Sent, *, deadline: float | None = None) -> Receipt:
        """The receipt, once `confirmations` blocks stand above it.

        Reverted, TransactionReplaced, or TransactionPending when the deadline (seconds from now) has passed.
        """
        seconds = self._deadline if deadline is None else deadline
        failures: list[ChainError] = []
        try:
            async with asyncio.timeout(seconds):
                answer = await self._wait(sent, failures)
        except TimeoutError:
            why = f": {failures[-1].message}" if failures else ""
            raise TransactionPending(
                f"transaction {sent.transaction} was not mined within {seconds:g} s{why}",
                transaction=str(sent.transaction),
                nonce=sent.nonce,
            ) from None
        self._waiting.pop(sent.nonce, None)
        if quantity(answer["status"]) != 1:
            raise await self._find_reason(sent, quantity(answer["blockNumber"]))
        return parse_receipt(answer)

    async def _wait(self, sent: Sent, failures: list[ChainError]) -> dict[str, Any]:
        """The receipt as JSON. Whatever fails meanwhile is noted in `failures`: only the deadline ends the wait."""
        looks_replaced = 0
        while True:
            try:
                mined, deep, answer = await self._look(sent)
                if answer is not None and deep >= self._confirmations:
                    return answer
                looks_replaced = looks_replaced + 1 if answer is None and mined > sent.nonce else 0
                if answer is None and not looks_replaced:
                    await self._repeat_lost()
                failures.clear()
            except ChainError as error:
                failures[:] = [error]
            if looks_replaced >= LOOKS:
                self._waiting.pop(sent.nonce, None)
                raise TransactionReplaced(
                    f"another transaction of {self.address} took nonce {sent.nonce}",
                    transaction=str(sent.transaction),
                    nonce=sent.nonce,
                )
            await asyncio.sleep(self._poll)

    async def _look(self, sent: Sent) -> tuple[int, int, dict[str, Any] | None]:
        """(transactions mined of this key, blocks above the receipt, the receipt)."""
        mined, head, answer = await self.rpc.batch(
            [
                ("eth_getTransactionCount", [hexadecimal(self.address), "latest"]),
                ("eth_blockNumber", []),
                ("eth_getTransactionReceipt", [hexadecimal(sent.transaction)]),
            ]
        )
        deep = 0 if answer is None else quantity(head) - quantity(answer["blockNumber"])
        return quantity(mined), deep, answer

    async def _repeat_lost(self) -> None:
        """Send again, lowest nonce first, what the RPC end no longer knows."""
        ordered = [self._waiting[nonce] for nonce in sorted(self._waiting)]
        known = await self.rpc.batch([("eth_getTransactionByHash", [hexadecimal(s.transaction)]) for s in ordered])
        for sent, answer in zip(ordered, known, strict=True):
            if answer is None:
                await self._broadcast(sent)

    async def _broadcast(self, sent: Sent) -> None:
        try:
            await self.rpc.call("eth_sendRawTransaction", [hexadecimal(sent.raw)])
        except RpcRefused:
            # "Already known" and "nonce too low" are refusals too: what counts is whether the chain has it.
            if await self.rpc.call("eth_getTransactionByHash", [hexadecimal(sent.transaction)]) is None:
                raise

    async def _next_nonce(self) -> int:
        mined, pending = await self.rpc.batch(
            [("eth_getTransactionCount", [hexadecimal(self.address), tag]) for tag in ("latest", "pending")]
        )
        if self._confirmations == 0:
            for nonce in [nonce for nonce in self._waiting if nonce < quantity(mined)]:
                del self._waiting[nonce]
        return max([quantity(mined), quantity(pending), *(nonce + 1 for nonce in self._waiting)])

    async def _estimate(self, request: dict[str, str]) -> int:
        # "pending" sees this key's own transactions that are not mined yet: an approval, and then its use.
        tag = "pending" if self._waiting else "latest"
        estimate = quantity(await self.rpc.call("eth_estimateGas", [request, tag]))
        return estimate + estimate * GAS_MARGIN_PERCENT // 100

    async def _fees(self) -> tuple[int, int]:
        """(most wei a gas, of which tip)."""
        latest = await self.rpc.call("eth_getBlockByNumber", ["latest", False])
        try:
            tip = quantity(await self.rpc.call("eth_maxPriorityFeePerGas"))
        except RpcRefused:
            tip = LEAST_TIP
        return BASE_FEE_FACTOR * quantity(latest["baseFeePerGas"]) + tip, tip

    async def _sign(self, call: Call, nonce: int, gas: int, fees: tuple[int, int]) -> Sent:
        from eth_account import Account

        fields: dict[str, Any] = {
            "type": 2,
            "chainId": await self.rpc.chain_id(),
            "nonce": nonce,
            "gas": gas,
            "maxFeePerGas": fees[0],
            "maxPriorityFeePerGas": fees[1],
            "value": call.value,
            "data": bytes(call.data),
        }
        if call.to is not None:
            fields["to"] = bytes(call.to)
        signed = Account.sign_transaction(fields, self._private_key)
        return Sent(call, nonce, Hash(bytes(signed.hash)), bytes(signed.raw_transaction))

    def _request(self, call: Call) -> dict[str, str]:
        request = {"from": hexadecimal(self.address), "data": hexadecimal(call.data), "value": hex(call.value)}
        if call.to is not None:
            request["to"] = hexadecimal(call.to)
        return request

    async def _find_reason(self, sent: Sent, block: int) -> Reverted:
        """Why a mined transaction failed: asked by running it again on the state before its block."""
        reason = ""
        try:
            await self.rpc.call("eth_call", [self._request(sent.call), hex(block - 1)])
        except Reverted as error:
            reason = error.reason
        except ChainError as error:
            reason = f"the reason is gone: {error.message}"
        return Reverted(
            f"transaction {sent.transaction} reverted: {reason or 'no reason given'}",
            reason=reason,
            transaction=str(sent.transaction),
            block=block,
        )


def parse_receipt(answer: dict[str, Any]) -> Receipt:
    contract = answer.get("contractAddress")
    return Receipt(
        Hash(unhex(answer["transactionHash"])),
        quantity(answer["blockNumber"]),
        Hash(unhex(answer["blockHash"])),
        quantity(answer["gasUsed"]),
        None if contract is None else Address(unhex(contract)),
        tuple(parse_log(entry) for entry in answer["logs"]),
    )
