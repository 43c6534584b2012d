"""`freehold freeze` and `freehold collect`: the way out of a silent network. Neither needs a living member."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.output import Command, Program, confirm, print_table

if TYPE_CHECKING:
    from freehold.cli.connection import Connection
    from freehold.client.collect import ClientRows
    from freehold.protocol.messages import Report, Voucher
    from freehold.protocol.units import Address

NO_MEMBER = "Give a --bundle of the active epoch or the next: anybody may have kept one."
YES = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


def show_freeze(data: dict[str, Any]) -> None:
    from freehold.cli.amounts import format_seconds

    click.echo(f"the network is frozen, since chain time {data['frozen_at']}" + (": just now" if data["did"] else ""))
    if data["pending"]:
        left = format_seconds(max(0, data["activates_at"] - data["time"]))
        click.echo(
            f"  {data['pending']} reports are not active yet; the last one may be in {left}: run this again then"
        )
    else:
        click.echo(f"  epoch {data['active']} is active: `freehold collect` pays vouchers against its state")


@click.command(cls=Command, show=show_freeze)
@YES
@click.pass_obj
def freeze(program: Program, yes: bool) -> dict[str, Any]:
    """Freeze the network after a long silence of its members; or say when that is possible. Anyone may.

    What is reported becomes active by time alone then, bonds thaw by time, and vouchers are paid on chain by `freehold
    collect`. The members' next report ends it. Run again while frozen, it activates the reports that are due.
    """
    from freehold.cli.connection import run

    return run(_freeze(program, yes))


async def _freeze(program: Program, yes: bool) -> dict[str, Any]:
    from freehold.cli.connection import connect
    from freehold.cli.signing import open_sender

    async with connect(program) as connection:
        ledger, did = connection.ledger, False
        if not await ledger.frozen():
            await _check_silence(connection)
            confirm(program, "Freeze the network until its members report again?", yes=yes)
            await open_sender(program, connection).transact(ledger.freeze())
            did = True
        if await ledger.due_epoch() > await ledger.active_epoch():
            await open_sender(program, connection).transact(ledger.activate())
        return await _describe(connection) | {"did": did}


async def _check_silence(connection: Connection) -> None:
    """Refused, with when and why, while the members may still report in time."""
    from freehold.cli.amounts import format_seconds
    from freehold.cli.signing import chain_time
    from freehold.protocol.errors import Refused

    at, now = await connection.ledger.freezes_at(), await chain_time(connection)
    if now > at:
        return
    lengths, length = await connection.ledger.freeze_lengths(), await connection.ledger.epoch_length()
    raise Refused(
        f"the network is not silent: it may be frozen once {lengths} epoch lengths of {length} s have passed without a "
        f"report, which is in {format_seconds(at - now + 1)}",
        hint="Every report that the members bring puts it off.",
        freezes_at=at,
        time=now,
    )


async def _describe(connection: Connection) -> dict[str, Any]:
    from freehold.cli.signing import chain_time

    ledger = connection.ledger
    posted, active = await ledger.posted_epoch(), await ledger.active_epoch()
    last = await ledger.pending(posted) if posted > active else None
    return {
        "frozen_at": await ledger.frozen_at(),
        "time": await chain_time(connection),
        "active": active,
        "pending": posted - active,
        "activates_at": max(last.activates_at, await ledger.paused_until()) if last else 0,
        "uncounted": str(await ledger.uncounted()),
    }


def show_collect(data: dict[str, Any]) -> None:
    from freehold.cli.amounts import format_exact, short

    rows = [
        [
            short(d["lease"]),
            short(d["client"]),
            format_exact(int(d["credits"])),
            format_exact(int(d["tokens"])),
            d["why"],
        ]
        for d in data["vouchers"]
    ]
    print_table(["LEASE", "CLIENT", "CREDITS", "TOKENS", "WHY"], rows)
    click.echo(f"{format_exact(int(data['tokens']))} tokens were paid, on the state of epoch {data['epoch']}")
    if not rows:
        click.echo("the node holds no voucher that is worth more than what is settled", err=True)


@click.command(cls=Command, show=show_collect)
@click.option("--as", "names", multiple=True, help="An operator of the local network, such as operator-1.")
@click.option(
    "--node",
    "configs",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The configuration (JSON) of the node whose vouchers are to be paid.",
)
@click.option(
    "--bundle",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A bundle of the active epoch or the next; without it a member is asked for the rows of the state.",
)
@YES
@click.pass_obj
def collect(
    program: Program, names: tuple[str, ...], configs: tuple[Path, ...], bundle: Path | None, yes: bool
) -> dict[str, Any]:
    """Have the vouchers that a node holds paid on chain, while the network is frozen.

    Each pays what an epoch would have paid for it beside the subsidy: within its lock, once, less what burns for good.
    The operator's payout address is paid, whoever's wallet sends it. `freehold epoch replay E --save FILE` keeps the
    bundle that is needed where no member answers.
    """
    from freehold.cli.connection import run

    paths = [*configs, *(_find_config(program, name) for name in names)]
    if not paths:
        raise click.UsageError("Name the node: --node FILE, or --as NAME in a local network.")
    return run(_collect(program, paths, bundle, yes))


def _find_config(program: Program, name: str) -> Path:
    from freehold.local.files import LocalFiles
    from freehold.protocol.errors import NotFound

    path = LocalFiles(program.settings.path("network").parent).config(name)
    if not path.exists():
        raise NotFound(f"there is no node called {name!r} beside this network file", hint="Name its --node FILE.")
    return path


async def _collect(program: Program, configs: list[Path], bundle: Path | None, yes: bool) -> dict[str, Any]:
    from freehold.cli.bundles import read_kept_state
    from freehold.cli.connection import connect
    from freehold.cli.reports import get_report
    from freehold.cli.signing import open_sender
    from freehold.client.collect import Collecting, KeptState, check_open
    from freehold.protocol.errors import ChainError, NotFound

    async with connect(program) as connection:
        await check_open(connection.rpc, connection.ledger)
        report = await get_report(connection, await connection.ledger.active_epoch())
        collecting = Collecting(connection.rpc, connection.network, open_sender(program, connection), report)
        kept = KeptState(await read_kept_state(bundle, report)) if bundle is not None else None
        held = [one for config in configs for one in await _read_vouchers(connection, config)]
        if held:
            question = f"Send up to {len(held)} transactions, one a voucher, on the state of epoch {report.epoch}?"
            confirm(program, question, yes=yes)
        paid: list[dict[str, Any]] = []
        for voucher, client in held:
            rows = kept.rows_of(client) if kept else await _ask_rows(connection, report, client)
            try:
                outcome = await collecting.collect(voucher, rows)
            except NotFound as error:  # a lease that no report has: the others are still paid
                program.warn(error.message)
                continue
            except ChainError as error:  # what was paid until now is still told
                program.warn(f"lease {voucher.lease}, and what would have come after it: {error.message}")
                program.exit_code = 1
                break
            paid.append({name: None if v is None else str(v) for name, v in outcome._asdict().items()})
        tokens = sum(int(one["tokens"]) for one in paid)
        return {"epoch": report.epoch, "tokens": str(tokens), "vouchers": paid}


async def _ask_rows(connection: Connection, report: Report, client: Address) -> ClientRows:
    """A client's rows from any member. Unavailable, with the other way to have them, where none shows good ones."""
    from freehold.client.collect import ask_rows
    from freehold.protocol.errors import FreeholdError, Unavailable

    try:
        return await ask_rows(connection.quorum, report, client)
    except FreeholdError as error:
        raise Unavailable(
            f"no member shows the state of epoch {report.epoch}: {error.message}", hint=NO_MEMBER
        ) from None


async def _read_vouchers(connection: Connection, path: Path) -> list[tuple[Voucher, Address]]:
    """The vouchers in a node's book that are worth more than is settled, each with its lease's client."""
    import asyncio

    from freehold.node.book import MIGRATIONS, Book
    from freehold.node.config import NodeConfig
    from freehold.protocol.errors import NotFound
    from freehold.store.sql import Database

    file = NodeConfig.load(path).data / "node.sqlite"
    if not file.exists():
        raise NotFound(f"the node has no book at {file}", hint="Run this where the node keeps its data.")
    database = await asyncio.to_thread(Database, file, MIGRATIONS)
    try:
        book = Book(database, connection.network.domain)
        return [(v, (await book.entry(v.lease)).lease.client) for v in await book.unsettled_vouchers()]
    finally:
        await asyncio.to_thread(database.close)
