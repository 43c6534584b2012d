"""`freehold status`: what runs where, healthy or why not, where the epoch stands, and this account's jobs that run."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.output import Command, Program, plain, print_table

if TYPE_CHECKING:
    from freehold.cli.connection import Connection
    from freehold.market.network import Network
    from freehold.net.client import Peer
    from freehold.protocol.units import Address

ANSWER_SECONDS = 3.0
STALE_LENGTHS = 3  # epoch lengths without a report, after which the network is not healthy


def show_status(data: dict[str, Any]) -> None:
    from freehold.cli.amounts import format_amount, format_seconds

    chain = data["chain"]
    click.echo(f"network {data['network']} ({data['file']})")
    if chain["healthy"]:
        click.echo(f"chain   {chain['url']}  chain id {chain['chain_id']}, block {chain['block']}, "
                   f"{format_seconds(chain['age'])} old")  # fmt: skip
    else:
        click.echo(f"chain   {chain['url']}  {chain['why']}")
    epoch = data["epoch"]
    if epoch:
        click.echo(f"epoch   {epoch['open']} open: {epoch['step']}, view {epoch['view']}")
        click.echo(f"        reported {epoch['posted']}, active {epoch['active']}")
        click.echo(f"price   {format_amount(int(epoch['price']))} US dollars a token")
    click.echo()
    listed = [*data["processes"], *([data["gateway"]] if data["gateway"] else [])]
    print_table(
        ["NAME", "KIND", "URL", "STATE"],
        [[p["name"], p["kind"], p["url"], "healthy" if p["healthy"] else p["why"]] for p in listed],
    )
    for job in data["jobs"]:
        left = format_seconds(max(0, job["deadline"] - time.time()))
        waits = "" if job["driven"] else f"; nobody waits for it: `freehold job wait {job['job']}` goes on with it"
        click.echo(f"job {job['job']}  {job['name']}  {job['phase']}, {left} until its deadline{waits}")
    for line in data["problems"]:
        click.secho(f"! {line}", fg="yellow")
    click.echo("\nall is well" if data["healthy"] else "\nnot healthy")


@click.command(cls=Command, show=show_status)
@click.pass_obj
def status(program: Program) -> dict[str, Any]:
    """What runs where, healthy or why not; URLs; the epoch's step; this account's jobs that run."""
    from freehold.cli.connection import run

    return run(_status(program))


async def _status(program: Program) -> dict[str, Any]:
    from freehold.cli.connection import connect, known_names, name_of

    names = known_names(program)
    async with connect(program) as connection:
        network = connection.network
        chain = await _chain(connection)
        listed = [(connection.member(m), name_of(names, str(m.address)), "member", m.address) for m in network.members]
        if chain["healthy"]:
            listed += await _nodes(connection, names)
        gateway, *processes = await asyncio.gather(
            _gateway(program, connection), *(check_process(*item) for item in listed)
        )
        epoch = await _epoch(connection) if chain["healthy"] else None
        jobs = await _jobs(program, connection.network)
    problems = _problems([*processes, *([gateway] if gateway else [])], chain, epoch)
    return {
        "network": network.name,
        "file": str(program.settings.path("network")),
        "chain": chain,
        "epoch": epoch,
        "processes": processes,
        "gateway": gateway,
        "jobs": jobs,
        "problems": problems,
        "healthy": not problems,
    }


async def _chain(connection: Connection) -> dict[str, Any]:
    """The chain's head; one that looks old is stale only if no new block comes while one looks."""
    from freehold.protocol.errors import FreeholdError

    facts: dict[str, Any] = {"url": connection.network.rpc_url, "chain_id": connection.network.chain_id}
    try:
        head = await connection.rpc.header()
    except FreeholdError as error:
        return facts | {"healthy": False, "why": error.message}
    if head is None:
        return facts | {"healthy": False, "why": "it has no blocks"}
    age = max(0, int(time.time()) - head.timestamp)
    stale = age > STALE_LENGTHS * max(connection.network.parameters.epoch_length, 10)
    until = time.monotonic() + ANSWER_SECONDS
    while stale and time.monotonic() < until:
        await asyncio.sleep(0.2)
        stale = await connection.rpc.block_number() == head.number
    return facts | {
        "healthy": True,
        "why": "",
        "block": head.number,
        "time": head.timestamp,
        "age": age,
        "stale": stale,
    }


async def _nodes(connection: Connection, names: dict[str, dict[str, str]]) -> list[tuple[Peer, str, str, Address]]:
    from freehold.cli.connection import name_of
    from freehold.cli.operators import read_registrations
    from freehold.protocol.units import Address

    nodes = await read_registrations(connection)
    listed = [
        (connection.node(Address(node), r["endpoint"]), name_of(names, r["operator"]), "node", Address(node))
        for node, r in nodes.items()
    ]
    return sorted(listed, key=lambda item: (len(item[1]), item[1]))


async def check_process(peer: Peer, name: str, kind: str, address: Address) -> dict[str, Any]:
    """Whether a process says that it takes part, and if not why not."""
    from freehold.protocol.errors import FreeholdError

    facts = {"name": name, "kind": kind, "url": peer.url, "address": str(address)}
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            answer = await peer.get_json("/readyz")
        return facts | {"healthy": bool(answer["ready"]), "why": answer["why"]}
    except FreeholdError as error:
        return facts | {"healthy": False, "why": error.message}
    except TimeoutError:
        return facts | {"healthy": False, "why": f"no answer within {ANSWER_SECONDS:g} s: stopped, or overloaded"}


async def _gateway(program: Program, connection: Connection) -> dict[str, Any] | None:
    """The gateway of the settings, and whether it answers; None where none is known."""
    import aiohttp

    url = program.settings.get("gateway").value.rstrip("/")
    if not url:
        return None
    facts = {"name": "gateway", "kind": "gateway", "url": url}
    try:
        # Nothing of ours goes there, and what comes is shown alone: so any certificate will do, as one of its own does.
        request = connection.dial.session.get(f"{url}/-/readyz", ssl=False)
        async with asyncio.timeout(ANSWER_SECONDS), request as answer:
            data = (await answer.json())["data"]
            return facts | {"healthy": bool(data["ready"]), "why": str(data["why"])}
    except TimeoutError:
        return facts | {"healthy": False, "why": f"no answer within {ANSWER_SECONDS:g} s: stopped, or overloaded"}
    except aiohttp.ClientConnectionError:
        return facts | {"healthy": False, "why": "nothing answers there: is the gateway running?"}
    except (aiohttp.ClientError, ValueError, KeyError, TypeError):
        return facts | {"healthy": False, "why": "what answers there is no gateway"}


async def _jobs(program: Program, network: Network) -> list[dict[str, Any]]:
    """The jobs of the settings' wallet that have not ended, from its journal: no passphrase is needed for that."""
    from freehold.cli.client import get_home
    from freehold.cli.wallets import find_wallets
    from freehold.client.account import get_account_dir
    from freehold.client.jobs import describe_row
    from freehold.client.jobs_journal import JobJournal
    from freehold.protocol.errors import FreeholdError

    name = program.settings.get("wallet").value
    try:
        address = find_wallets(program, name).address(name)
    except FreeholdError:
        return []
    folder = get_account_dir(get_home(program), network.domain, address) / "jobs"
    if not (folder / "jobs.sqlite").exists():
        return []
    journal = JobJournal(folder)
    try:
        running = [row for row in await journal.jobs() if not row.ended]
        return [describe_row(row) | {"driven": journal.is_driven(row.id)} for row in running]
    finally:
        journal.close()


async def _epoch(connection: Connection) -> dict[str, Any]:
    from freehold.protocol.errors import FreeholdError

    ledger = connection.ledger
    posted, due = await ledger.posted_epoch(), await ledger.due_epoch()
    facts: dict[str, Any] = {"open": posted + 1, "posted": posted, "active": due}
    facts["frozen_at"], facts["paused_until"] = await ledger.frozen_at(), await ledger.paused_until()
    facts["price"] = str(await connection.credits.price())
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            answers = [value for _, value in await connection.quorum.ask("/v1/status")]
    except (FreeholdError, TimeoutError):
        answers = []
    if not answers:
        return facts | {"step": "no member answers", "view": 0}
    newest = max(answers, key=lambda answer: (answer["epoch"], answer["view"]))
    return facts | {"step": newest["step"], "view": newest["view"]}


def _problems(processes: list[dict[str, Any]], chain: dict[str, Any], epoch: Any) -> list[str]:
    problems = [f"{p['name']} at {p['url']}: {plain(p['why'])}" for p in processes if not p["healthy"]]
    if not chain["healthy"]:
        problems.insert(0, f"the chain at {chain['url']}: {chain['why']}")
    elif chain["stale"]:
        problems.append(f"the chain's newest block is {chain['age']} s old")
    members = [p for p in processes if p["kind"] == "member"]
    down = sum(not p["healthy"] for p in members)
    if epoch and 3 * down >= len(members):
        problems.append(f"{down} of {len(members)} members are down: epochs stop until a quorum is back")
    if epoch and epoch["frozen_at"]:
        problems.append("the network is frozen, until its members report: `freehold collect` is the way out")
    if epoch and epoch["paused_until"] > chain["time"]:
        problems.append(f"the guardian has paused claims and activation, for {epoch['paused_until'] - chain['time']} s")
    return problems
