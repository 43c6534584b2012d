"""The Disputes contract as one challenger meets it: what it holds open there, and the next step of each.

Every step is decided from the chain, so a watcher that was killed goes on where it stood: the salt follows from its key
and the report, and the evidence from the report's bundle.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from freehold.chain.contracts import Disputes, Oracle, Slasher, Staking, Token
from freehold.chain.contracts import disputes as disputes_abi
from freehold.chain.contracts import slasher as slasher_abi
from freehold.chain.rpc import Rpc
from freehold.chain.transactor import Sender
from freehold.market.network import Network
from freehold.oracle.watching import Demand
from freehold.protocol.disputes import Answer, Contradiction, commitment_of
from freehold.protocol.errors import ChainError, FreeholdError
from freehold.protocol.keys import Key
from freehold.protocol.merkle import row_proof
from freehold.protocol.messages import Report
from freehold.protocol.tables import Table
from freehold.protocol.typed import keccak
from freehold.protocol.units import Address, Hash
from freehold.protocol.verdicts import Slash

log = logging.getLogger(__name__)

NOTHING, CHALLENGE, ANSWERED = 0, 3, 4  # contracts/Disputes.vy: the kinds of a hold; 1 and 2 are open demands


class Taken(NamedTuple):
    """How many bonds were taken that nobody had taken yet, and why others were not."""

    bonds: int
    failures: list[str]


class Court:
    """One key's disputes. Whatever it sends may be refused because somebody else was quicker; the next look tells."""

    def __init__(self, rpc: Rpc, network: Network, key: Key, sender: Sender | None = None) -> None:
        """`sender`: of this key, where the process has one already: two would take each other's nonces."""
        at = network.contracts
        self.disputes = Disputes(rpc, at["disputes"])
        self._oracle, self._token = Oracle(rpc, at["oracle"]), Token(rpc, at["token"])
        self._slasher, self._staking = Slasher(rpc, at["slasher"]), Staking(rpc, at["staking"])
        self._sender, self._key = sender or Sender(rpc, key.secret), key
        self._rpc = rpc

    @property
    def challenger(self) -> Address:
        """Whose bonds are at stake."""
        return self._key.address

    async def is_current(self, report: Report) -> bool:
        """Whether the chain still has this report for its epoch."""
        return await self._oracle.report_hash(report.epoch) == report.struct_hash()

    async def is_demanded(self, epoch: int, report: Hash, challenger: Address) -> bool:
        """Whether somebody's demand of the report is open."""
        if await self._oracle.report_hash(epoch) != report:
            return False
        return (await self.disputes.hold_of(report, challenger)).kind not in (NOTHING, CHALLENGE, ANSWERED)

    async def hold_kind(self, report: Report) -> int:
        """What this challenger has open against the report."""
        return int((await self.disputes.hold_of(report.struct_hash(), self.challenger)).kind)

    async def challenge(self, before: Report | None, report: Report, contradiction: Contradiction) -> bool:
        """Take the next step of a challenge: commit, or reveal in a later block. True once it is revealed."""
        salt = keccak(self._key.secret + report.struct_hash())
        hold = await self.disputes.hold_of(report.struct_hash(), self.challenger)
        commitment = commitment_of(self.challenger, contradiction, salt)
        if hold.kind != CHALLENGE:
            await self._approve()
            await self._sender.transact(self.disputes.commit(report.epoch, report.struct_hash(), commitment))
            log.warning("epoch %d: a challenge of kind %d is committed", report.epoch, contradiction.kind)
            return False
        if await self._rpc.block_number() <= hold.opened:
            return False
        call = self.disputes.reveal(struct(before), struct(report), contradiction.kind, contradiction.evidence, salt)
        await self._sender.transact(call)
        log.warning("epoch %d: the challenge is revealed: the report is proven wrong", report.epoch)
        return True

    async def demand(self, report: Report, demand: Demand) -> None:
        """Ask for a leaf or a verdict on chain."""
        await self._approve()
        await self._sender.transact(self.disputes.demand(struct(report), demand.kind, demand.position))
        log.warning("epoch %d: demand of kind %d for %d", report.epoch, demand.kind, demand.position)

    async def answer(self, report: Report, challenger: Address, answer: Answer) -> None:
        """Show what somebody demanded, and take the demand's bond."""
        call = self.disputes.answer(struct(report), challenger, answer.shown, answer.backing)
        await self._sender.transact(call)
        log.info("epoch %d: the demand of %s is answered", report.epoch, challenger)

    async def expire(self, before: Report | None, report: Report) -> bool:
        """Have the report revoked over this challenger's unanswered demand, if its time has passed."""
        hold = await self.disputes.hold_of(report.struct_hash(), self.challenger)
        if hold.kind in (NOTHING, CHALLENGE, ANSWERED) or await self.disputes.report_count() < hold.deadline:
            return False
        await self._sender.transact(self.disputes.expire(struct(before), struct(report), self.challenger))
        log.warning("epoch %d: nobody answered, and the report is revoked", report.epoch)
        return True

    async def end_hold(self, epoch: int, report: Hash, challenger: Address) -> bool:
        """End somebody's hold of a report once its time has passed: else it would last. True when there is none."""
        if await self._oracle.report_hash(epoch) != report:
            return True
        hold = await self.disputes.hold_of(report, challenger)
        if hold.kind not in (CHALLENGE, ANSWERED):
            return hold.kind == NOTHING
        head = await self._rpc.header()
        if head is None or head.timestamp <= hold.deadline:
            return False
        await self._sender.transact(self.disputes.forfeit(report, challenger))
        log.info("epoch %d: the hold of %s has ended", epoch, challenger)
        return True

    async def prove(self, before: Report | None, report: Report, contradiction: Contradiction | None) -> bool:
        """Reveal what was committed of a report that is gone or active meanwhile: its signers still answer for it.

        False where there is nothing to reveal, or somebody has proven it.
        """
        is_open = contradiction is not None and await self.hold_kind(report) == CHALLENGE
        if contradiction is None or not is_open or any((await self.disputes.proven(report.struct_hash())).challenger):
            return False
        return await self.challenge(before, report, contradiction)

    async def withdraw(self, report: Report) -> None:
        """Take the bond back where somebody else proved the report wrong, or it went by an unanswered demand."""
        if await self.hold_kind(report) in (NOTHING, ANSWERED):
            return
        await self._sender.transact(self.disputes.withdraw(report.struct_hash()))
        log.info("epoch %d: the report is gone, and the bond is back", report.epoch)

    async def slash(self, report: Report, signers: int, signatures: bytes) -> None:
        """Take the bonds of those who signed a report that was proven wrong, if nobody has yet."""
        if not signatures or not any((await self.disputes.proven(report.struct_hash())).challenger):
            return
        try:
            await self._sender.transact(self.disputes.slash(struct(report), signers, signatures))
            log.warning("epoch %d: the members that signed its report are slashed", report.epoch)
        except ChainError as error:
            log.info("epoch %d: nobody was slashed from here: %s", report.epoch, error.message)

    async def take(self, report: Report, slashes: Table[Slash]) -> Taken:
        """Take what a report's slashes say of nodes' bonds, once it is active. One that fails keeps no other back."""
        taken = Taken(0, [])
        hashes = [row.row_hash() for row in slashes]
        for index, row in enumerate(slashes):
            try:
                taken = taken._replace(bonds=taken.bonds + await self._take_one(report, hashes, index, row))
            except (FreeholdError, OSError) as error:
                why = f"node {row.node}, case {row.subject}: {error}"
                log.warning("epoch %d: a bond is not taken yet: %s", report.epoch, why)
                taken.failures.append(why)
        return taken

    async def _take_one(self, report: Report, hashes: Sequence[Hash], index: int, row: Slash) -> bool:
        """Whether it was taken now: not if somebody had done it, or if nothing is left of the bond."""
        if await self._slasher.slashed(report.struct_hash(), hashes[index]):
            return False
        position = await self._staking.position(row.operator, row.node)
        if not position.bond + position.thawing:
            return False
        row_of_chain = slasher_abi.Row(*_values(row))
        proof = row_proof(hashes, index)
        call = self._slasher.slash(slasher_abi.Report(*struct(report)), len(hashes), index, row_of_chain, proof)
        await self._sender.transact(call)
        log.warning("epoch %d: node %s has lost up to %d of its bond", report.epoch, row.node, row.amount)
        return True

    async def _approve(self) -> None:
        bond = await self.disputes.bond()
        if await self._token.allowance(self.challenger, self.disputes.address) < bond:
            await self._sender.transact(self._token.approve(self.disputes.address, 2**256 - 1))


def struct(report: Report | None) -> disputes_abi.Report:
    """A report as the contract takes it; all zero for the one before epoch 1."""
    fields = disputes_abi.Report._fields
    if report is None:
        blank: dict[str, Any] = dict.fromkeys(fields, 0)
        hashes = [name for name, kind in Report.__annotations__.items() if kind == "Hash"]
        return disputes_abi.Report(**(blank | {name: Hash(bytes(32)) for name in hashes}))
    return disputes_abi.Report(*(getattr(report, name) for name in fields))


def _values(row: Slash) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in slasher_abi.Row._fields)
