"""`freehold credits`: what a client has paid in, spent and reserved; buying more by burning tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from freehold.cli.amounts import AMOUNT
from freehold.cli.output import Group, Program, confirm

if TYPE_CHECKING:
    from freehold.cli.connection import Connection
    from freehold.protocol.units import Address


@click.group(cls=Group)
def credits() -> None:
    """Show and buy prepaid credits (1 credit = 1 US dollar)."""


async def get_credits(connection: Connection, client: Address) -> dict[str, str]:
    """Base units: paid in (by the chain), spent and locked (by the last report), left and free."""
    from freehold.protocol.errors import NotFound

    paid_in = await connection.credits.paid_in(client)
    spent = locked = 0
    epoch = await connection.ledger.posted_epoch()
    if epoch:
        try:
            state = await connection.quorum.agree(f"/v1/state/{epoch}/clients/{client}")
        except NotFound:
            state = {"rows": {}}
        rows = {name: [item["row"] for item in items] for name, items in state["rows"].items()}
        spent = sum(int(row["spent"]) for row in rows.get("clients", []))
        settled = {row["lease"]: int(row["settled"]) for row in rows.get("leases", [])}
        locked = sum(max(0, int(row["amount"]) - settled.get(row["lease"], 0)) for row in rows.get("locks", []))
    left = paid_in - spent
    return {
        "paid_in": str(paid_in),
        "spent": str(spent),
        "left": str(left),
        "locked": str(locked),
        "free": str(max(0, left - locked)),
    }


def show_credits(data: dict[str, Any]) -> None:
    from freehold.cli.amounts import format_amount

    click.echo(f"{data['wallet']}: {data['address']}")
    explained = {
        "paid_in": "bought",
        "spent": "settled by the last report",
        "left": "paid in - spent",
        "locked": "reserved for leases, and not yet settled",
        "free": "can be reserved",
    }
    for name, text in explained.items():
        click.echo(f"  {name.replace('_', ' '):<8} {format_amount(int(data[name])):>18} credits   {text}")
    price = int(data["price"])
    click.echo(f"  price    {format_amount(price):>18} US dollars a token" if price else "  price    stale")


@credits.command("show", show=show_credits)
@click.argument("who", metavar="WALLET", required=False)
@click.pass_obj
def show(program: Program, who: str | None) -> dict[str, Any]:
    """The credits of WALLET (a name or an address); of the settings' own if not given."""
    from freehold.cli.connection import run

    return run(_show(program, who))


async def _show(program: Program, who: str | None) -> dict[str, Any]:
    from freehold.cli.connection import connect, find_address
    from freehold.cli.wallets import find_wallets

    name = who or program.settings.get("wallet").value
    wallets = find_wallets(program, name) if not name.startswith("0x") else None
    address = wallets.address(name) if wallets and wallets.path(name).exists() else find_address(program, name)
    async with connect(program) as connection:
        found = await get_credits(connection, address)
        price = await connection.credits.price()
        return {"wallet": name, "address": str(address), **found, "price": str(price)}


def show_bought(data: dict[str, Any]) -> None:
    from freehold.cli.amounts import format_amount

    click.echo(
        f"bought {format_amount(int(data['credits']))} credits for {format_amount(int(data['tokens']))} tokens, burned"
    )
    click.echo("  the members count them from the next epoch's report on")


@credits.command("buy", show=show_bought)
@click.argument("amount", type=AMOUNT)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.pass_obj
def buy(program: Program, amount: int, yes: bool) -> dict[str, Any]:
    """Buy AMOUNT credits by burning tokens at the quorum's price."""
    from freehold.cli.connection import run

    return run(_buy(program, amount, yes))


async def _buy(program: Program, amount: int, yes: bool) -> dict[str, Any]:
    from freehold.cli.amounts import format_amount, format_exact
    from freehold.cli.client import open_client
    from freehold.protocol.errors import Refused

    async with open_client(program) as client:
        tokens, has = await client.money.quote(amount), (await client.balance()).tokens
        if has < tokens:
            raise Refused(
                f"{format_exact(amount)} credits cost {format_amount(tokens)} tokens; {client.account.address} has "
                f"{format_amount(has)}: {format_amount(tokens - has)} are missing",
                missing=str(tokens - has),
            )
        confirm(program, f"Burn {format_amount(tokens)} tokens for {format_exact(amount)} credits?", yes=yes)
        bought = await client.buy_credits(tokens)
        balance = await client.balance()
        return {
            "address": str(client.account.address),
            "tokens": str(tokens),
            "credits": str(bought),
            "price": str(balance.price),
            "paid_in": str(balance.credits_paid_in),
        }
