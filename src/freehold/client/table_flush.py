"""Takes the frames out of a head: payloads become a pack, changes a sorted run, and the directory names both.

Appends go on meanwhile: frames that came since stay in the head. Where another device flushed first, this one's work is
dropped. Invariant: a run has each change that its frames had, the last one of each key.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from freehold.client.table_publish import Edit, Publisher
from freehold.client.table_records import VERSION, Entries, Key, Pack, Packed, Run, Value, encode
from freehold.client.table_state import Register, State
from freehold.services.storage.client_objects import StoredObject

_SMALL = 64  # bytes of a payload that is not worth a place in a pack


class Flusher:
    """Flushes one table, one at a time."""

    def __init__(self, register: Register, publisher: Publisher) -> None:
        self._register = register
        self._publisher = publisher
        self._flushing = asyncio.Lock()

    async def flush(self, at_least: int = 1) -> None:
        """Flush if the frames have so many bytes."""
        async with self._flushing:
            state = await self._register.known()
            if state.tail_bytes < at_least:
                return
            bottom = not state.directory.pages and not state.directory.runs
            entries, payloads = _divide(state, bottom)
            sources = [part for part in (encode(entries) if entries.keys else b"", payloads) if part]
            await self._publisher.stow_and_publish(sources, self._naming(state, entries, sources, payloads))

    def _naming(
        self, state: State, entries: Entries, sources: Sequence[bytes], payloads: bytes
    ) -> Callable[[Sequence[StoredObject]], Awaitable[Callable[[State], Edit | None]]]:
        async def name(objects: Sequence[StoredObject]) -> Callable[[State], Edit | None]:
            directory, count = state.directory, len(state.frames)
            runs: tuple[Run, ...] = ()
            packs: dict[int, Pack] = {}
            next_pack = directory.next_pack
            if entries.keys:
                run = Run(secrets.token_bytes(16), len(entries.keys), len(sources[0]), objects[0])
                await self._register.objects.admit(run, sources[0])
                runs = (run,)
            if payloads:
                pack = Pack(secrets.token_bytes(16), len(payloads), objects[-1])
                await self._register.objects.admit(pack, payloads)
                packs, next_pack = {next_pack: pack}, next_pack + 1

            def edit(now: State) -> Edit | None:
                if now.directory.number != directory.number or now.head.frames[:count] != state.head.frames:
                    return None
                changed = msgspec.structs.replace(
                    now.directory,
                    number=state.number,
                    runs=(*now.directory.runs, *runs),
                    packs={**now.directory.packs, **packs},
                    next_pack=next_pack,
                )
                return Edit(changed, frames=count)

            return edit

        return name


def _divide(state: State, bottom: bool) -> tuple[Entries, bytes]:
    """The changes of the frames, with their payloads taken out. At the bottom there is nothing to remove."""
    keys: list[Key] = []
    values: list[Value | None] = []
    payloads: list[bytes] = []
    end = 0
    for key in state.tail.keys:
        value = state.tail.values[key]
        if value is None and bottom:
            continue
        if value is not None and isinstance(value.data, bytes) and len(value.data) > _SMALL:
            payloads.append(value.data)
            value = Value(value.meta, Packed(state.directory.next_pack, end, len(value.data)))
            end += len(payloads[-1])
        keys.append(key)
        values.append(value)
    return Entries(VERSION, keys, values), b"".join(payloads)
