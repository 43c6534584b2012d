"""How a process runs: its log on standard error, until SIGTERM or SIGINT, and its exit code."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable

from freehold.protocol.errors import FreeholdError

log = logging.getLogger(__name__)

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def run_until_signal(run: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run until it ends, or has ended after a signal set the event; 1 where a FreeholdError kept it from that."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    try:
        asyncio.run(_run(run))
    except FreeholdError as error:
        log.error("%s %s", error.message, error.advice)
        return 1
    return 0


async def _run(run: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await run(stopping)
