"""Keeps an account's services going whose client's process has ended: each is driven by whoever is there.

    for each job with a service that has not ended:  `Jobs.wait`, which drives it, or waits for the process that does

A job is driven under a lock in its journal, so there are never two: the one that is there goes on, and when it ends,
for whatever reason, the next takes over within `jobs.FOLLOW_SECONDS`, with the orders as the journal has them. A job's
cap and deadline hold here as anywhere, and `freehold job stop` ends it.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from freehold.client.jobs import Jobs
from freehold.client.jobs_journal import JobRow
from freehold.client.jobs_spec import Job
from freehold.protocol.errors import FreeholdError

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0  # between looks for jobs that are new


class Supervisor:
    """Supervises the services of one account."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._known: dict[str, bool] = {}  # jobs that have not ended: whether they have a service
        self._driving: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until it is cancelled; what it drives then goes on at its nodes, for others to drive."""
        try:
            while True:
                try:
                    await self._look()
                except Exception:
                    log.exception("the journal of jobs cannot be read")  # S3 and what is driven go on all the same
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            tasks = list(self._driving.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        rows = [row for row in await self._jobs.all() if not row.ended]
        self._known = {row.id: self._known.get(row.id) or _has_service(row) for row in rows}
        self._driving = {job: task for job, task in self._driving.items() if not task.done()}
        for job, has_service in self._known.items():
            if has_service and job not in self._driving:
                self._driving[job] = asyncio.create_task(self._drive(job), name=f"job {job}")

    async def _drive(self, job: str) -> None:
        try:
            row = await self._jobs.wait(job)
            log.info("job %s has ended: %s %s", job, row.phase, row.reason)
        except FreeholdError as error:
            log.warning("job %s waits: %s", job, error.message)  # the next look takes it up again
        except Exception:
            log.exception("job %s could not be driven", job)


def _has_service(row: JobRow) -> bool:
    try:
        return _names_service(row)
    except FreeholdError as error:
        log.warning("job %s cannot be read: %s", row.id, error.message)
        return False


def _names_service(row: JobRow) -> bool:
    return any(step.service is not None for step in Job.of(msgspec.json.decode(row.spec)).steps)
