"""Transactions that only one key may send: which wallet that is here, and what is said where it is another."""

from __future__ import annotations

from freehold.chain.abi import Call
from freehold.chain.transactor import Receipt, Sender
from freehold.cli.connection import Connection, known_names
from freehold.cli.output import Program
from freehold.cli.wallets import open_wallet
from freehold.protocol.errors import NotFound, Refused
from freehold.protocol.units import Address


def open_sender(program: Program, connection: Connection, holder: Address | None = None) -> Sender:
    """The wallet that the settings name; where they name none, the local network's wallet of `holder`, if it has it."""
    chosen = program.settings.get("wallet")
    own = next((n for n, a in known_names(program).items() if holder is not None and a["address"] == str(holder)), None)
    account = open_wallet(program, own if chosen.source == "default" and own else chosen.value)
    depth = connection.network.parameters.finality_depth
    return Sender(connection.rpc, account.key.secret, confirmations=depth)


def check_holder(sender: Sender, role: str, holder: Address) -> None:
    """Refused, naming the key that may, where this sender is another."""
    if sender.address != holder:
        raise Refused(
            f"only the {role} may do this: {holder}; this wallet is {sender.address}",
            hint="Name its wallet with --wallet.",
            holder=str(holder),
        )


async def send_as(program: Program, connection: Connection, role: str, holder: Address, call: Call) -> Receipt:
    """Send what only `holder`, the network's `role`, may send."""
    sender = open_sender(program, connection, holder)
    check_holder(sender, role, holder)
    return await sender.transact(call)


async def chain_time(connection: Connection) -> int:
    """Seconds of chain time now."""
    header = await connection.rpc.header("latest")
    if header is None:
        raise NotFound("the chain has no block yet")
    return header.timestamp
