"""`freehold share`: links to objects for whoever has the link; narrowed without a network, revoked by the account.

`freehold share PATH` is short for `freehold share new PATH`. The link alone goes to stdout, so that it can be piped.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.amounts import DURATION
from freehold.cli.output import Group, Program, print_table

if TYPE_CHECKING:
    from freehold.client.sdk import Freehold

DEFAULT_LIFE = "7d"


class ShareGroup(Group):
    """A noun whose first verb may be left out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["new", *args]
        return super().parse_args(ctx, args)


@click.group(cls=ShareGroup)
def share() -> None:
    """Give a link to objects, narrow it, see and revoke what was shared.

    `freehold share PATH` is short for `freehold share new PATH`.
    """


def show_link(data: dict[str, Any]) -> None:
    click.echo(data["url"] or data["token"])


@share.command("new", show=show_link)
@click.argument("path")
@click.option(
    "--expires", type=DURATION, default=DEFAULT_LIFE, show_default=True, help="How long: 90m, 12h, 2d, never."
)
@click.option("--write", is_flag=True, help="Also to put objects there.")
@click.option("--delete", is_flag=True, help="Also to delete objects there.")
@click.option("--no-list", is_flag=True, help="Only objects whose names one knows; no page of what is there.")
@click.option("--write-only", is_flag=True, help="A box: files can be put there, and not be seen.")
@click.option("--label", default="", help="What `freehold share list` shows beside it.")
@click.pass_obj
def new(
    program: Program,
    path: str,
    expires: int,
    write: bool,
    delete: bool,
    no_list: bool,
    write_only: bool,
    label: str,
) -> dict[str, Any]:
    """A link to PATH (fh://bucket/key): an object, or everything below a folder or bucket, to read and to list.

    Whoever has the link has what it allows, until it expires or is revoked, and can narrow it further.
    """
    from freehold.cli.connection import run

    if write_only and (write or delete or no_list):
        raise click.UsageError("--write-only stands alone.")
    operations = {"write"} if write_only else {"read", "list"}
    operations |= {name for name, wanted in (("write", write), ("delete", delete)) if wanted}
    operations -= {"list"} if no_list else set()
    data = run(_new(program, path, operations, expires, label))
    _tell(program, data)
    return data


async def _new(program: Program, path: str, operations: set[str], life: int, label: str) -> dict[str, Any]:
    from freehold.cli.client import open_client
    from freehold.client import shares
    from freehold.client.grants import GrantKey

    bucket, key = _parse(path)
    async with open_client(program) as client:
        prefix, exact = await _find(client, bucket, key, may_be_new="write" in operations)
        if exact:
            operations = operations - {"list"}
        token = GrantKey(client.account.seed).issue(
            client.account.address,
            operations,
            bucket=bucket,
            prefix=prefix,
            exact=exact,
            expires=int(time.time()) + life if life else None,
        )
        await shares.keep(client.objects.root, token, label)
    return _describe(token, program.settings.get("gateway").value)


def _parse(path: str) -> tuple[str, str]:
    from freehold.client.paths import SCHEME, check_bucket, is_remote

    if not is_remote(path):
        raise click.UsageError(f"{path} is not on the network: a path starts with {SCHEME}")
    bucket, _, key = path[len(SCHEME) :].partition("/")
    return check_bucket(bucket), key


async def _find(client: Freehold, bucket: str, key: str, *, may_be_new: bool) -> tuple[str, bool]:
    """The prefix that a path means, and whether it is just one object; NotFound where there is nothing."""
    from freehold.client.errors import KeyNotFound

    if not key or key.endswith("/"):
        await client.objects.bucket(bucket)
        return key, False
    try:
        await client.objects.head(bucket, key)
    except KeyNotFound:
        page = await client.objects.list(bucket, prefix=f"{key}/", limit=1)
        if page.entries:
            return f"{key}/", False
        if not may_be_new:
            raise
    return key, True


def _describe(token: str, gateway: str) -> dict[str, Any]:
    """A token as data."""
    from freehold.client.grants import OPERATIONS, describe
    from freehold.client.shares import landing

    grant = describe(token)
    return {
        "url": gateway.rstrip("/") + landing(token, grant) if gateway else "",
        "token": token,
        "account": str(grant.account),
        "path": grant.describe_scope(),
        "operations": [name for name in OPERATIONS if name in grant.operations],
        "expires": grant.expires,
        "ids": list(grant.ids),
    }


def _tell(program: Program, data: dict[str, Any]) -> None:
    """What a link is for, in words, beside the link itself."""
    program.note(f"to {' and '.join(data['operations'])} {data['path']}, {_until(data['expires'])}")
    if not data["url"]:
        program.note("no gateway is known, so this is the token alone: name one with --gateway URL for a link")


def _until(expires: int | None) -> str:
    from freehold.client.grants import format_time

    return f"until {format_time(expires)}" if expires else "without end"


@share.command("narrow", show=show_link)
@click.argument("token")
@click.option("--prefix", help="Only keys that start with this (a key, or fh://bucket/key).")
@click.option("--object", "exact", help="Only the object of this key (a key, or fh://bucket/key).")
@click.option("--read-only", is_flag=True, help="Only to read and list.")
@click.option("--expires", type=DURATION, help="For this long from now on: 90m, 12h, 2d.")
@click.pass_obj
def narrow(
    program: Program, token: str, prefix: str | None, exact: str | None, read_only: bool, expires: int | None
) -> dict[str, Any]:
    """A link with less allowed than TOKEN (a link or its token). Needs neither a wallet nor a network."""
    from freehold.client import grants

    if prefix is not None and exact is not None:
        raise click.UsageError("--prefix and --object exclude each other.")
    given, gateway = _split(program, token)
    scope = exact if exact is not None else prefix
    bucket: str | None = None
    if scope is not None and "://" in scope:
        bucket, scope = _parse(scope)
    operations = grants.describe(given).operations & {"read", "list"} if read_only else None
    made = grants.narrow(
        given,
        bucket=bucket,
        prefix=scope,
        exact=exact is not None,
        operations=operations,
        expires=int(time.time()) + expires if expires else None,
    )
    data = _describe(made, gateway)
    _tell(program, data)
    return data


def _split(program: Program, text: str) -> tuple[str, str]:
    """The token of a link or token, and its gateway (the settings' own for a token)."""
    from freehold.client.shares import URL_PATH, find_token

    gateway, is_link, _ = text.partition(URL_PATH)
    return find_token(text) or text, gateway if is_link else program.settings.get("gateway").value


def show_grant(data: dict[str, Any]) -> None:
    click.echo(f"{data['path']} of {data['account']}")
    click.echo(f"  allows to {' and '.join(data['operations']) or 'do nothing'}, {_until(data['expires'])}")
    if data["expired"]:
        click.echo("  has expired")
    for number, id_ in enumerate(data["ids"]):
        click.echo(f"  {'given as' if number == 0 else 'narrowed '} {id_}")


@share.command("show", show=show_grant)
@click.argument("token")
@click.pass_obj
def show(program: Program, token: str) -> dict[str, Any]:
    """What TOKEN (a link or its token) allows, and until when. Needs neither a wallet nor a network.

    Only the account's gateway can say whether it was revoked, and whether that account signed it.
    """
    data = _describe(*_split(program, token))
    return data | {"expired": data["expires"] is not None and data["expires"] <= time.time()}


def show_shares(data: list[dict[str, Any]]) -> None:
    from freehold.client.grants import format_time
    from freehold.client.shares import SHOWN

    rows = [
        [
            row["id"][:SHOWN],
            row["path"],
            ", ".join(row["operations"]),
            format_time(row["expires"]) if row["expires"] else "never",
            row["label"],
        ]
        for row in data
    ]
    print_table(["ID", "PATH", "ALLOWS", "EXPIRES", "LABEL"], rows)


@share.command("list", show=show_shares)
@click.pass_obj
def list_(program: Program) -> list[dict[str, Any]]:
    """What this account shares, and until when."""
    from freehold.cli.connection import run

    return run(_list(program))


async def _list(program: Program) -> list[dict[str, Any]]:
    from freehold.cli.client import open_client
    from freehold.client import shares

    async with open_client(program) as client:
        kept = await shares.listing(client.objects.root)
    return [
        {
            "id": id_,
            "path": share.path,
            "operations": list(share.operations),
            "created": share.created,
            "expires": share.expires or None,
            "label": share.label,
        }
        for id_, share in kept.items()
    ]


def show_revoked(data: dict[str, Any]) -> None:
    click.echo(f"revoked {data['path']}: that link, and every one narrowed from it, is dead")


@share.command("revoke", show=show_revoked)
@click.argument("what")
@click.option("--all", "everything", is_flag=True, help="Also what it was narrowed from: all that was given with it.")
@click.pass_obj
def revoke(program: Program, what: str, everything: bool) -> dict[str, Any]:
    """Revoke WHAT: a link, a token, or an id of `freehold share list`. It and all that was narrowed from it is dead.

    Gateways hear of it within seconds.
    """
    from freehold.cli.connection import run

    return run(_revoke(program, what, everything))


async def _revoke(program: Program, what: str, everything: bool) -> dict[str, Any]:
    from freehold.cli.client import open_client
    from freehold.client import shares
    from freehold.client.grants import GrantKey

    async with open_client(program) as client:
        done = await shares.revoke(client.objects.root, GrantKey(client.account.seed), what, everything=everything)
    return {"id": done.id, "path": done.path, "until": done.until}
