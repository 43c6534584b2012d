"""`freehold doctor`: what usually goes wrong on a machine, checked, with what to do about each."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from freehold.cli.output import Command, Program

if TYPE_CHECKING:
    from freehold.cli.connection import Connection

SKEW_SECONDS = 30  # between this clock and a member's, that signed requests still bear (net/auth.py: 60)
LEAST_DISK = 2**30
LEAST_GAS = 10**16  # wei


class Check(NamedTuple):
    """One finding. `advice` is what to do where it is not ok."""

    name: str
    ok: bool
    found: str
    advice: str = ""


def show_checks(data: dict[str, Any]) -> None:
    for check in data["checks"]:
        mark = click.style("ok  ", fg="green") if check["ok"] else click.style("FAIL", fg="red")
        click.echo(f"{mark} {check['name']:<10} {check['found']}")
        if not check["ok"]:
            click.echo(f"     {'':<10} -> {check['advice']}")


@click.command(cls=Command, show=show_checks)
@click.pass_obj
def doctor(program: Program) -> dict[str, Any]:
    """Check this machine and its network: Python, disk, RPC, clock, members, operators, balance, executors."""
    from freehold.cli.connection import run

    checks = [_python(), _disk(program), _chain_program(program), *run(_network(program))]
    healthy = all(check.ok for check in checks)
    data = {"healthy": healthy, "checks": [check._asdict() for check in checks]}
    program.exit_code = 0 if healthy else 1
    return data


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    ok = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Check("python", ok, version, "Use Python 3.11, 3.12 or 3.13.")


def _disk(program: Program) -> Check:
    from freehold.cli.amounts import format_size

    place = program.settings.home
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    return Check("disk", free >= LEAST_DISK, f"{format_size(free)} free at {place}", "Free some space or move --home.")


def _chain_program(program: Program) -> Check:
    """Whether `freehold up` can run a chain here: an executor that is found now, not at run time."""
    from freehold.local.anvil import AnvilMissing, find_npm, get_platform

    try:
        if any(
            (program.settings.home / "tools").glob(f"anvil-*/node_modules/@foundry-rs/anvil-{get_platform()}/bin/anvil")
        ):
            return Check("executors", True, "anvil is installed (for `freehold up`)")
        find_npm()
    except AnvilMissing as error:
        return Check("executors", False, error.message, error.advice)
    return Check("executors", True, "anvil is installed by `freehold up`, through npm")


async def _network(program: Program) -> list[Check]:
    from freehold.cli.connection import connect
    from freehold.protocol.errors import FreeholdError

    try:
        async with connect(program) as connection:
            checks = [await _rpc(connection)]
            if checks[0].ok:
                checks += await asyncio.gather(
                    _clock(connection), _operators(connection), _balance(program, connection)
                )
            return [*checks, *await _members(connection)]
    except FreeholdError as error:
        return [Check("network", False, error.message, error.advice)]


async def _rpc(connection: Connection) -> Check:
    from freehold.protocol.errors import FreeholdError

    try:
        began = time.monotonic()
        chain = await connection.rpc.chain_id()
        took = (time.monotonic() - began) * 1000
        deployed = bool(await connection.rpc.code(connection.network.contracts["oracle"]))
    except FreeholdError as error:
        return Check(
            "rpc", False, error.message, error.advice or "Start the chain, or correct rpc_url in the network file."
        )
    found = f"{connection.rpc.url}: chain {chain}, {took:.0f} ms"
    return Check("rpc", deployed, found, "The chain has no contracts of this network: is it the right network file?")


async def _clock(connection: Connection) -> Check:
    """Against the members: their answers' Date header has whole seconds."""
    from email.utils import parsedate_to_datetime

    from freehold.protocol.errors import FreeholdError

    skews = []
    for member in connection.network.members:
        try:
            async with connection.member(member).request("GET", "/healthz") as answer:
                skews.append(abs(time.time() - parsedate_to_datetime(answer.headers["Date"]).timestamp()))
        except (FreeholdError, KeyError, ValueError):
            continue
    if not skews:
        return Check("clock", False, "no member answers, so there is nothing to compare with", "See the members below.")
    skew = sorted(skews)[len(skews) // 2]
    advice = "Set this machine's clock (NTP): signed requests expire by it."
    return Check("clock", skew <= SKEW_SECONDS, f"{skew:.0f} s from the members'", advice)


async def _members(connection: Connection) -> list[Check]:
    from freehold.cli.status import check_process

    network = connection.network
    answers = await asyncio.gather(
        *(check_process(connection.member(m), str(m.address), "member", m.address) for m in network.members)
    )
    bad = [f"{a['url']}: {a['why']}" for a in answers if not a["healthy"]]
    found = f"{len(answers) - len(bad)} of {len(answers)} are reachable and ready"
    advice = "; ".join(bad) + ". Check that this machine can reach them, and their operators' logs."
    return [Check("members", not bad, found, advice)]


async def _operators(connection: Connection) -> Check:
    from freehold.cli.operators import read_registrations
    from freehold.cli.status import check_process
    from freehold.protocol.units import Address

    nodes = await read_registrations(connection)
    answers = await asyncio.gather(
        *(
            check_process(connection.node(Address(node), record["endpoint"]), node, "node", Address(node))
            for node, record in nodes.items()
        )
    )
    bad = [f"{a['url']}: {a['why']}" for a in answers if not a["healthy"]]
    found = f"{len(answers) - len(bad)} of {len(answers)} endpoints that the chain names answer from here"
    advice = "; ".join(bad) + ". Their operators: open the port, or announce the address that others reach."
    return Check("operators", not bad and bool(answers), found, advice if bad else "No operator is registered yet.")


async def _balance(program: Program, connection: Connection) -> Check:
    from freehold.cli.amounts import format_amount
    from freehold.cli.wallets import find_wallets
    from freehold.protocol.errors import FreeholdError

    name = program.settings.get("wallet").value
    try:
        address = find_wallets(program, name).address(name)
    except FreeholdError as error:
        return Check("balance", False, error.message, error.advice)
    gas, paid = await connection.rpc.balance(address), await connection.credits.paid_in(address)
    found = f"wallet {name}: {format_amount(gas)} of the gas coin, {format_amount(paid)} credits bought"
    advice = (
        f"Send some of the chain's coin to {address}." if gas < LEAST_GAS else "Buy credits: `freehold credits buy`."
    )
    return Check("balance", gas >= LEAST_GAS and paid > 0, found, advice)
