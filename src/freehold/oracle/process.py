"""A member's one wiring function: what runs, and in which order it stops.

    data/oracle.sqlite, data/blobs/    all that the member must not forget, unless its configuration names other places
    data/tls/                          its certificate, unless the configuration names another

Start: the member from its records, the server, then everything at once. Stop, on SIGTERM or SIGINT, or when one task
fails: the tasks, the server, the disk. A kill at any moment is no different: what left the member is on its disk.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from freehold.chain.contracts import Members
from freehold.chain.rpc import Rpc
from freehold.market.network import MemberRecord, Network
from freehold.net.client import Dial
from freehold.net.running import run_until_signal
from freehold.net.server import make_app, serve
from freehold.net.tls import choose_certificate
from freehold.oracle.answering import Answerer
from freehold.oracle.chain import Feed, Submitter
from freehold.oracle.chain_view import Start
from freehold.oracle.config import MemberConfig
from freehold.oracle.court import Court
from freehold.oracle.engine import Engine
from freehold.oracle.events import ChainAdvanced, PriceSeen, Tick
from freehold.oracle.member import Member
from freehold.oracle.partitions import spread_work
from freehold.oracle.peers import Peers
from freehold.oracle.price import PriceFile
from freehold.oracle.server import Api
from freehold.oracle.setup import Setup, Timing
from freehold.oracle.status import Status
from freehold.oracle.store import BUNDLES, Store
from freehold.protocol.beacon import Block
from freehold.protocol.errors import ChainError, InvalidInput, NotFound
from freehold.protocol.keys import Key
from freehold.protocol.units import Address
from freehold.services.judging import JUDGES

log = logging.getLogger(__name__)

TICK_SECONDS = 0.1
ANSWER_POLLS = 4  # demands stand for whole epochs: they are looked for less often than blocks
CHAIN_SECONDS = 1.0  # until the chain is asked again, at the start


async def run(config: MemberConfig, stopping: asyncio.Event, own_key: Key | None = None) -> None:
    """Run a member until `stopping` is set, under `own_key` or its wallet's. Raises what keeps it from running."""
    network = Network.load(config.network)
    key = await asyncio.to_thread(config.open_wallet) if own_key is None else own_key
    config.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    async with AsyncExitStack() as stack:
        stack.enter_context(spread_work(config.ray))
        rpc = await stack.enter_async_context(Rpc(network.rpc_url, chain_id=network.chain_id))
        setup = make_setup(network, await read_first_members(rpc, network), key, config.view_timeout)
        dial = await stack.enter_async_context(Dial())
        fixed = network.parameters
        disputed = fixed.thaw_epochs - (-fixed.dispute_window // fixed.epoch_length)
        store = await asyncio.to_thread(
            Store,
            config.data,
            config.allowance,
            fixed.bundle_epochs,
            network.domain,
            JUDGES,
            disputed + BUNDLES,
            config.database,
            config.blobs,
        )
        stack.push_async_callback(asyncio.to_thread, store.close)
        member = Member(setup, *await store.load())
        feed = Feed(rpc, network, config.poll, store.note_transaction)
        peers = Peers(dial, key, network.domain, lambda: read_members(config.network, network))
        submitter = Submitter(rpc, network, key.secret)
        engine = Engine(member, store, peers, submitter)
        court = Court(rpc, network, key, submitter.sender)
        answerer = Answerer(rpc, network, store, court, find_turn(setup.start.members, key), ANSWER_POLLS * config.poll)
        price = PriceFile(config.price_file, lambda seen: engine.handle(PriceSeen(seen)))
        status = Status(member, feed, peers, store, submitter)
        app = make_app(Api(engine, store, status).routes(), ready=status.ready, metrics=status.metrics)
        tls = choose_certificate(config.tls, config.certificate, config.certificate_key, config.data / "tls")
        server = await serve(app, config.host, config.port, config.ready_file, tls=tls)
        stack.push_async_callback(server.stop)
        shown = "" if tls is None else f" with the certificate {tls.fingerprint}"
        log.info("member %s of %s serves at %s%s", key.address, network.name, server.url, shown)
        tasks = [
            asyncio.create_task(engine.run(), name="engine"),
            asyncio.create_task(
                feed.run(member.chain.block, lambda b: engine.handle(ChainAdvanced((b,)))), name="chain"
            ),
            asyncio.create_task(watch_head(feed, status, config.poll), name="head"),
            asyncio.create_task(peers.run(), name="peers"),
            asyncio.create_task(price.run(), name="price"),
            asyncio.create_task(answerer.run(member.chain.pending_block), name="answers"),
            asyncio.create_task(tick(engine), name="clock"),
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
    log.info("member %s has stopped", key.address)


def find_turn(members: tuple[Address, ...], key: Key) -> int:
    """This member's turn at what any of them may do: those that joined later come last."""
    return members.index(key.address) if key.address in members else len(members)


def make_setup(network: Network, members: tuple[Address, ...], key: Key, view_timeout: float) -> Setup:
    """Who this member is; `members` are the first epoch's."""
    block = Block(network.deployment_block, network.deployment_hash, network.deployment_time)
    timing = Timing(view=int(1000 * view_timeout), retransmit=int(125 * view_timeout), submit=int(250 * view_timeout))
    return Setup(key, network.domain, Start(block, network.parameters, members), JUDGES, timing)


async def read_first_members(rpc: Rpc, network: Network) -> tuple[Address, ...]:
    """The members of epoch 1, in the contract's order: from there on the chain's records say who follows them."""
    contract = Members(rpc, network.contracts["members"])
    while True:
        try:
            return tuple(await contract.members_at(1))
        except ChainError as error:
            log.warning("the chain does not say who the members are: %s", error.message)
        await asyncio.sleep(CHAIN_SECONDS)


def read_members(path: Path, known: Network) -> Mapping[Address, MemberRecord]:
    """The members, by the network file as it is now."""
    try:
        network = Network.load(path)
    except (NotFound, InvalidInput):
        network = known
    return {member.address: member for member in network.members}


async def tick(engine: Engine) -> None:
    """Tell the state machine that time passes."""
    while True:
        engine.handle(Tick(int(time.monotonic() * 1000)))
        await asyncio.sleep(TICK_SECONDS)


async def watch_head(feed: Feed, status: Status, poll: float) -> None:
    """Keep in view how far the chain is, for /readyz."""
    while True:
        try:
            status.head = await feed.head()
        except ChainError as error:
            log.debug("the chain's head is not known: %s", error.message)
        await asyncio.sleep(max(poll, 0.5))


def main(config: Path) -> int:
    """Run the member that the configuration file describes until SIGTERM or SIGINT; the exit code."""
    return run_until_signal(lambda stopping: run(MemberConfig.load(config), stopping))
