"""The classes of verification: what each promises, what it needs of a task, and what a dispute under it goes by.

    bit_exact   equal hashes: of results at several operators, as many as the assurance asks for
    tolerance   results at most the task's threshold apart by its metric (`metrics.py`)
    refereed    two differ: the first differing step is found and only that is run again, by referees
    sampled     some items (segments, crops) of one run are run again elsewhere, drawn after it has committed
    attested    hardware vouches for what ran: its quote is bound to the receipt (`attestation/`)

Invariant: a task that passes `check_class` can be verified as its class promises.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from freehold.protocol.errors import InvalidInput
from freehold.services.compute.tasks import Task
from freehold.services.compute.terms import EXACT, NEAR
from freehold.services.compute.verification.metrics import METRICS

ClassName = Literal["bit_exact", "tolerance", "refereed", "sampled", "attested"]

DETERMINISTIC = frozenset({"wasm"})  # executors whose result is decided by the task alone


class Promise(NamedTuple):
    """What a class promises, and what it asks of a task, as sentences for people."""

    promise: str
    needs: str


CLASSES: dict[ClassName, Promise] = {
    "bit_exact": Promise(
        "The result is, byte for byte, what independent operators computed.",
        "an executor whose result is decided by the task alone (wasm)",
    ),
    "tolerance": Promise(
        "The result is within the threshold of what independent operators computed.",
        "a metric, and the largest distance that two honest runs of it may have",
    ),
    "refereed": Promise(
        "One honest run among those ordered is enough: where two differ, referees run the first differing step again.",
        "an executor whose result is decided by the task alone (wasm), and steps with state between them",
    ),
    "sampled": Promise(
        "A run in which more than the stated fraction of its items is wrong is found out.",
        "a map over items, segments or crops that can be run again one by one",
    ),
    "attested": Promise(
        "Hardware by an accepted maker signed that what it was started with, which is accepted, stands by the receipt.",
        "a node inside a trusted execution environment, accepted measurements, and the roots of the hardware's makers",
    ),
}


def check_class(name: str, task: Task, items: int = 1) -> None:
    """InvalidInput, saying what is missing, unless `task` (one of `items` of its map) can be verified so."""
    if name not in get_args(ClassName):
        raise InvalidInput(f"there is no verification class {name!r}", hint=f"Use one of {', '.join(CLASSES)}.")
    if task.executor == "service":
        raise InvalidInput("a service has no result to verify", hint="Its health checks say whether it works.")
    if name in ("bit_exact", "refereed"):
        if task.executor not in DETERMINISTIC:
            raise InvalidInput(
                f"{name} needs a deterministic executor: two honest runs under {task.executor!r} may differ",
                hint="Use the executor wasm, or the class tolerance with a metric.",
            )
        if task.metric:
            raise InvalidInput(f"{name} compares bytes: the metric {task.metric!r} is for the class tolerance")
    if name == "refereed" and task.steps < 1:
        raise InvalidInput("refereed needs the number of steps", hint="Declare steps, or use bit_exact.")
    if name == "tolerance" and not task.metric:
        raise InvalidInput("tolerance needs a metric", hint=f"Name one of {', '.join(METRICS)}, and a threshold.")
    if task.metric and task.metric not in METRICS:
        raise InvalidInput(f"there is no metric {task.metric!r}", hint=f"Use one of {', '.join(METRICS)}.")
    if name == "attested" and not task.attested:
        raise InvalidInput("attested needs a task that asks for a quote")
    if name == "sampled" and items < 2:
        raise InvalidInput("sampled needs a map over two items or more", hint="Use bit_exact or tolerance for one.")


def dispute_kind(task: Task) -> int:
    """What a dispute over receipts for this task goes by: equal bytes, or the metric that it declares."""
    return NEAR if task.metric else EXACT
