"""The client's memory does not grow with the file: a child uploads and downloads a small and a large one."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from tests.client.world import parameters, world

SEGMENT = 1 << 20
SMALL, LARGE = 4 << 20, 96 << 20
GROWTH = 40 << 20  # bytes: a fraction of the large file, far above what allocators leave lying about


async def transfer(folder: Path, size: int) -> None:
    from freehold.client.account import Account
    from freehold.client.sdk import Freehold
    from freehold.market.network import Network
    from freehold.protocol.state import NodeRecord

    class Listed:
        async def nodes(self) -> list[NodeRecord]:
            return [NodeRecord.from_json(value) for value in json.loads((folder / "nodes.json").read_text())]

    source = folder / f"source{size}"
    with source.open("wb") as file:
        file.truncate(size)
    account = Account.of_secret(bytes.fromhex((folder / "secret").read_text()))
    network = Network.load(folder / "network.json")
    async with Freehold(network, account, home=folder / "home", directory=Listed()) as client:
        await client.put(source, f"fh://demo/file{size}")
        await client.get(f"fh://demo/file{size}", folder / "back")
    assert (folder / "back").stat().st_size == size


def test_memory_is_flat(tmp_path: Path) -> None:
    async def scenario() -> dict[int, int]:
        async with world(tmp_path / "net", nodes=6, parameters=parameters(segment_size=SEGMENT)) as net:
            account = net.account()
            (tmp_path / "nodes.json").write_text(json.dumps([record.to_json() for record in await net.nodes()]))
            (tmp_path / "secret").write_text(account.key.secret.hex())
            net.network.save(tmp_path / "network.json")
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            peaks = {}
            for size in (SMALL, LARGE):
                command = [sys.executable, "-m", "tests.client.test_memory", str(tmp_path), str(size)]
                child = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, env=environment)
                out, _ = await child.communicate()
                assert child.returncode == 0
                peaks[size] = int(out)
            return peaks

    peaks = asyncio.run(scenario())
    assert peaks[LARGE] - peaks[SMALL] < GROWTH
    assert peaks[LARGE] < 300 << 20


if __name__ == "__main__":
    asyncio.run(transfer(Path(sys.argv[1]), int(sys.argv[2])))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
