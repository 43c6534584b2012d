"""The node's one wiring function: what runs, and in which order it stops.

    data/node.sqlite       the book            data/<service>.sqlite, data/<service>/    each provider's rows and blobs
    data/tls/              its certificate, unless the configuration names another

Start: book and providers (disk and SQL brought together), server, registration and epochs. Stop, on SIGTERM or SIGINT:
epochs and registration, server (what runs is finished), providers, book. A kill at any moment is no different from a
stop, except that what was not acknowledged may be missing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from freehold.market.membership import Membership
from freehold.market.network import Network
from freehold.market.quorum import Quorum
from freehold.net.auth import Guard
from freehold.net.client import Dial
from freehold.net.server import make_app, serve
from freehold.net.tls import choose_certificate
from freehold.node.api import Api
from freehold.node.book import MIGRATIONS, Book
from freehold.node.config import NodeConfig
from freehold.node.epochs import EpochLoop
from freehold.node.fleets import ChainFleets
from freehold.node.offers import Offers, Terms
from freehold.node.registration import ChainRegistrar, Plan, Registrar
from freehold.node.status import Status
from freehold.protocol.errors import FreeholdError, InvalidInput, NotFound
from freehold.protocol.keys import Key
from freehold.services.seam import HostedProvider, ProviderContext
from freehold.services.working import PROVIDERS
from freehold.store.blobs import Blobs
from freehold.store.sql import Database

log = logging.getLogger(__name__)

READ_BYTES = 2**20  # of a shard that wait to be written: shards arrive in few pieces
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


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
        providers = await _open_providers(config, network, key, book, membership, clock)
        for provider in providers.values():
            stack.push_async_callback(provider.stop)
            await provider.start()
        terms = Terms(config.stream_price, config.voucher_price, config.place)
        offers = Offers(key, network.domain, terms, providers, clock)
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
    config: NodeConfig, network: Network, key: Key, book: Book, membership: Membership, clock: Callable[[], int]
) -> Mapping[str, HostedProvider]:
    guard = Guard(key.address, network.domain, time.time, started=time.time())
    share = config.allowance // sum(factory.is_leased for factory in PROVIDERS.values())

    def build(name: str) -> HostedProvider:
        return PROVIDERS[name](
            ProviderContext(
                key=key,
                domain=network.domain,
                parameters=network.parameters,
                leases=book,
                files=Blobs(config.data / name, share),
                open_sql=lambda migrations: Database(config.data / f"{name}.sqlite", migrations),
                authenticate=guard.check_from,
                find_fleet=ChainFleets(network, key.address).find,
                members_of=membership.of,
                clock=clock,
            )
        )

    return {name: await asyncio.to_thread(build, name) for name in PROVIDERS}


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


def open_wallet(path: Path, passphrase: str) -> Key:
    """The key in a Web3 Secret Storage file. NotFound, InvalidInput; WrongPassphrase."""
    from eth_keyfile.keyfile import decode_keyfile_json

    from freehold.protocol.errors import WrongPassphrase

    try:
        return Key(decode_keyfile_json(json.loads(path.read_text()), passphrase.encode()))
    except FileNotFoundError:
        raise NotFound(f"there is no wallet at {path}") from None
    except ValueError as error:
        if "MAC" in str(error):
            raise WrongPassphrase(f"the wallet {path.name} does not open with this passphrase") from None
        raise InvalidInput(f"{path} is no wallet: {error}") from None


def main(config: Path) -> int:
    """Run the node that the configuration file describes until SIGTERM or SIGINT; the exit code."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    try:
        asyncio.run(_run_until_signal(NodeConfig.load(config)))
    except FreeholdError as error:
        log.error("%s %s", error.message, error.advice)
        return 1
    return 0


async def _run_until_signal(config: NodeConfig) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await run(config, stopping)
