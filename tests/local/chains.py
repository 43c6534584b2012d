"""A real local chain for tests: anvil, quick blocks, known accounts."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs

from freehold.local.anvil import ensure_anvil
from freehold.local.chain import MNEMONIC, ChainOptions, LocalChain
from tests.conftest import SLOW

# A block every 50 ms, each one second of chain time after the last.
QUICK = ChainOptions(chain_id=31337, block_interval=0.05, poll=0.01, step=1)
DEADLINE = 40.0 * SLOW


@functools.cache
def find_anvil() -> Path:
    """The anvil binary, shared by all runs on this machine."""
    with ThreadPoolExecutor(1) as thread:  # the caller may be in an event loop of its own
        return thread.submit(asyncio.run, ensure_anvil(platformdirs.user_cache_path("freehold"))).result()


def local_chain(directory: Path, options: ChainOptions = QUICK) -> LocalChain:
    return LocalChain(directory, find_anvil(), options)


@functools.cache
def key(index: int) -> bytes:
    """The private key of the chain's funded account `index`."""
    from eth_account import Account

    Account.enable_unaudited_hdwallet_features()
    return bytes(Account.from_mnemonic(MNEMONIC, account_path=f"m/44'/60'/0'/0/{index}").key)


async def until(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds; TimeoutError at the deadline."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - other processes cause it, not this loop
            await asyncio.sleep(0.01)
