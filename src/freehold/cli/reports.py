"""Which reports the chain has accepted: its own events, read back."""

from __future__ import annotations

from freehold.chain.contracts.oracle import EVENTS, Oracle, ReportAccepted
from freehold.cli.connection import Connection
from freehold.protocol.errors import NotFound
from freehold.protocol.messages import Report


async def find_accepted(connection: Connection, epoch: int) -> ReportAccepted | None:
    """The event that the chain took this epoch's report; None if it did not."""
    return (await accepted_reports(connection, epoch, epoch)).get(epoch)


async def accepted_reports(connection: Connection, first: int, last: int) -> dict[int, ReportAccepted]:
    """The events of the epochs `first` to `last`, by epoch."""
    topic = next(t for t, event in EVENTS.items() if event.kind is ReportAccepted)
    wanted = [f"0x{number:064x}" for number in range(first, last + 1)]
    logs = await connection.rpc.get_logs(
        connection.network.deployment_block,
        await connection.rpc.block_number(),
        [connection.oracle.address],
        [f"0x{topic.hex()}", wanted],
    )
    found = [Oracle.decode(log) for log in logs]
    return {event.epoch: event for event in found if isinstance(event, ReportAccepted)}


async def get_report(connection: Connection, epoch: int) -> Report:
    """The report that the chain has of an epoch; NotFound where it has none, as for epoch 0."""
    accepted = await find_accepted(connection, epoch)
    if accepted is None:
        raise NotFound("no report is active yet" if epoch == 0 else f"the chain has no report of epoch {epoch}")
    return Report(**accepted.report._asdict())
