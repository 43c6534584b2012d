"""`freehold epoch`: what each epoch came to, and its recomputation from the published bundle alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.output import Group, Program, print_table

if TYPE_CHECKING:
    from freehold.chain.contracts.oracle import ReportAccepted
    from freehold.cli.bundles import Checked

SHOWN = 20  # epochs that `list` shows unless told otherwise


@click.group(cls=Group)
def epoch() -> None:
    """List, show and replay epochs."""


def show_epochs(data: dict[str, Any]) -> None:
    from freehold.cli.amounts import format_amount, short

    rows = [
        [
            d["epoch"],
            d["status"],
            short(d["accounts_root"]) if d["accounts_root"] else "",
            d["accounts"],
            format_amount(int(d["tokens_earned"])),
            format_amount(int(d["credits_spent"])),
            ", ".join(f"{count} {reason}" for reason, count in d["verdicts"].items()),
        ]
        for d in data["epochs"]
    ]
    print_table(["EPOCH", "STATUS", "ROOT", "ACCOUNTS", "EARNED", "SPENT", "VERDICTS"], rows)
    click.echo("earned (tokens) and spent (credits) are totals since the beginning", err=True)


@epoch.command("list", show=show_epochs)
@click.option("--last", type=click.IntRange(1, 1000), default=SHOWN, show_default=True, help="How many epochs.")
@click.pass_obj
def list_(program: Program, last: int) -> dict[str, Any]:
    """Epochs with root, totals, status (open, pending, active) and verdict counts; the newest first."""
    from freehold.cli.connection import run

    return run(_list(program, last))


async def _list(program: Program, last: int) -> dict[str, Any]:
    from freehold.cli.connection import connect
    from freehold.cli.reports import accepted_reports
    from freehold.protocol.errors import FreeholdError

    async with connect(program) as connection:
        posted, active = await connection.ledger.posted_epoch(), await connection.ledger.due_epoch()
        first = max(1, posted - last + 2)
        accepted = await accepted_reports(connection, first, posted) if posted else {}
        counts: dict[int, dict[str, int]] = {}
        try:
            for summary in await connection.quorum.agree(f"/v1/reports?from={first}"):
                counts[int(summary["report"]["epoch"])] = dict(summary["verdicts"])
        except FreeholdError as error:
            program.warn(f"verdict counts are unknown: {error.message}")
        listed = [_open_row(posted + 1)]
        listed += [_row(accepted[n], active, counts.get(n, {})) for n in sorted(accepted, reverse=True)]
        return {"epochs": listed}


def _open_row(number: int) -> dict[str, Any]:
    return {
        "epoch": number,
        "status": "open",
        "accounts_root": "",
        "accounts": 0,
        "tokens_earned": "0",
        "credits_spent": "0",
        "verdicts": {},
    }


def _row(event: ReportAccepted, active: int, verdicts: dict[str, int]) -> dict[str, Any]:
    report = event.report
    return {
        "epoch": report.epoch,
        "status": "active" if report.epoch <= active else "pending",
        "report": str(event.report_hash),
        "accounts_root": str(report.accounts_root),
        "accounts": report.accounts,
        "tokens_earned": str(report.tokens_earned),
        "credits_spent": str(report.credits_spent),
        "subsidy": str(report.subsidy),
        "revenue": str(report.revenue),
        "price": str(report.price),
        "view": report.view,
        "verdicts": verdicts,
    }


def show_epoch(data: dict[str, Any]) -> None:
    from freehold.cli.amounts import format_exact, short

    click.echo(f"epoch {data['epoch']}: {data['status']}, as the chain has it")
    money = {"tokens_earned", "credits_earned", "credits_spent", "subsidy", "revenue", "price"}
    for name, value in data["report"].items():
        click.echo(f"  {name:<15} {format_exact(int(value)) if name in money else value}")
    click.echo(f"  evidence        {data['batches']} certified batches, {data['rows']} rows, "
               f"seen by {len(data['observers'])} members")  # fmt: skip
    click.echo(f"  signed by       {', '.join(short(member) for member in data['signers'])}")
    click.echo("  verdicts        " + (", ".join(f"{c} {r}" for r, c in data["verdicts"].items()) or "none"))
    if data["payments"]:
        print_table(
            ["  OPERATOR", "CLIENT", "PAID BY", "CREDITS", "EARNED", "SUBSIDY"],
            [
                [f"  {p['name']}", short(p["client"]), p["mode"]]
                + [format_exact(int(p[key])) for key in ("credits", "earned", "subsidy")]
                for p in data["payments"]
            ],
        )


@epoch.command("show", show=show_epoch)
@click.argument("number", type=click.IntRange(min=1))
@click.pass_obj
def show(program: Program, number: int) -> dict[str, Any]:
    """One epoch: its report, evidence, verdicts and payments, recomputed from its bundle."""
    from freehold.cli.connection import run

    return run(_show(program, number))


async def _show(program: Program, number: int) -> dict[str, Any]:
    from freehold.cli.bundles import fetch_bundle
    from freehold.cli.connection import connect, known_names, name_of
    from freehold.protocol.messages import MODES

    names = known_names(program)
    async with connect(program) as connection:
        _, bundle, settlement = await fetch_bundle(connection, number)
        leases = {**bundle.state.leases, **settlement.state.leases}
        active = await connection.ledger.due_epoch()
        return {
            "epoch": number,
            "status": "active" if number <= active else "pending",
            "on_chain": True,
            "report": settlement.report.to_json(),
            "batches": len(bundle.batches),
            "rows": sum(len(batch.table) for batch in bundle.batches.values()),
            "observers": [str(o.member) for o in bundle.manifest.observations],
            "signers": [str(m) for i, m in enumerate(bundle.anchor.members) if bundle.signers >> i & 1],
            "verdicts": settlement.verdicts.count_by("reason"),
            "payments": [
                p.to_json() | {"name": name_of(names, str(p.operator)), "mode": MODES[leases[p.lease].mode]}
                for p in settlement.payments
            ],
            "slashes": [row.to_json() for row in settlement.slashes],
        }


def show_slashes(data: dict[str, Any]) -> None:
    from freehold.cli.amounts import format_exact, short

    click.echo(f"epoch {data['epoch']}: {len(data['slashes'])} bonds answer for what was proven wrong")
    for row in data["slashes"]:
        click.echo(f"  node {short(row['node'])}: {format_exact(int(row['amount']))} tokens, for {row['subject']}")
    if data["slashes"]:
        click.echo(f"  taken now: {data['taken']}")


@epoch.command("slash", show=show_slashes)
@click.argument("number", type=click.IntRange(min=1))
@click.pass_obj
def slash(program: Program, number: int) -> dict[str, Any]:
    """Take from nodes' bonds what epoch NUMBER proved wrong. Anyone may, once its report is active.

    A fifth goes to who was harmed, the rest burns. `freehold watch` does the same by itself.
    """
    from freehold.cli.connection import run

    return run(_slash(program, number))


async def _slash(program: Program, number: int) -> dict[str, Any]:
    from freehold.cli.bundles import fetch_bundle
    from freehold.cli.connection import connect
    from freehold.cli.signing import open_sender
    from freehold.cli.wallets import open_wallet
    from freehold.oracle.court import Court, Taken
    from freehold.protocol.errors import Refused, Unavailable

    async with connect(program) as connection:
        _, _, settlement = await fetch_bundle(connection, number)
        taken = Taken(0, [])
        if len(settlement.slashes):
            if number > await connection.ledger.active_epoch():
                raise Refused(
                    f"the report of epoch {number} is not active yet: until then it can be revoked",
                    hint="`freehold epoch list` shows when it is.",
                )
            sender = open_sender(program, connection)
            court = Court(connection.rpc, connection.network, open_wallet(program).key, sender)
            taken = await court.take(settlement.report, settlement.slashes)
            if taken.failures and not taken.bonds:
                raise Unavailable(f"no bond was taken: {taken.failures[0]}")
            for why in taken.failures:
                program.warn(f"not taken: {why}")
        return {"epoch": number, "slashes": [row.to_json() for row in settlement.slashes], "taken": taken.bonds}


def show_replay(data: dict[str, Any]) -> None:
    click.echo(f"epoch {data['epoch']} replayed from {data['source']} ({data['bytes']} bytes):")
    click.echo(f"  accounts root  {data['accounts_root']}")
    click.echo(f"  state root     {data['state_root']}")
    click.echo(f"  report         {data['report']}")
    if data["on_chain"] is None:
        click.echo("  follows from its evidence; it was NOT compared with a chain: anybody can make such a file")
    else:
        click.echo("  equals the report that the chain accepted")


@epoch.command("replay", show=show_replay)
@click.argument("number", type=click.IntRange(min=1))
@click.option("--bundle", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Replay this file.")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Keep the fetched bundle as this file.")
@click.option("--offline", is_flag=True, help="Do not compare with the chain.")
@click.pass_obj
def replay(program: Program, number: int, bundle: Path | None, save: Path | None, offline: bool) -> dict[str, Any]:
    """Recompute epoch NUMBER from its bundle alone and compare with the chain. Names the first difference."""
    from freehold.cli.bundles import check_bundle, has_network
    from freehold.cli.connection import run

    given = None if bundle is None else bundle.read_bytes()
    if given is not None and (offline or not has_network(program)):
        program.warn("no chain was asked: this bundle is only consistent in itself")
        return _describe(check_bundle(given, number, None, None), str(bundle), None)
    return run(_replay(program, number, given, bundle, save, offline))


async def _replay(
    program: Program, number: int, given: bytes | None, path: Path | None, save: Path | None, offline: bool
) -> dict[str, Any]:
    import asyncio

    from freehold.cli.bundles import check_bundle, fetch_bundle, get_accepted
    from freehold.cli.connection import connect

    async with connect(program) as connection:
        if given is not None:
            accepted = await get_accepted(connection, number)
            return _describe(check_bundle(given, number, connection.network, accepted), str(path), True)
        checked = await fetch_bundle(connection, number, offline=offline)
        if save is not None:
            await asyncio.to_thread(save.write_bytes, checked.data)
        return _describe(checked, "the bundle that a member publishes", None if offline else True)


def _describe(checked: Checked, source: str, on_chain: bool | None) -> dict[str, Any]:
    report = checked.settlement.report
    return {
        "epoch": report.epoch,
        "source": source,
        "bytes": len(checked.data),
        "accounts_root": str(report.accounts_root),
        "state_root": str(report.state_root),
        "report": str(report.struct_hash()),
        "on_chain": on_chain,
    }
