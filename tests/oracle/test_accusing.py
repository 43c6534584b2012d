"""Who signs twice is accused once an epoch, and no report waits for an accusation."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import msgspec

from freehold.oracle.chain import Submitter
from freehold.oracle.chain_view import ChainView
from freehold.oracle.checks import Checks
from freehold.oracle.effects import Accuse, Effect, Submit
from freehold.oracle.records import EQUIVOCATION
from freehold.oracle.round import Round, Said
from freehold.oracle.setup import Setup
from freehold.protocol.messages import Report, Vote
from freehold.protocol.units import ZERO_HASH, Address, Hash
from tests.oracle.fake_chain import START
from tests.oracle.simulation import DOMAIN, KEYS, MEMBERS, TIMING
from tests.oracle.test_chain_view import report
from tests.oracle.test_checks import ANCHOR

VIEW = ChainView(START)
VIEW.anchor = ANCHOR
BASE = msgspec.structs.replace(report(VIEW), epoch=ANCHOR.epoch)


def vote(i: int, view: int, root: int) -> Vote:
    said: Report = msgspec.structs.replace(BASE, view=view, state_root=Hash(bytes([root]) * 32))
    return Vote(report=said, salt=ZERO_HASH, member=MEMBERS[i], member_signature=KEYS[i].sign(said, DOMAIN))


def test_a_member_is_accused_once_an_epoch() -> None:
    out: list[Effect] = []
    setup, said = Setup(KEYS[0], DOMAIN, START, {}, TIMING), Said(ANCHOR.epoch, 0)
    checks = Checks(lambda _: MEMBERS, DOMAIN)
    round_ = Round(setup, checks, said, {}, ANCHOR, out, lambda _: True, Counter())
    for i in (1, 2):
        for view in range(3):
            for root in range(3):
                round_.on_message(vote(i, view, root))
    accused = [effect.first.member for effect in out if isinstance(effect, Accuse)]
    assert accused == [MEMBERS[1], MEMBERS[2]]
    written = [r for e in out for r in getattr(e, "records", ()) if r.kind == EQUIVOCATION]
    assert len(written) == 2


class SlowChain:
    """Takes accusations only when told to."""

    def __init__(self) -> None:
        self.may_accuse = asyncio.Event()
        self.submitted: list[Any] = []

    async def transact(self, call: str) -> None:
        if call == "accuse":
            await self.may_accuse.wait()
        self.submitted.append(call)

    async def last_report_hash(self) -> Hash:
        return BASE.previous

    def submit(self, *_: object) -> str:
        return "submit"

    def record_equivocation(self, *_: object) -> str:
        return "accuse"

    async def due_epoch(self) -> int:
        return 0

    active_epoch = due_epoch


def test_a_report_goes_out_while_an_accusation_waits() -> None:
    asyncio.run(submit_while_accusing())


async def submit_while_accusing() -> None:
    chain: Any = SlowChain()
    at = {"oracle": Address(bytes(20)), "ledger": Address(bytes(20))}
    rpc: Any = None
    network: Any = SimpleNamespace(contracts=at)
    submitter = Submitter(rpc, network, KEYS[0].secret)
    submitter._oracle = submitter._ledger = submitter.sender = chain
    accusing = asyncio.create_task(submitter.accuse(Accuse(vote(1, 0, 1), vote(1, 0, 2))))
    await asyncio.sleep(0)
    await submitter.submit(Submit(BASE, 7, b""))
    assert chain.submitted == ["submit"]
    chain.may_accuse.set()
    await accusing
    assert chain.submitted == ["submit", "accuse"]
