"""`freehold members`: who signs for which epoch, what each has bonded; the governor's and the members' own levers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from freehold.cli.amounts import AMOUNT
from freehold.cli.output import Group, Program, confirm, print_table

if TYPE_CHECKING:
    from freehold.chain.contracts import Members
    from freehold.cli.connection import Connection
    from freehold.protocol.units import Address

YES = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


@click.group(cls=Group)
def members() -> None:
    """The quorum's members, by epoch, and their bonds."""


def show_members(data: dict[str, Any]) -> None:
    from freehold.cli.amounts import format_exact

    for one in data["sets"]:
        state = "in force" if one["in_force"] else "to come"
        click.echo(f"from epoch {one['from_epoch']} ({state}), {one['quorum']} of {len(one['members'])} sign:")
        click.echo("".join(f"  {member}\n" for member in one["members"]), nl=False)
    rows = [
        [b["member"], b["name"], format_exact(int(b["bond"])), format_exact(int(b["thawing"])), b["ends"] or ""]
        for b in data["bonds"]
    ]
    print_table(["MEMBER", "NAME", "BOND", "THAWING", "UNTIL EPOCH"], rows)
    click.echo(
        f"a scheduled member's bond is {format_exact(int(data['member_bond']))} tokens; thaws count by epoch "
        f"{data['nominal_epoch']}; only the governor, {data['governor']}, schedules, from epoch {data['earliest']} on",
        err=True,
    )


@members.command("show", show=show_members)
@click.pass_obj
def show(program: Program) -> dict[str, Any]:
    """The sets of members that are in force or scheduled, each member's bond, and who may change them from when on."""
    from freehold.cli.connection import run

    return run(_show(program))


async def _show(program: Program) -> dict[str, Any]:
    from freehold.cli.connection import connect, known_names, name_of
    from freehold.protocol.certificates import quorum

    names = known_names(program)
    async with connect(program) as connection:
        contract = contract_of(connection)
        sets = await read_sets(connection, contract)
        opened = await connection.ledger.posted_epoch() + 1
        current = max(start for start in sets if start <= opened)
        listed = list(dict.fromkeys(m for start in sorted(sets) if start >= current for m in sets[start]))
        bonds = [(member, await contract.position(member)) for member in listed]
        return {
            "governor": str(await contract.governor()),
            "member_bond": str(await contract.member_bond()),
            "nominal_epoch": await connection.ledger.nominal_epoch(),
            "earliest": await earliest(connection, contract, sets),
            "sets": [
                {
                    "from_epoch": start,
                    "in_force": start == current,
                    "quorum": quorum(len(sets[start])),
                    "members": [str(member) for member in sets[start]],
                }
                for start in sorted(sets)
                if start >= current
            ],
            "bonds": [
                {
                    "member": str(member),
                    "name": name_of(names, str(member)),
                    "bond": str(position.bond),
                    "thawing": str(position.thawing),
                    "ends": position.ends,
                }
                for member, position in bonds
            ],
        }


def contract_of(connection: Connection) -> Members:
    """The Members contract of an open network."""
    from freehold.chain.contracts import Members

    return Members(connection.rpc, connection.network.contracts["members"])


async def read_sets(connection: Connection, contract: Members) -> dict[int, tuple[Address, ...]]:
    """Every set by its first epoch; of two for one epoch the later one counts."""
    from freehold.chain.contracts.members import Members, MembersScheduled

    head = await connection.rpc.block_number()
    logs = await connection.rpc.get_logs(connection.network.deployment_block, head, [contract.address])
    events = [Members.decode(entry) for entry in logs]
    return {event.from_epoch: event.members for event in events if isinstance(event, MembersScheduled)}


async def earliest(connection: Connection, contract: Members, sets: dict[int, tuple[Address, ...]]) -> int:
    """The first epoch from which a set that is scheduled now may count: with notice, and not before another."""
    noticed = await connection.oracle.highest_epoch() + 1 + await contract.notice_epochs()
    return max(noticed, *sets)


def show_scheduled(data: dict[str, Any]) -> None:
    click.echo(f"from epoch {data['from_epoch']} on, {data['quorum']} of {len(data['members'])} members sign")


@members.command("schedule", show=show_scheduled)
@click.argument("members", nargs=-1, required=True)
@click.option("--from", "from_epoch", type=click.IntRange(min=1), required=True, help="The first epoch of this set.")
@YES
@click.pass_obj
def schedule(program: Program, members: tuple[str, ...], from_epoch: int, yes: bool) -> dict[str, Any]:
    """Make MEMBERS, in this order, the quorum from an epoch on. Only the governor's wallet may.

    Each has bonded before (`freehold members bond`). A set that is scheduled for the same epoch is replaced. Every
    party's network file must list the new members, with where they listen, before they count.
    """
    from freehold.cli.connection import find_address, run

    return run(_schedule(program, [find_address(program, who) for who in members], from_epoch, yes))


async def _schedule(program: Program, chosen: list[Address], from_epoch: int, yes: bool) -> dict[str, Any]:
    from freehold.cli.amounts import format_exact
    from freehold.cli.connection import connect
    from freehold.cli.signing import check_holder, open_sender
    from freehold.protocol.certificates import quorum
    from freehold.protocol.errors import InvalidInput, Refused

    async with connect(program) as connection:
        contract = contract_of(connection)
        governor, bond = await contract.governor(), await contract.member_bond()
        first = await earliest(connection, contract, await read_sets(connection, contract))
        if from_epoch < first:
            raise InvalidInput(
                f"a set scheduled now may count from epoch {first} on: with notice, and in its order",
                earliest=first,
            )
        if len(set(chosen)) != len(chosen):
            raise InvalidInput("a member is named twice")
        for member in chosen:
            has = (await contract.position(member)).bond
            if has < bond:
                lacks = format_exact(bond - has).replace(",", "")
                raise Refused(
                    f"{member} has bonded {format_exact(has)} tokens, and a member's bond is {format_exact(bond)}",
                    hint=f"`freehold members bond {member} {lacks}` by anyone adds what lacks.",
                )
            if member not in connection.network.member_addresses:
                program.warn(f"{member} is not in this network file: nobody who reads it will find that member")
        sender = open_sender(program, connection, governor)
        check_holder(sender, "governor", governor)
        confirm(program, f"Let these {len(chosen)} members sign from epoch {from_epoch} on?", yes=yes)
        await sender.transact(contract.schedule(chosen, from_epoch))
        return {"from_epoch": from_epoch, "quorum": quorum(len(chosen)), "members": [str(m) for m in chosen]}


def show_position(data: dict[str, Any]) -> None:
    from freehold.cli.amounts import format_exact

    thawing = f", {format_exact(int(data['thawing']))} thaw until epoch {data['ends']}" if data["ends"] else ""
    click.echo(f"{data['member']} has bonded {format_exact(int(data['bond']))} tokens{thawing}")


async def _position(contract: Members, member: Address) -> dict[str, Any]:
    position = await contract.position(member)
    return {
        "member": str(member),
        "bond": str(position.bond),
        "thawing": str(position.thawing),
        "ends": position.ends,
    }


@members.command("bond", show=show_position)
@click.argument("member")
@click.argument("amount", type=AMOUNT)
@YES
@click.pass_obj
def bond(program: Program, member: str, amount: int, yes: bool) -> dict[str, Any]:
    """Add AMOUNT tokens of the wallet's to the bond of MEMBER. Anyone may; only MEMBER can take it back."""
    from freehold.cli.connection import find_address, run

    return run(_bond(program, find_address(program, member), amount, yes))


async def _bond(program: Program, member: Address, amount: int, yes: bool) -> dict[str, Any]:
    from freehold.cli.amounts import format_exact
    from freehold.cli.connection import connect
    from freehold.cli.signing import open_sender
    from freehold.protocol.errors import Refused

    async with connect(program) as connection:
        contract, sender = contract_of(connection), open_sender(program, connection)
        has = await connection.token.balance_of(sender.address)
        if has < amount:
            raise Refused(
                f"{sender.address} has {format_exact(has)} tokens, and {format_exact(amount)} are to be bonded"
            )
        confirm(program, f"Bond {format_exact(amount)} tokens of {sender.address} for {member}?", yes=yes)
        if await connection.token.allowance(sender.address, contract.address) < amount:
            await sender.transact(connection.token.approve(contract.address, amount))
        await sender.transact(contract.bond(member, amount))
        return await _position(contract, member)


@members.command("thaw", show=show_position)
@click.argument("amount", type=AMOUNT)
@YES
@click.pass_obj
def thaw(program: Program, amount: int, yes: bool) -> dict[str, Any]:
    """Begin to take AMOUNT out of the wallet's own bond: it may be withdrawn some epochs later, and slashed until then.

    A member of a set that is in force, scheduled, or has a report that is not active yet keeps a member's bond.
    """
    from freehold.cli.connection import run

    return run(_thaw(program, amount, yes))


async def _thaw(program: Program, amount: int, yes: bool) -> dict[str, Any]:
    from freehold.chain.errors import Reverted
    from freehold.cli.amounts import format_exact
    from freehold.cli.connection import connect
    from freehold.cli.signing import open_sender
    from freehold.protocol.errors import Refused

    async with connect(program) as connection:
        contract, sender = contract_of(connection), open_sender(program, connection)
        position, least = await contract.position(sender.address), await contract.member_bond()
        if amount > position.bond:
            raise Refused(f"{sender.address} has bonded {format_exact(position.bond)} tokens, and no more can thaw")
        epochs = await contract.thaw_epochs()
        question = f"Thaw {format_exact(amount)} tokens, for {epochs} epochs from now"
        again = "? What thaws already waits anew with it" if position.thawing else ""
        confirm(program, f"{question}{again}?", yes=yes)
        try:
            await sender.transact(contract.thaw(amount))
        except Reverted as error:
            if error.reason != "members: in office":
                raise
            raise Refused(
                f"{sender.address} is in a set that is in force, scheduled, or has reports that are not active yet: "
                f"{format_exact(least)} tokens stay bonded, and {format_exact(max(0, position.bond - least))} can thaw",
                hint="`freehold members show` lists the sets. The governor schedules one without this member.",
            ) from None
        return await _position(contract, sender.address)


def show_withdrawn(data: dict[str, Any]) -> None:
    from freehold.cli.amounts import format_exact

    click.echo(f"{format_exact(int(data['withdrawn']))} tokens are back at {data['member']}")


@members.command("withdraw", show=show_withdrawn)
@click.pass_obj
def withdraw(program: Program) -> dict[str, Any]:
    """Take what has thawed of the wallet's own bond."""
    from freehold.cli.connection import run

    return run(_withdraw(program))


async def _withdraw(program: Program) -> dict[str, Any]:
    from freehold.cli.amounts import format_exact
    from freehold.cli.connection import connect
    from freehold.cli.signing import open_sender
    from freehold.protocol.errors import Refused

    async with connect(program) as connection:
        contract, sender = contract_of(connection), open_sender(program, connection)
        position, now = await contract.position(sender.address), await connection.ledger.nominal_epoch()
        if not position.thawing:
            raise Refused(f"nothing of {sender.address} thaws", hint="`freehold members thaw AMOUNT` begins that.")
        if now < position.ends:
            raise Refused(
                f"{format_exact(position.thawing)} tokens thaw until epoch {position.ends} is active; it is {now} now",
                hint="While the network is frozen, every epoch length of time counts as an epoch.",
                ends=position.ends,
                nominal_epoch=now,
            )
        await sender.transact(contract.withdraw())
        return {"member": str(sender.address), "withdrawn": str(position.thawing)}
