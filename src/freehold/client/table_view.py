"""What a caller sees of a table: the map as of one head, in order, whatever happens meanwhile.

Pages are fetched as they are come to. Where one is gone, because another device merged it and its shards went, the view
goes on with the newest head from the place it had come to: no key is given twice, and none that was there all the time
is left out. A view that a change is made on may not do that, as the change must hold for one head: it is `Stale`. Its
head is not the newest then, so the change meets a conflict, and runs again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from freehold.client.table_layers import Layer, Pending, merge
from freehold.client.table_objects import GONE
from freehold.client.table_records import LAST, Key, Page, Value
from freehold.client.table_state import Register, State
from freehold.protocol.errors import Conflict, FreeholdError


class Stale(Conflict):
    """What a change was made on is gone."""


class View:
    """`number` counts the table's commits: a change made on this view becomes commit number + 1."""

    def __init__(self, register: Register, state: State, pending: Pending | None = None, number: int = 0) -> None:
        self._register = register
        self._state = state
        self._pending = pending
        self.number = number if pending is not None else state.number

    async def get(self, key: Key) -> Value | None:
        """The value; None where there is none."""
        while True:
            for layer in self._layers():
                if key in layer.values:
                    return layer.values[key]
            index = self._state.page_of(key)
            if index is None:
                return None
            page = await self._page(index)
            if page is not None:
                return page.values.get(key)

    async def scan(
        self, start: Key, end: Key | None = None, *, reverse: bool = False
    ) -> AsyncGenerator[tuple[Key, Value], None]:
        """What there is with start <= key < end, in order (from the end, if `reverse`)."""
        low, high = start, LAST if end is None else end
        while low < high:
            state = self._state
            index = state.page_before(high) if reverse else state.page_of(low)
            layers = self._layers()[::-1]
            edge = low if reverse else high
            if index is not None:
                page = await self._page(index)
                if page is None:
                    continue
                layers.insert(0, page)
                if not reverse:
                    edge = min(high, state.page_end(index))
                elif index > 0:
                    edge = max(low, state.firsts[index])
            pieces = merge(layers, edge, high, True) if reverse else merge(layers, low, edge)
            for count, piece in enumerate(pieces):
                for entry in piece:
                    yield entry
                if count == 0 and index is not None:
                    self._prefetch(state, index + (-1 if reverse else 1), low, high)
            if reverse:
                high = edge
            else:
                low = edge

    def _layers(self) -> list[Layer]:
        """The uppermost first."""
        below = [self._state.tail, self._state.merged]
        return below if self._pending is None else [self._pending, *below]

    def _prefetch(self, state: State, index: int, low: Key, high: Key) -> None:
        pages = state.directory.pages
        if 0 <= index < len(pages) and pages[index].first < high and low < state.page_end(index):
            self._register.objects.prefetch(pages[index])

    async def _page(self, index: int) -> Layer | None:
        """The page; None where the view has moved on to a newer head."""
        page = self._state.directory.pages[index]
        try:
            return await self._register.objects.entries(page)
        except GONE as error:
            await self._move_on(page, error)
            return None

    async def _move_on(self, page: Page, error: FreeholdError) -> None:
        newest = await self._register.fresh()
        if newest.names(page):
            raise error
        if self._pending is not None:
            raise Stale("a page was replaced while a change was made on it")
        self._state = newest
        self.number = newest.number
