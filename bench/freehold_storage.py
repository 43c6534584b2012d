"""Freehold's side: a local network of its own (chain, 4 members, 8 operators), and the SDK in a process beside it.

What is timed is all that `freehold cp` does: leases, reservation, shards, lists, certificates, head; and back. It is
timed for a client that has stored something before: a file of WARM_BYTES goes first, not timed, by which the leases are
open and the nodes have their directories (the bare nodes have one each, Tahoe's no leases).

    python -m bench.freehold_storage FILE HOME      prints {"upload": B/s, "download": B/s, "memory": bytes}
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from bench.children import Children
from bench.rates import Rates, make_file
from freehold.client.account import Wallets
from freehold.client.sdk import Freehold
from freehold.local.accounts import PASSPHRASE
from freehold.market.network import Network

CREDITS_SECONDS = 120.0  # until the first report counts the client's credits
POLL_SECONDS = 0.2
WARM_BYTES = 64 << 20


def freehold_rates(path: Path, size: int) -> Rates:
    """One round over the `size` bytes of `path`, on a network of its own on the same disk."""
    with tempfile.TemporaryDirectory(dir=path.parent) as name, Children() as children:
        home = Path(name)
        free = {name: value for name, value in os.environ.items() if not name.startswith("FREEHOLD_")}
        anvil = {name: os.environ[name] for name in ("FREEHOLD_ANVIL",) if name in os.environ}
        environment = ["env", "-i", *(f"{n}={v}" for n, v in (free | anvil | {"FREEHOLD_HOME": str(home)}).items())]
        up = [*environment, sys.executable, "-m", "freehold.cli.main", "up", "--json"]
        children.ready_line(children.start(up, home / "up.log"))
        client = children.start([sys.executable, "-m", "bench.freehold_storage", str(path), str(home)], home / "log")
        found = json.loads(children.ready_line(client))
        client.wait()
    if found["size"] != size:
        raise RuntimeError(f"{found['size']} of {size} bytes were stored")
    return Rates(found["upload"], found["download"], found["memory"])


async def measure(path: Path, home: Path) -> dict[str, float]:
    local = home / "local"
    account = Wallets(local).open("client", PASSPHRASE)
    back = path.with_suffix(".freehold")
    async with Freehold(Network.load(local / "network.json"), account, home=local) as client:
        async with asyncio.timeout(CREDITS_SECONDS):
            while (await client.credits()).free <= 0:  # noqa: ASYNC110 - other processes cause it
                await asyncio.sleep(POLL_SECONDS)
        try:
            await client.put(make_file(path.with_suffix(".warm"), WARM_BYTES), "fh://bench/warm")
            start = time.perf_counter()
            stored = await client.put(path, "fh://bench/file")
            uploaded = time.perf_counter()
            await client.get("fh://bench/file", back)
            done = time.perf_counter()
            if digest(back) != digest(path):
                raise RuntimeError("what came back is not what went in")
        finally:
            back.unlink(missing_ok=True)
            path.with_suffix(".warm").unlink(missing_ok=True)
    return {
        "size": stored.size,
        "upload": stored.size / (uploaded - start),
        "download": stored.size / (done - uploaded),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(Path(sys.argv[1]), Path(sys.argv[2])))), flush=True)
