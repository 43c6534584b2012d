"""`freehold fleet`: devices by one root in one transaction; then single ones proven, moved, revoked; and their reports.

The wallet (`--wallet`) signs: the operator's to register and retire, a device's owner's to move it, either's to revoke.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.output import Group, Program, confirm, print_table

if TYPE_CHECKING:
    from freehold.chain.abi import Call
    from freehold.chain.transactor import Receipt
    from freehold.cli.connection import Connection
    from freehold.cli.fleet_chain import FleetRecord
    from freehold.protocol.fleets import FleetDevice
    from freehold.protocol.keys import Key
    from freehold.protocol.tables import Table
    from freehold.protocol.units import Address

FLEET = click.argument("fleet", metavar="FLEET")
INDEX = click.argument("index", type=click.IntRange(min=0, max=2**32 - 1))
LIST = click.option(
    "--list",
    "path",
    type=click.Path(exists=True, path_type=Path),
    help="The fleet's list or folder; asked of its operator's node if not given.",
)
YES = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
NOTED = 20_000  # devices, whose keys take more than a second or two
ENROLMENT_BYTES = 180  # of a row of evidence on the wire, and what its batch takes beside
FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group(cls=Group)
def fleet() -> None:
    """Devices: make, register, prove, move, revoke, report."""


class PlaceType(click.ParamType[int]):
    """An H3 cell in hexadecimal (bit 63 zero, mode 1)."""

    name = "cell"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).lower().removeprefix("0x")
        try:
            cell = int(text, 16)
        except ValueError:
            cell = 0
        if cell >> 63 or cell >> 59 & 15 != 1:
            self.fail(f"{value!r} is no H3 cell: 15 hexadecimal digits such as 8928308280fffff", param, ctx)
        return cell


def show_made(data: dict[str, Any]) -> None:
    click.echo(f"{data['devices']} devices in {data['folder']}, owned by {data['owner']}")
    click.echo(f"  root  {data['root']}")
    click.echo(f"Register them with `freehold fleet register {data['folder']} --wallet OPERATOR`.")


@fleet.command("make", show=show_made)
@click.option("--devices", type=click.IntRange(min=1, max=10_000_000), required=True, help="How many.")
@click.option("--owner", required=True, help="Who is paid for them: a name of this network, or an address.")
@click.option("--place", type=PlaceType(), default="8928308280fffff", show_default=True, help="Their H3 cell.")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.pass_obj
def make(program: Program, devices: int, owner: str, place: int, folder: Path) -> dict[str, Any]:
    """Make the keys of simulated devices in DIR, and the list of the devices, each row signed by its device."""
    from freehold.cli.connection import find_address, load_network
    from freehold.cli.fleet_files import make_fleet

    address = find_address(program, owner)
    if devices > NOTED:
        program.note(f"making {devices} keys, and signing as many rows: some ten seconds for every 100,000")
    made = make_fleet(folder, devices, address, place, load_network(program).domain)
    return {"folder": str(folder), "devices": len(made), "owner": str(address), "root": str(made.root)}


def show_registered(data: dict[str, Any]) -> None:
    if data["transaction"]:
        click.echo(f"registered {data['devices']} devices as fleet {data['fleet']}")
        click.echo(f"  gas       {data['gas']:,} in one transaction, {data['gas_per_device']} a device")
        click.echo(f"  sent in   {data['transaction']}")
    else:
        click.echo(f"these {data['devices']} devices are registered already, as fleet {data['fleet']}")
    click.echo(f"  root      {data['root']}")
    click.echo(f"  list at   {', '.join(data['nodes']) or 'no node yet'}")


@fleet.command("register", show=show_registered)
@click.argument("path", metavar="FILE", type=click.Path(exists=True, path_type=Path))
@click.option("--uri", default="", help="Where else the list is published (at most 200 characters).")
@click.pass_obj
def register(program: Program, path: Path, uri: str) -> dict[str, Any]:
    """Register all devices of FILE (a list, or the folder that has it) by one root in one transaction.

    The list goes to the operator's node, which has them enrolled. Run again, it only sends the list again.
    """
    from freehold.cli.connection import run

    if len(uri.encode()) > 200:
        raise click.UsageError("--uri has at most 200 characters.")
    return run(_register(program, path, uri))


async def _register(program: Program, path: Path, uri: str) -> dict[str, Any]:
    from freehold.chain.contracts.fleets import FleetRegistered
    from freehold.cli.connection import connect
    from freehold.cli.fleet_chain import fleets_of, nodes_of, read_fleets, send_list
    from freehold.cli.fleet_files import check_signatures, read_list
    from freehold.cli.wallets import open_wallet
    from freehold.oracle.quotas import QUOTAS, Standing
    from freehold.protocol.errors import Refused

    key = open_wallet(program).key
    async with connect(program) as connection:
        domain = connection.network.domain
        devices = read_list(path, domain)
        check_signatures(devices, domain)
        most = QUOTAS[Standing.BONDED].size // ENROLMENT_BYTES
        if len(devices) > most:
            program.warn(
                f"members take about {most} rows of one node in an epoch, and a fleet is enrolled in one: "
                f"{len(devices)} devices can be proven, and are not paid; make several fleets of them"
            )
        nodes = await nodes_of(connection, key.address)
        if not nodes:
            raise Refused(
                f"{key.address} has no registered node, through which its devices could report",
                hint="Sign with the wallet of an operator: --wallet operator-1 in a local network.",
            )
        known = [
            record
            for record in (await read_fleets(connection)).values()
            if record.operator == key.address and record.root == devices.root and not record.retired
        ]
        receipt = None
        if known:
            fleet_ = known[0].fleet
        else:
            contract = fleets_of(connection)
            receipt = await _transact(connection, key, contract.register(devices.root, len(devices), uri))
            events = [contract.decode(log) for log in receipt.logs if log.address == contract.address]
            fleet_ = next(event.fleet for event in events if isinstance(event, FleetRegistered))
        took, failed = await send_list(nodes, fleet_, devices)
        for reason in failed:
            program.warn(f"the list was not sent to {reason}; run the same command again")
        return {
            "fleet": str(fleet_),
            "operator": str(key.address),
            "devices": len(devices),
            "root": str(devices.root),
            "transaction": str(receipt.transaction) if receipt else None,
            "gas": receipt.gas_used if receipt else 0,
            "gas_per_device": -(-receipt.gas_used // len(devices)) if receipt else 0,
            "nodes": took,
        }


async def _transact(connection: Connection, key: Key, call: Call) -> Receipt:
    from freehold.chain.transactor import Sender

    return await Sender(connection.rpc, key.secret, confirmations=1).transact(call)


def show_fleets(data: list[dict[str, Any]]) -> None:
    rows = [
        [d["fleet"][:18], d["name"], d["devices"], d["moved"], d["revoked"], "retired" if d["retired"] else "live"]
        for d in data
    ]
    print_table(["FLEET", "OPERATOR", "DEVICES", "MOVED", "REVOKED", "STATE"], rows)


@fleet.command("list", show=show_fleets)
@click.pass_obj
def list_(program: Program) -> list[dict[str, Any]]:
    """Every fleet on chain: whose, how many devices, how many of them moved or revoked since."""
    from freehold.cli.connection import run

    return run(_list(program))


async def _list(program: Program) -> list[dict[str, Any]]:
    from freehold.cli.connection import connect, known_names
    from freehold.cli.fleet_chain import read_fleets

    names = known_names(program)
    async with connect(program) as connection:
        return [_describe(record, names) for record in (await read_fleets(connection)).values()]


def _describe(record: FleetRecord, names: dict[str, dict[str, str]]) -> dict[str, Any]:
    from freehold.cli.connection import name_of

    return {
        "fleet": str(record.fleet),
        "operator": str(record.operator),
        "name": name_of(names, str(record.operator)),
        "devices": record.count,
        "root": str(record.root),
        "uri": record.uri,
        "moved": len(record.moved),
        "revoked": len(record.revoked),
        "retired": record.retired,
    }


def show_fleet(data: dict[str, Any]) -> None:
    click.echo(f"fleet {data['fleet']} of {data['name']} ({data['operator']})")
    click.echo(f"  devices   {data['devices']}{', retired' if data['retired'] else ''}")
    click.echo(f"  root      {data['root']}")
    for index, owner in data["moved_to"].items():
        click.echo(f"  moved     device {index} to {owner}")
    if data["revoked_indices"]:
        click.echo(f"  revoked   {', '.join(map(str, data['revoked_indices']))}")
    for node in data["nodes"]:
        known = f"enrolled in epoch {node['enrolled']}" if node["enrolled"] else "not enrolled yet"
        reported = f"{node['reported']} of {node['count']} have reported in the open epoch"
        click.echo(f"  node      {node['url']}: " + (node["why"] or f"{known}; {reported}"))


@fleet.command("show", show=show_fleet)
@FLEET
@click.pass_obj
def show(program: Program, fleet: str) -> dict[str, Any]:
    """FLEET (its id, or the beginning of it): devices moved and revoked, whether enrolled, who has reported."""
    from freehold.cli.connection import run

    return run(_show(program, fleet))


async def _show(program: Program, text: str) -> dict[str, Any]:
    from freehold.cli.connection import connect, known_names
    from freehold.cli.fleet_chain import find_fleet, nodes_of
    from freehold.protocol.errors import FreeholdError

    async with connect(program) as connection:
        record = await find_fleet(connection, text)
        nodes = []
        for peer in await nodes_of(connection, record.operator):
            facts: dict[str, Any] = {"count": record.count, "enrolled": 0, "reported": 0}
            why = ""
            try:
                facts |= await peer.get_json(f"/v1/sensing/fleets/{record.fleet}")
            except FreeholdError as error:
                why = error.message
            nodes.append(facts | {"url": peer.url, "why": why})
        return _describe(record, known_names(program)) | {
            "moved_to": {str(index): str(owner) for index, owner in sorted(record.moved.items())},
            "revoked_indices": sorted(record.revoked),
            "nodes": nodes,
        }


def show_proof(data: dict[str, Any]) -> None:
    click.echo(f"device {data['index']} of fleet {data['fleet']}: {data['device']['device']}")
    click.echo(f"  place     {int(data['device']['place']):x}")
    for level, sibling in enumerate(data["proof"]):
        click.echo(f"  proof {level:>2}  {sibling}")
    click.echo(f"  root      {data['root']}   (the contract: the proof leads to it)")
    click.echo(
        f"  {'live, owned by ' + data['owner'] if data['live'] else 'not live: it was revoked, or its fleet retired'}"
    )
    click.echo(f"  enrolled  {'in epoch ' + data['since'] if data['since'] else 'not in the committed state'}")


@fleet.command("prove", show=show_proof)
@FLEET
@INDEX
@LIST
@click.pass_obj
def prove(program: Program, fleet: str, index: int, path: Path | None) -> dict[str, Any]:
    """Prove that device INDEX stands in FLEET: its row and proof, checked by the contract against the root on chain."""
    from freehold.cli.connection import run

    return run(_prove(program, fleet, index, path))


async def _prove(program: Program, text: str, index: int, path: Path | None) -> dict[str, Any]:
    from freehold.cli.connection import connect
    from freehold.cli.fleet_chain import fleets_of, struct_of
    from freehold.node.committed import read_open, read_rows
    from freehold.services.sensing.terms import NAME

    async with connect(program) as connection:
        record, devices = await _find(connection, text, index, path)
        row, proof = devices.row(index), devices.tree.proof(index)
        live, owner = await fleets_of(connection).is_live(record.fleet, index, struct_of(row), proof)
        report = (await read_open(connection.quorum)).report
        view = await read_rows(connection.quorum, report, row.device) if report else None
        states = [state for state in view.services[NAME] if state.fleet == record.fleet] if view else []
        return {
            "fleet": str(record.fleet),
            "index": index,
            "device": row.to_json(),
            "proof": [str(sibling) for sibling in proof],
            "root": str(record.root),
            "live": live,
            "owner": str(owner) if live else None,
            "since": str(states[0].since) if states else None,
        }


async def _find(
    connection: Connection, text: str, index: int, path: Path | None
) -> tuple[FleetRecord, Table[FleetDevice]]:
    """The fleet and its list. NotFound where it has no device `index`."""
    from freehold.cli.fleet_chain import check_list, fetch_devices, find_fleet
    from freehold.cli.fleet_files import read_list
    from freehold.protocol.errors import NotFound

    record = await find_fleet(connection, text)
    if index >= record.count:
        raise NotFound(f"fleet {record.fleet} has {record.count} devices, numbered from 0")
    if path is None:
        return record, await fetch_devices(connection, record)
    return record, check_list(read_list(path, connection.network.domain), record)


def show_changed(data: dict[str, Any]) -> None:
    what = f"device {data['index']} of fleet {data['fleet']}" if "index" in data else f"fleet {data['fleet']}"
    to = f" to {data['to']}" if data.get("to") else ""
    click.echo(f"{what} {data['what']}{to}, in transaction {data['transaction']} ({data['gas']:,} gas)")
    click.echo("  it counts from the first epoch whose anchor comes after it")


@fleet.command("move", show=show_changed)
@FLEET
@INDEX
@click.option("--to", required=True, help="The new owner: a name of this network, or an address.")
@LIST
@click.pass_obj
def move(program: Program, fleet: str, index: int, to: str, path: Path | None) -> dict[str, Any]:
    """Give device INDEX of FLEET to another owner; the wallet is its present owner's."""
    from freehold.cli.connection import find_address, run

    return run(_change(program, fleet, index, path, find_address(program, to)))


@fleet.command("revoke", show=show_changed)
@FLEET
@INDEX
@LIST
@YES
@click.pass_obj
def revoke(program: Program, fleet: str, index: int, path: Path | None, yes: bool) -> dict[str, Any]:
    """Revoke device INDEX of FLEET for good; the wallet is its operator's or its present owner's."""
    from freehold.cli.connection import run

    confirm(program, f"Device {index} never counts again. Revoke it?", yes=yes)
    return run(_change(program, fleet, index, path, None))


async def _change(program: Program, text: str, index: int, path: Path | None, to: Address | None) -> dict[str, Any]:
    from freehold.cli.connection import connect
    from freehold.cli.fleet_chain import fleets_of, struct_of
    from freehold.cli.wallets import open_wallet
    from freehold.protocol.errors import Refused

    key = open_wallet(program).key
    async with connect(program) as connection:
        record, devices = await _find(connection, text, index, path)
        row, proof = devices.row(index), devices.tree.proof(index)
        contract = fleets_of(connection)
        live, owner = await contract.is_live(record.fleet, index, struct_of(row), proof)
        if not live:
            raise Refused(f"device {index} of fleet {record.fleet} is not live: it was revoked, or its fleet retired")
        may = {owner} if to else {owner, record.operator}
        if key.address not in may:
            who = f"its owner {owner}" if to else f"its owner {owner} or its operator {record.operator}"
            raise Refused(f"only {who} may do this, and not {key.address}", hint="Name the right --wallet.")
        call = (
            contract.move(record.fleet, index, struct_of(row), proof, to)
            if to
            else contract.revoke(record.fleet, index, struct_of(row), proof)
        )
        receipt = await _transact(connection, key, call)
        facts = {"index": index, "device": str(row.device), "what": "moved" if to else "revoked"}
        return facts | {"to": str(to) if to else None} | _sent(record, receipt)


@fleet.command("retire", show=show_changed)
@FLEET
@YES
@click.pass_obj
def retire(program: Program, fleet: str, yes: bool) -> dict[str, Any]:
    """Retire FLEET for good: none of its devices counts any more. The wallet is its operator's."""
    from freehold.cli.connection import run

    confirm(program, "None of its devices ever counts again. Retire the fleet?", yes=yes)
    return run(_retire(program, fleet))


async def _retire(program: Program, text: str) -> dict[str, Any]:
    from freehold.cli.connection import connect
    from freehold.cli.fleet_chain import find_fleet, fleets_of
    from freehold.cli.wallets import open_wallet
    from freehold.protocol.errors import Refused

    key = open_wallet(program).key
    async with connect(program) as connection:
        record = await find_fleet(connection, text)
        if record.retired:
            raise Refused(f"fleet {record.fleet} is retired already")
        if record.operator != key.address:
            raise Refused(
                f"fleet {record.fleet} is {record.operator}'s, not {key.address}'s", hint="Name its --wallet."
            )
        receipt = await _transact(connection, key, fleets_of(connection).retire(record.fleet))
        return {"what": "retired"} | _sent(record, receipt)


def _sent(record: FleetRecord, receipt: Receipt) -> dict[str, Any]:
    return {"fleet": str(record.fleet), "transaction": str(receipt.transaction), "gas": receipt.gas_used}


def show_reports(data: dict[str, Any]) -> None:
    for sent in data["epochs"]:
        known = f", {sent['known']} were there before" if sent["known"] else ""
        click.echo(f"epoch {sent['epoch']}: {sent['taken']} reports taken by {data['node']}{known}")
        for reason, count in sent["refused"].items():
            click.echo(f"  {count} refused: {reason.replace('_', ' ')}")


@fleet.command("report", show=show_reports)
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--epochs", type=click.IntRange(min=1), default=1, show_default=True, help="For so many epochs in a row.")
@click.pass_obj
def report(program: Program, folder: Path, epochs: int) -> dict[str, Any]:
    """All simulated devices of DIR sign this epoch's report, and send it to their operator's node."""
    from freehold.cli.connection import run

    return run(_report(program, folder, epochs))


async def _report(program: Program, folder: Path, epochs: int) -> dict[str, Any]:
    from freehold.cli.connection import connect
    from freehold.cli.fleet_chain import find_reporting_node, nodes_of, read_fleets
    from freehold.cli.fleet_files import read_keys, read_list
    from freehold.protocol.errors import NotFound
    from freehold.services.sensing.device import Simulator

    async with connect(program) as connection:
        devices = read_list(folder, connection.network.domain)
        simulator = Simulator(read_keys(folder, devices), connection.network.domain)
        known = [r for r in (await read_fleets(connection)).values() if r.root == devices.root and not r.retired]
        if not known:
            raise NotFound(
                f"the devices of {folder} are in no live fleet", hint="`freehold fleet register` them first."
            )
        peer = await find_reporting_node(await nodes_of(connection, known[-1].operator), known[-1].fleet)
        done = []
        for _ in range(epochs):
            opened, sent = await simulator.report(peer)
            done.append({"epoch": opened.epoch, "taken": sent.new, "known": sent.known, "refused": dict(sent.refused)})
            if epochs > 1:
                program.note(f"epoch {opened.epoch}: {sent.new + sent.known} of {len(devices)} have reported")
        return {"fleet": str(known[-1].fleet), "node": peer.url, "devices": len(devices), "epochs": done}
