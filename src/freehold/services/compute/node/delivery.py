"""What came out, on its way to where its task wants it: file by file, from the node's own blobs.

    run -> keep (what it came to, its files' blobs) -> each file to the gateway, again after a fault -> receipt

Invariant: a file is sent only once what the run came to is durable here. So a node that was killed in between goes on
with the first file that had not arrived, and runs nothing again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import msgspec

from freehold.protocol.errors import FreeholdError
from freehold.protocol.units import Hash
from freehold.services.compute.node.blobs import PIECE, SMALL, Blobs, add_small
from freehold.services.compute.node.gateway import Gateway
from freehold.services.compute.node.orders import Ending
from freehold.services.compute.node.orders_live import Job
from freehold.services.compute.tasks import OutputFile, decode_result
from freehold.services.seam import Sql


class Kept(NamedTuple):
    """A run that is to be delivered: what it came to, with its result, and how many of its files have arrived."""

    ending: Ending
    done: int


class Deliveries:
    """Of one node. Rows go with the order's ending (`Orders.end`)."""

    def __init__(self, sql: Sql, blobs: Blobs, clock: Callable[[], int]) -> None:
        self._sql, self._blobs, self._clock = sql, blobs, clock

    async def keep(self, job: Job, ending: Ending, small: Mapping[str, bytes]) -> Kept:
        """Write down what a run came to, and the blobs of it that are not kept yet."""
        written, log = msgspec.json.encode(ending), job.log.read(job.log.start)
        values = (job.id, written, log, job.log.end)

        def work(c: Any) -> int:
            c.execute("INSERT OR REPLACE INTO deliveries (id, ending, log, log_end) VALUES (?, ?, ?, ?)", values)
            return add_small(c, job.entry.client, small, self._clock(), job.id)

        self._blobs.grew(await self._sql.write(work))
        return Kept(ending, 0)

    async def find(self, job: Job) -> Kept | None:
        """What this order's run came to before the node was ended, with its log; None where it has to run."""
        query = "SELECT ending, done, log, log_end FROM deliveries WHERE id = ?"
        row = await self._sql.read(lambda c: c.execute(query, (job.id,)).fetchone())
        if row is None:
            return None
        job.log.end = row[3] - len(row[2])
        job.log.add(row[2])
        return Kept(msgspec.json.decode(row[0], type=Ending), row[1])

    async def deliver(self, job: Job, kept: Kept, gateway: Gateway, may_go_on: Callable[[], bool]) -> Ending:
        """Put the files where the task wants them, as long as `may_go_on` says; what then came of the order."""
        where, files, done = job.task.delivery, decode_result(kept.ending.result.encode()).files, kept.done
        assert where is not None
        reason = kept.ending.reason
        try:
            for file in files[done:]:
                await self._blobs.find(None, file.sha256)  # NotFound now, and not in the middle of a request
                pieces = partial(self._pieces, file)
                await gateway.deliver(where.bucket, where.prefix + file.path, pieces, file, may_go_on)
                done += 1
                await self._count(job.id, done)
        except FreeholdError as error:
            job.add_log(f"not delivered: {error.message}\n".encode())
            reason = reason or f"not delivered: {error.message}"
        written = sum(file.size for file in files[:done])
        return msgspec.structs.replace(kept.ending, reason=reason, delivered=done == len(files), written_bytes=written)

    async def _pieces(self, file: OutputFile) -> AsyncIterator[bytes]:
        if file.size <= SMALL:
            yield await self._blobs.read(file.sha256, SMALL)
            return
        for offset in range(0, file.size, PIECE):
            yield await self._blobs.read_piece(file.sha256, offset)

    async def _count(self, job: Hash, done: int) -> None:
        query = "UPDATE deliveries SET done = ? WHERE id = ?"
        await self._sql.write(lambda c: c.execute(query, (done, job)).rowcount)
