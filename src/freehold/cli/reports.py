"""Which reports the chain has accepted: its own events, read back."""

from __future__ import annotations

from freehold.chain.contracts.oracle import EVENTS, Oracle, ReportAccepted
from freehold.cli.connection import Connection


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
