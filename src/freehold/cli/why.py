"""`freehold why`: evidence, verdicts, shares, account, proof, claimed; recomputed here from the published bundle."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.output import Command, Program

if TYPE_CHECKING:
    from freehold.cli.connection import Connection
    from freehold.protocol.units import Address, Hash


def show_why(data: dict[str, Any]) -> None:
    """The same steps as the data, top to bottom, as sentences and sums."""
    from freehold.cli.why_text import show_explanation, show_found

    (show_found if "what" in data else show_explanation)(data)


@click.command(cls=Command, show=show_why)
@click.argument("operator")
@click.option("--epoch", type=click.IntRange(min=1), help="Which epoch; the last reported one if not given.")
@click.option("--bundle", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Read this bundle file.")
@click.pass_obj
def why(program: Program, operator: str, epoch: int | None, bundle: Path | None) -> dict[str, Any]:
    """Why OPERATOR was paid what it was paid, or nothing.

    OPERATOR is a name, or an address: of an operator, a node, a client, a member, an owner of devices, a device; or the
    id of a piece of work: an order, a receipt, a case, a compute lease.
    """
    from freehold.cli.bundles import check_bundle, has_network
    from freehold.cli.connection import find_address, run
    from freehold.cli.explain import explain
    from freehold.protocol.units import Hash

    subject = Hash(operator) if re.fullmatch("0x[0-9a-fA-F]{64}", operator) else find_address(program, operator)
    given = None if bundle is None else bundle.read_bytes()
    if given is not None and not has_network(program):
        program.warn("there is no network file, so this bundle was not compared with a chain: anybody can make one")
        return explain(check_bundle(given, epoch, None, None), subject) | {"chain": None}
    return run(_why(program, subject, epoch, given))


async def _why(program: Program, subject: Address | Hash, epoch: int | None, given: bytes | None) -> dict[str, Any]:
    from freehold.cli.bundles import check_bundle, fetch_bundle, get_accepted
    from freehold.cli.connection import connect, latest_epoch
    from freehold.cli.explain import explain

    async with connect(program) as connection:
        if given is None:
            checked = await fetch_bundle(connection, epoch or await latest_epoch(connection))
        else:
            number = check_bundle(given, epoch, None, None).settlement.report.epoch
            checked = check_bundle(given, number, connection.network, await get_accepted(connection, number))
        explained = explain(checked, subject)
        return explained | {"chain": await _on_chain(connection, explained)}


async def _on_chain(connection: Connection, explained: dict[str, Any]) -> dict[str, Any] | None:
    """What the chain says of this report and account: pending or active, paid, still to come."""
    from freehold.protocol.units import Address

    if "account" not in explained:
        return None
    epoch, account = explained["epoch"], Address(explained["account"])
    active, due, paid = (
        await connection.ledger.active_epoch(),
        await connection.ledger.due_epoch(),
        await connection.ledger.paid(account),
    )
    earned = int(explained["settled"]["after"]["tokens_earned"]) if explained["settled"] else 0
    pending = await connection.ledger.pending(epoch) if epoch > active else None
    return {
        "accepted": True,
        "equals": True,
        "status": "active" if epoch <= active else "due" if epoch <= due else "pending",
        "activates_at": pending.activates_at if pending else None,
        "payout": str(await connection.registry.payout_of(account)),
        "claimed": str(paid),
        "claimable": str(max(0, earned - paid) if epoch <= due else 0),
        "later": str(0 if epoch <= due else max(0, earned - paid)),
    }
