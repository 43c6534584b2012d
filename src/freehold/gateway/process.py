"""The gateway's one wiring function: what runs, and in which order it stops.

    data/networks/...    what each account's client keeps       data/tls/    a certificate, where one is made

Start: accounts, server, then lifecycle, upkeep and services. Stop, on SIGTERM or SIGINT: no
new requests, those that run are finished within STOP_SECONDS, then the accounts. A kill at any moment loses nothing
that was acknowledged: the gateway keeps nothing that the network does not have.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from aiohttp import web

from freehold.client import service_places, shares
from freehold.client.account import Account
from freehold.client.jobs_supervisor import Supervisor
from freehold.client.keystore import open_secret
from freehold.client.sdk import Freehold
from freehold.gateway.admin import Admin
from freehold.gateway.app import Gateway
from freehold.gateway.config import GatewayConfig, WalletFile
from freehold.gateway.expiry import Expiry
from freehold.gateway.service import ServicePorts
from freehold.gateway.share import SharePages
from freehold.gateway.tenants import Tenant, Tenants
from freehold.market.network import Network
from freehold.net.client import Dial
from freehold.net.limits import Connections
from freehold.net.passing import IDLE_SECONDS as IDLE_SECONDS_OF_SERVICES
from freehold.net.running import run_until_signal
from freehold.net.server import BACKLOG, write_ready_file
from freehold.net.tls import Certificate, ensure_certificate, load_certificate, server_context
from freehold.protocol.errors import FreeholdError, InvalidInput, MalformedMessage, NotFound
from freehold.protocol.units import ZERO_HASH

log = logging.getLogger(__name__)

GATEWAY_FILE = "gateway.json"  # beside the network file: where `freehold share` finds this gateway
OWN_PATHS = "/-/"  # no bucket's name begins with "-"
READ_BYTES = 2**20  # of a body that wait to be read; about twice that for a moment
LINE_BYTES = 16 * 2**10  # of a request line, and of one header
HEADERS = 256
IDLE_SECONDS = 75.0  # of a connection between requests
LINGER_SECONDS = 2.0  # for a body that is not wanted to end, before the connection is closed
STOP_SECONDS = 20.0
UPKEEP_SECONDS = 300.0


Connect = Callable[[Network, Account, Path], Freehold]


def connect_to(network: Network, account: Account, home: Path) -> Freehold:
    """The client of an account, which keeps what it knows below `home`."""
    return Freehold(network, account, home=home)


async def run(config: GatewayConfig, stopping: asyncio.Event, connect: Connect = connect_to) -> None:
    """Run a gateway until `stopping` is set. Raises what keeps it from starting."""
    network = Network.load(config.network)
    config.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    async with AsyncExitStack() as stack:
        clients = [await _open(stack, config, wallet, network, connect) for wallet in config.wallets]
        tenants = Tenants([_make_tenant(each, config.key_label) for each in clients])
        gateway = Gateway(
            tenants,
            region=config.region,
            domain=config.domain,
            requests=config.requests,
            per_address=config.requests_per_address,
        )
        expiry = Expiry(tenants, config.lifecycle_seconds)
        admin, pages = Admin(gateway, expiry), SharePages(tenants, turns=gateway.turns)
        dial = await stack.enter_async_context(Dial(connections_per_peer=0, read_seconds=IDLE_SECONDS_OF_SERVICES))
        ports = ServicePorts(
            tenants,
            dial,
            network.domain,
            time.time,
            service_domain=config.service_domain,
            at_once=(max(1, config.requests // 2), config.requests_per_service),
        )
        supervisors = [Supervisor(client.jobs) for client in await _open_jobs(stack, config, network, clients, connect)]

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            if ports.service_at(request) is not None:
                return await gateway.count(request, ports.handle)
            if not request.raw_path.startswith(OWN_PATHS):
                return await gateway(request)
            if request.raw_path.startswith(shares.URL_PATH):
                return await gateway.count(request, pages.handle)
            if request.raw_path.startswith(service_places.URL_PATH):
                return await gateway.count(request, ports.handle)
            return await admin.handle(request)

        certificate = await asyncio.to_thread(_find_certificate, config)

        async def drain() -> None:
            ports.close()
            await gateway.close(STOP_SECONDS)

        url, stop = await serve(handle, drain, config, certificate)
        stack.push_async_callback(stop)
        log.info("the gateway serves %d accounts at %s", len(clients), url)
        _tell(config, url, certificate, tenants)
        admin.waits_for = ""
        tasks = [
            asyncio.create_task(expiry.run(), name="lifecycle"),
            asyncio.create_task(_keep_up(clients), name="upkeep"),
            *(asyncio.create_task(supervisor.run(), name="services") for supervisor in supervisors),
        ]
        stopped = asyncio.create_task(stopping.wait())
        try:
            done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in [stopped, *tasks]:
                task.cancel()
            await asyncio.gather(stopped, *tasks, return_exceptions=True)
    log.info("the gateway has stopped")


async def _open(
    stack: AsyncExitStack, config: GatewayConfig, wallet: WalletFile, network: Network, connect: Connect
) -> Freehold:
    account = await asyncio.to_thread(_open_wallet, wallet.path, config.passphrase(wallet))
    return await stack.enter_async_context(connect(network, account, config.data))


async def _open_jobs(
    stack: AsyncExitStack, config: GatewayConfig, network: Network, clients: list[Freehold], connect: Connect
) -> list[Freehold]:
    """A client of each account at the home whose journal has their jobs."""
    if config.jobs is None or config.jobs == config.data:
        return [] if config.jobs is None else clients
    return [await stack.enter_async_context(connect(network, each.account, config.jobs)) for each in clients]


def _make_tenant(client: Freehold, label: str) -> Tenant:
    return Tenant(client.objects, client.account.address.hex(), client.account.seed, label)


def _open_wallet(path: Path, passphrase: str) -> Account:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise NotFound(f"there is no wallet at {path}") from None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} is no wallet: {error}") from None
    if not isinstance(value, dict):
        raise MalformedMessage(f"{path} is no wallet")
    return Account.of_secret(open_secret(value, passphrase))


def _find_certificate(config: GatewayConfig) -> Certificate | None:
    if config.certificate is not None and config.certificate_key is not None:
        return load_certificate(config.certificate, config.certificate_key)
    if not config.tls:
        return None
    names = [config.host] if config.host not in ("", "0.0.0.0", "::") else []
    domains = [domain for domain in (config.domain, config.service_domain) if domain]
    return ensure_certificate(
        config.data / "tls", [*names, *(name for domain in domains for name in (domain, f"*.{domain}"))]
    )


async def serve(
    handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    drain: Callable[[], Awaitable[None]],
    config: GatewayConfig,
    certificate: Certificate | None,
) -> tuple[str, Callable[[], Awaitable[None]]]:
    """Listen; the URL, and what ends it: no new connections, then `drain`, then the connections.

    aiohttp by itself drops what still arrives of a body once it stops; so requests are waited for before it is told to.
    """
    log_of_http = logging.getLogger(f"{__name__}.http")
    log_of_http.setLevel(logging.CRITICAL)  # bytes that are no HTTP must not fill the disk; faults are logged elsewhere
    server = web.Server(
        handle,
        access_log=None,
        logger=log_of_http,
        keepalive_timeout=IDLE_SECONDS,
        lingering_time=LINGER_SECONDS,
        read_bufsize=READ_BYTES,
        max_line_size=LINE_BYTES,
        max_field_size=LINE_BYTES,
        max_headers=HEADERS,
        auto_decompress=False,
    )
    runner = web.ServerRunner(server, shutdown_timeout=LINGER_SECONDS)
    await runner.setup()
    context = None if certificate is None else server_context(certificate.certificate, certificate.key)
    connections = Connections(server, 2 * config.requests_per_address, 2 * config.requests, tls=context)
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(connections, config.host, config.port, backlog=BACKLOG)

    async def stop() -> None:
        listening.close()
        await drain()
        await runner.cleanup()

    scheme = "http" if certificate is None else "https"
    return f"{scheme}://{config.host}:{listening.sockets[0].getsockname()[1]}", stop


def _tell(config: GatewayConfig, url: str, certificate: Certificate | None, tenants: Tenants) -> None:
    """Where this gateway is, for `freehold share`, and for whoever started it."""
    with suppress(OSError):  # the network file may stand where nothing may be written
        told = {"url": url, "region": config.region, "service_domain": config.service_domain}
        write_ready_file(config.network.with_name(GATEWAY_FILE), told)
    if config.ready_file is not None:
        own = [(tenant.owner, tenant.own_key) for tenant in tenants]
        keys = [{"account": owner, "access_key": key.id, "secret": key.secret} for owner, key in own if key]
        previous = os.umask(0o077)  # it may hold secrets
        try:
            fingerprint = ZERO_HASH if certificate is None else certificate.fingerprint
            ready = {"url": url, "pid": os.getpid(), "fingerprint": str(fingerprint), "region": config.region}
            write_ready_file(config.ready_file, {**ready, "keys": keys})
        finally:
            os.umask(previous)


async def _keep_up(clients: list[Freehold]) -> None:
    """What clients that run for long owe the network: locks for what is stored, holders of heads, garbage."""
    while True:
        await asyncio.sleep(UPKEEP_SECONDS)
        for client in clients:
            for step in (client.renew, client.maintain):
                try:
                    await step()
                except FreeholdError as error:
                    log.warning("upkeep of %s waits: %s", client.account.address, error.message)
                except Exception:
                    log.exception("upkeep of %s failed", client.account.address)  # requests are served all the same


def main(config: Path) -> int:
    """Run the gateway that the configuration file describes until SIGTERM or SIGINT; the exit code."""
    return run_until_signal(lambda stopping: run(GatewayConfig.load(config), stopping))
