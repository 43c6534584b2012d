"""The quorum as a sender of evidence sees it: certify a batch, know that it is held, ask what f+1 members agree on.

A batch is *held* when Q members have its certificate on disk for one epoch: by intersection it is then in that
epoch's manifest. A member that has closed the epoch meanwhile answers for the next; signatures of different epochs
do not add up, so the sender asks again until Q name the same one. Members that ask to be left alone for a while are,
and not all senders come back in the same moment.

Of two messages that exclude each other (two reservations of one number) members acknowledge the one that came first.
So that it is the same one everywhere, `ask_first` shows a batch to one member before the others; a Conflict then names
the subject of the one that came first, and is raised at once: waiting does not help.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from freehold.market.membership import Membership
from freehold.market.network import MemberRecord
from freehold.net.client import Dial, Peer, retry_after
from freehold.protocol.batches import Batch, encode_batch
from freehold.protocol.certificates import check_certificate, faults, make_certificate, quorum
from freehold.protocol.errors import (
    Conflict,
    FreeholdError,
    InvalidInput,
    MalformedMessage,
    NotFound,
    Overloaded,
    Refused,
    Unavailable,
)
from freehold.protocol.keys import is_signed_by
from freehold.protocol.messages import Acknowledgement, Certificate, Holding
from freehold.protocol.typed import Domain, canonical_json
from freehold.protocol.units import Address, Hash, Signature

PATIENCE_SECONDS = 40.0  # after which no further attempt is begun
ROWS_LIMIT = 64 * 2**20  # bytes of an answer: rows of the state with their proofs, of a node with 10,000 leases
PAUSE_SECONDS = 0.25  # doubles up to a few seconds: members that just closed an epoch catch up in between
ANSWER_SECONDS = 10.0
FIRST_SECONDS = 2.0  # for the member that is asked before the others
JITTER = 0.5  # of a wait: it is drawn from that long to half as long again
GRACE_SECONDS = 0.2  # for the others, once enough have answered: a member that hangs must not hold up everything

T = TypeVar("T")
Answer = tuple[Address, Any]
Answers = list[Answer]
Errors = list[FreeholdError]
Enough = Callable[[Answers, Errors], bool]


class Held(NamedTuple):
    """A batch that is certified, and held by Q members for `epoch`."""

    certificate: Certificate
    epoch: int
    holdings: dict[Address, Signature]


class Quorum:
    """The members of a network, by HTTP. `members` are those that the network file names, all of which are asked;
    `membership` says which of them an epoch has."""

    def __init__(
        self,
        dial: Dial,
        members: Sequence[MemberRecord],
        domain: Domain,
        membership: Membership | None = None,
    ) -> None:
        self.members = tuple(member.address for member in members)
        self.membership = membership or Membership(self.members)
        self.domain = domain
        self._peers: dict[Address, Peer] = {m.address: dial.peer(m.url, m.fingerprint) for m in members}

    async def certify(self, batch: Batch, *, ask_first: bool = False, await_quota: bool = True) -> Held:
        """Have Q members acknowledge the batch, make the certificate, have Q members hold it.

        `await_quota`: where the sender has used up what an epoch takes of it, wait for the next as long as for anything
        else; or else raise at once the Overloaded that has the epoch in its details. Raises what a quorum refuses with
        (InsufficientCredits, ...), Conflict with `subject` where another batch came first at some, or Unavailable when
        too few answer.
        """
        data, subject, pause = encode_batch(batch), batch.subject, PAUSE_SECONDS
        failure: FreeholdError = Unavailable("no member was asked")
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            try:
                if ask_first:
                    await self._ask_first(data)
                certificate = await self._acknowledge(data, subject)
                holdings, epoch = await self._hold(certificate)
                return Held(certificate, epoch, holdings)
            except FreeholdError as error:
                if not error.retryable or _names_rival(error) or (not await_quota and is_quota(error)):
                    raise
                failure = error
            wait = max(pause, retry_after(failure)) * (1 + JITTER * random.random())
            if time.monotonic() + wait >= until:
                break
            await asyncio.sleep(wait)
            pause = min(2 * pause, 4.0)
        raise failure

    async def _ask_first(self, data: bytes) -> None:
        """Show a batch to the first member that answers; Conflict where it has acknowledged another instead."""
        for member in self.members:
            try:
                async with asyncio.timeout(FIRST_SECONDS):
                    await self._peers[member].post_bytes("/v1/batches", data)
            except (TimeoutError, Unavailable, Overloaded):
                continue
            except FreeholdError as error:
                if _names_rival(error):
                    raise
            return  # what it refuses otherwise, a quorum has to refuse

    def _quorum_of(self, epoch: int) -> int:
        return quorum(len(self.membership.of(epoch)))

    async def _acknowledge(self, data: bytes, subject: Hash) -> Certificate:
        answers, errors = await self._all(
            lambda peer: peer.post_bytes("/v1/batches", data),
            lambda answers, _: self._is_quorum(self._signatures(answers, subject, Acknowledgement)),
        )
        by_epoch = self._signatures(answers, subject, Acknowledgement)
        for epoch, signatures in sorted(by_epoch.items(), reverse=True):
            if len(signatures) >= self._quorum_of(epoch):
                acknowledgement = Acknowledgement(epoch=epoch, subject=subject)
                members = self.membership.of(epoch)
                certificate = make_certificate(acknowledgement, signatures, members)
                check_certificate(certificate, members, self.domain)
                return certificate
        raise self._failure(errors, "acknowledge the batch for one epoch")

    async def _hold(self, certificate: Certificate) -> tuple[dict[Address, Signature], int]:
        value = certificate.to_json()
        answers, errors = await self._all(
            lambda peer: peer.post_json("/v1/certificates", value),
            lambda answers, _: self._is_quorum(self._signatures(answers, certificate.subject, Holding)),
        )
        by_epoch = self._signatures(answers, certificate.subject, Holding)
        for epoch, signatures in sorted(by_epoch.items(), reverse=True):
            if len(signatures) >= self._quorum_of(epoch):
                return signatures, epoch
        raise self._failure(errors, "hold the certificate for one epoch")

    def _signatures(
        self, answers: Sequence[Answer], subject: Hash, kind: type[Acknowledgement] | type[Holding]
    ) -> dict[int, dict[Address, Signature]]:
        self.membership.hear(value for _, value in answers)
        by_epoch: defaultdict[int, dict[Address, Signature]] = defaultdict(dict)
        for member, value in answers:
            try:
                signed = kind(epoch=value["epoch"], subject=subject)
                signature = Signature(value["signature"])
            except (KeyError, TypeError, MalformedMessage):
                continue
            members = self.membership.of(signed.epoch)
            if member in members and is_signed_by(signed, signature, member, self.domain):
                by_epoch[signed.epoch][member] = signature
        return by_epoch

    def _is_quorum(self, by_epoch: Mapping[int, Mapping[Address, Signature]]) -> bool:
        return any(len(signatures) >= self._quorum_of(epoch) for epoch, signatures in by_epoch.items())

    async def _all(self, ask: Callable[[Peer], Awaitable[Any]], enough: Enough) -> tuple[Answers, Errors]:
        """Ask every member at once; go on when all have answered, soon after `enough` have, or their time is over."""

        async def one(member: Address) -> Answer | FreeholdError:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    return member, await ask(self._peers[member])
            except FreeholdError as error:
                return error
            except TimeoutError:
                return Unavailable(f"{self._peers[member].url} took more than {ANSWER_SECONDS:.0f} s")

        pending = {asyncio.create_task(one(member)) for member in self.members}
        answers: Answers = []
        errors: Errors = []
        grace: float | None = None
        try:
            while pending:
                done, pending = await asyncio.wait(pending, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
                results = [task.result() for task in done]
                answers += [r for r in results if not isinstance(r, FreeholdError)]
                errors += [r for r in results if isinstance(r, FreeholdError)]
                if grace is not None and not done:
                    break
                grace = GRACE_SECONDS if enough(answers, errors) else None
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        return answers, errors

    def _failure(self, errors: Sequence[FreeholdError], what: str) -> FreeholdError:
        """What more than f members refuse with, or that another batch came first; otherwise that too few answered."""
        refusals = [e for e in errors if isinstance(e, Refused | InvalidInput) and not e.retryable]
        if len(refusals) > faults(len(self.members)):
            return refusals[0]
        if rival := next((e for e in errors if _names_rival(e)), None):
            return rival
        needed, n = quorum(len(self.members)), len(self.members)
        # Q can answer once all but n - Q of those that want to be left alone may be asked again.
        waits = sorted((retry_after(e) for e in errors if e.retryable), reverse=True)
        wait = waits[n - needed] if len(waits) > n - needed else 0
        if wait:
            full = [e for e in errors if is_quota(e)]
            busy = full[0] if len(full) > n - needed else next(e for e in errors if retry_after(e) == wait)
            facts = {"epoch": busy.details["epoch"]} if is_quota(busy) else {}
            return Overloaded(
                f"fewer than {needed} of {n} members {what} now: {busy.message}", retry_after=wait, **facts
            )
        why = "; ".join(sorted({e.message for e in errors})) or "they name different epochs"
        return Unavailable(f"fewer than {needed} of {n} members {what}: {why}")

    async def ask(self, path: str) -> list[Answer]:
        """What each member that answers says at `path`."""
        answers, errors = await self._all(
            lambda peer: peer.get_json(path, ROWS_LIMIT), lambda answers, _: len(answers) >= quorum(len(self.members))
        )
        if not answers and errors:
            raise errors[0]
        return answers

    async def agree(self, path: str) -> Any:
        """What f+1 members say in the same words at `path`: at least one of them is honest."""
        needed = faults(len(self.members)) + 1

        def enough(answers: Answers, errors: Errors) -> bool:
            counts = Counter(canonical_json(value) for _, value in answers)
            return max(counts.values(), default=0) >= needed or sum(e.code == "not_found" for e in errors) >= needed

        answers, errors = await self._all(lambda peer: peer.get_json(path, ROWS_LIMIT), enough)
        counts = Counter(canonical_json(value) for _, value in answers)
        for text, count in counts.most_common(1):
            if count >= needed:
                return next(value for _, value in answers if canonical_json(value) == text)
        missing = [e for e in errors if e.code == "not_found"]
        if len(missing) >= needed:
            raise missing[0]
        raise Unavailable(f"fewer than {needed} members agree on {path}", answers=len(answers))

    async def first_good(self, path: str, check: Callable[[bytes], T]) -> T:
        """What `check`, in a thread, makes of the bytes at `path` of the first member whose bytes it takes."""
        failure: FreeholdError = Unavailable("no member was asked")
        for member in self.members:
            try:
                return await asyncio.to_thread(check, await self._peers[member].get_bytes(path))
            except FreeholdError as error:
                if isinstance(failure, Unavailable) or isinstance(error, NotFound):
                    failure = error  # what a member says tells more than that another is away
        raise failure


def is_quota(error: FreeholdError) -> bool:
    """Whether a member, or a quorum of them, takes no more of this sender in an epoch, which the details name."""
    return isinstance(error, Overloaded) and "epoch" in error.details


def _names_rival(error: FreeholdError) -> bool:
    return isinstance(error, Conflict) and "subject" in error.details
