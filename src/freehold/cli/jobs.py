"""`freehold job`: work on other people's machines: order it, follow it, see what it cost and why it came out so.

    exit 0  done      exit 1  it could not be ordered, or asked for      exit 2  written wrongly
    exit 3  the job failed      exit 4  it was refused: nobody matches, too few operators, too few credits
    exit 5  stopped      exit 130  Ctrl-C      any other: what the job's own program exited with

Ctrl-C while waiting stops waiting: orders that run go on, and `freehold job wait` finds them.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from freehold.cli.amounts import AMOUNT, DURATION
from freehold.cli.jobs_output import (
    Follower,
    show_cost,
    show_job,
    show_jobs,
    show_nodes,
    show_quote,
    show_released,
    show_results,
    show_why,
)
from freehold.cli.output import INTERRUPTED, Group, Program, confirm, plain

if TYPE_CHECKING:
    from freehold.client.jobs_journal import JobRow
    from freehold.client.jobs_spec import Job
    from freehold.client.sdk import Freehold

T = TypeVar("T")

MISWRITTEN, FAILED, REFUSED, STOPPED = 2, 3, 4, 5
WRONG = "invalid_spec"
SHOWN_LOG = 4096  # bytes
REFUSALS = ("nobody_matches", "insufficient_operators", "nobody_left", "cap_reached", "insufficient_credits")


@click.group(cls=Group)
def job() -> None:
    """Run work on other people's machines: scripts, modules, programs, services."""


def spec_options(command: Any) -> Any:
    """What changes a spec on the command line."""
    options = [
        click.option("--arg", "arguments", multiple=True, help="An argument of the program, after the spec's own."),
        click.option("--input", "inputs", multiple=True, metavar="[PATH=]SOURCE",
                     help="A file at PATH below /in; without PATH, what the job's map goes over."),
        click.option("--output", help="Where files go: a folder, or fh://bucket/prefix/."),
        click.option("--assurance", help="How sure to be of each result, like 0.999."),
        click.option("--most", type=AMOUNT, help="The most credits that it may cost."),
        click.option("--deadline", type=DURATION, help="How long it may take: 90s, 10m, 2h."),
        click.option("--where", multiple=True, help="A constraint that nodes must meet, besides the spec's."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@job.command("run", show=show_results)
@click.argument("what", type=click.Path(path_type=Path))
@spec_options
@click.option("--detach", "-d", is_flag=True, help="Do not wait: a process in the background goes on with it.")
@click.option("--quote", "only_quote", is_flag=True, help="Only say what it would cost.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.pass_obj
def run_job(
    program: Program, /, what: Path, detach: bool, only_quote: bool, yes: bool, **given: Any
) -> dict[str, Any] | None:
    """Run WHAT: a spec (.yaml), a Python script (.py), C source (.c) or a WebAssembly module (.wasm).

    Says what it costs, and asks, unless it or --most says what it may cost at most. Prints what the program printed,
    and exits as it did. Ctrl-C stops waiting; what runs goes on.
    """
    if only_quote:
        data = _finish(program, _quote(program, what, given))
        if not program.as_json:
            show_quote(data)
            return None
        return data
    return _finish(program, _run(program, what, given, detach=detach, yes=yes))


def _finish(program: Program, task: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; a refusal and a wrong spec have exit codes of their own."""
    from freehold.cli.connection import run
    from freehold.protocol.errors import FreeholdError

    try:
        return run(task)
    except FreeholdError as error:
        if error.code not in (*REFUSALS, WRONG):
            raise
        program.fail(error.to_json())
        raise click.exceptions.Exit(MISWRITTEN if error.code == WRONG else REFUSED) from None
    finally:
        task.close()  # interrupted before it began, it would warn that it never did


async def _run(
    program: Program, what: Path, given: dict[str, Any], *, detach: bool, yes: bool
) -> dict[str, Any] | None:
    from freehold.cli.client import open_client, wait_for_credits
    from freehold.cli.jobs_files import read_spec

    spec, base = read_spec(what, **given)
    gateway = program.settings.get("gateway").value
    async with open_client(program) as client:
        with _following(program, client) as follower:
            most = spec.most if spec.most is not None else await _agree(program, client, spec, base, gateway, yes=yes)
            await wait_for_credits(program, client, 1)
            row = await client.jobs.submit(spec, base, gateway, most)
            if not gateway and _touches_storage(spec):
                program.warn("no gateway is known: what the job reads and writes at fh:// passes through this machine")
            if detach:
                _drive_in_background(program, client, row)
                program.note(f"job {row.id} goes on: `freehold job wait {row.id}`, `freehold job stop {row.id}`")
                return {"job": row.id, "phase": row.phase, "output": []}
            return await _wait(program, client, row, follower)


async def _agree(program: Program, client: Freehold, spec: Job, base: Path, gateway: str, *, yes: bool) -> int:
    """Say what it costs, and ask; the most that it may cost."""
    from freehold.cli.amounts import format_amount

    quote = await client.jobs.quote(spec, base, gateway)
    if not quote.known:
        raise click.UsageError("What this job comes to is known only as it goes on: say --most CREDITS.")
    program.note(
        f"{_count(sum(step.tasks or 0 for step in quote.steps))}: at most {format_amount(quote.most)} credits "
        f"(work {format_amount(quote.work)}, assurance {format_amount(quote.assurance)}, "
        f"storage {format_amount(quote.stored)})"
    )
    confirm(program, "Run it?", yes=yes)
    return quote.most


def _count(tasks: int) -> str:
    return "1 task" if tasks == 1 else f"{tasks} tasks"


def _touches_storage(spec: Job) -> bool:
    from freehold.client.paths import is_remote

    files = [one for step in spec.steps for one in (*step.inputs.values(), step.map.over if step.map else None)]
    return any(one and one.remote for one in files) or any(is_remote(step.output or "") for step in spec.steps)


@contextmanager
def _following(program: Program, client: Freehold) -> Iterator[Follower]:
    """A follower that hears what this machine is busy with, too."""
    with Follower(quiet=program.as_json) as follower:
        client.jobs.listen(follower.busy)
        yield follower


async def _wait(program: Program, client: Freehold, row: JobRow, follower: Follower) -> dict[str, Any]:
    """Drive a job to its end, and end as it did."""
    from freehold.client.jobs import choose_steps
    from freehold.client.jobs_spec import Job

    try:
        done = await client.jobs.wait(row.id, follower)
    except asyncio.CancelledError:
        follower.end()
        program.note(f"job {row.id} is not waited for any more; what runs goes on at its nodes")
        program.note(f"  `freehold job wait {row.id}` goes on with it, `freehold job stop {row.id}` ends it")
        raise click.exceptions.Exit(INTERRUPTED) from None
    follower.end()
    data: dict[str, Any] = {"job": done.id, "phase": done.phase, "reason": done.reason, "status": done.status}
    results = await client.jobs.results(done.id)
    last = [one for step in choose_steps(Job.of(json.loads(done.spec))) for one in results[str(step.name)]]
    data["output"] = [one.stdout.decode(errors="replace") for one in last]
    data["files"] = sum(len(one.files) for one in last)
    if done.phase != "done":
        if not program.as_json:
            await _show_end(client, done, data)
        await _fail(program, client, done)
    elif data["files"] and not program.as_json:
        program.note(_say_where(done, data["files"]))
    return data


def _say_where(row: JobRow, files: int) -> str:
    """Where what came out of a job is now."""
    from freehold.client.jobs import choose_steps
    from freehold.client.jobs_spec import Job
    from freehold.client.paths import is_remote

    said = "1 file came out" if files == 1 else f"{files} files came out"
    outputs = {str(step.output or "") for step in choose_steps(Job.of(json.loads(row.spec)))}
    if "" in outputs:
        return f"{said}: `freehold job fetch {row.id} FOLDER` brings what is not delivered"
    places = sorted(output if is_remote(output) else str(Path(row.base) / output) for output in outputs)
    return f"{said}: {', '.join(places)}"


async def _show_end(client: Freehold, row: JobRow, data: dict[str, Any]) -> None:
    """What a program that failed had printed, and the end of what it wrote to its standard error."""
    from freehold.protocol.errors import FreeholdError

    ends = [event for event in (await client.jobs.why(row.id))["events"] if event["kind"] == "end"]
    show_results(data)
    said = b""
    if ends and ends[-1].get("order"):
        with suppress(FreeholdError):
            click.echo(await client.jobs.printed(row.id, ends[-1]["order"]), nl=False)
    with suppress(FreeholdError):
        async for _, piece in client.jobs.logs(row.id, follow=False):
            said = (said + piece)[-SHOWN_LOG:]
    click.echo(said.decode(errors="replace"), err=True, nl=False)


async def _fail(program: Program, client: Freehold, row: JobRow) -> None:
    """Say why, and exit as the job's program did, or by what became of the job."""
    from freehold.cli.output import error_json

    ends = [event for event in (await client.jobs.why(row.id))["events"] if event["kind"] == "end"]
    code = ends[-1]["code"] if ends else row.phase
    hint = ends[-1]["hint"] if ends else f"`freehold job why {row.id}` has each order."
    error = error_json(code, f"job {row.id}: {row.reason}", hint.replace("JOB", row.id))
    error["details"] = {"job": row.id, "phase": row.phase, "status": row.status}
    program.fail(error)
    if row.status:
        raise click.exceptions.Exit(row.status)
    raise click.exceptions.Exit(STOPPED if row.phase == "stopped" else REFUSED if code in REFUSALS else FAILED)


def _drive_in_background(program: Program, client: Freehold, row: JobRow) -> None:
    """A process of its own that waits for the job, with the settings of this one."""
    from freehold.cli.settings import SETTINGS

    values = {one.variable: program.settings.get(one.name).value for one in SETTINGS}
    environment = os.environ | {name: value for name, value in values.items() if value}
    with (client.folder / "jobs" / f"{row.id}.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "freehold.cli.main", "job", "wait", row.id, "--json"],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


@job.command("quote", show=show_quote)
@click.argument("what", type=click.Path(path_type=Path))
@spec_options
@click.pass_obj
def quote(program: Program, /, what: Path, **given: Any) -> dict[str, Any]:
    """What WHAT would cost by the bids of now; the price of assurance is shown apart."""
    return _finish(program, _quote(program, what, given))


async def _quote(program: Program, what: Path, given: dict[str, Any]) -> dict[str, Any]:
    from freehold.cli.client import open_client
    from freehold.cli.jobs_files import read_spec

    spec, base = read_spec(what, **given)
    async with open_client(program) as client:
        with _following(program, client):
            return (await client.jobs.quote(spec, base, program.settings.get("gateway").value)).to_json()


@job.command("list", show=show_jobs)
@click.pass_obj
def list_(program: Program) -> list[dict[str, Any]]:
    """This account's jobs, the newest first."""

    async def look(client: Freehold) -> list[dict[str, Any]]:
        return [row_json(row) for row in await client.jobs.all()]

    return _with_client(program, look)


@job.command("describe", show=show_job)
@click.argument("name", metavar="JOB")
@click.pass_obj
def describe(program: Program, name: str) -> dict[str, Any]:
    """How JOB stands: its steps, what runs, what it has cost."""
    return _with_client(program, lambda client: client.jobs.describe(name))


@job.command("wait", show=show_results)
@click.argument("name", metavar="JOB")
@click.pass_obj
def wait(program: Program, name: str) -> dict[str, Any]:
    """Go on with JOB until it has ended; prints what it printed, and exits as it did."""

    async def follow(client: Freehold) -> dict[str, Any]:
        with _following(program, client) as follower:
            return await _wait(program, client, await client.jobs.find(name), follower)

    return _with_client(program, follow)


def show_stopped(data: dict[str, Any]) -> None:
    click.echo(f"job {data['job']}  {data['phase']}")


@job.command("stop", show=show_stopped)
@click.argument("name", metavar="JOB")
@click.pass_obj
def stop(program: Program, name: str) -> dict[str, Any]:
    """End JOB: what runs is stopped at its nodes, and billed for what it took."""

    async def end(client: Freehold) -> dict[str, Any]:
        return row_json(await client.jobs.stop(name))

    return _with_client(program, end)


@job.command("cost", show=show_cost)
@click.argument("name", metavar="JOB")
@click.pass_obj
def cost(program: Program, name: str) -> dict[str, Any]:
    """What JOB has cost, by what for and by node, and what it may still come to."""
    return _with_client(program, lambda client: client.jobs.cost(name))


@job.command("why", show=show_why)
@click.argument("name", metavar="JOB")
@click.pass_obj
def why(program: Program, name: str) -> dict[str, Any]:
    """Why JOB went as it did: each node, matched or the rule that excluded it; each bid; each check of a result."""
    return _with_client(program, lambda client: client.jobs.why(name))


@job.command("logs")
@click.argument("name", metavar="JOB")
@click.option("--follow", "-f", is_flag=True, help="Until the job has ended.")
@click.pass_obj
def logs(program: Program, name: str, follow: bool) -> list[dict[str, Any]] | None:
    """What the programs of JOB wrote to their standard error."""
    return _with_client(program, lambda client: _logs(program, client, name, follow=follow))


async def _logs(program: Program, client: Freehold, name: str, *, follow: bool) -> list[dict[str, Any]] | None:
    found: list[dict[str, Any]] = []
    several = sum(step["tasks"] for step in (await client.jobs.describe(name))["steps"]) > 1
    async for order, data in client.jobs.logs(name, follow=follow):
        text = data.decode(errors="replace")
        if program.as_json:
            found.append({"step": order.step, "number": order.number, "node": str(order.node), "text": text})
            continue
        prefix = f"{order.step} {order.number}  " if several else ""
        for line in text.splitlines():
            click.echo(f"{prefix}{plain(line) if sys.stdout.isatty() else line}")
    return found if program.as_json else None


def show_fetched(data: dict[str, Any]) -> None:
    for path in data["files"]:
        click.echo(plain(path))


@job.command("fetch", show=show_fetched)
@click.argument("name", metavar="JOB")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--step", default="", help="Of this step, instead of the last ones.")
@click.option("--folders", is_flag=True, help="Put each task's files into a folder of its number.")
@click.pass_obj
def fetch(program: Program, /, name: str, folder: Path, step: str, folders: bool) -> dict[str, Any]:
    """Bring the files of JOB's last steps into FOLDER, from the nodes that kept them."""

    async def bring(client: Freehold) -> dict[str, Any]:
        return {"files": [str(folder / path) for path in await client.jobs.fetch(name, folder, step, folders=folders)]}

    return _with_client(program, bring)


def show_url(data: dict[str, Any]) -> None:
    click.echo(data["url"])


@job.command("open", show=show_url)
@click.argument("name", metavar="JOB")
@click.pass_obj
def open_service(program: Program, name: str) -> dict[str, Any]:
    """The URL of JOB's service: whoever has it may use it, and it stays when the service moves.

    On this machine it is a name below localhost, which browsers and curl know; --json has the plain one beside it.
    """
    from freehold.client.service_places import path_url_of, url_of

    gateway = program.settings.get("gateway").value
    if not gateway:
        raise click.UsageError("A service is reached through a gateway, and none is known: say --gateway URL.")

    async def find(client: Freehold) -> dict[str, Any]:
        service = await client.jobs.service(name)
        url = url_of(gateway, service, program.settings.service_domain)
        return {"url": url, "plain_url": path_url_of(gateway, service)}

    return _with_client(program, find)


@job.command("nodes", show=show_nodes)
@click.option(
    "--measure", is_flag=True, help="Run benchmarks at nodes that were not measured for a day; it says what it costs."
)
@click.option("--again", is_flag=True, help="With --measure: also at those that were.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.pass_obj
def nodes(program: Program, /, measure: bool, again: bool, yes: bool) -> list[dict[str, Any]]:
    """Every node that offers compute: price, speed as advertised and as measured, what counts; or why it does not."""
    if again and not measure:
        raise click.UsageError("--again says what to measure: it needs --measure.")

    async def look(client: Freehold) -> list[dict[str, Any]]:
        if not measure:
            return await client.jobs.nodes()
        return await _measure(program, client, again=again, yes=yes)

    return _with_client(program, look)


async def _measure(program: Program, client: Freehold, *, again: bool, yes: bool) -> list[dict[str, Any]]:
    """Say what measuring costs, ask, and measure for no more than that."""
    from freehold.cli.amounts import format_amount
    from freehold.cli.client import wait_for_credits

    rows = await client.jobs.nodes(again=again)
    costs = [int(row["measuring"]) for row in rows if int(row.get("measuring", 0))]
    if not costs:
        program.note("no node that runs WebAssembly is due to be measured; --again measures all of them")
        return rows
    most = sum(costs)
    program.note(f"{_count_nodes(len(costs))} to be measured: at most {format_amount(most)} credits")
    confirm(program, "Measure?", yes=yes)
    await wait_for_credits(program, client, most)
    return await client.jobs.nodes(measure=True, again=again, most=most)


def _count_nodes(nodes: int) -> str:
    return "1 node" if nodes == 1 else f"{nodes} nodes"


@job.command("release", show=show_released)
@click.pass_obj
def release(program: Program) -> dict[str, Any]:
    """Close the leases for compute under which nothing runs and nothing is owed, so that locked credits come back."""

    async def end(client: Freehold) -> dict[str, Any]:
        leases = [str(lease) for lease in await client.compute.release()]
        return {"leases": leases, "lock_release": client.network.parameters.lock_release}

    return _with_client(program, end)


def _with_client(program: Program, work: Callable[[Freehold], Awaitable[T]]) -> T:
    async def opened() -> T:
        from freehold.cli.client import open_client

        async with open_client(program) as client:
            return await work(client)

    return _finish(program, opened())


def row_json(row: JobRow) -> dict[str, Any]:
    """A job as data."""
    from freehold.client.jobs import describe_row

    return describe_row(row)
