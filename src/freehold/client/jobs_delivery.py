"""Where results go: a local folder, or a bucket, by the node itself or through this machine.

What an unchecked task puts out is written by its node as it ends (the task says where). A checked one keeps its files
until its result is accepted; then a copy task at that node writes them, by the same grant: so no node writes what has
not been believed. What arrived is compared with the receipt by the objects' SHA-256. Where no gateway is known, or a
node cannot write, the files pass through this machine.

Invariant: what stands in a folder or bucket under a result's name is what its receipt says.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from freehold.client.errors import KeyNotFound
from freehold.client.jobs_checks import result_of
from freehold.client.jobs_contents import Contents, Objects
from freehold.client.jobs_folder import check_places, place
from freehold.client.jobs_journal import DONE, OPEN, OrderRow
from freehold.client.jobs_orders import Compute, Desk, NodeFailed, Wanted
from freehold.client.jobs_pieces import Came, Tools
from freehold.client.paths import ObjectPath
from freehold.protocol.errors import Corrupt, FreeholdError
from freehold.protocol.units import Address, Hash
from freehold.services.compute.tasks import Blob, Delivery, Input, Resources, Task, check_path, name_runner

COPIED_AT_ONCE = 256  # files of one copy task
COPY_BASE, COPY_FILE, COPY_BYTE = 20 * 10**9, 10**7, 40  # the most fuel of a copy task: in all, a file, a byte
COPY = b"""import os, sys

for path in sys.argv[1:]:
    folder = os.path.dirname("/out/" + path)
    os.makedirs(folder, exist_ok=True)
    with open("/in/" + path, "rb") as source, open("/out/" + path, "wb") as target:
        while part := source.read(1 << 16):
            target.write(part)
"""


class Delivering(NamedTuple):
    """What a delivery works with. `note` (step, kind, data) writes down what `freehold job why` tells."""

    desk: Desk
    client: Compute
    contents: Contents
    objects: Objects
    tools: Tools
    note: Callable[[str, str, dict[str, Any]], Awaitable[None]]


def came_of(rows: Mapping[int, OrderRow]) -> list[Came]:
    """What accepted orders (by the number of their piece) put out: the files, and what was printed. Corrupt for a name
    that leads out of a folder."""
    found = []
    for number, row in sorted(rows.items()):
        result = result_of(row)
        found.append(Came(number, "stdout", Blob(sha256=result.stdout.sha256, size=result.stdout.size), True))
        for file in result.files:
            try:
                check_path(file.path)
            except FreeholdError:
                raise Corrupt(
                    f"node {row.node} has put out {file.path!r}, which is no path", node=str(row.node)
                ) from None
            found.append(Came(number, file.path, Blob(sha256=file.sha256, size=file.size), False))
    return found


async def fetch_all(means: Delivering, rows: Mapping[int, OrderRow], came: Sequence[Came]) -> None:
    """Bring contents to this machine."""
    for one in came:
        await means.desk.fetch(rows[one.number], one.blob.sha256, one.blob.size)


async def to_folder(means: Delivering, rows: Mapping[int, OrderRow], named: Mapping[str, Came], folder: Path) -> None:
    """Write files below a local folder, each whole; what has their names there is replaced. CannotPlace, before any is
    written, where they are in each other's way; DiskFull."""
    await asyncio.to_thread(check_places, folder, named)
    for path, one in named.items():
        data = await means.desk.fetch(rows[one.number], one.blob.sha256, one.blob.size)
        await asyncio.to_thread(place, data, folder / path)


async def to_bucket(
    means: Delivering, rows: Mapping[int, OrderRow], named: Mapping[str, Came], where: Delivery, *, through_nodes: bool,
    known: Sequence[OrderRow], step: str,
) -> int:  # fmt: skip
    """Write files below a prefix; how many passed through this machine. `known`: the step's orders in the journal."""

    async def note(node: Address, files: int, reason: str) -> None:
        if reason:
            await means.note(step, "delivery", {"node": str(node), "files": files, "reason": reason})

    async def not_there(wanted: Mapping[str, Came]) -> dict[str, Came]:
        left = {}
        for path, one in wanted.items():
            try:
                is_there = await _is_there(means, one, ObjectPath(where.bucket, where.prefix + path))
            except FreeholdError as error:
                await note(rows[one.number].node, 1, f"whether {path} is there cannot be told: {error.message}")
                is_there = False
            if not is_there:
                left[path] = one
        return left

    left = await not_there(named)
    if through_nodes and left:
        for group in _groups(rows, left):
            first = rows[left[group[0]].number]
            await note(first.node, len(group), first.reason)
            chosen = {path: left[path] for path in group}
            await note(first.node, len(group), await _copy(means, rows, chosen, where, known, step))
        left = await not_there(left)
    for path, one in left.items():
        data = await means.desk.fetch(rows[one.number], one.blob.sha256, one.blob.size)
        await _put(means, data, ObjectPath(where.bucket, where.prefix + path))
    return len(left)


async def _is_there(means: Delivering, one: Came, where: ObjectPath) -> bool:
    """Whether the bucket has just these bytes: others, or some whose hash nobody checked, do not count."""
    try:
        info = await means.objects.stat(where)
    except KeyNotFound:
        return False
    wanted = base64.b64encode(bytes.fromhex(one.blob.sha256)).decode()
    return info.size == one.blob.size and info.checksums.get("SHA256") == wanted


def _groups(rows: Mapping[int, OrderRow], named: Mapping[str, Came]) -> Iterator[list[str]]:
    """Paths that one copy task takes: of one node, in their order."""
    by_node: dict[Address, list[str]] = {}
    for path, one in named.items():
        by_node.setdefault(rows[one.number].node, []).append(path)
    for paths in by_node.values():
        for at in range(0, len(paths), COPIED_AT_ONCE):
            yield paths[at : at + COPIED_AT_ONCE]


async def _copy(
    means: Delivering, rows: Mapping[int, OrderRow], named: Mapping[str, Came], where: Delivery,
    known: Sequence[OrderRow], step: str,
) -> str:  # fmt: skip
    """Have the node that ran them write these files; "", or why it has not as far as it says: look what is there."""
    runner = await means.contents.add_file(await means.tools.python_runner())
    size = sum(one.blob.size for one in named.values())
    task = Task(
        executor="wasm", kind="python", engine=name_runner(runner.sha256, means.tools.engine),
        program=await means.contents.add(COPY),
        arguments=tuple(named), inputs=tuple(Input(path=path, blob=one.blob) for path, one in sorted(named.items())),
        delivery=where, resources=Resources(disk=max(2**20, 2 * size)),
    )  # fmt: skip
    first = rows[next(iter(named.values())).number]
    before = [row for row in known if row.order.task == task.hash() and row.purpose == "delivery"]
    if done := next((row for row in before if row.phase == DONE), None):
        return _why_not(done)
    try:
        opened = next((row for row in before if row.phase == OPEN), None)
        if opened is not None:
            return _why_not(await means.desk.resume(opened, task))
        node = await means.client.reopen(first.node, first.order.lease)
        most = COPY_BASE + COPY_FILE * len(named) + COPY_BYTE * size
        return _why_not(await means.desk.run(node, Wanted(step, first.number, task, most, "delivery")))
    except NodeFailed as error:
        return error.reason
    except FreeholdError as error:
        return error.message


def _why_not(row: OrderRow) -> str:
    """Why a copy task that is done may have written nothing; "" where it says nothing of the kind."""
    ended = result_of(row).ended
    return row.reason if ended == "exited" else f"copying them ended: {ended}"


async def _put(means: Delivering, data: bytes | Path, where: ObjectPath) -> None:
    if isinstance(data, Path):
        await means.objects.put(data, where)
        return
    blob = await means.contents.add(data)
    path = means.contents.place(f".{blob.sha256}.{secrets.token_hex(4)}")
    await asyncio.to_thread(place, data, path)
    try:
        await means.objects.put(path, where)
    finally:
        await asyncio.to_thread(path.unlink, missing_ok=True)


def accepted_rows(accepted: Mapping[int, Hash], orders: Sequence[OrderRow]) -> dict[int, OrderRow]:
    """The accepted orders by the number of their piece."""
    by_id = {row.id: row for row in orders}
    return {number: by_id[id] for number, id in sorted(accepted.items())}
