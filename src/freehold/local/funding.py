"""Gives the local network's accounts what they need: operators tokens for their bonds, the client tokens and credits.

Every step looks before it acts, so that a start that was interrupted is completed by the next.
"""

from __future__ import annotations

from freehold.chain.contracts import Credits, Token
from freehold.chain.rpc import Rpc
from freehold.chain.transactor import Sender, Sent
from freehold.local.accounts import LocalAccounts
from freehold.local.parameters import LocalSettings
from freehold.market.network import Network
from freehold.protocol.units import ONE

DEADLINE = 2**63  # of a purchase, in chain time: never


async def fund(rpc: Rpc, network: Network, accounts: LocalAccounts, settings: LocalSettings) -> bool:
    """Send tokens from the treasury to who has none, and buy the client its credits. Whether anything was needed."""
    token = Token(rpc, network.contracts["token"])
    credits = Credits(rpc, network.contracts["credits"])
    if await credits.paid_in(accounts.client.address):
        return False
    wanted = {key.address: settings.bond + settings.operator_tokens for key in accounts.operators}
    wanted[accounts.client.address] = settings.client_tokens
    treasury = Sender(rpc, accounts.treasury.secret)
    sent: list[Sent] = []
    for address, amount in wanted.items():
        if await token.balance_of(address) == 0:
            sent.append(await treasury.send(token.transfer(address, amount), gas=100_000))
    for transaction in sent:
        await treasury.wait(transaction)
    client = Sender(rpc, accounts.client.secret, confirmations=1)
    tokens = -(-settings.client_credits * ONE // settings.price)
    approval = await client.send(token.approve(credits.address, tokens), gas=100_000)
    purchase = await client.send(credits.buy(tokens, 1, DEADLINE), gas=300_000)
    await client.wait(approval)
    await client.wait(purchase)
    return True
