"""An account's money: tokens on chain, credits bought by burning them, and what it has earned.

Amounts are base units (18 decimals). Credits count for reservations from the first report after they were bought.
Invariant: buying asks for at least the credits that the price now shows, so a price that moves in between buys nothing
rather than less.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from freehold.chain.contracts import Credits, Ledger, Token
from freehold.chain.contracts.credits import Bought
from freehold.chain.errors import Reverted
from freehold.chain.journal import Journal
from freehold.chain.rpc import Rpc
from freehold.chain.transactor import Receipt, Sender
from freehold.market.network import Network
from freehold.market.quorum import Quorum
from freehold.protocol.errors import MalformedMessage, NotFound, Refused
from freehold.protocol.keys import Key
from freehold.protocol.lookup import Finder
from freehold.protocol.merkle import ACCOUNTS
from freehold.protocol.state import AccountState, State
from freehold.protocol.units import ONE, Address, mul_div

BUY_SECONDS = 600  # until when a purchase must be mined
CLAIM_ATTEMPTS = 3


class Balance(NamedTuple):
    """What an address has. `credits_paid_in` is all it ever bought; `coins` (wei) pay for transactions."""

    tokens: int
    credits_paid_in: int
    coins: int
    price: int


class Claimed(NamedTuple):
    """A claim: tokens that it paid, by which transaction (None where nothing was left to claim)."""

    amount: int
    epoch: int
    transaction: str | None


class Money:
    """The chain's side of an account."""

    def __init__(self, network: Network, rpc: Rpc, quorum: Quorum, key: Key, journal: Journal | None = None) -> None:
        """With a `journal`, what was being paid when the process was killed is found again, and not paid twice."""
        self._rpc = rpc
        self._quorum = quorum
        self._key = key
        self._sender = Sender(rpc, key.secret, confirmations=network.parameters.finality_depth, journal=journal)
        self._token = Token(rpc, network.contracts["token"])
        self._credits = Credits(rpc, network.contracts["credits"])
        self._ledger = Ledger(rpc, network.contracts["ledger"])

    async def balance(self, address: Address | None = None) -> Balance:
        """What an address (this account, if none is named) has now."""
        who = address or self._key.address
        return Balance(
            tokens=await self._token.balance_of(who),
            credits_paid_in=await self._credits.paid_in(who),
            coins=await self._rpc.balance(who),
            price=await self._credits.price(),
        )

    async def send(self, to: Address, amount: int) -> Receipt:
        """Transfer tokens. Refused, saying how many there are, if they are not enough."""
        intent = f"send {to} {amount}"
        if await self._sender.find(intent) is None:
            await self._check_tokens(amount)
        return await self._sender.transact(self._token.transfer(to, amount), intent=intent)

    async def quote(self, credits: int) -> int:
        """Tokens that buy at least `credits`, at the price of now. Refused while the price is stale."""
        price = await self._credits.price()
        if price == 0:
            raise Refused("the network's price is stale", hint="Wait for the next report; see `freehold status`.")
        return -(-credits * ONE // price)

    async def buy(self, tokens: int) -> int:
        """Burn tokens for credits; the credits that were bought."""
        intent = f"buy {tokens}"
        sent = await self._sender.find(intent)
        if sent is None:
            await self._check_tokens(tokens)
            least = mul_div(tokens, await self._credits.price(), ONE)
            if least == 0:
                raise Refused("these tokens buy no credits: the price is stale, or they are too few")
            if await self._token.allowance(self._key.address, self._credits.address) < tokens:
                await self._sender.transact(self._token.approve(self._credits.address, tokens))
            call = self._credits.buy(tokens, least, int(time.time()) + BUY_SECONDS)
            sent = await self._sender.send(call, intent=intent)
        receipt = await self._sender.wait(sent)
        events = (self._credits.decode(entry) for entry in receipt.logs if entry.address == self._credits.address)
        return next(event.credits for event in events if isinstance(event, Bought))

    async def claim(self, account: Address | None = None, kept: State | None = None) -> Claimed:
        """Bring an account's earnings to its payout address; anyone may. Members prove them, or a `kept` state."""
        who = account or self._key.address
        for _ in range(CLAIM_ATTEMPTS - 1):
            try:
                return await self._claim(who, kept)
            except Reverted:
                continue  # the next report became active in between, and the proof was against the one before
        return await self._claim(who, kept)

    async def _claim(self, who: Address, kept: State | None) -> Claimed:
        epoch = await self._ledger.due_epoch()
        if epoch == 0:
            raise Refused("no report has become active yet", hint="Claims open after the first dispute window.")
        if epoch > await self._ledger.active_epoch():
            await self._sender.transact(self._ledger.activate())
        if kept is None:
            row, proof = _parse_account(await self._quorum.agree(f"/v1/accounts/{who}?epoch={epoch}"))
        else:
            row, proof = prove_account(kept, epoch, who)
        already = await self._ledger.paid(who)
        # What was collected while frozen counts as paid, and the leaf of the active report lacks it: the Ledger knows.
        if row.tokens_earned <= already and not await self._ledger.frozen():
            return Claimed(0, epoch, None)
        receipt = await self._sender.transact(
            self._ledger.claim(row.index, who, row.tokens_earned, row.credits_earned, row.credits_spent, proof)
        )
        return Claimed(await self._ledger.paid(who) - already, epoch, str(receipt.transaction))

    async def _check_tokens(self, amount: int) -> None:
        have = await self._token.balance_of(self._key.address)
        if have < amount:
            raise Refused(f"{amount} tokens are needed, {have} are there", have=str(have), needed=str(amount))


def prove_account(state: State, epoch: int, who: Address) -> tuple[AccountState, bytes]:
    """An account of the state after `epoch`, and its proof as the Ledger takes it. NotFound, Refused."""
    if state.epoch.epoch != epoch:
        raise Refused(f"claims are proven against epoch {epoch}, and this is the state after {state.epoch.epoch}")
    places = Finder(state.accounts.column("account")).find(who)
    if not places:
        raise NotFound("this account has earned and spent nothing yet")
    siblings = state.accounts_tree().proof(places[0])
    return state.accounts.row(places[0]), b"".join(ACCOUNTS.pack(node) for node in siblings)


def _parse_account(value: Any) -> tuple[AccountState, bytes]:
    try:
        if value["account"] is None:
            raise NotFound("this account has earned and spent nothing yet")
        return AccountState.from_json(value["account"]), bytes.fromhex(value["proof"].removeprefix("0x"))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise MalformedMessage("a member answered with something else than an account and its proof") from None
