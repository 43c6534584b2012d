"""`freehold.job`: functions over many items, and jobs as Python says them."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from freehold import job
from freehold.protocol.errors import InvalidInput
from tests.client.jobs_world import Came, Ran, World


def square(number: int) -> int:
    import math

    print("not a result")
    return math.prod([number, number])


def bad(number: int) -> int:
    raise ValueError(number)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def perform(ran: Ran, script: str) -> Came:
    """Run a script as the interpreter of a node does."""
    streams = sys.stdin, sys.stdout, sys.stderr
    out = io.StringIO()
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(ran.stdin.decode()), out, io.StringIO()
    try:
        exec(script, {"__name__": "__main__"})
    except Exception:
        return Came(status=1)
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams
    return Came(out.getvalue().encode())


def run_map(world: World, function: Any, items: Any, **options: Any) -> Any:
    world.programs[job.write_script(function)] = lambda ran: perform(ran, job.write_script(function))
    freehold: Any = SimpleNamespace(jobs=world.open())
    return asyncio.run(job.map(freehold, function, items, most=10**18, **options))


def test_a_function_over_a_thousand_items_in_batches(world: World) -> None:
    world.add(8)
    assert run_map(world, square, range(1000)) == [number * number for number in range(1000)]
    assert world.runs == 125  # of eight items each


def test_one_item_a_task_and_checked(world: World) -> None:
    world.add(6)
    assert run_map(world, square, [3, 4], each=1, assurance=0.99) == [9, 16]
    assert world.runs >= 4


def test_nothing_over_nothing(world: World) -> None:
    assert run_map(world, square, []) == []


def test_a_function_that_raises_fails_the_job(world: World) -> None:
    world.add(2)
    with pytest.raises(job.JobFailed, match="exited with status 1") as caught:
        run_map(world, bad, [1])
    assert caught.value.details["status"] == 1


def test_only_a_plain_function_travels() -> None:
    factor = 3

    def closure(number: int) -> int:
        return number * factor

    for function in (closure, len, lambda number: number):
        with pytest.raises(InvalidInput):
            job.write_script(function)  # type: ignore[arg-type]


def test_a_job_in_python_gives_what_it_printed(world: World) -> None:
    world.add(1)
    freehold: Any = SimpleNamespace(jobs=world.open())
    spec = job.Job(steps=[job.Step(script="x", arguments=["hello"])])  # type: ignore[arg-type]
    done = asyncio.run(job.run(freehold, spec, most=10**18))
    assert done.stdout == b"hello"
    assert done.spent == world.billed
