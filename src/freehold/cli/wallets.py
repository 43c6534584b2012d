"""`freehold wallet`: accounts as keystore files; what they have; sending tokens.

A wallet's name is looked up in the network's own directory first (the local network's throwaway accounts), then in
the home directory. Invariant: no command overwrites a wallet, and no secret is printed except fresh words, once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from freehold.cli.amounts import ADDRESS, AMOUNT
from freehold.cli.output import Group, Program, confirm, print_table

if TYPE_CHECKING:
    from freehold.client.account import Account, Wallets


@click.group(cls=Group)
def wallet() -> None:
    """Make, show and import accounts; send tokens."""


def find_wallets(program: Program, name: str) -> Wallets:
    """The directory that has, or would have, the wallet of this name."""
    from freehold.client.account import Wallets

    beside = Wallets(program.settings.path("network").parent)
    return beside if beside.path(name).exists() else Wallets(program.settings.home)


def open_wallet(program: Program, name: str | None = None) -> Account:
    """The account of a wallet (the settings' own if not named). NotFound, WrongPassphrase."""
    chosen = name or program.settings.get("wallet").value
    wallets = find_wallets(program, chosen)
    wallets.address(chosen)  # NotFound comes before a question for the passphrase
    return wallets.open(chosen, get_passphrase(program, wallets))


def get_passphrase(program: Program, wallets: Wallets, *, new: bool = False) -> str:
    """FREEHOLD_PASSPHRASE, the passphrase file, the local network's own; else a question, where there is somebody."""
    import sys
    from pathlib import Path

    given = program.settings.get("passphrase").value
    if given:
        return given
    named = program.settings.get("passphrase_file").value
    beside = wallets.folder / "passphrase"
    path = Path(named).expanduser() if named else beside if beside.exists() and not new else None
    if path is not None:
        return path.read_text(encoding="utf-8").splitlines()[0] if path.stat().st_size else ""
    if not sys.stdin.isatty():
        raise click.UsageError("There is nobody to ask for a passphrase: set FREEHOLD_PASSPHRASE or --passphrase-file.")
    return str(click.prompt("Passphrase", hide_input=True, err=True, confirmation_prompt=new))


def show_wallet(data: dict[str, Any]) -> None:
    click.echo(f"wallet {data['name']}: {data['address']}")
    click.echo(f"  kept in {data['path']}")
    if data.get("words"):
        click.secho("\n  Write these words down. They are shown once; whoever has them has the account:", bold=True)
        click.echo(f"\n    {data['words']}\n")


NAME = click.argument("name", default="default")


@wallet.command("new", show=show_wallet)
@NAME
@click.pass_obj
def new(program: Program, name: str) -> dict[str, Any]:
    """Make a new account NAME, and show its twelve words once."""
    from freehold.client.account import Wallets

    wallets = Wallets(program.settings.home)
    _check_free(wallets, name)
    account, words = wallets.create(name, get_passphrase(program, wallets, new=True))
    return {"name": name, "address": str(account.address), "path": str(wallets.path(name)), "words": words}


@wallet.command("import", show=show_wallet)
@NAME
@click.option("--words-file", type=click.File("r"), help="Twelve BIP-39 words ('-' reads stdin).")
@click.option("--key-file", type=click.File("r"), help="A private key in hexadecimal ('-' reads stdin).")
@click.pass_obj
def import_(program: Program, name: str, words_file: Any, key_file: Any) -> dict[str, Any]:
    """Keep an existing account as NAME: its words or its private key, asked for where no file is given."""
    from freehold.client.account import Account, Wallets
    from freehold.protocol.errors import InvalidInput

    wallets = Wallets(program.settings.home)
    _check_free(wallets, name)
    if key_file is not None:
        try:
            account = Account.of_secret(bytes.fromhex(key_file.read().strip().removeprefix("0x")))
        except ValueError:
            raise InvalidInput("the key is not hexadecimal") from None
    else:
        words = words_file.read() if words_file else click.prompt("Words", hide_input=True, err=True)
        account = Account.of_words(words)
    wallets.save(name, account, get_passphrase(program, wallets, new=True))
    return {"name": name, "address": str(account.address), "path": str(wallets.path(name))}


def _check_free(wallets: Wallets, name: str) -> None:
    from freehold.protocol.errors import Conflict

    if wallets.path(name).exists():
        raise Conflict(f"there is a wallet {name!r} already, and it is not overwritten", hint="Choose another name.")


def show_wallets(data: list[dict[str, Any]]) -> None:
    from freehold.cli.amounts import format_amount

    def amount(value: str | None) -> str:
        return "unknown" if value is None else format_amount(int(value))

    rows = [[d["name"], d["address"], amount(d["tokens"]), amount(d["credits"]), amount(d["gas"])] for d in data]
    print_table(["WALLET", "ADDRESS", "TOKENS", "CREDITS", "GAS COIN"], rows)
    if not data:
        click.echo("no wallets yet: make one with `freehold wallet new`", err=True)


@wallet.command("show", show=show_wallets)
@click.argument("name", required=False)
@click.pass_obj
def show(program: Program, name: str | None) -> list[dict[str, Any]]:
    """Wallets with their addresses and balances; only NAME if given."""
    from freehold.cli.connection import run
    from freehold.client.account import Wallets

    places = [Wallets(program.settings.path("network").parent), Wallets(program.settings.home)]
    names = [name] if name else sorted({n for place in places for n in place.names()})
    addresses = {n: find_wallets(program, n).address(n) for n in names}
    return run(_balances(program, addresses))


async def _balances(program: Program, addresses: dict[str, Any]) -> list[dict[str, Any]]:
    from freehold.cli.connection import connect
    from freehold.cli.credits import get_credits
    from freehold.protocol.errors import NotFound, Unavailable

    rows = [{"name": n, "address": str(a), "tokens": None, "credits": None, "gas": None} for n, a in addresses.items()]
    try:
        async with connect(program) as connection:
            for row, address in zip(rows, addresses.values(), strict=True):
                row["tokens"] = str(await connection.token.balance_of(address))
                row["credits"] = (await get_credits(connection, address))["left"]
                row["gas"] = str(await connection.rpc.balance(address))
    except (NotFound, Unavailable) as error:
        program.warn(f"balances are unknown: {error.message}")
    return rows


def show_sent(data: dict[str, Any]) -> None:
    from freehold.cli.amounts import format_exact

    click.echo(f"sent {format_exact(int(data['amount']))} tokens to {data['to']} in transaction {data['transaction']}")


@wallet.command("send", show=show_sent)
@click.argument("to", type=ADDRESS)
@click.argument("amount", type=AMOUNT)
@click.option("--from", "name", help="The wallet that pays; the settings' own if not given.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.pass_obj
def send(program: Program, to: str, amount: int, name: str | None, yes: bool) -> dict[str, Any]:
    """Send AMOUNT tokens to the address TO."""
    from freehold.cli.connection import run

    return run(_send(program, to, amount, name, yes))


async def _send(program: Program, to: str, amount: int, name: str | None, yes: bool) -> dict[str, Any]:
    from freehold.cli.amounts import format_exact
    from freehold.cli.client import open_client
    from freehold.protocol.errors import Refused
    from freehold.protocol.units import Address

    async with open_client(program, name) as client:
        sender, has = client.account.address, (await client.balance()).tokens
        if has < amount:
            raise Refused(
                f"{sender} has {format_exact(has)} tokens: {format_exact(amount - has)} are missing",
                missing=str(amount - has),
            )
        confirm(program, f"Send {format_exact(amount)} tokens from {sender} to {to}?", yes=yes)
        receipt = await client.money.send(Address(to), amount)
        return {"from": str(sender), "to": to, "amount": str(amount), "transaction": str(receipt.transaction)}
