"""How a table gets a new directory: stored where it is large, set as the head's base; what it does not name is let go.

Frames that come meanwhile stay behind the new base; where another device changed the base, the edit is made again on
what stands there now, or dropped. Invariant: objects are let go only after a head that does not name them is set, and
what may be named by a head, though nobody knows, is left to a sweep.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import NamedTuple

import msgspec

from freehold.client.heads import Head
from freehold.client.table_objects import Blobs, Limits, Stowed, let_go
from freehold.client.table_records import Directory, encode
from freehold.client.table_state import RECENT, Register, State, identity_of, seal_base
from freehold.protocol.errors import FreeholdError
from freehold.services.storage.client_objects import Code, StoredObject
from freehold.services.storage.client_sources import BytesSource


class Edit(NamedTuple):
    """A new directory, how many frames it takes in, and what it does not name any more."""

    directory: Directory
    frames: int = 0
    discard: Sequence[StoredObject] = ()
    forget: Sequence[bytes] = ()


class Publisher:
    """Sets directories of one table."""

    def __init__(self, register: Register, vault: Blobs, code: Code, limits: Limits) -> None:
        self._register = register
        self._vault = vault
        self._code = code
        self._limits = limits

    async def stow_and_publish(
        self,
        sources: Sequence[bytes],
        name: Callable[[Sequence[StoredObject]], Awaitable[Callable[[State], Edit | None]]],
    ) -> bool:
        """Store objects and publish the edit that names them; whether it came about."""
        if not sources:
            return await self.publish(await name(()))
        async with self._stow(sources) as stowed:
            try:
                done = await self.publish(await name(stowed.objects))
                if done:
                    await stowed.keep()
            except BaseException:
                await stowed.unsure()
                raise
        return done

    async def publish(self, edit: Callable[[State], Edit | None]) -> bool:
        """Make the edit on the newest state; False where `edit` gave None: it no longer applies."""
        while True:
            state = await self._register.known()
            edited = edit(state)
            if edited is None:
                return False
            if await self._set(state, edited):
                return True

    async def _set(self, state: State, edited: Edit) -> bool:
        identity = secrets.token_bytes(16)
        taken = [frame.identity for frame in state.frames[: edited.frames]]
        recent = (*state.directory.recent, *taken, identity)[-RECENT:]
        data = encode(msgspec.structs.replace(edited.directory, recent=recent))
        discard = [*edited.discard]
        forget = [*edited.forget]
        if state.container is not None:
            discard.append(state.container)
            forget.append(identity_of(state.container))
        async with AsyncExitStack() as stack:
            container: Stowed | None = None
            base = seal_base(self._register.sealer, data)
            if len(data) > self._limits.inline_directory:
                container = await stack.enter_async_context(self._stow([data]))
                await self._register.objects.save(identity_of(container.objects[0]), data)
                base = seal_base(self._register.sealer, container.objects[0])
            intent = await self._vault.intend(self._register.name, discard) if discard else None
            try:
                done = await self._set_base(state, base, edited.frames, identity)
                if done and container is not None:
                    await container.keep()
            except BaseException:
                if container is not None:
                    await container.unsure()
                if intent is not None:
                    await intent.unsure()
                raise
        if done:
            await let_go(intent)
            await self._register.objects.forget(forget)
        elif intent is not None:
            await intent.withdraw()
        return done

    async def _set_base(self, state: State, base: bytes, frames: int, identity: bytes) -> bool:
        async with self._register.writing:
            while True:
                newest = await self._register.known()
                if newest.head.base != state.head.base:
                    return False
                head = Head(newest.head.version + 1, base, newest.head.frames[frames:])
                if await self._register.set(newest, head, identity):
                    with suppress(FreeholdError):  # the next read does it
                        await self._register.adopt(head)
                    return True
                await self._register.read()

    def _stow(self, sources: Sequence[bytes]) -> AbstractAsyncContextManager[Stowed]:
        return self._vault.stow(self._register.name, self._code, [BytesSource(data) for data in sources])
