"""What the last committed state says of one client, as f+1 members agree on it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

from freehold.market.quorum import Quorum
from freehold.protocol.certificates import faults
from freehold.protocol.errors import FreeholdError, MalformedMessage, NotFound, Unavailable
from freehold.protocol.reservations import new_client
from freehold.protocol.state import ClientState, LeaseState, LockState
from freehold.protocol.units import Address, Hash

ATTEMPTS = 5
PAUSE_SECONDS = 0.2  # members that settle an epoch do not all finish at once


class ClientView(NamedTuple):
    """A client's rows in the state after `epoch`."""

    epoch: int
    client: ClientState
    leases: Mapping[Hash, LeaseState]
    locks: Mapping[Hash, LockState]

    def settled(self, lease: Hash) -> int:
        """Credits that a lease has been paid so far."""
        known = self.leases.get(lease)
        return known.settled if known else 0


async def read_epoch(quorum: Quorum) -> int:
    """The last epoch that f+1 members have settled: an honest one among them has."""
    answers = await quorum.ask("/v1/status")
    epochs = sorted((_epoch(value) for _, value in answers), reverse=True)
    needed = faults(len(quorum.members)) + 1
    if len(epochs) < needed:
        raise Unavailable(f"{len(epochs)} of {len(quorum.members)} members answer, {needed} are needed")
    return epochs[needed - 1]


async def read_view(quorum: Quorum, client: Address) -> ClientView:
    """The newest view; Unavailable if f+1 members do not come to agree on one."""
    epoch, value = await read_rows(quorum, f"clients/{client}")
    return parse_view(epoch, client, value) if value is not None else ClientView(0, new_client(client), {}, {})


async def read_rows(quorum: Quorum, whose: str) -> tuple[int, Any]:
    """The newest committed epoch, and what f+1 members say of somebody ("nodes/0x..", "clients/0x..") in its state.

    None where nothing was committed yet. Unavailable if they do not come to agree.
    """
    failure: FreeholdError = Unavailable("no member was asked")
    for attempt in range(ATTEMPTS):
        epoch = await read_epoch(quorum)
        try:
            return epoch, await quorum.agree(f"/v1/state/{epoch}/{whose}")
        except (NotFound, Unavailable) as error:
            if epoch == 0 and isinstance(error, NotFound):
                return 0, None
            failure = error
        await asyncio.sleep(PAUSE_SECONDS * 2**attempt)
    raise failure


def parse_view(epoch: int, client: Address, value: Any) -> ClientView:
    """The view behind a member's answer; MalformedMessage if it is none."""
    try:
        rows = {name: [entry["row"] for entry in entries] for name, entries in value["rows"].items()}
    except (KeyError, TypeError, AttributeError):
        raise MalformedMessage("an answer that holds no rows of a client") from None
    clients = [ClientState.from_json(row) for row in rows.get("clients", [])]
    leases = [LeaseState.from_json(row) for row in rows.get("leases", [])]
    locks = [LockState.from_json(row) for row in rows.get("locks", [])]
    return ClientView(
        epoch,
        next((row for row in clients if row.client == client), new_client(client)),
        {row.lease: row for row in leases},
        {row.lease: row for row in locks},
    )


def _epoch(value: Any) -> int:
    """The epoch that this member has committed; the open one may be two ahead while one is being settled."""
    report = value.get("last_report") if isinstance(value, dict) else None
    epoch = report.get("epoch") if isinstance(report, dict) else None
    if isinstance(epoch, str) and epoch.isascii() and epoch.isdigit() and len(epoch) < 20:
        return int(epoch)
    return epoch if type(epoch) is int else 0
