"""Jobs from Python: the same parts as a spec's, and functions run over many inputs on other people's machines.

    from freehold import job

    async with Freehold(network, account) as freehold:
        done = await job.run(freehold, job.Job(steps=[job.Step(python="primes.py", arguments=["1000000"])]))
        squares = await job.map(freehold, square, range(1000), assurance=0.99)

    with job.Client(network, account) as client:        # the same without `await`: a loop in a thread of its own
        squares = client.map(square, range(1000))

A function travels as its source: it may use what it imports itself, its arguments and nothing around it. Arguments and
results travel as JSON. Invariant: results are in the order of the items, each accepted as the job's assurance asks.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import textwrap
import threading
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from freehold.client.account import Account
from freehold.client.jobs import PieceResult
from freehold.client.jobs_attested import Hardware
from freehold.client.jobs_spec import File, Job, Map, Resources, Service, Step, Verify
from freehold.client.sdk import Freehold
from freehold.market.network import Network
from freehold.protocol.errors import InvalidInput, Refused

__all__ = [
    "Client", "Done", "File", "Hardware", "Job", "JobFailed", "Map", "Resources", "Service", "Step", "Verify", "map",
    "run",
]  # fmt: skip

T = TypeVar("T")

TASKS = 128  # that a map makes, if it is not said how many items each takes
_TAIL = """

import json as _json, sys as _sys
_out, _sys.stdout = _sys.stdout, _sys.stderr
for _line in _sys.stdin:
    _out.write(_json.dumps({name}(_json.loads(_line))) + "\\n")
_out.flush()
"""


class JobFailed(Refused):
    """A job that was waited for has not come to its end; its details have `job`, `phase` and `status`."""

    code = "job_failed"
    hint = "`freehold job why JOB` says why."


class Done(NamedTuple):
    """A job that is done: its id, what it cost (credits, base units), and what each step's tasks came to."""

    job: str
    spent: int
    results: dict[str, list[PieceResult]]

    @property
    def stdout(self) -> bytes:
        """What the tasks of the last step printed, one after another."""
        return b"".join(one.stdout for one in list(self.results.values())[-1])


async def run(freehold: Freehold, job: Job, *, most: int | None = None, base: Path = Path(), gateway: str = "") -> Done:
    """Order a job and wait until it is done. `most`: credits (base units) that it may cost, before the job's own.
    JobFailed, and what `freehold.jobs.submit` raises."""
    row = await freehold.jobs.wait((await freehold.jobs.submit(job, base, gateway, most)).id)
    if row.phase != "done":
        raise JobFailed(f"job {row.id} {row.phase}: {row.reason}", job=row.id, phase=row.phase, status=row.status)
    spent = int((await freehold.jobs.cost(row.id))["spent"])
    return Done(row.id, spent, await freehold.jobs.results(row.id))


async def map(
    freehold: Freehold, function: Callable[[Any], Any], items: Iterable[Any], *, each: int = 0, most: int | None = None,
    **job: Any,
) -> list[Any]:  # fmt: skip
    """`function` of each item. `each` items a task (0: so many that there are about TASKS tasks); `job` are fields of
    the Job (assurance, deadline, where, retries). InvalidInput for a function that needs what is around it."""
    spec, count = build_map(function, items, each, job)
    if not count:
        return []
    done = await run(freehold, spec, most=most)
    found = [json.loads(line) for one in done.results["map"] for line in one.stdout.splitlines()]
    if len(found) != count:
        raise JobFailed(f"job {done.job} came to {len(found)} results for {count} items", job=done.job)
    return found


def build_map(function: Callable[[Any], Any], items: Iterable[Any], each: int, job: dict[str, Any]) -> tuple[Job, int]:
    """The job behind `map`, and how many items it has."""
    lines = tuple(json.dumps(item) for item in items)
    script = write_script(function)
    mapping = Map(items=lines or ("null",), each=each or max(1, -(-len(lines) // TASKS)))
    return Job(name="map", steps=(Step(name="map", script=script, map=mapping),), **job), len(lines)


def write_script(function: Callable[[Any], Any]) -> str:
    """A script that puts a function to each line of its standard input. InvalidInput."""
    name = getattr(function, "__name__", "")
    try:
        source = textwrap.dedent(inspect.getsource(function))
        tree = ast.parse(source)
    except (OSError, TypeError, SyntaxError):
        raise InvalidInput(f"the source of {name or function!r} cannot be found", hint="Define it in a file.") from None
    first = tree.body[0]
    if not isinstance(first, ast.FunctionDef) or first.decorator_list or getattr(function, "__closure__", None):
        raise InvalidInput(
            f"{name or function!r} does not stand by itself: only a plain function travels",
            hint="Write it with def, without decorators, and import inside it what it needs.",
        )
    return source + _TAIL.format(name=name)


class Client:
    """An account for callers without an event loop."""

    def __init__(self, network: Network, account: Account, **options: Any) -> None:
        self._freehold = Freehold(network, account, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="freehold-job")

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._do(self._freehold.__aenter__())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._do(self._freehold.__aexit__(None, None, None))
        finally:
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C: what was ordered goes on at its nodes
            raise

    def run(self, job: Job, *, most: int | None = None, base: Path = Path(), gateway: str = "") -> Done:
        """See `run`."""
        return self._do(run(self._freehold, job, most=most, base=base, gateway=gateway))

    def map(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any],
        *,
        each: int = 0,
        most: int | None = None,
        **job: Any,
    ) -> list[Any]:
        """See `map`."""
        return self._do(map(self._freehold, function, items, each=each, most=most, **job))
