"""`make testnet`: build the validators, bring the network up on them, tell the story, end everything.

    build/testnet/bin          the validators' program
    build/testnet/contracts    the contracts, compiled for the chain's fork
    build/testnet/run          chain, network, logs of the last run; a run first ends and deletes what it finds there

exit 0   every check held        exit 1   one did not, or something could not be started        exit 130   Ctrl-C

Invariant: whatever the end, and also after a kill -9 of this program, none of its processes remains: at its own end it
checks that; after a kill the system ends them, or the next run does, by process id and start time.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from freehold.cli.main import describe
from freehold.local.children import find_records, start_time
from freehold.protocol.errors import Conflict, FreeholdError
from scripts.compile_contracts import compile_all
from testnet.genesis import FORK
from testnet.geth import ensure_geth, run
from testnet.network import PERIOD, SETTINGS, VALIDATORS, RealFiles, RealNetwork
from testnet.story import CheckFailed, Story

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "testnet"
INTERRUPTED = 130


class Transcript:
    """Prints lines with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, line: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f}  {line}", flush=True)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """While this is held, no other run begins. Conflict if one is on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Conflict(f"`make testnet` runs here already, as process {file.read()}") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


async def tell(say: Transcript) -> None:
    """One whole run. CheckFailed, FreeholdError."""
    files = RealFiles(BUILD / "run" / "local")
    left = await files.clear()
    if left:
        say(f"ended what an earlier run had left: {', '.join(left)}")
    geth = await ensure_geth(BUILD / "bin", say)
    version = [line for line in (await run(str(geth), "version")).splitlines() if line.startswith(("Version", "Go V"))]
    say(f"geth: {', '.join(version)}")
    artifacts = await asyncio.to_thread(compile_contracts, BUILD / "contracts")
    say(f"contracts compiled for the fork {FORK!r}")
    say(
        f"starting {VALIDATORS} validators (Clique, a block each {PERIOD} s), {SETTINGS.members} members, "
        f"{SETTINGS.operators} nodes; epochs of {SETTINGS.epoch_length} s, final after {SETTINGS.finality_depth} blocks"
    )
    say(f"logs: {files.logs.relative_to(ROOT)}, {files.validators.relative_to(ROOT)}")
    network = RealNetwork(files, BUILD, say, geth, artifacts)
    started: dict[str, int] = {}
    try:
        async with network:
            say(f"all are up: {len(network.pids())} processes")
            try:
                await Story(network, files.root.parent, say).run()
            finally:
                started = dict(network.pids())
    finally:
        left = [name for name, pid in started.items() if start_time(pid) is not None]
        left += [path.stem for folder in (files.logs, files.validators) for path in find_records(folder)]
        say(f"still running: {', '.join(left)}" if left else "everything is stopped, no process remains")
    if left:
        raise CheckFailed("processes remain")


def compile_contracts(folder: Path) -> Path:
    """The artifacts for the chain's fork, in `folder`; whatever else was there is gone."""
    folder.mkdir(parents=True, exist_ok=True)
    built = compile_all(FORK)
    for path in folder.iterdir():
        if path.name not in built:
            path.unlink()
    for name, text in built.items():
        (folder / name).write_text(text)
    return folder


async def run_until_signal(say: Transcript) -> int:
    telling = asyncio.ensure_future(tell(say))
    loop = asyncio.get_running_loop()

    def stop() -> None:
        say("stopping")
        telling.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    with contextlib.suppress(asyncio.CancelledError):
        await telling
        return 0
    return INTERRUPTED


def main() -> int:
    say = Transcript()
    try:
        with alone(BUILD / "lock"):
            code = asyncio.run(run_until_signal(say))
    except (FreeholdError, BaseExceptionGroup) as error:
        told = describe(error)
        say(f"FAILED {told['message']}")
        if told["hint"]:
            say(f"       {told['hint']}")
        return 1
    if code == 0:
        say("every check held")
    return code


if __name__ == "__main__":
    sys.exit(main())
