"""Signed requests: who sends, to whom, what, once, and until when.

The signature covers method, path with query, the body's hash, the recipient, a random nonce and a deadline, under
the network's EIP-712 domain; so a request cannot be replayed to another node, later, twice, or with another body.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Container, Mapping

from freehold.protocol.errors import DeadlineExpired, MalformedMessage, NonceReused, Overloaded, WrongSignature
from freehold.protocol.keys import Key, recover
from freehold.protocol.messages import Request
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address, Hash, Signature

WINDOW = 60  # seconds a request stays valid, by the wall clock
NONCE_LIMIT = 200_000  # remembered at once: more in a window is a flood
SENDER_LIMIT = 20_000  # of them one sender's
REQUEST_HEADER, SIGNATURE_HEADER = "Freehold-Request", "Freehold-Signature"


def authorize(
    key: Key, method: str, path: str, body_hash: Hash, recipient: Address, domain: Domain, now: int, nonce: Hash
) -> dict[str, str]:
    """The headers that sign a request; `now` is unix time in seconds, `nonce` 32 random bytes."""
    request = Request(method=method, path=path, body=body_hash, recipient=recipient, nonce=nonce, deadline=now + WINDOW)
    return {
        REQUEST_HEADER: f"{nonce} {request.deadline}",
        SIGNATURE_HEADER: str(key.sign(request, domain)),
    }


class Guard:
    """Checks signed requests at one recipient; remembers nonces until they expire.

    Where `senders` are given, nobody else passes, nor uses up any of the memory for nonces. That memory ends with the
    process: what was signed before `started` (unix time) may have been here before a restart, and is refused.
    """

    def __init__(
        self,
        address: Address,
        domain: Domain,
        clock: Callable[[], float],
        senders: Container[Address] | None = None,
        started: float = 0,
    ) -> None:
        self._address, self._senders = address, senders
        self._domain = domain
        self._clock = clock
        self._started = started
        self._nonces: set[Hash] = set()
        self._expiry: list[tuple[int, Hash, Address]] = []
        self._by_sender: Counter[Address] = Counter()

    def check_from(self, sender: Address, headers: Mapping[str, str], method: str, path: str, body_hash: Hash) -> None:
        """WrongSignature unless it is from `sender`; anybody else uses up no memory for nonces."""
        self._check(headers, method, path, body_hash, (sender,))

    def check(self, headers: Mapping[str, str], method: str, path: str, body_hash: Hash) -> Address:
        """The sender. Cheap checks come before the signature; the nonce is used up only by a valid one."""
        return self._check(headers, method, path, body_hash, self._senders)

    def _check(
        self,
        headers: Mapping[str, str],
        method: str,
        path: str,
        body_hash: Hash,
        senders: Container[Address] | None,
    ) -> Address:
        try:
            nonce_text, deadline_text = headers[REQUEST_HEADER].split(" ")
            nonce, deadline = Hash(nonce_text), int(deadline_text)
            signature = Signature(headers[SIGNATURE_HEADER])
        except KeyError:
            raise WrongSignature("the request is not signed") from None
        except ValueError:
            raise MalformedMessage("the request's signature headers do not parse") from None
        now = int(self._clock())
        if deadline < now:
            raise DeadlineExpired(f"the request expired {now - deadline} s ago", deadline=deadline, now=now)
        if deadline > now + 2 * WINDOW:
            raise DeadlineExpired("the request's deadline is too far ahead", deadline=deadline, now=now)
        if deadline - WINDOW < int(self._started):
            raise DeadlineExpired("the request was signed before this process started", deadline=deadline, now=now)
        self._forget(now)
        if nonce in self._nonces:
            raise NonceReused("this request was here before")
        if len(self._nonces) >= NONCE_LIMIT:
            wait = max(1, self._expiry[0][0] - now)
            raise Overloaded("too many requests in one minute", retry_after=wait)
        request = Request(
            method=method, path=path, body=body_hash, recipient=self._address, nonce=nonce, deadline=deadline
        )
        sender = recover(request.digest(self._domain), signature)
        if senders is not None and sender not in senders:
            raise WrongSignature(f"the request is signed by {sender}, who may not send it")
        if self._by_sender[sender] >= SENDER_LIMIT:
            raise Overloaded(f"too many requests of {sender} in one minute", retry_after=WINDOW)
        self._nonces.add(nonce)
        self._by_sender[sender] += 1
        heapq.heappush(self._expiry, (deadline, nonce, sender))
        return sender

    def _forget(self, now: int) -> None:
        while self._expiry and self._expiry[0][0] < now:
            _, nonce, sender = heapq.heappop(self._expiry)
            self._nonces.discard(nonce)
            self._by_sender[sender] -= 1
            if not self._by_sender[sender]:
                del self._by_sender[sender]
