"""Why a run came to nothing, in words that a user can act on: the bound that it reached, and what raises it.

Invariant: what is said follows from the task, the order and the receipt alone.
"""

from __future__ import annotations

from freehold.client.jobs_checks import ran_out, result_of
from freehold.client.jobs_journal import OrderRow
from freehold.client.jobs_units import format_credits
from freehold.services.compute.tasks import Task

MEANS = {
    "trap": "its program did what no program may: it was ended",
    "stack": "its calls nest deeper than a node has room for",
    "output": "its program put out more, or other names, than is taken",
    "stopped": "it was stopped at its node",
    "refused": "its node could not run it as the task says",
    "failed": "its node failed",
}
BOUNDS = {"memory": "memory", "disk": "disk", "processes": "processes"}  # ends, and the fields of `resources`


def explain_end(row: OrderRow, task: Task, work: int) -> tuple[str, str]:
    """(what happened, what would help) of an order's run that has ended; `work` is what the step's `work` says, in
    nanoseconds of a processor. The second is empty where nothing of the spec's would."""
    result, limits = result_of(row), task.resources
    if result.ended == "exited":
        return f"exited with status {result.status}", ""
    if result.ended == "fuel" or (result.ended == "time" and ran_out(result, row)):
        spent = f"{row.order.most / 10**9:.2f} s of a processor, {format_credits(row.cost)}"
        if row.order.most < work:
            return f"used up what its order was for ({spent}): more was not left of what the job may cost", (
                "Order it again with a higher `--most` (`most` in its spec)."
            )
        return f"used up what a run may be billed ({spent})", "Say more `work` in its `resources`, like `work: 30 min`."
    if result.ended == "time":
        return f"took longer than {limits.seconds} s", "Say more `time` in its `resources`, or give a task less to do."
    if (name := BOUNDS.get(result.ended)) is not None:
        have = f"{limits.processes} at once" if name == "processes" else f"{getattr(limits, name) / 2**20:g} MiB"
        return f"needed more {name} than its {have}", f"Say more `{name}` in its `resources`."
    means = MEANS.get(result.ended)
    return f"ended: {result.ended}{f' ({means})' if means else ''}", ""
