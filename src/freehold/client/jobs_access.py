"""What a job's nodes may do with the account's objects while no client is there: by which grants, and until when.

    the job's grant        read and write, until its deadline; kept in the journal, given to nobody
    an order's             narrowed from it: each object that its task reads, the prefix that it delivers to

To revoke the job's grant is to end all of them. That is done as the job ends, and tried again with the next job where
it failed. Invariant: no grant outlives its job's deadline, whether or not a client ever comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freehold.client.grants import GrantKey, describe, narrow
from freehold.client.jobs_journal import JobJournal, JobRow
from freehold.client.jobs_pieces import delivery_to
from freehold.client.jobs_spec import Job, Step
from freehold.client.root import AccountRoot
from freehold.client.shares import revoke
from freehold.protocol.errors import FreeholdError
from freehold.protocol.units import Address
from freehold.services.compute.tasks import Delivery, Task

GRANT = "grant "  # and a job's id: a record of the journal


class Access:
    """What a job's nodes read and write objects by: a grant for each object, narrowed from `grant`, which is the job's
    and never leaves this account."""

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway.rstrip("/")
        self.grant = ""

    def of(self, task: Task) -> Mapping[str, Any] | None:
        """What goes along with an order for this task; None where it touches no object."""
        inputs = [one for one in task.inputs if one.bucket]
        if not inputs and task.delivery is None:
            return None
        read = {
            f"{one.bucket}/{one.key}": narrow(
                self.grant, operations=["read"], bucket=one.bucket, prefix=one.key, exact=True
            )
            for one in inputs
        }
        where = task.delivery
        write = narrow(self.grant, operations=["write"], bucket=where.bucket, prefix=where.prefix) if where else ""
        return {"url": self._gateway, "read": read, "write": write}


def own_delivery(job: Job, step: Step, *, direct: bool) -> Delivery | None:
    """Where nodes write as a step's tasks end, whether or not a client is there; None where they do not: where no
    gateway is known (`direct`), something checks the results, or another step takes them."""
    is_checked = job.assurance != "0" or step.verify.kind == "attested"
    if not direct or is_checked or any(step.name in other.before for other in job.steps):
        return None
    return delivery_to(step.output)


async def open_grant(journal: JobJournal, row: JobRow, seed: bytes, account: Address) -> str:
    """The job's grant: made once, and the same for whoever goes on with the job."""
    kept = (await journal.records(GRANT + row.id)).get(GRANT + row.id)
    if kept is None:
        kept = GrantKey(seed).issue(account, ["read", "write"], expires=row.deadline).encode()
        await journal.keep_record(GRANT + row.id, kept)
    return kept.decode()


async def end_grants(journal: JobJournal, root: AccountRoot, seed: bytes, job: str, now: int) -> dict[str, str]:
    """Revoke the grant of a job that ends, and those of earlier ones where that failed. By job: why one could not be
    revoked now; it is good until its deadline, or until this is called again."""
    failed: dict[str, str] = {}
    ended = {row.id for row in await journal.jobs() if row.ended} | {job}
    for name, kept in (await journal.records(GRANT)).items():
        owner = name.removeprefix(GRANT)
        if owner not in ended:
            continue
        grant = kept.decode()
        if (describe(grant).expires or now + 1) > now:
            try:
                await revoke(root, GrantKey(seed), grant, clock=lambda: now)
            except FreeholdError as error:
                failed[owner] = error.message
                continue
        await journal.drop_record(name)
    return failed
