"""`freehold cp ls mb rb rm`: files on the network, by fh:// paths."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.output import Command, Program, confirm, print_table

if TYPE_CHECKING:
    from freehold.cli.transfers import Job
    from freehold.client.bucket_types import ObjectInfo
    from freehold.client.paths import ObjectPath
    from freehold.client.sdk import Freehold

YES = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
RECURSIVE = click.option("--recursive", "-r", is_flag=True, help="Everything below.")


def show_copied(data: dict[str, Any]) -> None:
    from freehold.cli.amounts import format_size

    for item in data["copied"]:
        rate = int(item["size"] / item["seconds"]) if item["seconds"] else 0
        click.echo(f"{item['source']} -> {item['target']}  {format_size(item['size'])} at {format_size(rate)}/s")


@click.command(cls=Command, show=show_copied)
@click.argument("source")
@click.argument("target")
@RECURSIVE
@YES
@click.pass_obj
def cp(program: Program, source: str, target: str, recursive: bool, yes: bool) -> dict[str, Any]:
    """Copy SOURCE to TARGET, one of them an fh:// path: upload or download. Says what it costs, and asks.

    An upload is done when n operators have their shards on disk and a quorum of members holds what they signed. A
    target that ends with "/", is a bucket or a directory gets the source's own name.
    """
    from freehold.cli.connection import run
    from freehold.client.paths import is_remote

    if is_remote(source) == is_remote(target):
        raise click.UsageError("One of SOURCE and TARGET must be an fh:// path, the other a local one.")
    return run(_cp(program, source, target, recursive, yes))


async def _cp(program: Program, source: str, target: str, recursive: bool, yes: bool) -> dict[str, Any]:
    from freehold.cli.client import open_client
    from freehold.cli.transfers import plan_downloads, plan_uploads
    from freehold.client.paths import is_remote

    async with open_client(program) as client:
        upload = is_remote(target)
        if upload:
            jobs = plan_uploads(Path(source), target, recursive=recursive)
        else:
            jobs = await plan_downloads(client, source, Path(target), recursive=recursive)
        await _agree_on_cost(program, client, jobs, upload=upload, yes=yes)
        copied = []
        for job in jobs:
            began = time.monotonic()
            size = await _transfer(program, client, job, upload=upload)
            copied.append(
                {
                    "source": str(job.local if upload else job.remote),
                    "target": str(job.remote if upload else job.local),
                    "size": size,
                    "seconds": round(time.monotonic() - began, 3),
                }
            )
        return {"copied": copied}


async def _agree_on_cost(program: Program, client: Freehold, jobs: list[Job], *, upload: bool, yes: bool) -> None:
    from freehold.cli.amounts import format_amount, format_size
    from freehold.cli.client import wait_for_credits

    size = sum(job.size for job in jobs)
    what = f"{len(jobs)} files, {format_size(size)}" if len(jobs) != 1 else f"{jobs[0].name}, {format_size(size)}"
    if not jobs:
        return
    if upload:
        estimate = await client.estimate(size, jobs[0].remote)
        stored = format_size(estimate.stored_bytes)
        program.note(f"{what}: stored as {stored}; {estimate.operators} operators offer room")
        program.note(
            f"  costs {format_amount(estimate.per_hour)} credits an hour, {format_amount(estimate.per_day)} a day, "
            f"{format_amount(estimate.per_30_days)} for 30 days, while it is proven to be kept"
        )
        await wait_for_credits(program, client, 1)
        confirm(program, "Upload it?", yes=yes)
    else:
        program.note(f"{what}: reading it costs about {format_amount(await quote_read(client, size))} credits")
        confirm(program, "Download it?", yes=yes)


async def quote_read(client: Freehold, size: int) -> int:
    """Credits for reading `size` bytes at the dearest of the operators that answer now."""
    from freehold.services.storage.terms import UNITS_PER_VOUCHER_PRICE

    offers = [candidate.offer.voucher_price for candidate in (await client.survey()).candidates]
    return -(-size * max(offers, default=0) // UNITS_PER_VOUCHER_PRICE)


async def _transfer(program: Program, client: Freehold, job: Job, *, upload: bool) -> int:
    from freehold.cli.progress import Bar

    with Bar(job.name, quiet=program.as_json) as bar:
        if upload:
            return (await client.put(job.local, job.remote, bar.update)).size
        job.local.parent.mkdir(parents=True, exist_ok=True)
        return await client.get(job.remote, job.local, bar.update)


def show_buckets(data: dict[str, Any]) -> None:
    print_table(["BUCKET", "CODE"], [[f"fh://{b['name']}", f"{b['k']} of {b['n']}"] for b in data["buckets"]])


def format_entry(item: dict[str, Any]) -> str:
    """A line of `ls`: size, time (UTC), path."""
    from datetime import UTC, datetime

    from freehold.cli.amounts import format_size

    if item["folder"]:
        return f"{'':>10}  {'':<19}  {item['path']}"
    when = datetime.fromtimestamp(item["modified"], UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{format_size(item['size']):>10}  {when}  {item['path']}"


@click.command(cls=Command, show=show_buckets)
@click.argument("path", required=False)
@RECURSIVE
@click.pass_obj
def ls(program: Program, path: str | None, recursive: bool) -> dict[str, Any] | None:
    """List buckets, or what is at PATH: objects, and folders one level deep (-r: everything below)."""
    from freehold.cli.connection import run

    return run(_ls(program, path, recursive))


async def _ls(program: Program, path: str | None, recursive: bool) -> dict[str, Any] | None:
    from freehold.cli.client import open_client
    from freehold.client.paths import parse_path

    where = parse_path(path) if path is not None else None
    async with open_client(program) as client:
        if where is None:
            buckets = [{"name": b.name, "k": b.code.k, "n": b.code.n} for b in await client.buckets()]
            return {"buckets": buckets}
        found = list_entries(client, where, recursive=recursive)
        if program.as_json:
            return {"objects": [item async for item in found]}
        async for item in found:  # page by page, as they come
            click.echo(format_entry(item))
        return None


async def list_entries(client: Freehold, where: ObjectPath, *, recursive: bool) -> AsyncGenerator[dict[str, Any], None]:
    """Objects, and unless `recursive` folders, as rows: "dir" is the object dir, then what is in the folder."""
    from freehold.client.errors import KeyNotFound

    if recursive:
        async for info in client.walk(where):
            yield _entry(str(info.path), info)
        return
    if where.key and not where.key.endswith("/"):
        with suppress(KeyNotFound):
            yield _entry(str(where), await client.stat(where))
        where = where.below("/")
    after: str | None = ""
    while after is not None:
        page = await client.objects.list(where.bucket, where.key, "/", after)
        rows = {info.key: _entry(str(info.path), info) for info in page.entries}
        rows |= {folder: _entry(f"fh://{where.bucket}/{folder}", None) for folder in page.prefixes}
        for key in sorted(rows, key=str.encode):
            yield rows[key]
        after = page.next


def _entry(path: str, info: ObjectInfo | None) -> dict[str, Any]:
    if info is None:
        return {"path": path, "size": 0, "modified": 0, "nodes": 0, "folder": True}
    modified = info.modified // 1000
    return {"path": path, "size": info.size, "modified": modified, "nodes": info.nodes, "folder": False}


def show_bucket(data: dict[str, Any]) -> None:
    click.echo(f"fh://{data['bucket']} {data['done']}")


@click.command(cls=Command, show=show_bucket)
@click.argument("bucket")
@click.option("-k", "k", default=3, show_default=True, type=click.IntRange(1), help="Any k operators give the data.")
@click.option("-n", "n", default=6, show_default=True, type=click.IntRange(2), help="Of n that keep a shard each.")
@click.pass_obj
def mb(program: Program, bucket: str, k: int, n: int) -> dict[str, Any]:
    """Make BUCKET (fh://name). Its objects survive the loss of any n - k of their operators."""
    from freehold.cli.connection import run

    async def make() -> dict[str, Any]:
        from freehold.cli.client import open_client

        async with open_client(program) as client:
            await client.mb(bucket, k, n)
            return {"bucket": bucket.removeprefix("fh://"), "k": k, "n": n, "done": f"made: {k} of {n}"}

    return run(make())


@click.command(cls=Command, show=show_bucket)
@click.argument("bucket")
@click.pass_obj
def rb(program: Program, bucket: str) -> dict[str, Any]:
    """Remove BUCKET (fh://name), which must be empty."""
    from freehold.cli.connection import run

    async def remove() -> dict[str, Any]:
        from freehold.cli.client import open_client

        async with open_client(program) as client:
            await client.rb(bucket)
            return {"bucket": bucket.removeprefix("fh://"), "done": "removed"}

    return run(remove())


def show_removed(data: dict[str, Any]) -> None:
    for path in data["removed"]:
        click.echo(f"removed {path}")


@click.command(cls=Command, show=show_removed)
@click.argument("paths", nargs=-1, required=True)
@RECURSIVE
@YES
@click.pass_obj
def rm(program: Program, paths: tuple[str, ...], recursive: bool, yes: bool) -> dict[str, Any]:
    """Remove the objects at PATHS; with -r everything below them (asks)."""
    from freehold.cli.connection import run

    return run(_rm(program, paths, recursive, yes))


async def _rm(program: Program, paths: tuple[str, ...], recursive: bool, yes: bool) -> dict[str, Any]:
    from freehold.cli.client import open_client
    from freehold.client.paths import parse_path
    from freehold.protocol.errors import NotFound

    async with open_client(program) as client:
        chosen: dict[str, list[ObjectPath]] = {}
        for where in map(parse_path, paths):
            if recursive:
                found = [item.path for item in await client.ls(where)]
                if not found:
                    raise NotFound(f"there is nothing at {where}")
            elif not where.key:
                raise click.UsageError(f"{where} is a bucket: say -r to remove what is in it, and rb to remove it.")
            else:
                found = [where]
            chosen.setdefault(where.bucket, []).extend(found)
        if recursive:
            confirm(program, f"Remove {sum(map(len, chosen.values()))} objects for good?", yes=yes)
        for found in chosen.values():
            for node, error in (await client.rm(*found)).items():
                program.warn(f"node {node} takes its shards off later: {error.message}")
        return {"removed": [str(path) for found in chosen.values() for path in found]}
