"""`freehold watch`: every epoch replayed as the chain accepts it; what does not follow is disputed with a bond."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from freehold.cli.output import Command, Program

if TYPE_CHECKING:
    from freehold.oracle.watch import Seen

BAD = ("contested", "withheld", "revoked")


def show_watch(data: dict[str, Any]) -> None:
    click.echo(f"{data['verified']} epochs verified, {data['contested']} contested")


@click.command(cls=Command, show=show_watch)
@click.option("--wallet", help="The wallet whose tokens are the bond of a dispute; without one, watch only watches.")
@click.option("--from", "from_epoch", type=click.IntRange(1), help="The first epoch to replay; the oldest kept if not.")
@click.option("--until", "until_epoch", type=click.IntRange(1), help="Stop after this epoch; without it, on Ctrl-C.")
@click.pass_obj
def watch(program: Program, wallet: str | None, from_epoch: int | None, until_epoch: int | None) -> dict[str, Any]:
    """Replay every epoch as the chain accepts it, and dispute by itself what does not follow from its evidence.

    Exit code 1 if an epoch was contested.
    """
    from freehold.cli.connection import run

    data = run(_watch(program, wallet, from_epoch or 0, until_epoch))
    if data["contested"]:
        from freehold.protocol.errors import ReplayMismatch

        raise ReplayMismatch(
            f"{data['contested']} epochs do not follow from their evidence: {data['epochs']}", first="report"
        )
    return data


async def _watch(program: Program, wallet: str | None, from_epoch: int, until_epoch: int | None) -> dict[str, Any]:
    import asyncio
    import signal

    from freehold.chain.rpc import Rpc
    from freehold.cli.connection import load_network
    from freehold.cli.wallets import open_wallet
    from freehold.net.client import Dial
    from freehold.oracle.watch import Watcher

    network = load_network(program)
    key = open_wallet(program, wallet).key if wallet is not None else None
    verified, contested, stop = set[int](), set[int](), asyncio.Event()

    def tell(seen: Seen) -> None:
        click.secho(f"epoch {seen.epoch}: {seen.what}  {seen.why}", err=True, fg="red" if seen.what in BAD else None)
        if seen.what in ("contested", "withheld"):
            contested.add(seen.epoch)
        elif seen.what == "verified":
            verified.add(seen.epoch)
        if until_epoch is not None and seen.epoch >= until_epoch and seen.what == "verified":
            stop.set()

    async with Rpc(network.rpc_url, chain_id=network.chain_id) as rpc, Dial() as dial:
        watcher = Watcher(network, rpc, dial, key, tell, poll=0.5, from_epoch=from_epoch)
        if key is None:
            program.note("watching only: name a --wallet with tokens to dispute what does not follow")
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        work, stopped = asyncio.create_task(watcher.run()), asyncio.create_task(stop.wait())
        await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if work.done():
            await work
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    return {"verified": len(verified), "contested": len(contested), "epochs": sorted(contested)}
