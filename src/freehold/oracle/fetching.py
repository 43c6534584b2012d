"""What a member lacks and asks its peers for, one peer after the other until one has it.

At most IN_FLIGHT requests at once; a peer that had nothing is asked again only after all the others and a pause.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from freehold.oracle.effects import Effect, FetchBatch, FetchBundle
from freehold.protocol.units import Address, Hash

IN_FLIGHT = 16
WANTED_LIMIT = 20_000

Wanted = Hash | int  # a batch's subject, or the epoch of a bundle


@dataclass
class _Search:
    tries: int = 0
    asked: bool = False
    not_before: int = 0


class Fetching:
    """The searches of one member; whom it asks is told by `meet`."""

    def __init__(self, pause: int, out: list[Effect]) -> None:
        self._peers: Sequence[Address] = ()
        self._position, self._pause, self._out = 0, pause, out
        self._searches: dict[Wanted, _Search] = {}
        self._now = 0

    def meet(self, peers: Sequence[Address], position: int) -> None:
        """From now on these are asked, from `position` on: so that not everybody asks the same one first."""
        self._peers, self._position = peers, position

    def want(self, wanted: Wanted) -> None:
        """Start a search, unless it is under way."""
        if wanted not in self._searches and len(self._searches) < WANTED_LIMIT and self._peers:
            self._searches[wanted] = _Search()
            self._ask()

    def end(self, wanted: Wanted) -> bool:
        """What was wanted is here, or no longer needed; whether it was wanted."""
        found = self._searches.pop(wanted, None)
        self._ask()
        return found is not None

    def keep_only(self, subjects: Container[Hash]) -> None:
        """End every search but those for these batches."""
        self._searches = {w: s for w, s in self._searches.items() if isinstance(w, Hash) and w in subjects}

    def fail(self, wanted: Wanted) -> int:
        """This peer did not have it; how many have been asked by now (0: nobody searches any more)."""
        search = self._searches.get(wanted)
        if search is None:
            return 0
        search.asked = False
        search.tries += 1
        if not self._peers or search.tries % len(self._peers) == 0:
            search.not_before = self._now + self._pause
        self._ask()
        return search.tries

    def on_tick(self, now: int) -> None:
        """Ask again where a pause is over."""
        self._now = now
        self._ask()

    def _ask(self) -> None:
        free = IN_FLIGHT - sum(search.asked for search in self._searches.values())
        for wanted, search in self._searches.items():
            if free <= 0 or not self._peers:
                return
            if search.asked or search.not_before > self._now:
                continue
            search.asked = True
            free -= 1
            peer = self._peers[(self._position + search.tries) % len(self._peers)]
            self._out.append(FetchBundle(wanted, peer) if isinstance(wanted, int) else FetchBatch(wanted, peer))
