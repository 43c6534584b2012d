"""Leases and the reservations that lock credits for them, from the client's side.

    open       a lease with a node for each way in which the service is paid (a stream, vouchers); both sides sign
    reserve    number s+1 lists every lock of the client; Q members certify and hold it (`reservations.py`)
    register   the leases themselves, as certified evidence
    show       the node sees certificate and holdings, and serves from then on

Several devices may use one account, each with a book of its own: a node signs a lease only if there is no other open
one beside it but those that the client names, so they come to share leases. Where a lease costs more than what the node
asks now, another may be opened beside it. All services of an account share its book and its reservations. Invariant: a
lease that is kept was signed by both sides, and is kept before anything relies on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import msgspec

from freehold.market.meeting import node_peer
from freehold.market.quorum import Quorum
from freehold.market.reservations import KeptReservation, ReservationBook, Reservations, Want
from freehold.market.view import ClientView, read_view
from freehold.market.vouchers import Vouchers
from freehold.net.client import Dial, Peer
from freehold.protocol.batches import (
    CLOSE,
    LEASE,
    RESERVATION,
    encode_batch,
    make_batch,
)
from freehold.protocol.errors import (
    Conflict,
    Corrupt,
    FreeholdError,
    NotFound,
    Refused,
    Unavailable,
    WrongSignature,
)
from freehold.protocol.keys import Key, check_signed_by, is_signed_by
from freehold.protocol.messages import STREAM, VOUCHER, Close, Lease, Reservation
from freehold.protocol.parameters import Parameters
from freehold.protocol.state import NodeRecord
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address, Hash

LEASE_SECONDS = 30 * 86400  # until when a lease must have come into the state; epochs may stop for a while
ANSWER_SECONDS = 4.0  # a node that takes longer to say whether it serves is left out
BESIDE_LIMIT = 8  # leases that a node shows one after the other, when asked for one that costs less


class KeptLease(NamedTuple):
    """A lease both signed. `certified`: a quorum holds it; `closing`: this client has signed its end."""

    lease: Lease
    certified: bool
    closing: bool = False


class LeaseBook(ReservationBook, Protocol):
    """Where a client keeps its leases. Writes are durable when they return."""

    async def leases(self) -> Sequence[KeptLease]:
        """All leases, in the order in which they were kept."""

    async def keep_lease(self, lease: Lease) -> None:
        """Keep a new lease."""

    async def mark_certified(self, leases: Sequence[Hash]) -> None:
        """A quorum holds these."""

    async def mark_closing(self, leases: Sequence[Hash]) -> None:
        """These are not used any more: the client is about to sign their end."""


class NodeLeases(NamedTuple):
    """A client's leases with a node, by mode, and where the node listens."""

    node: Address
    endpoint: str
    modes: Mapping[int, Lease]

    def peer(self, dial: Dial, domain: Domain, clock: Callable[[], float]) -> Peer:
        """The node itself, known by its certificate where it is spoken to over https (`meeting.py`)."""
        return node_peer(dial, self.node, self.endpoint, domain, clock)

    @property
    def stream(self) -> Lease:
        """The lease that is paid while the work is proven."""
        return self.modes[STREAM]

    @property
    def voucher(self) -> Lease:
        """The lease that is paid by what the client signs for."""
        return self.modes[VOUCHER]

    @property
    def stream_id(self) -> Hash:
        """The id of the stream."""
        return _id(self.stream)

    @property
    def voucher_id(self) -> Hash:
        """The id of the lease that is paid by voucher."""
        return _id(self.voucher)


@lru_cache(maxsize=4096)
def _id(lease: Lease) -> Hash:
    return lease.struct_hash()  # every request names it


class Leases:
    """The leases of one account on one network, for one service."""

    def __init__(
        self,
        key: Key,
        domain: Domain,
        parameters: Parameters,
        quorum: Quorum,
        dial: Dial,
        book: LeaseBook,
        vouchers: Vouchers,
        clock: Callable[[], float],
        service: str,
    ) -> None:
        self._key = key
        self._domain = domain
        self._quorum = quorum
        self._dial = dial
        self._book = book
        self._vouchers = vouchers
        self._clock = clock
        self._service = service
        self._reservations = Reservations(key, domain, parameters, quorum, book, clock)
        self.locks: Mapping[Hash, int] = {}  # those that counted when `prepare` was here last

    async def view(self) -> ClientView:
        """What the last committed state says of this client."""
        return await read_view(self._quorum, self._key.address)

    async def kept(self) -> Sequence[KeptLease]:
        """The leases in this account's book."""
        return await self._book.leases()

    async def caps(self) -> dict[Hash, int]:
        """The locks that count now, by lease."""
        return await self._reservations.caps(await self.view())

    async def open_leases(self, view: ClientView) -> list[Lease]:
        """This service's leases that are not closed, in the order in which they were kept; one that lapsed goes on once
        its lock grows."""
        closed = {key for key, row in view.leases.items() if row.closed}
        return [
            kept.lease
            for kept in await self._book.leases()
            if kept.lease.service == self._service and not kept.closing and kept.lease.struct_hash() not in closed
        ]

    async def known(self, view: ClientView) -> dict[tuple[Address, int], Lease]:
        """The newest lease that is not closed, by (node, mode)."""
        return {(lease.node, lease.mode): lease for lease in await self.open_leases(view)}

    async def open(
        self, record: NodeRecord, prices: Mapping[int, int], view: ClientView, *, never_dearer: bool = False
    ) -> NodeLeases:
        """A lease with a node for each mode in `prices`: the newest that is there, or a new one at that price.

        `never_dearer`: one that costs more is not taken; of several others, the cheapest is.
        """
        async with self._book.exclusive(f"open-{record.node.hex()}"):
            opened = {}
            for mode, price in prices.items():
                opened[mode] = await self._find_or_agree(record, mode, price, view, never_dearer)
        return NodeLeases(record.node, record.endpoint, opened)

    async def _find_or_agree(
        self, record: NodeRecord, mode: int, price: int, view: ClientView, never_dearer: bool
    ) -> Lease:
        for _ in range(BESIDE_LIMIT):
            there = [o for o in await self.open_leases(view) if (o.node, o.mode) == (record.node, mode)]
            if not never_dearer:
                fit = there[-1:]
            else:
                fit = sorted((lease for lease in there if lease.price <= price), key=lambda lease: lease.price)
            if fit:
                return fit[0]
            beside = {lease.struct_hash() for lease in there}
            lease = await self._agree(record, mode, price, await self._ended(view) | beside)
            if lease.price <= price or not never_dearer:
                return lease
        raise Refused(f"{record.endpoint} shows ever more leases that cost more than {price}")

    async def recover(self, record: NodeRecord, modes: Collection[int], view: ClientView) -> NodeLeases | None:
        """The leases with a node that are there, if there is one of each mode; those that only the state knows are read
        back from the node."""
        known = await self.known(view)
        there = {kept.lease.struct_hash() for kept in await self._book.leases()}
        for key, row in view.leases.items():
            lost = row.node == record.node and row.service == self._service and key not in there
            if lost and not row.closed and (row.node, row.mode) not in known:
                known[row.node, row.mode] = await self.read_back(record, key)
        found = {mode: known[record.node, mode] for mode in modes if (record.node, mode) in known}
        return NodeLeases(record.node, record.endpoint, found) if len(found) == len(modes) else None

    async def read_back(self, record: NodeRecord, key: Hash) -> Lease:
        """Keep a lease that the committed state has and this book has not, as its node shows it."""
        lease = await self._read_back(record, key)
        await self._book.keep_lease(lease)
        await self._book.mark_certified([key])
        return lease

    def _peer(self, node: Address, endpoint: str) -> Peer:
        return node_peer(self._dial, node, endpoint, self._domain, self._clock)

    async def _read_back(self, record: NodeRecord, key: Hash) -> Lease:
        async with asyncio.timeout(ANSWER_SECONDS):
            answer = await self._peer(record.node, record.endpoint).get_json(f"/v1/leases/{key}")
        lease = Lease.from_json(answer.get("lease") if isinstance(answer, dict) else None)
        if lease.struct_hash() != key:
            raise Corrupt(f"{record.endpoint} shows another lease than {key}")
        return lease

    async def _ended(self, view: ClientView) -> set[Hash]:
        """Leases that are closed, or that this book is closing."""
        closing = {kept.lease.struct_hash() for kept in await self._book.leases() if kept.closing}
        return closing | {key for key, row in view.leases.items() if row.closed}

    async def _agree(self, record: NodeRecord, mode: int, price: int, ended: Collection[Hash]) -> Lease:
        """A new lease, or the one that another device of this account has there already."""
        now = self._clock()
        lease = Lease(
            client=self._key.address,
            node=record.node,
            service=self._service,
            mode=mode,
            price=price,
            number=int(now * 1000),
            deadline=int(now) + LEASE_SECONDS,
        )
        lease = msgspec.structs.replace(lease, client_signature=self._key.sign(lease, self._domain))
        peer = self._peer(record.node, record.endpoint)
        body = {"lease": lease.to_json(), "ended": [str(key) for key in sorted(ended)]}
        try:
            answer = await peer.post_json("/v1/leases", body)
        except Conflict as error:
            if "lease" not in error.details:
                raise
            return await self._adopt(record.node, mode, error.details["lease"])
        signed = Lease.from_json(answer.get("lease") if isinstance(answer, dict) else None)
        if signed.struct_hash() != lease.struct_hash() or not is_signed_by(
            signed, signed.node_signature, record.node, self._domain
        ):
            raise WrongSignature(f"{peer.url} did not sign the lease that it was offered")
        lease = msgspec.structs.replace(lease, node_signature=signed.node_signature)
        await self._book.keep_lease(lease)
        return lease

    async def _adopt(self, node: Address, mode: int, value: Any) -> Lease:
        """Keep a lease that another device of this account made."""
        lease = Lease.from_json(value)
        if (lease.client, lease.node, lease.service, lease.mode) != (self._key.address, node, self._service, mode):
            raise Corrupt(f"node {node} shows a lease that is not this account's")
        check_signed_by(lease, lease.client_signature, self._key.address, self._domain)
        check_signed_by(lease, lease.node_signature, node, self._domain)
        await self._book.keep_lease(lease)
        return lease

    async def refresh(self, nodes: Iterable[NodeLeases]) -> dict[Address, dict[int, Any]]:
        """What each node that answers says of its leases, by mode; of one by voucher, its voucher is taken over."""
        listed = list(nodes)
        answers = await asyncio.gather(*(self._refresh(leases) for leases in listed))
        return {leases.node: answer for leases, answer in zip(listed, answers, strict=True) if answer is not None}

    async def _refresh(self, leases: NodeLeases) -> dict[int, Any] | None:
        peer = leases.peer(self._dial, self._domain, self._clock)
        paths = [f"/v1/leases/{_id(lease)}" for lease in leases.modes.values()]
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answers = await asyncio.gather(*(peer.get_json(path) for path in paths))
        except (FreeholdError, TimeoutError):
            return None  # whether it serves is found out by `show`
        found = {mode: shown for mode, shown in zip(leases.modes, answers, strict=True) if isinstance(shown, dict)}
        if VOUCHER in found:
            await self._vouchers.start(leases.voucher_id, found[VOUCHER])
        return found

    async def prepare(self, nodes: Sequence[NodeLeases], wants: Mapping[Hash, Want]) -> dict[Address, FreeholdError]:
        """Reserve, register the leases and show the reservation; what each node that does not serve answered."""
        kept = await self.reserve(wants)
        await self.register()
        self.locks = await self.caps()
        self._vouchers.caps.update(self.locks)
        return await self.show(nodes, kept)

    async def register(self) -> None:
        """Certify the leases that no quorum holds yet."""
        fresh = [kept.lease for kept in await self._book.leases() if not kept.certified]
        if fresh:
            await self._quorum.certify(make_batch(LEASE, Table.of(Lease, fresh), self._key, self._domain))
            await self._book.mark_certified([lease.struct_hash() for lease in fresh])

    async def close(self, nodes: Collection[Address]) -> list[Hash]:
        """End every lease with these nodes, of any service; which ones. Counts from the report of the open epoch on.

        The nodes may then delete what they keep under them, and `lock_release` reports later the next reservation
        leaves their locks out.
        """
        view = await self.view()
        kept = await self._book.leases()
        ending = {key for key, row in view.leases.items() if row.node in nodes}
        return await self.end(ending | {k.lease.struct_hash() for k in kept if k.lease.node in nodes}, view)

    async def end(self, leases: Collection[Hash], view: ClientView) -> list[Hash]:
        """The same of some leases; of those among them that are not closed yet."""
        kept = {k.lease.struct_hash(): k for k in await self._book.leases()}
        ending = {key for key in leases if key not in view.leases or not view.leases[key].closed}
        unknown = [kept[key].lease for key in sorted(ending) if key not in view.leases]
        await self._book.mark_closing([key for key in ending if key in kept])
        if unknown:  # a lease is closed only once the state has it
            await self._quorum.certify(make_batch(LEASE, Table.of(Lease, unknown), self._key, self._domain))
            await self._book.mark_certified([lease.struct_hash() for lease in unknown])
        if ending:
            rows = [Close(lease=key) for key in sorted(ending)]
            signed = [msgspec.structs.replace(r, client_signature=self._key.sign(r, self._domain)) for r in rows]
            await self._quorum.certify(make_batch(CLOSE, Table.of(Close, signed), self._key, self._domain))
        return sorted(ending)

    async def show(self, nodes: Iterable[NodeLeases], kept: KeptReservation | None) -> dict[Address, FreeholdError]:
        """Show the reservation to each node that does not yet count all of these leases as covered."""
        listed = list(nodes)
        value = None
        if kept is not None and kept.held is not None:
            batch = make_batch(RESERVATION, Table.of(Reservation, [kept.reservation]), self._key, self._domain)
            value = {
                "batch": f"0x{encode_batch(batch).hex()}",
                "certificate": kept.held.certificate.to_json(),
                "epoch": kept.held.epoch,
                "holdings": [{"member": str(m), "signature": str(s)} for m, s in kept.held.holdings.items()],
            }
        caps = kept.caps() if kept else {}
        answers = await asyncio.gather(*(self._show(leases, caps, value) for leases in listed))
        return {leases.node: error for leases, error in zip(listed, answers, strict=True) if error is not None}

    async def _show(self, leases: NodeLeases, caps: Mapping[Hash, int], value: object) -> FreeholdError | None:
        peer = leases.peer(self._dial, self._domain, self._clock)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answers = {mode: await self._ask(peer, lease) for mode, lease in leases.modes.items()}
                locked = all(_lock_of(answers[mode]) >= caps.get(_id(o), 0) for mode, o in leases.modes.items())
                if value is not None and not locked:
                    await peer.post_json("/v1/reservations", value)
                    answers = {m: await peer.get_json(f"/v1/leases/{_id(o)}") for m, o in leases.modes.items()}
            uncovered = [_id(lease) for mode, lease in leases.modes.items() if not answers[mode]["covered"]]
            if uncovered:
                return Refused(f"{peer.url} does not count lease {uncovered[0]} as covered")
            if VOUCHER in leases.modes:
                await self._vouchers.start(leases.voucher_id, answers[VOUCHER])
        except FreeholdError as error:
            return error
        except TimeoutError:
            return Unavailable(f"{peer.url} took more than {ANSWER_SECONDS:.0f} s", url=peer.url)
        except (KeyError, TypeError, ValueError):
            return Refused(f"{peer.url} does not say whether it counts its lease as covered")
        return None

    async def _ask(self, peer: Peer, lease: Lease) -> Any:
        """What a node says of a lease. One that it has forgotten, as nothing covered it for long, it signs again."""
        path = f"/v1/leases/{_id(lease)}"
        try:
            return await peer.get_json(path)
        except NotFound:
            await peer.post_json("/v1/leases", {"lease": lease.to_json()})
            return await peer.get_json(path)

    async def reserve(self, wants: Mapping[Hash, Want]) -> KeptReservation | None:
        """Lock at least what is wanted (`Reservations.reserve`)."""
        return await self._reservations.reserve(wants)


def _lock_of(answer: Any) -> int:
    return int(answer["state"]["lock"])
