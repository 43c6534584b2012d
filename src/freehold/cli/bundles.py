"""An epoch's bundle, from whoever has it: used only if it replays to the very report that the chain accepted.

A bundle is self-contained, so one member could make up a whole network of its own: members, signatures and all. What
is believed is the chain's event and the network file; bundles are taken from members in turn until one fits both.
Invariant: nothing from a bundle that differs from them is shown.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from freehold.chain.contracts.oracle import ReportAccepted
from freehold.cli.connection import Connection
from freehold.cli.output import Program
from freehold.cli.reports import find_accepted
from freehold.client.collect import read_state
from freehold.market.network import Network
from freehold.protocol.bundle import Bundle, decode_bundle, first_difference, replay_bundle
from freehold.protocol.certificates import faults
from freehold.protocol.epoch import Settlement
from freehold.protocol.errors import NotFound, ReplayMismatch
from freehold.protocol.messages import Report
from freehold.protocol.state import State
from freehold.protocol.units import Address
from freehold.services.judging import JUDGES

PUBLISH_SECONDS = 10.0
PAUSE_SECONDS = 0.2


class Checked(NamedTuple):
    """A bundle that replays to its report, and to the chain's where one was given."""

    data: bytes
    bundle: Bundle
    settlement: Settlement


def check_bundle(data: bytes, number: int | None, network: Network | None, accepted: ReportAccepted | None) -> Checked:
    """Replay a bundle and compare it with what is known; ReplayMismatch names the first difference.

    Without `network` and `accepted` it is only consistent in itself: anybody can make one that is.
    """
    bundle = decode_bundle(data, JUDGES)
    settlement = replay_bundle(bundle, JUDGES)
    report = settlement.report
    if number is not None and report.epoch != number:
        raise ReplayMismatch(f"report.epoch: the bundle is of epoch {report.epoch}, not {number}", first="report.epoch")
    if network is not None and bundle.domain != network.domain:
        raise ReplayMismatch("domain: the bundle is of another network than the network file", first="domain")
    if network is not None and accepted is None and not is_listed(bundle.anchor.members, network):
        raise ReplayMismatch("members: the bundle names others than the network file", first="members")
    if accepted is not None and accepted.report_hash != report.struct_hash():
        theirs = Report(**accepted.report._asdict())
        name = first_difference(report, theirs) or "hash"
        ours, chains = (getattr(r, name, r.struct_hash()) for r in (report, theirs))
        raise ReplayMismatch(f"report.{name}: recomputed {ours}, on chain {chains}", first=f"report.{name}")
    return Checked(data, bundle, settlement)


def is_listed(members: Sequence[Address], network: Network) -> bool:
    """Whether the file alone vouches for these members: it lists them all, and they are so many that no quorum of them
    are liars, where at most f of those listed are."""
    listed = set(network.member_addresses)
    return set(members) <= listed and len(members) > 2 * faults(len(listed))


async def get_accepted(connection: Connection, number: int) -> ReportAccepted:
    """The chain's event that it took this epoch's report; NotFound says which epochs there are."""
    accepted = await find_accepted(connection, number)
    if accepted is None:
        posted = await connection.ledger.posted_epoch()
        raise NotFound(f"epoch {number} is not reported yet: the chain has accepted no report; the last is {posted}")
    return accepted


async def fetch_bundle(connection: Connection, number: int, *, offline: bool = False) -> Checked:
    """An epoch's bundle from the first member whose bundle is the chain's; `offline`: the network file's alone.

    Members keep a bundle once the chain's acceptance is final to them: a moment after the chain shows it.
    """
    accepted = None if offline else await get_accepted(connection, number)
    until = time.monotonic() + PUBLISH_SECONDS
    while True:
        try:
            return await connection.quorum.first_good(
                f"/v1/bundles/{number}", lambda data: check_bundle(data, number, connection.network, accepted)
            )
        except NotFound:
            if offline or time.monotonic() > until:
                raise
        await asyncio.sleep(PAUSE_SECONDS)


async def read_kept_state(path: Path, report: Report) -> State:
    """The state that the report commits to, out of a bundle that somebody kept: of its epoch, or of the next."""
    return read_state(await asyncio.to_thread(path.read_bytes), report, JUDGES)


def has_network(program: Program) -> bool:
    """Whether there is a network file, so that a bundle can be compared with its chain."""
    return program.settings.path("network").exists()
