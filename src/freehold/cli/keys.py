"""`freehold key`: access keys for S3 programs, of the whole account or of a part of it.

Keys stand in the account's root on the network: every gateway of the account knows them within seconds. Invariant: a
secret is printed by `new` and by nothing else.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.amounts import DURATION
from freehold.cli.output import Group, Program, print_table

if TYPE_CHECKING:
    from freehold.client.root import AccessKey


@click.group(cls=Group)
def key() -> None:
    """Access keys for S3 programs: make, list, remove."""


def show_new(data: dict[str, Any]) -> None:
    click.echo(f"export AWS_ACCESS_KEY_ID={data['id']}")
    click.echo(f"export AWS_SECRET_ACCESS_KEY={data['secret']}")
    if data["endpoint"]:
        click.echo(f"export AWS_ENDPOINT_URL={data['endpoint']}")


@key.command("new", show=show_new)
@click.option("--label", default="", help="What `freehold key list` shows beside it.")
@click.option("--bucket", help="For this bucket only.")
@click.option("--prefix", default="", help="For keys of the bucket that start with this only.")
@click.option("--read-only", is_flag=True, help="To read and list only.")
@click.option("--expires", type=DURATION, help="For how long: 90m, 12h, 30d. Without it the key does not expire.")
@click.pass_obj
def new(
    program: Program, label: str, bucket: str | None, prefix: str, read_only: bool, expires: int | None
) -> dict[str, Any]:
    """A new access key, printed as the variables that S3 programs read.

    A key for a bucket or prefix, or to read only, reaches objects: making buckets and setting them up is for keys of
    the whole account.
    """
    from freehold.cli.connection import run

    if prefix and not bucket:
        raise click.UsageError("--prefix needs --bucket.")
    return run(_new(program, label, bucket, prefix, read_only, expires or 0))


async def _new(
    program: Program, label: str, bucket: str | None, prefix: str, read_only: bool, life: int
) -> dict[str, Any]:
    from freehold.cli.client import open_client
    from freehold.client import access_keys
    from freehold.client.grants import OPERATIONS, GrantKey

    expires = int(time.time()) + life if life else 0
    async with open_client(program) as client:
        grant = ""
        if bucket or read_only:
            if bucket:
                await client.objects.bucket(bucket)  # NotFound comes now, not at the first request
            operations = ("read", "list") if read_only else OPERATIONS
            account = client.account
            grant = GrantKey(account.seed).issue(
                account.address, operations, bucket=bucket, prefix=prefix, expires=expires or None
            )
        made = await access_keys.new(client.objects.root, label, grant, expires)
    return _describe(made) | {"secret": made.secret, "endpoint": program.settings.get("gateway").value}


def _describe(key: AccessKey) -> dict[str, Any]:
    from freehold.client.grants import OPERATIONS, describe

    grant = describe(key.grant) if key.grant else None
    return {
        "id": key.id,
        "label": key.label,
        "created": key.created,
        "expires": key.expires or None,
        "path": grant.describe_scope() if grant else "everything",
        "operations": [name for name in OPERATIONS if grant is None or name in grant.operations],
    }


def show_keys(data: list[dict[str, Any]]) -> None:
    from freehold.client.grants import format_time

    rows = [
        [
            row["id"],
            row["path"],
            ", ".join(row["operations"]),
            format_time(row["created"]),
            format_time(row["expires"]) if row["expires"] else "never",
            row["label"],
        ]
        for row in data
    ]
    print_table(["ID", "FOR", "ALLOWS", "CREATED", "EXPIRES", "LABEL"], rows)


@key.command("list", show=show_keys)
@click.pass_obj
def list_(program: Program) -> list[dict[str, Any]]:
    """This account's access keys, without their secrets."""
    from freehold.cli.connection import run

    return run(_list(program))


async def _list(program: Program) -> list[dict[str, Any]]:
    from freehold.cli.client import open_client
    from freehold.client import access_keys

    async with open_client(program) as client:
        return [_describe(key) for key in await access_keys.listing(client.objects.root)]


def show_removed(data: dict[str, Any]) -> None:
    click.echo(f"removed {data['id']}: gateways refuse it within seconds")


@key.command("remove", show=show_removed)
@click.argument("id_", metavar="ID")
@click.pass_obj
def remove(program: Program, id_: str) -> dict[str, Any]:
    """Remove the access key ID: nothing signed with it is taken any more."""
    from freehold.cli.connection import run

    return run(_remove(program, id_))


async def _remove(program: Program, id_: str) -> dict[str, Any]:
    from freehold.cli.client import open_client
    from freehold.client import access_keys

    async with open_client(program) as client:
        return _describe(await access_keys.remove(client.objects.root, id_))
