"""The chain as a member meets it: final blocks come in as events, reports go out as transactions.

Anyone may submit, and several members do, one after the other (`round.py`); so a revert because somebody else was
quicker is no failure.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from freehold.chain.contracts import Collector, Credits, Fleets, Ledger, Members, Oracle, Registry, Staking
from freehold.chain.contracts import collector as collector_events
from freehold.chain.contracts import credits as credits_events
from freehold.chain.contracts import fleets as fleets_events
from freehold.chain.contracts import ledger as ledger_events
from freehold.chain.contracts import members as members_events
from freehold.chain.contracts import oracle as oracle_events
from freehold.chain.contracts import registry as registry_events
from freehold.chain.contracts import staking as staking_events
from freehold.chain.follower import Batch as BlockBatch
from freehold.chain.follower import Event as ChainEvent
from freehold.chain.follower import Follower
from freehold.chain.rpc import Rpc, hexadecimal, unhex
from freehold.chain.transactor import Sender
from freehold.market.network import Network
from freehold.oracle.chain_records import (
    Accepted,
    Activated,
    Bonded,
    Bought,
    ChainRecord,
    Collected,
    DeviceMoved,
    DeviceRevoked,
    FinalBlock,
    FleetRegistered,
    FleetRetired,
    Frozen,
    MembersScheduled,
    ParametersScheduled,
    PayoutSet,
    Registered,
    Resumed,
    Retired,
    Revoked,
)
from freehold.oracle.effects import Accuse, Submit
from freehold.protocol.beacon import Block
from freehold.protocol.certificates import SIGNATURE_BYTES
from freehold.protocol.errors import ChainError, FreeholdError
from freehold.protocol.messages import Report
from freehold.protocol.parameters import Parameters
from freehold.protocol.units import Hash

log = logging.getLogger(__name__)

SUBMIT_SECONDS = 30.0
BONDS = (staking_events.Staked, staking_events.ThawStarted, staking_events.Withdrawn, staking_events.Slashed)
# Words of calldata before the signatures: the report, the bitmap, offset and length of the signatures.
SIGNATURES_AT = 4 + 32 * (len(oracle_events.Report._fields) + 3)


class Feed:
    """Final blocks as the state machine takes them. `accepted` hears which transaction carried a report."""

    def __init__(self, rpc: Rpc, network: Network, poll: float, accepted: Callable[[int, Hash], None]) -> None:
        at = network.contracts
        self._rpc = rpc
        self._oracle = Oracle(rpc, at["oracle"])
        contracts = [
            Registry(rpc, at["registry"]),
            Staking(rpc, at["staking"]),
            Credits(rpc, at["credits"]),
            Ledger(rpc, at["ledger"]),
            Members(rpc, at["members"]),
            Collector(rpc, at["collector"]),
            Fleets(rpc, at["fleets"]),
            self._oracle,
        ]
        self._follower = Follower(rpc, contracts, finality_depth=network.parameters.finality_depth, interval=poll)
        self._accepted = accepted
        self.final_block = 0

    @property
    def failure(self) -> str:
        """Why the chain is not being followed at the moment; empty if it is."""
        return self._follower.failure.message if self._follower.failure else ""

    async def run(self, last: Block, push: Callable[[FinalBlock], None]) -> None:
        """Push every final block after `last`, in order, until cancelled. DeepReorg."""
        async for batch in self._follower.run(last.number + 1, parent=last.hash):
            push(await self._convert(batch))
            self.final_block = batch.header.number

    async def head(self) -> int:
        """The number of the newest final block; 0 while there is none."""
        header = await self._follower.final_header()
        return header.number if header else 0

    async def _convert(self, batch: BlockBatch) -> FinalBlock:
        header = batch.header
        block = Block(header.number, header.hash, header.timestamp)
        found = [to_record(event.value, block.time) or await self._accept(event) for event in batch.events]
        return FinalBlock(block, tuple(record for record in found if record is not None))

    async def _accept(self, event: ChainEvent) -> Accepted | None:
        value = event.value
        if not isinstance(value, oracle_events.ReportAccepted):
            return None
        self._accepted(value.epoch, event.transaction)
        signatures = await self._find_signatures(value, event.transaction)
        return Accepted(Report(**value.report._asdict()), value.bitmap, signatures)

    async def _find_signatures(self, value: oracle_events.ReportAccepted, transaction: Hash) -> bytes:
        """The signatures in the transaction's calldata; empty where it called the Oracle by way of another contract."""
        try:
            answer = await self._rpc.call("eth_getTransactionByHash", [hexadecimal(transaction)])
            data = unhex(answer["input"])
        except (ChainError, KeyError, TypeError):
            return b""
        size = SIGNATURE_BYTES * value.bitmap.bit_count()
        expected = self._oracle.submit(value.report, value.bitmap, bytes(size)).data
        if len(data) != len(expected) or data[:SIGNATURES_AT] != expected[:SIGNATURES_AT]:
            return b""
        return data[SIGNATURES_AT : SIGNATURES_AT + size]


def to_record(value: Any, time: int) -> ChainRecord | None:
    """What members read of an event in a block of this time; None where it is nothing to them, or a report."""
    if isinstance(value, registry_events.NodeRegistered | registry_events.EndpointUpdated):
        return Registered(value.operator, value.node, value.endpoint, value.payout)
    if isinstance(value, registry_events.NodeRetired):
        return Retired(value.operator, value.node)
    if isinstance(value, registry_events.PayoutSet):
        return PayoutSet(value.operator, value.payout)
    if isinstance(value, BONDS):
        return Bonded(value.operator, value.node, value.bond)
    if isinstance(value, credits_events.Bought):
        return Bought(value.client, value.paid_in, value.burned)
    if isinstance(value, ledger_events.Activated):
        return Activated(value.epoch)
    if isinstance(value, ledger_events.Frozen):
        return Frozen(time)
    if isinstance(value, collector_events.Collected):
        return Collected(*value)
    return _to_device_record(value) or _to_epoch_record(value)


def _to_device_record(value: Any) -> ChainRecord | None:
    if isinstance(value, fleets_events.FleetRegistered):
        return FleetRegistered(value.operator, value.fleet, value.root, value.count_)
    if isinstance(value, fleets_events.FleetRetired):
        return FleetRetired(value.fleet)
    if isinstance(value, fleets_events.DeviceRevoked):
        return DeviceRevoked(value.fleet, value.index_, value.device)
    if isinstance(value, fleets_events.DeviceMoved):
        return DeviceMoved(value.fleet, value.index_, value.device, value.owner)
    return None


def _to_epoch_record(value: Any) -> ChainRecord | None:
    if isinstance(value, members_events.MembersScheduled):
        return MembersScheduled(value.from_epoch, tuple(value.members))
    if isinstance(value, oracle_events.Revoked):
        return Revoked(value.epoch, value.last, value.attempt)
    if isinstance(value, oracle_events.Resumed):
        return Resumed(value.epoch, value.attempt)
    if isinstance(value, oracle_events.ParametersScheduled):
        return _to_parameters(value)
    return None


def _to_parameters(value: oracle_events.ParametersScheduled) -> ParametersScheduled | None:
    """None where no member could read them: no report can name them, until the governor schedules others."""
    try:
        parameters = Parameters.from_bytes(value.parameters)
        parameters.check()
    except FreeholdError as error:
        log.error("the parameters scheduled from epoch %d on are none: %s", value.from_epoch, error.message)
        return None
    return ParametersScheduled(value.from_epoch, parameters) if parameters.to_bytes() == value.parameters else None


class Submitter:
    """Sends this member's transactions."""

    def __init__(self, rpc: Rpc, network: Network, secret: bytes) -> None:
        self._oracle = Oracle(rpc, network.contracts["oracle"])
        self._ledger = Ledger(rpc, network.contracts["ledger"])
        self.sender = Sender(rpc, secret, deadline=SUBMIT_SECONDS)
        self._busy, self._accusing = asyncio.Lock(), asyncio.Lock()
        self.submitted = 0
        self.failure = ""

    async def submit(self, effect: Submit) -> None:
        """Submit a report, unless the chain has one for its epoch already."""
        if self._busy.locked():
            return  # the state machine asks again
        async with self._busy:
            try:
                if await self._oracle.last_report_hash() != effect.report.previous:
                    return
                await self._activate()
                report = _struct(effect.report)
                await self.sender.transact(self._oracle.submit(report, effect.signers, effect.signatures))
                self.submitted += 1
                self.failure = ""
                log.info("epoch %d: report submitted", effect.report.epoch)
            except ChainError as error:
                self.failure = error.message
                log.info("epoch %d: the report was not taken from here: %s", effect.report.epoch, error.message)

    async def _activate(self) -> None:
        """Activate what is due: the ring of pending reports must not fill, and earnings can be claimed."""
        if await self._ledger.due_epoch() > await self._ledger.active_epoch():
            await self.sender.send(self._ledger.activate())

    async def accuse(self, effect: Accuse) -> None:
        """Have the Oracle contract record an equivocation; somebody else may have done so."""
        first, second = effect.first, effect.second
        call = self._oracle.record_equivocation(
            _struct(first.report), first.member_signature, _struct(second.report), second.member_signature
        )
        async with self._accusing:  # one at a time, and no report waits for it
            try:
                await self.sender.transact(call)
                log.warning("member %s signed two reports of epoch %d", first.member, first.report.epoch)
            except ChainError as error:
                log.info("the equivocation of %s was not recorded from here: %s", first.member, error.message)


def _struct(report: Report) -> oracle_events.Report:
    return oracle_events.Report(*(getattr(report, name) for name in oracle_events.Report._fields))
