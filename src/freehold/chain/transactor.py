"""Transactions of one key: a nonce each, sent until the chain has decided, at fees that follow the market up to a cap.

An intent gets its nonce under a lock, and is never signed under another: what is sent again is the same bytes (when
the answer was lost, when a pool dropped them, when a reorganisation undid their block), or the same call and nonce at
higher fees (when the market rose above them). So an intent counts once at the most. That it will not count (another
transaction took its nonce) is a typed error, and so is not knowing in time. Fates are what a quorum of the RPC ends
agrees on.

With a journal this holds through kills: what a process signed and never heard of again, the next one takes up, and an
intent with a name finds its own transaction there.

Invariant: no intent is ever signed under two nonces. One process a key, or one journal; two are told by
TransactionReplaced.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

from freehold.chain.abi import Call
from freehold.chain.errors import (
    BadAnswer,
    ChainError,
    FeeTooHigh,
    Reverted,
    RpcRefused,
    TransactionPending,
    TransactionReplaced,
)
from freehold.chain.fees import Fees, ask_market
from freehold.chain.journal import Journal, Sent
from freehold.chain.rpc import Log, Rpc
from freehold.chain.wire import get_field, hexadecimal, parse_log, quantity, unhex
from freehold.protocol.keys import Key
from freehold.protocol.units import Address, Hash

__all__ = ["Receipt", "Sender", "Sent", "parse_receipt"]

GAS_MARGIN_PERCENT = 30  # above the estimate: the state may have changed when the transaction is mined
# A nonce that is used and a receipt that is missing may be two answers of an RPC end in between two blocks.
LOOKS = 3
LATE_LOOKS = 5  # at an RPC end that may be behind the others, each after twice the pause
PATIENCE = 3  # blocks that pass a transaction by before its fees are looked at again
SEARCHED = 16  # blocks in which a transaction that took a nonce is looked for
INTENT_SECONDS = 86_400  # for which an intent that was decided, and never reported, is found again


class Receipt(NamedTuple):
    """What a mined transaction did."""

    transaction: Hash
    block_number: int
    block_hash: Hash
    gas_used: int
    contract: Address | None
    logs: tuple[Log, ...]


class Fate(NamedTuple):
    """What an RPC end knows of a transaction: its receipt, once it is deep enough, else why there is none."""

    what: str
    receipt: Receipt | None = None
    succeeded: bool = False


MINED, SHALLOW, USED, OPEN = "mined", "mined, and not deep enough", "its nonce is used", "not mined"


class Sender:
    """Sends one key's transactions.

    `confirmations`: how many blocks must stand above a transaction's before `wait` returns (0: its own is enough; the
    local chain may lose its newest block when killed, so what must not be lost waits for 1). `poll` and `deadline`
    are seconds. `fee_cap` is the most wei a gas that is ever offered (None: what the market asks for).
    """

    def __init__(
        self,
        rpc: Rpc,
        private_key: bytes,
        *,
        confirmations: int = 0,
        poll: float = 0.1,
        deadline: float = 60.0,
        fee_cap: int | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.rpc = rpc
        self.address = Key(private_key).address
        self._private_key = private_key
        self._confirmations = confirmations
        self._poll = poll
        self._deadline = deadline
        self._fee_cap = fee_cap
        self._journal = journal
        self._lock = asyncio.Lock()
        self._waiting: dict[int, Sent] = {}
        self._passed_by: dict[int, int] = {}  # nonce: the head when its fees were last looked at

    def __repr__(self) -> str:
        return f"Sender({self.address})"

    async def transact(
        self, call: Call, *, gas: int | None = None, deadline: float | None = None, intent: str = ""
    ) -> Receipt:
        """Send, and wait until it is mined. Reverted (before or after it was sent) says why."""
        return await self.wait(await self.send(call, gas=gas, intent=intent), deadline=deadline)

    async def find(self, intent: str) -> Sent | None:
        """The transaction of an intent that was sent, by this process or one before it, and not yet waited for."""
        async with self._exclusive():
            return self._find(intent)

    async def send(self, call: Call, *, gas: int | None = None, intent: str = "") -> Sent:
        """Sign and send, without waiting. `gas` is a limit that replaces the estimate.

        An `intent` that is under way already is not sent again: its transaction is returned, whatever `call` says.
        FeeTooHigh, and nothing is signed, where the market is above the cap; trying again later can help.
        """
        found = await self.find(intent)
        if found is not None:
            return found
        if gas is None:
            gas = await self._estimate(self._request(call))
        async with self._exclusive():
            found = self._find(intent)
            if found is not None:
                return found
            fees = (await ask_market(self.rpc)).offer(self._fee_cap)
            nonce = await self._next_nonce()
            transaction, raw = await self._sign(call, nonce, gas, fees)
            sent = Sent(call, nonce, gas, fees, transaction, raw, intent, int(time.time()))
            self._waiting[nonce] = sent
            await self._keep()
            try:
                await self._broadcast(sent)
            except RpcRefused:
                del self._waiting[nonce]
                await self._keep()
                if await self._count_mined() > nonce:
                    raise await self._find_user(sent) from None
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
                fate = await self._wait(sent, failures)
        except TimeoutError:
            why = "; ".join(error.message for error in failures)
            raise TransactionPending(
                f"transaction {sent.transaction} was not mined within {seconds:g} s{why and ': '}{why}",
                transaction=str(sent.transaction),
                nonce=sent.nonce,
            ) from None
        await self._forget(sent)
        if fate.receipt is None:
            raise await self._find_user(sent)
        if not fate.succeeded:
            raise await self._find_reason(sent, fate.receipt)
        return fate.receipt

    async def _wait(self, sent: Sent, failures: list[ChainError]) -> Fate:
        """How it ended. Whatever fails meanwhile is noted in `failures`: only the deadline ends the wait."""
        used: list[int] = []  # the heads, in a row, at which its nonce was another's
        while True:
            try:
                fate, head = await self._look(self._current(sent))
                if fate.what == MINED:
                    return fate
                used = [*used, head] if fate.what == USED else []
                if len(used) >= LOOKS and head - used[0] >= self._confirmations:  # the other's block may be undone too
                    return fate
                if fate.what == OPEN:
                    await self._raise_fees(sent, head)
                    await self._repeat_lost()
                failures.clear()
            except ChainError as error:
                failures[:] = [*(known for known in failures if type(known) is not type(error)), error]
            await asyncio.sleep(self._poll)

    def _current(self, sent: Sent) -> Sent:
        """The same intent at the fees that it has by now."""
        now = self._waiting.get(sent.nonce)
        return now if now is not None and sent.transaction in now.hashes else sent

    async def _look(self, sent: Sent) -> tuple[Fate, int]:
        """(what a quorum says of it, the highest head that anybody told)."""
        heads: list[int] = []

        def read(results: list[Any]) -> Fate:
            mined, head = quantity(results[0]), quantity(results[1])
            heads.append(head)
            answer = next((answer for answer in results[2:] if answer is not None), None)
            if answer is None:
                return Fate(USED if mined > sent.nonce else OPEN)
            receipt = parse_receipt(answer)
            if receipt.transaction not in sent.hashes:
                raise BadAnswer(f"a receipt of {receipt.transaction}, which was not asked for")
            if head - receipt.block_number < self._confirmations:
                return Fate(SHALLOW)
            return Fate(MINED, receipt, quantity(get_field(answer, "status")) == 1)

        calls: list[tuple[str, list[Any]]] = [
            ("eth_getTransactionCount", [hexadecimal(self.address), "latest"]),
            ("eth_blockNumber", []),
        ]
        calls += [("eth_getTransactionReceipt", [hexadecimal(transaction)]) for transaction in sent.hashes]
        return await self.rpc.agree(calls, read, attempts=1), max(heads)

    async def _repeat_lost(self) -> None:
        """Send again, lowest nonce first, what an RPC end no longer knows."""
        ordered = [self._waiting[nonce] for nonce in sorted(self._waiting)]
        calls = [("eth_getTransactionByHash", [hexadecimal(s.transaction)]) for s in ordered]
        known = await self.rpc.survey(calls, lambda results: [answer is not None for answer in results])
        refused: list[RpcRefused] = []
        for index, sent in enumerate(ordered):
            if not all(answer[index] for answer in known):
                try:
                    await self._broadcast(sent)
                except RpcRefused as error:
                    refused.append(error)  # say, another took its nonce: those behind it must go out all the same
        if refused:
            raise refused[0]

    async def _raise_fees(self, sent: Sent, head: int) -> None:
        """Replace what the market has left behind, up to `sent`: a nonce waits for those below it. FeeTooHigh."""
        if head - self._passed_by.setdefault(sent.nonce, head) < PATIENCE:
            return
        self._passed_by[sent.nonce] = head
        market, mined = await ask_market(self.rpc), await self._count_mined()
        async with self._exclusive():
            for nonce in sorted(nonce for nonce in self._waiting if mined <= nonce <= sent.nonce):
                old = self._waiting[nonce]
                try:
                    fees = market.replace(old.fees, self._fee_cap)
                except FeeTooHigh as error:
                    error.message = f"it is stuck at {old.fees.most} wei a gas: {error.message}"
                    raise
                if fees is None:
                    continue
                self._waiting[nonce] = old.replaced_by(fees, *await self._sign(old.call, nonce, old.gas, fees))
                await self._keep()
                await self._broadcast(self._waiting[nonce])

    async def _broadcast(self, sent: Sent) -> None:
        try:
            await self.rpc.broadcast(sent.raw)
        except RpcRefused:
            # "Already known" and "nonce too low" are refusals too: what counts is whether the chain has it.
            calls = [("eth_getTransactionByHash", [hexadecimal(transaction)]) for transaction in sent.hashes]
            known = await self.rpc.survey(calls, lambda results: any(answer is not None for answer in results))
            if not any(known):
                raise

    async def _count_mined(self, tag: str = "latest") -> int:
        """The nonce after this key's last transaction: the highest that a quorum of the ends has reached."""
        call = ("eth_getTransactionCount", [hexadecimal(self.address), tag])
        counts = sorted(await self.rpc.survey([call], lambda results: quantity(results[0])), reverse=True)
        return counts[min(self.rpc.quorum, len(counts)) - 1]

    async def _next_nonce(self) -> int:
        mined, pending = await self._count_mined(), await self._count_mined("pending")
        self._drop_decided(mined)
        return max([mined, pending, *(nonce + 1 for nonce in self._waiting)])

    def _drop_decided(self, mined: int) -> None:
        """Forget what was mined and that nobody waits for or looks for."""
        old = int(time.time()) - INTENT_SECONDS
        for nonce, sent in list(self._waiting.items()):
            idle = self._confirmations == 0 and not sent.intent
            if nonce < mined and (idle or sent.signed_at < old):
                del self._waiting[nonce]

    async def _estimate(self, request: dict[str, str]) -> int:
        # "pending" sees this key's own transactions that are not mined yet: an approval, and then its use.
        call = "eth_estimateGas"
        try:
            estimate = await self.rpc.call(call, [request, "pending" if self._waiting else "latest"])
        except Reverted:
            if not await self._wait_for_own():
                raise
            estimate = await self._estimate_latest(request)
        return quantity(estimate) + quantity(estimate) * GAS_MARGIN_PERCENT // 100

    async def _estimate_latest(self, request: dict[str, str]) -> Any:
        """An estimate from the latest block; the end that is asked may get it a moment after the others. Reverted."""
        for look in range(LATE_LOOKS):
            try:
                return await self.rpc.call("eth_estimateGas", [request, "latest"])
            except Reverted:
                await asyncio.sleep(self._poll * 2**look)
        return await self.rpc.call("eth_estimateGas", [request, "latest"])

    async def _wait_for_own(self) -> bool:
        """Until what this key has sent is mined, `confirmations` deep. False: it is not.

        The "pending" of many ends is their latest block, and a block that was just made may still be replaced.
        """
        waiting = list(self._waiting.values())
        try:
            async with asyncio.timeout(self._deadline):
                for sent in waiting:
                    while await self._is_open(sent):  # noqa: ASYNC110 - the chain causes it
                        await asyncio.sleep(self._poll)
        except TimeoutError:
            return False
        return bool(waiting)

    async def _is_open(self, sent: Sent) -> bool:
        """Whether its fate is open, as far as the ends say; they contradict each other while a block spreads."""
        with suppress(ChainError):
            what = (await self._look(self._current(sent)))[0].what
            if what == OPEN:
                await self._repeat_lost()
            return what in (OPEN, SHALLOW)
        return True

    async def _sign(self, call: Call, nonce: int, gas: int, fees: Fees) -> tuple[Hash, bytes]:
        Account = _load_account()
        fields: dict[str, Any] = fees.fields() | {
            "chainId": await self.rpc.chain_id(),
            "nonce": nonce,
            "gas": gas,
            "value": call.value,
            "data": bytes(call.data),
        }
        if fees.tip is None:
            del fields["type"]  # legacy transactions are older than the types
        fields["to"] = b"" if call.to is None else bytes(call.to)
        signed = Account.sign_transaction(fields, self._private_key)
        return Hash(bytes(signed.hash)), bytes(signed.raw_transaction)

    def _request(self, call: Call) -> dict[str, str]:
        request = {"from": hexadecimal(self.address), "data": hexadecimal(call.data), "value": hex(call.value)}
        if call.to is not None:
            request["to"] = hexadecimal(call.to)
        return request

    # -- the journal ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _exclusive(self) -> AsyncIterator[None]:
        """While nothing else is signed with this key, and with what other processes have signed taken up."""
        async with self._lock:
            if self._journal is None:
                yield
                return
            async with self._journal.locked():
                kept = await self._journal.read(await self.rpc.genesis())
                self._waiting = kept
                yield

    async def _keep(self) -> None:
        if self._journal is not None:
            await self._journal.write(await self.rpc.genesis(), self._waiting.values())

    def _find(self, intent: str) -> Sent | None:
        return next((sent for sent in self._waiting.values() if intent and sent.intent == intent), None)

    async def _forget(self, sent: Sent) -> None:
        async with self._exclusive():
            if self._current(sent) is self._waiting.get(sent.nonce):
                del self._waiting[sent.nonce]
                await self._keep()
        self._passed_by.pop(sent.nonce, None)

    # -- what went wrong ------------------------------------------------------------------------------------------

    async def _find_user(self, sent: Sent) -> TransactionReplaced:
        """Another transaction has the nonce: which, if it is among the newest blocks'."""
        user = ""
        try:
            head = await self.rpc.block_number()
            numbers = range(max(0, head - SEARCHED + 1), head + 1)
            blocks = await self.rpc.batch([("eth_getBlockByNumber", [hex(number), True]) for number in numbers])
            for block in blocks:
                for entry in get_field(block, "transactions"):
                    if unhex(entry["from"]) == bytes(self.address) and quantity(entry["nonce"]) == sent.nonce:
                        user = f", {entry['hash']},"
        except (ChainError, KeyError, TypeError):
            pass  # that it was taken is certain, by which one is only good to know
        return TransactionReplaced(
            f"another transaction{user} of {self.address} took nonce {sent.nonce}",
            transaction=str(sent.transaction),
            nonce=sent.nonce,
        )

    async def _find_reason(self, sent: Sent, receipt: Receipt) -> Reverted:
        """Why a mined transaction failed: asked by running it again on the state before its block."""
        reason, block = "", receipt.block_number
        try:
            await self.rpc.call("eth_call", [self._request(sent.call), hex(block - 1)])
        except Reverted as error:
            reason = error.reason
        except ChainError as error:
            reason = f"the reason is gone: {error.message}"
        return Reverted(
            f"transaction {receipt.transaction} reverted: {reason or 'no reason given'}",
            reason=reason,
            transaction=str(receipt.transaction),
            block=block,
        )


def _load_account() -> Any:
    """eth_account's signer, imported at the first use: it takes half a second.

    A dependency raises Python's recursion limit so far that nested JSON from anybody would overflow the real stack.
    """
    limit = sys.getrecursionlimit()
    from eth_account import Account

    sys.setrecursionlimit(limit)
    return Account


def parse_receipt(answer: dict[str, Any]) -> Receipt:
    """A receipt out of an answer. BadAnswer."""
    contract = answer.get("contractAddress")
    return Receipt(
        Hash(unhex(get_field(answer, "transactionHash"))),
        quantity(get_field(answer, "blockNumber")),
        Hash(unhex(get_field(answer, "blockHash"))),
        quantity(get_field(answer, "gasUsed")),
        None if contract is None else Address(unhex(contract)),
        tuple(parse_log(entry) for entry in get_field(answer, "logs")),
    )
