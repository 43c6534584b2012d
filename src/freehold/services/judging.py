"""The judging registry: what replay, members and the simulator load. Pure; one line a service."""

from __future__ import annotations

from freehold.protocol.service import Judge
from freehold.services.compute.score import ComputeJudge
from freehold.services.sensing.score import SensingJudge
from freehold.services.storage.score import StorageJudge

_ALL: list[Judge] = [
    ComputeJudge(),
    SensingJudge(),
    StorageJudge(),
]
JUDGES: dict[str, Judge] = {judge.name: judge for judge in _ALL}
