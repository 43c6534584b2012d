"""The receipts of one client, on their way to its book.

A node keeps a receipt for as long as its order may count, and shows it again to whoever asks by the job's id; so nobody
waits for a disk here before going on with a result. Invariant: what `find` returns is durable, and it returns all that
was kept before it was called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Protocol

from freehold.protocol.units import Hash
from freehold.services.compute.ordering.checks import KeptReceipt


class ReceiptBook(Protocol):
    """Where receipts are kept. Writes are durable when they return."""

    async def keep_receipt(self, kept: KeptReceipt) -> None:
        """Keep one; a job that has one already keeps that."""

    async def receipts(self, jobs: Collection[Hash] | None = None) -> list[KeptReceipt]:
        """Those of these jobs that are there, or all."""

    async def forget_receipts(self, epoch: int) -> None:
        """Drop those whose orders ran out before this epoch."""


class Receipts:
    """`close` it before the book."""

    def __init__(self, book: ReceiptBook) -> None:
        self._book = book
        self._writing: set[asyncio.Task[None]] = set()

    def keep(self, kept: KeptReceipt) -> None:
        """Begin to write one. What goes wrong with it is raised by whoever waits for it."""
        task = asyncio.create_task(self._book.keep_receipt(kept))
        self._writing.add(task)
        task.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            self._writing.discard(task)

    async def _flush(self) -> None:
        writing = list(self._writing)
        self._writing.difference_update(writing)
        for result in await asyncio.gather(*writing, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def find(self, jobs: Collection[Hash] | None = None) -> list[KeptReceipt]:
        """Those of these jobs that are there, or all."""
        await self._flush()
        return await self._book.receipts(jobs)

    async def forget(self, epoch: int) -> None:
        """Drop those whose orders ran out before this epoch."""
        await self._book.forget_receipts(epoch)

    async def close(self) -> None:
        """Return once all are written."""
        await self._flush()
