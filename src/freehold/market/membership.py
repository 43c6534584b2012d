"""Who the members of an epoch are, as somebody sees it who has the network file and asks the members themselves.

The file says whom to ask: members now, and those that are to come. Which of them an epoch's set has, and in which
order, is what f+1 of them say: one of these is honest, and reads it from the chain. Until they have been asked, the
file's members are taken to be the set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from freehold.protocol.certificates import faults
from freehold.protocol.errors import MalformedMessage
from freehold.protocol.state import MemberSet, members_at
from freehold.protocol.typed import canonical_json, parse_json
from freehold.protocol.units import Address

HEARD = 16  # epochs whose members were heard of: certificates count for half as many


class Membership:
    """The sets of one network's members, as far as they are known here. `listed` are the network file's."""

    def __init__(self, listed: Sequence[Address]) -> None:
        self._listed = tuple(listed)
        self._sets: tuple[MemberSet, ...] = ()
        self._heard: dict[int, tuple[Address, ...]] = {}

    def of(self, epoch: int) -> tuple[Address, ...]:
        """The members of an epoch, in the order of a certificate's bits."""
        if epoch in self._heard:
            return self._heard[epoch]
        return members_at(self._sets, max(1, epoch)) if self._sets else self._listed

    def hear(self, answers: Iterable[Any]) -> None:
        """Take over whom f+1 answers to evidence name as the members of the epoch that they sign for."""
        values = [answer for answer in answers if isinstance(answer, dict) and isinstance(answer.get("members"), list)]
        for text, count in Counter(canonical_json([v.get("epoch"), v["members"]]) for v in values).items():
            if count > faults(len(self._listed)):
                self._name(*parse_json(text))

    def _name(self, epoch: Any, members: list[Any]) -> None:
        try:
            named = tuple(Address(member) for member in members)
        except (MalformedMessage, TypeError):
            return
        if type(epoch) is int and named:
            self._heard[epoch] = named
            if len(self._heard) > HEARD:
                del self._heard[min(self._heard)]

    def learn(self, answers: Iterable[Any]) -> None:
        """Take over the sets that f+1 answers to /v1/open name; what was known stays where they name none together."""
        values = [answer.get("membership") for answer in answers if isinstance(answer, dict)]
        counts = Counter(canonical_json(value) for value in values if isinstance(value, list))
        for text, count in counts.most_common(1):
            if count > faults(len(self._listed)):
                self._take(parse_json(text))

    def _take(self, value: list[Any]) -> None:
        try:
            sets = tuple(MemberSet.from_json(one) for one in value)
        except MalformedMessage:
            return
        if sets and sets[0].from_epoch <= 1 and all(one.members for one in sets):
            self._sets = sets
