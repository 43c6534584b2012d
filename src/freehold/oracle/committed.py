"""What a member has committed last."""

from __future__ import annotations

from freehold.protocol.messages import Report
from freehold.protocol.state import State


class Committed:
    """The last epoch that this member has committed: the state after it, and its report (none after epoch 0)."""

    def __init__(self, state: State, report: Report | None) -> None:
        self.state = state
        self.report = report

    @property
    def epoch(self) -> int:
        """Its number; 0 before the first report."""
        return self.state.epoch.epoch

    @property
    def attempt(self) -> int:
        """Which attempt at it the chain took."""
        return self.report.attempt if self.report else 0
