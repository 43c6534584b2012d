"""What an epoch asked of stored bytes: holdings before and after, and each byte that was to be shown."""

# ruff: noqa: ARG002, ARG004  # what one service needs another does not

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any

from freehold.protocol.units import Address, Hash
from freehold.protocol.verdicts import Contribution
from freehold.services.explaining import Explainer, Facts, Words


class StorageExplainer(Explainer):
    """Storage's part of an epoch."""

    def describe(self, subject: Address, account: Address, nodes: Set[Address]) -> Facts | None:
        """Bytes that the account's nodes held after the epoch before, and hold now."""
        if not nodes:
            return None
        before, after = self.bundle.state, self.settlement.state
        return {"held_before": self._held(before, nodes), "held": self._held(after, nodes)}

    def _held(self, state: Any, nodes: Set[Address]) -> int:
        rows = state.services.get(self.name)
        if rows is None:
            return 0
        held = self.judges[self.name].holdings(rows)
        return sum(size for node, size in held.items() if node in nodes)

    def find(self, subject: Hash) -> Facts | None:
        """A lease for storage."""
        lease = self.settlement.state.leases.get(subject)
        if lease is None or lease.service != self.name:
            return None
        return {"what": "lease", "lease": str(subject), "node": str(lease.node), "held": self._size_of(subject)}

    def _size_of(self, lease: Hash) -> int | None:
        lists: Any = self.bundle.state.services.get(self.name)
        return next((row.size for row in lists or () if row.lease == lease), None)

    def measured(self, contribution: Contribution) -> Facts:
        anchor, before = self.bundle.anchor, self.bundle.state.epoch.anchor_time
        seconds = min(max(0, anchor.anchor_time - before), anchor.parameters.epoch_length)
        return {"held": self._size_of(contribution.lease), "seconds": seconds}

    def zero(self, facts: Facts, nodes: Set[Address]) -> list[str]:
        if facts["held_before"]:
            return []
        reasons = ["It held nothing after the epoch before, so nothing was challenged and nothing is paid."]
        if facts["held"]:
            reasons.append(
                f"It holds {facts['held']} bytes since this epoch: they are challenged and paid from the next on."
            )
        return reasons

    @staticmethod
    def tell(facts: Facts, words: Words) -> Iterator[str]:
        if facts["held_before"] or facts["held"]:
            before, after = words.size(facts["held_before"]), words.size(facts["held"])
            yield f"   stored: {before} before this epoch, {after} after it"

    @staticmethod
    def tell_found(facts: Facts, words: Words) -> Iterator[str]:
        held = "nothing" if facts["held"] is None else f"{facts['held']} bytes"
        yield f"   node {facts['node']} held {held} under it after the epoch before"

    @staticmethod
    def tell_contribution(facts: Facts, words: Words) -> str:
        held = f"{facts['held']} bytes x {facts['seconds']} s" if facts["held"] is not None else "proven"
        return f"{held} = {facts['measure']} byte-seconds" if facts["measure"] else f"{held} not proven: 0"

    @staticmethod
    def tell_obligation(facts: Facts, words: Words) -> str:
        return f"draw {facts['draw']}: open byte {facts['offset']} of {facts['size']}"
