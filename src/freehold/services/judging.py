"""The judging registry: what replay, members and the simulator load, and what explains it. Pure; one line a service."""

from __future__ import annotations

from freehold.protocol.service import Judge
from freehold.services.compute.explain import ComputeExplainer
from freehold.services.compute.score import ComputeJudge
from freehold.services.explaining import Explainer
from freehold.services.sensing.explain import SensingExplainer
from freehold.services.sensing.score import SensingJudge
from freehold.services.storage.explain import StorageExplainer
from freehold.services.storage.score import StorageJudge

_ALL: list[tuple[Judge, type[Explainer]]] = [
    (ComputeJudge(), ComputeExplainer),
    (SensingJudge(), SensingExplainer),
    (StorageJudge(), StorageExplainer),
]
JUDGES: dict[str, Judge] = {judge.name: judge for judge, _ in _ALL}
EXPLAINERS: dict[str, type[Explainer]] = {judge.name: explainer for judge, explainer in _ALL}
