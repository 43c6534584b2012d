"""The node's one wiring function: what runs, and in which order it stops.

    data/node.sqlite       the book            data/<service>.sqlite, data/<service>/    each provider's rows and blobs
    data/tls/              its certificate, unless the configuration names another

Start: book and providers (disk and SQL brought together), server, registration and epochs. Stop, on SIGTERM or SIGINT:
epochs and registration, server (what runs is finished), providers, book. A kill at any moment is no different from a
stop, except that what was not acknowledged may be missing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from freehold.chain.rpc import Rpc
from freehold.market.directory import ChainDirectory
from freehold.market.membership import Membership
from freehold.market.network import Network
from freehold.market.quorum import Quorum
from freehold.net.auth import Guard
from freehold.net.client import Dial
from freehold.net.running import run_until_signal
from freehold.net.server import make_app, serve
from freehold.net.tls import choose_certificate
from freehold.node.api import Api
from freehold.node.book import MIGRATIONS, Book
from freehold.node.config import NodeConfig, ServiceConfig
from freehold.node.epochs import EpochLoop
from freehold.node.fleets import ChainFleets
from freehold.node.offers import Offers
from freehold.node.peers import Peers
from freehold.node.registration import ChainRegistrar, Plan, Registrar
from freehold.node.status import Status
from freehold.protocol.errors import FreeholdError, InvalidInput, NotFound
from freehold.protocol.keys import Key
from freehold.services.seam import HostedProvider, Prices, ProviderContext
from freehold.services.working import PROVIDERS
from freehold.store.blobs import Blobs
from freehold.store.configuration import open_wallet
from freehold.store.sql import Database

log = logging.getLogger(__name__)

READ_BYTES = 2**20  # of a shard that wait to be written: shards arrive in few pieces


async def run(config: NodeConfig, stopping: asyncio.Event) -> None:
    """Run a node until `stopping` is set. Raises what keeps it from starting."""
    network, clock = Network.load(config.network), lambda: int(time.time())
    config.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = await asyncio.to_thread(open_wallet, config.wallet, config.passphrase())
    status = Status(key.address)
    async with AsyncExitStack() as stack:
        dial = await stack.enter_async_context(Dial())
        database = await asyncio.to_thread(Database, config.data / "node.sqlite", MIGRATIONS)
        stack.push_async_callback(asyncio.to_thread, database.close)
        book = Book(database, network.domain)
        membership = Membership(network.member_addresses)
        rpc = await stack.enter_async_context(Rpc(network.rpc_url, chain_id=network.chain_id, attempts=2))
        peers = Peers(dial, ChainDirectory(network, rpc), network.domain, clock)
        providers = await _open_providers(config, network, key, book, membership, peers, clock)
        for provider in providers.values():
            stack.push_async_callback(provider.stop)
            await provider.start()
        prices = {name: service.prices for name, service in config.services.items()}
        offers = Offers(key, network.domain, config.place, prices, providers, clock)
        api = Api(key, network.domain, membership.of, book, offers, providers, clock)

        def refresh() -> Quorum:
            """The members that the network file names now, where it says that they are."""
            now = network
            with suppress(NotFound, InvalidInput):
                now = Network.load(config.network)
            return Quorum(dial, now.members, network.domain, membership)

        loop = EpochLoop(key, network.parameters, book, providers, refresh, clock, config.poll)
        status.watch(loop, providers)
        app = make_app(api.routes(), ready=status.ready, metrics=status.metrics)
        tls = choose_certificate(config.tls, config.certificate, config.certificate_key, config.data / "tls")
        server = await serve(app, config.host, config.port, config.ready_file, READ_BYTES, tls)
        stack.push_async_callback(server.stop)
        offers.endpoint, offers.fingerprint = config.endpoint or server.url, server.fingerprint
        log.info("node %s serves at %s", key.address, offers.endpoint)
        registrar = await asyncio.to_thread(make_registrar, config, network, key, status)
        tasks = [
            asyncio.create_task(_register(registrar, offers.endpoint, status), name="registration"),
            asyncio.create_task(loop.run(), name="epochs"),
            asyncio.create_task(_watch_figures(book, status), name="figures"),
        ]
        stopped = asyncio.create_task(stopping.wait())
        try:
            done, _ = await asyncio.wait([stopped, *tasks[1:]], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in [stopped, *tasks]:
                task.cancel()
            await asyncio.gather(stopped, *tasks, return_exceptions=True)
    log.info("node %s has stopped", key.address)


async def _open_providers(
    config: NodeConfig,
    network: Network,
    key: Key,
    book: Book,
    membership: Membership,
    peers: Peers,
    clock: Callable[[], int],
) -> Mapping[str, HostedProvider]:
    """Those that clients lease and the configuration names, and all others."""
    guard = Guard(key.address, network.domain, time.time, started=time.time())
    for name in config.services:
        if name not in PROVIDERS or not PROVIDERS[name].is_leased:
            raise InvalidInput(f"the configuration's 'services' names {name!r}, which this release does not offer")

    def build(name: str) -> HostedProvider:
        service = config.services.get(name, ServiceConfig(Prices(0, 0), None, {}))
        folder = config.data / f"{name}.run"
        folder.mkdir(exist_ok=True, mode=0o700)
        return PROVIDERS[name](
            ProviderContext(
                key=key,
                domain=network.domain,
                parameters=network.parameters,
                leases=book,
                files=Blobs(config.data / name, config.allowance_of(name)),
                open_sql=lambda migrations: Database(config.data / f"{name}.sqlite", migrations),
                authenticate=guard.check_from,
                find_fleet=ChainFleets(network, key.address).find,
                members_of=membership.of,
                clock=clock,
                settings=service.settings,
                prices=service.prices,
                place=config.place,
                folder=str(folder),
                find_peer=peers.find,
            )
        )

    chosen = [name for name, factory in PROVIDERS.items() if name in config.services or not factory.is_leased]
    return {name: await asyncio.to_thread(build, name) for name in chosen}


def make_registrar(config: NodeConfig, network: Network, key: Key, status: Status) -> Registrar | None:
    """Who registers this node; nobody where the configuration names no operator's wallet."""
    if config.operator_wallet is None:
        return None
    operator = open_wallet(config.operator_wallet, config.passphrase())
    return ChainRegistrar(network, Plan(operator, key, config.bond, config.data / "transactions.json"), status.wait_for)


async def _register(registrar: Registrar | None, endpoint: str, status: Status) -> None:
    try:
        if registrar is not None:
            await registrar(endpoint)
        status.registered()
    except FreeholdError as error:
        log.error("the node cannot be registered: %s", error.message)
        status.wait_for(error.message)


async def _watch_figures(book: Book, status: Status) -> None:
    while True:
        status.book = await book.figures()
        await asyncio.sleep(10)


def main(config: Path) -> int:
    """Run the node that the configuration file describes until SIGTERM or SIGINT; the exit code."""
    return run_until_signal(lambda stopping: run(NodeConfig.load(config), stopping))
