"""`freehold claim`: an account's earnings, proven against the active root, arrive as tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.output import Command, Program

if TYPE_CHECKING:
    from freehold.protocol.units import Address


def show_claim(data: dict[str, Any]) -> None:
    from freehold.cli.amounts import format_exact

    if not int(data["claimed"]):
        click.echo(f"nothing to claim: {data['why']}")
        return
    click.echo(f"claimed {format_exact(int(data['claimed']))} tokens for {data['account']}")
    click.echo(f"  paid to {data['payout']}, which now has {format_exact(int(data['balance']))}")
    click.echo(f"  proven against epoch {data['epoch']}, in transaction {data['transaction']}")


@click.command(cls=Command, show=show_claim)
@click.option("--as", "who", required=True, help="Whose earnings: a name such as operator-1, or an address.")
@click.option("--from", "wallet", help="The wallet that sends the transaction; --as's own if not given.")
@click.option(
    "--bundle",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A bundle of the active epoch or the next, where no member answers; see `freehold collect`.",
)
@click.pass_obj
def claim(program: Program, who: str, wallet: str | None, bundle: Path | None) -> dict[str, Any]:
    """Claim everything that an account has earned and not yet claimed. Anyone may; its payout address is paid."""
    from freehold.cli.connection import find_address, known_names, run

    account = find_address(program, who)
    own = next((name for name, entry in known_names(program).items() if entry["address"] == str(account)), None)
    return run(_claim(program, account, wallet or own, bundle))


async def _claim(program: Program, account: Address, wallet: str | None, bundle: Path | None) -> dict[str, Any]:
    from freehold.cli.amounts import format_seconds
    from freehold.cli.bundles import read_kept_state
    from freehold.cli.client import open_client
    from freehold.cli.connection import connect
    from freehold.cli.reports import get_report
    from freehold.cli.signing import chain_time
    from freehold.protocol.errors import NotFound

    async with connect(program) as connection, open_client(program, wallet) as client:
        payout = await connection.registry.payout_of(account)
        facts = {"account": str(account), "payout": str(payout), "claimed": "0", "why": "", "epoch": 0}
        due = await connection.ledger.due_epoch()
        if due == 0:
            return facts | {"why": "no report is active yet; they become active after the dispute window"}
        left = await connection.ledger.paused_until() - await chain_time(connection)
        if left > 0:
            return facts | {"epoch": due, "why": f"the guardian has paused claims, for {format_seconds(left)} more"}
        before = await connection.token.balance_of(payout)
        kept = None if bundle is None else await read_kept_state(bundle, await get_report(connection, due))
        try:
            claimed = await client.claim(account, kept)
        except NotFound:
            return facts | {"epoch": due, "why": f"the active epoch, {due}, has no account {account}"}
        if not claimed.amount and not await connection.ledger.claimable(account):
            return facts | {
                "epoch": claimed.epoch,
                "why": "claims leave at a bounded rate, and no more may leave to it now; ask again in an epoch",
            }
        if not claimed.amount:
            return facts | {
                "epoch": claimed.epoch,
                "why": f"all that epoch {claimed.epoch} gives it was claimed before",
            }
        return facts | {
            "claimed": str(claimed.amount),
            "epoch": claimed.epoch,
            "transaction": claimed.transaction,
            "balance_before": str(before),
            "balance": str(await connection.token.balance_of(payout)),
        }
