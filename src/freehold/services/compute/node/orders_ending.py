"""How an order ends: its receipt is signed, written with what came out, and only then told.

Invariant: an order has one ending. A receipt's measure is at most what its order allows; an order that gives no receipt
costs nothing, whatever it took.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping

import msgspec

from freehold.protocol.errors import FreeholdError
from freehold.protocol.merkle import row_root
from freehold.protocol.units import Hash
from freehold.services.compute.node.blobs import Blobs
from freehold.services.compute.node.evidence import Evidence
from freehold.services.compute.node.orders import FINISHED, LOG_KEPT, Ending, Entry, Orders
from freehold.services.compute.node.orders_credits import Credits
from freehold.services.compute.node.orders_live import Job
from freehold.services.compute.node.orders_running import inline_of
from freehold.services.compute.node.quoter import Quoter
from freehold.services.compute.tasks import Result, decode_result, input_root, state_leaf
from freehold.services.compute.terms import NO_STEPS, Receipt
from freehold.services.seam import ProviderContext

log = logging.getLogger(__name__)

INLINE_LIMIT = 64 * 2**10  # bytes of outputs that are answered with a standing
RECENT = 256  # endings that are kept in memory, with what is answered with them


class Closer:
    """Ends orders, for one node. `recent` are the last endings, with the outputs that are answered with them."""

    def __init__(
        self, context: ProviderContext, orders: Orders, blobs: Blobs, credits: Credits, evidence: Evidence,
        quoter: Quoter,
    ) -> None:  # fmt: skip
        self._context, self._orders, self._blobs = context, orders, blobs
        self._credits, self._evidence, self._quoter = credits, evidence, quoter
        self.live: dict[Hash, Job] = {}
        self.recent: OrderedDict[Hash, tuple[Entry, dict[str, bytes]]] = OrderedDict()
        self.receipts, self.measure = 0, 0

    async def close(self, job: Job, result: Result, ending: Ending, small: Mapping[str, bytes]) -> None:
        """Give a receipt. `small` are outputs and states that are not kept yet; `ending` says the rest. Unavailable
        where it has to come with a quote, and there is none."""
        order, measure = job.entry.order, min(ending.measure, job.entry.order.most)
        receipt = Receipt(
            node=self._context.key.address,
            lease=order.lease,
            number=order.number,
            task=order.task,
            most=order.most,
            until=order.until,
            input=input_root(list(ending.inputs)),
            output=result.hash(),
            steps=row_root([state_leaf(sha256) for sha256 in ending.steps]) if ending.steps else NO_STEPS,
            measure=measure,
            client_signature=order.client_signature,
        )
        quote = await self._quoter.quote(receipt) if job.task.attested else b""
        signature = self._context.key.sign(receipt, self._context.domain)
        receipt = msgspec.structs.replace(receipt, node_signature=signature)
        ending = msgspec.structs.replace(
            ending, result=result.encode().decode(), measure=measure, stop=job.stop_request, quote=quote
        )
        await self._end(job, ending, receipt, small, inline_of(small, result, INLINE_LIMIT))
        self.receipts += 1
        self.measure += measure

    async def give_up(self, job: Job, reason: str) -> None:
        """End without a receipt: it costs nothing."""
        log.warning("order %s has no receipt: %s", job.id, reason)
        await self._end(job, Ending(reason=reason), None, {}, {})

    async def _end(
        self, job: Job, ending: Ending, receipt: Receipt | None, small: Mapping[str, bytes], inline: dict[str, bytes]
    ) -> None:
        now = self._context.clock()
        ending = msgspec.structs.replace(ending, ended_at=now)
        tail = (job.log.tail(LOG_KEPT), job.log.end)
        self._blobs.grew(await self._orders.end(job.entry, ending, receipt, small, tail, now))
        job.entry = job.entry._replace(ending=ending, receipt=receipt, access=None, log=tail[0], log_end=tail[1])
        self._credits.release(job.entry.lease, job.id)
        if receipt is not None:
            self._evidence.given(receipt, job.id)
        self.recent[job.id] = (job.entry, inline)
        if len(self.recent) > RECENT:
            self.recent.popitem(last=False)
        self.live.pop(job.id, None)
        job.phase = FINISHED
        job.ended.set()
        job.touch()

    async def inline(self, entry: Entry) -> dict[str, bytes]:
        """Small outputs of an order that has ended, as far as they are still here."""
        if entry.ending is None or not entry.ending.result:
            return {}
        if entry.id in self.recent:
            return self.recent[entry.id][1]
        result, chosen, size = decode_result(entry.ending.result.encode()), {}, 0
        for one in (result.stdout, *result.files):
            if one.sha256 not in chosen and size + one.size <= INLINE_LIMIT:
                try:
                    chosen[one.sha256] = await self._blobs.read(one.sha256, INLINE_LIMIT)
                except FreeholdError:
                    continue
                size += one.size
        return chosen
