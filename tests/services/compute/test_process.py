"""What a program writes is heard: whole, and without a wake-up of the node for each byte."""

from __future__ import annotations

import asyncio
import os

import pytest

from freehold.services.compute.executors import process
from freehold.services.compute.executors.process import Box
from freehold.services.compute.tasks import Resources


class Heard(Box):
    """A box without a program: its output comes by a pipe."""

    async def go(self) -> None:
        raise NotImplementedError

    def out(self) -> tuple[int, str]:
        raise NotImplementedError

    def ask(self) -> bool:
        return False

    def hear(self) -> tuple[int, asyncio.Future[None]]:
        """The end to write to, and what is done once all of it was heard."""
        source, sink = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        drained = self._loop.create_future()
        self._loop.add_reader(self.keep(source), self._read, source, self._take_output, drained)
        return sink, drained


def test_a_program_that_writes_byte_by_byte_is_read_in_larger_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = os.read

    def count(descriptor: int, size: int) -> bytes:
        data = read(descriptor, size)
        reads.append(len(data))
        return data

    async def scenario() -> bytes:
        box = Heard(Resources(), lambda _: None)
        sink, drained = box.hear()
        monkeypatch.setattr(process.os, "read", count)
        for number in range(5000):
            os.write(sink, bytes([number % 256]))
            await asyncio.sleep(0)  # the node may look after each
            await asyncio.sleep(0)
        os.close(sink)
        await drained
        await box.close()
        return bytes(box.stdout)

    assert asyncio.run(scenario()) == bytes(number % 256 for number in range(5000))
    assert sum(size == 1 for size in reads) < 1000
