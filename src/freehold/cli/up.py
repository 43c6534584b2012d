"""`freehold up`: the whole network on this machine, until Ctrl-C; again from where it was, the next time."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.output import Command, Program, confirm

if TYPE_CHECKING:
    from freehold.local.files import LocalFiles
    from freehold.local.parameters import LocalSettings
    from freehold.local.supervisor import LocalNetwork


@click.command(cls=Command)
@click.option("--fresh", is_flag=True, help="Delete the local network first: chain, files, accounts' indexes. Asks.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option(
    "--settings",
    "settings",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON with other numbers than src/freehold/local/parameters.py has, for a new network.",
)
@click.option("--tls/--no-tls", default=None, help="Have members and nodes speak https; kept until said otherwise.")
@click.pass_obj
def up(program: Program, fresh: bool, yes: bool, settings: Path | None, tls: bool | None) -> None:
    """Run the local network until Ctrl-C: a chain, the contracts, oracle members, operators, a client account.

    Everything listens on 127.0.0.1. What it has is kept, and the next `freehold up` resumes it.
    """
    from freehold.cli.connection import run
    from freehold.local.files import LocalFiles

    files = LocalFiles(program.settings.local)
    if fresh:
        _delete(program, files, yes=yes)
    chosen = files.read_settings(settings)
    run(_up(program, files, chosen if tls is None else chosen._replace(tls=tls)))


def _delete(program: Program, files: LocalFiles, *, yes: bool) -> None:
    from freehold.cli.amounts import format_size

    if not files.root.exists():
        return
    program.note(f"This deletes {files.root} ({format_size(files.size())}) for good:")
    program.note("  the local chain with its contracts and balances, every file stored on it, the client's indexes,")
    program.note("  the members' and operators' data, logs, throwaway keys. Nothing outside that directory.")
    confirm(program, "Delete it?", yes=yes)
    with files.lock():
        files.delete()


async def _up(program: Program, files: LocalFiles, settings: LocalSettings) -> None:
    import asyncio
    import contextlib
    import signal

    from freehold.local.supervisor import LocalNetwork

    began = time.monotonic()
    network = LocalNetwork(files, program.settings.home, program.note, settings)
    fresh = not files.network.exists()
    program.note(f"{'starting' if fresh else 'resuming'} the local network in {files.root}")
    running = asyncio.ensure_future(_run(program, network, began))
    loop = asyncio.get_running_loop()

    def stop() -> None:
        program.note("stopping")
        running.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    with contextlib.suppress(asyncio.CancelledError):
        await running
    program.note("stopped; `freehold up` resumes from here")


async def _run(program: Program, network: LocalNetwork, began: float) -> None:
    async with network:
        _announce(program, network, time.monotonic() - began)
        await network.run()


def _announce(program: Program, network: LocalNetwork, seconds: float) -> None:
    data = describe_network(network)
    if program.as_json:
        program.done(data, None)
        return
    click.echo(f"\nThe network is up after {seconds:.1f} s.\n")
    click.echo(f"  chain     {data['rpc_url']}   chain id {data['chain_id']}")
    for kind, title in (("member", "members"), ("node", "operators")):
        for i, item in enumerate(p for p in data["programs"] if p["kind"] == kind):
            click.echo(f"  {title if i == 0 else '':<9} {item['name']:<11} {item['url']:<23} {item['address']}")
    click.echo(f"  client    {data['client']}   with tokens and credits")
    if data["s3"]:
        _announce_s3(data["s3"])
    click.echo("\nThese accounts come from the public mnemonic below: throwaway, for this machine's chain only.")
    click.echo(f"  {data['mnemonic']}")
    click.echo("\nIn a second terminal:\n")
    own = Path(sys.executable).with_name("activate")
    if shutil.which("freehold") is None and own.exists():
        click.echo(f"  source {own}")
    for command in data["next"]:
        click.echo(f"  {command}")
    click.echo("\nCtrl-C stops it; `freehold up` resumes it; `freehold up --fresh` starts over.\n")


def _announce_s3(s3: dict[str, str]) -> None:
    click.echo(f"\nThe client's buckets speak S3 at {s3['endpoint']}:\n")
    click.echo(f"  export AWS_ACCESS_KEY_ID={s3['access_key']}")
    click.echo(f"  export AWS_SECRET_ACCESS_KEY={s3['secret']}")
    click.echo(f"  export AWS_DEFAULT_REGION={s3['region']}")
    click.echo(f"  aws --endpoint-url {s3['endpoint']} s3 mb s3://photos")
    click.echo("\n(A new network's credits count from its first report on: one epoch's length after its start.)")


NEXT = [
    "freehold status",
    "freehold cp ./any-real-file fh://demo/any-real-file",
    "freehold ls fh://demo",
    "freehold job run examples/primes.py --arg 100000",
    "freehold operator list",
    "freehold epoch list",
    "freehold why operator-1",
    "freehold fleet make --devices 100 --owner client ./devices",
    "freehold fleet register ./devices --wallet operator-1",
    "freehold fleet report ./devices --epochs 5",
    "freehold why client",
]


def describe_network(network: LocalNetwork) -> dict[str, Any]:
    """What `up` prints: URLs, funded accounts, and what to try."""
    from freehold.local.chain import MNEMONIC

    accounts, file = network.accounts, network.network
    assert accounts is not None
    assert file is not None
    named = accounts.to_json()
    return {
        "rpc_url": file.rpc_url,
        "chain_id": file.chain_id,
        "network": str(network.files.network),
        "programs": [
            {
                "name": p.name,
                "kind": p.kind,
                "url": network.urls[p.name],
                "address": named["client" if p.kind == "gateway" else p.name]["address"],
            }
            for p in [*network.members, *network.nodes, *network.gateways]
        ],
        "client": str(accounts.client.address),
        "accounts": named,
        "mnemonic": MNEMONIC,
        "s3": describe_gateway(network),
        "next": NEXT,
    }


def describe_gateway(network: LocalNetwork) -> dict[str, str] | None:
    """Where the client's S3 gateway is and with what it is signed for; None where there is none."""
    from freehold.local.children import read_json

    told = read_json(network.files.ready("gateway")) if network.gateways else None
    if told is None:
        return None
    key = told["keys"][0]
    return {
        "endpoint": told["url"],
        "region": told["region"],
        "access_key": key["access_key"],
        "secret": key["secret"],
    }
