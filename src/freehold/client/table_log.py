"""Group commit: changes that come while one is under way are made together, in one frame of the head.

    commit(change) -> its number      queued; one group at a time: run each on a view with the earlier ones applied,
                                      append the frame, compare and set; after a Conflict run all again on a newer view

No read goes before: the compare-and-set proves that the view was the newest. A change that raises goes to its caller,
also only once the view was proven. Invariants: what `commit` acknowledged is in the head; a change counts once; where
the outcome stays unknown its callers get Unavailable, and what they stowed is theirs to call unsure.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from freehold.client.heads import HEAD_LIMIT, Head
from freehold.client.table_layers import Pending
from freehold.client.table_objects import Blobs, Intent, Limits, let_go
from freehold.client.table_records import INLINE_LIMIT, VERSION, Changes, Frame, Key, Packed, check_key
from freehold.client.table_state import Register, State, seal_frame
from freehold.client.table_view import View
from freehold.protocol.errors import FreeholdError, InvalidInput, Unavailable
from freehold.services.storage.client_objects import StoredObject
from freehold.services.storage.register_values import FRAMES_LIMIT

Change = Callable[[View], Awaitable[Changes]]
_ENTRY_BYTES = 32  # about what an entry takes in a frame besides its own bytes


class _Waiting(NamedTuple):
    change: Change
    outcome: asyncio.Future[int]


class _Group:
    """What came of running changes on one state."""

    def __init__(self) -> None:
        self.pending = Pending()
        self.size = 0
        self.made: list[_Waiting] = []
        self.failed: list[tuple[_Waiting, Exception]] = []
        self.discard: list[StoredObject] = []
        self.left: list[_Waiting] = []


class Log:
    """The one who appends to a table's head, in this process."""

    def __init__(
        self,
        register: Register,
        vault: Blobs,
        limits: Limits,
        grown: Callable[[], None],
        room: Callable[[], Awaitable[None]],
    ) -> None:
        """`grown` is called after each commit; `room` makes room in a full head."""
        self._register = register
        self._vault = vault
        self._limits = limits
        self._grown = grown
        self._room = room
        self._queue: deque[_Waiting] = deque()
        self._task: asyncio.Task[None] | None = None

    async def commit(self, change: Change) -> int:
        """See `Table.commit`."""
        waiting = _Waiting(change, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await waiting.outcome

    @property
    def is_idle(self) -> bool:
        """Whether nothing is queued."""
        return self._task is None or self._task.done()

    async def close(self) -> None:
        """Wait until nothing is queued."""
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while self._queue:
            group = [self._queue.popleft() for _ in range(min(len(self._queue), self._limits.group))]
            try:
                await self._commit(group)
            except BaseException as error:
                for waiting in group:
                    if not waiting.outcome.done() and waiting not in self._queue:
                        waiting.outcome.set_exception(_for_caller(error))
                if not isinstance(error, Exception):
                    raise

    async def _commit(self, waiting: list[_Waiting]) -> None:
        """Bring a group to its end; those that do not fit go back to the queue."""
        conflicts = 0
        while waiting := [each for each in waiting if not each.outcome.done()]:
            await self._register.known()
            full = False
            async with self._register.writing:
                state = await self._register.known()
                group = await self._gather(state, waiting)
                if group.made:
                    frame = Frame(
                        VERSION,
                        secrets.token_bytes(16),
                        state.number + 1,
                        len(group.made),
                        [*group.pending.changes.items()],
                    )
                    raw = seal_frame(self._register.sealer, frame)
                    full = (
                        len(state.head.base) + state.tail_bytes + len(raw) > HEAD_LIMIT
                        or len(state.head.frames) >= FRAMES_LIMIT
                    )
                    proven = not full and await self._append(state, frame, raw, group)
                else:
                    proven = (await self._register.fresh()).head.version == state.head.version
            if proven:
                for each, error in group.failed:
                    if not each.outcome.done():
                        each.outcome.set_exception(error)
                self._queue.extendleft(reversed(group.left))
                self._grown()
                return
            if full:
                await self._room()
                continue
            conflicts += 1
            if conflicts > 1:  # others write as well: not all in step
                await asyncio.sleep(random.random() * 0.005 * 2 ** min(conflicts, 6))

    async def _gather(self, state: State, waiting: list[_Waiting]) -> _Group:
        group = _Group()
        for index, each in enumerate(waiting):
            if each.outcome.done():
                continue  # its caller has gone
            view = View(self._register, state, group.pending, state.number + len(group.made))
            try:
                changes = await each.change(view)
                size = await self._check(changes, view)
            except Exception as error:
                group.failed.append((each, error))
                continue
            if group.made and group.size + size > self._limits.group_bytes:
                group.left = waiting[index:]
                break
            group.size += size
            group.made.append(each)
            group.discard += changes.discard
            group.pending.add(changes.put.items())
            group.pending.add((key, None) for key in changes.remove)
        return group

    async def _check(self, changes: Changes, view: View) -> int:
        """About how many bytes the changes have in a frame; InvalidInput for what a table does not take."""
        size = 0
        for key, value in changes.put.items():
            size += _size(key) + len(value.meta)
            if key in changes.remove:
                raise InvalidInput("one change puts a key and removes it")
            if isinstance(value.data, bytes):
                size += len(value.data)
                if len(value.data) > INLINE_LIMIT:
                    raise InvalidInput(f"a payload has at most {INLINE_LIMIT} bytes, not {len(value.data)}")
            elif isinstance(value.data, Packed):
                now = await view.get(key)
                if now is None or now.data != value.data:
                    raise InvalidInput("a packed payload belongs to its key: put its bytes under another one")
        size += sum(_size(key) for key in changes.remove)
        if size > self._limits.change_bytes:
            raise InvalidInput(f"a change has at most {self._limits.change_bytes} bytes, not {size}")
        return size

    async def _append(self, state: State, frame: Frame, raw: bytes, group: _Group) -> bool:
        """Whether the frame is in the head now; callers are told."""
        head = Head(state.head.version + 1, state.head.base, (*state.head.frames, raw))
        intent: Intent | None = None
        if group.discard:
            intent = await self._vault.intend(self._register.name, group.discard)
        try:
            done = await self._register.set(state, head, frame.identity)
            if not done and intent is not None:
                await intent.withdraw()
        except BaseException:
            if intent is not None:
                await intent.unsure()
            raise
        if not done:
            await self._register.read()
            return False
        self._register.advance(state.with_frames(head, [frame]))
        for index, each in enumerate(group.made):
            if not each.outcome.done():
                each.outcome.set_result(frame.first + index)
        await let_go(intent)
        return True


def _size(key: Key) -> int:
    try:
        check_key(key)
    except FreeholdError as error:
        raise InvalidInput(error.message) from None
    return len(key[1]) + len(key[2]) + _ENTRY_BYTES


def _for_caller(error: BaseException) -> Exception:
    if isinstance(error, Exception):
        return error
    return Unavailable("the table was closed: it is not known whether the change came about", outcome="unknown")
