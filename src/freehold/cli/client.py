"""The SDK for a command: the network and wallet of the settings, and where that client keeps what it knows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from freehold.cli.amounts import format_amount
from freehold.cli.connection import known_names, load_network
from freehold.cli.output import Program
from freehold.cli.wallets import open_wallet
from freehold.client.sdk import Freehold
from freehold.protocol.errors import InsufficientCredits

LENGTHS = 4  # epoch lengths, within which a report comes, or none comes at all
POLL_SECONDS = 0.5


@asynccontextmanager
async def open_client(program: Program, wallet: str | None = None) -> AsyncIterator[Freehold]:
    """The account of `wallet` (the settings' own if not named) on the network of the settings.

    What a client knows of a local network (indexes, leases, vouchers) lives and ends with that network's directory.
    """
    network = load_network(program)
    async with Freehold(network, open_wallet(program, wallet), home=get_home(program)) as client:
        yield client


def get_home(program: Program) -> Path:
    """Below which an account keeps what it knows: the network's own directory where that is a local one."""
    return program.settings.path("network").parent if known_names(program) else program.settings.home


async def wait_for_credits(program: Program, client: Freehold, needed: int) -> None:
    """Return once the members count `needed` free credits.

    Credits bought since the last report count from the next one on: that is waited for. InsufficientCredits, saying
    how many are missing and what buys them, where even those are not enough.
    """
    deadline = time.monotonic() + LENGTHS * client.network.parameters.epoch_length + 10
    told = False
    while True:
        counted = await client.credits()
        if counted.free >= needed:
            return
        bought = (await client.balance()).credits_paid_in
        missing = needed - (counted.free + bought - counted.paid_in)
        if missing > 0 or time.monotonic() > deadline:
            raise shortage(max(missing, needed - counted.free), needed, counted.free)
        if not told:
            program.note("waiting for the next report: it makes the members count the credits bought since the last")
            told = True
        await asyncio.sleep(POLL_SECONDS)


def shortage(missing: int, needed: int, free: int) -> InsufficientCredits:
    """How many credits are missing, and the command that buys them."""
    whole = -(-missing // 10**18)
    return InsufficientCredits(
        f"{format_amount(needed)} credits are needed, {format_amount(free)} are free: "
        f"{format_amount(missing)} are missing",
        hint=f"Buy them with `freehold credits buy {whole}`.",
        missing=str(missing),
        needed=str(needed),
        free=str(free),
    )
