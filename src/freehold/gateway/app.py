"""The gateway itself: one request in, one answer out.

    limits | path, query | preflight | who asks | which bucket | may they | the handler | CORS headers

Handlers are registered by the name of their operation; the table of operations routes (`operations.py`). Nothing of a
body is read, and no `100 Continue` sent, before a handler asks for it: who may not write is told so first. Invariant:
whatever a request holds, the answer is S3's, with an id; a fault of this program is an InternalError, and is logged.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from aiohttp import web

from freehold.gateway import (
    handlers_buckets,
    handlers_configuration,
    handlers_copy,
    handlers_forms,
    handlers_listing,
    handlers_multipart,
    handlers_objects,
    handlers_settings,
)
from freehold.gateway.access import Ask, authenticate, authorize, check_grant, locate
from freehold.gateway.bodies import Turns
from freehold.gateway.call import Call
from freehold.gateway.config import DEFAULT_REGION
from freehold.gateway.cross_origin import answer_preflight, get_cors_headers
from freehold.gateway.faults import RETRY_SECONDS, to_s3
from freehold.gateway.operations import Operation, find_operation
from freehold.gateway.tenants import Tenants
from freehold.gateway.wire.errors import ERRORS, S3Error
from freehold.net.limits import Gate, Waste, address_of
from freehold.protocol.errors import FreeholdError, Overloaded

log = logging.getLogger(__name__)

Handler = Callable[[Call], Awaitable[web.StreamResponse]]
Plain = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

HANDLERS: Mapping[str, Handler] = {
    **handlers_buckets.HANDLERS,
    **handlers_configuration.HANDLERS,
    **handlers_copy.HANDLERS,
    **handlers_forms.HANDLERS,
    **handlers_listing.HANDLERS,
    **handlers_multipart.HANDLERS,
    **handlers_objects.HANDLERS,
    **handlers_settings.HANDLERS,
}

_WITHOUT_BUCKET = {"ListBuckets", "CreateBucket"}  # that is there already
_FORM = "PostObject"  # names its caller in its body, and its handler finds out what they may
_KEY_BY_KEY = "DeleteObjects"  # as does this one's, for each key
# What a client's mistake costs it of its address's allowance (net/limits.py).
_WASTEFUL = {"SignatureDoesNotMatch", "InvalidAccessKeyId", "AuthorizationHeaderMalformed"}


class Gateway:
    """Answers S3 requests for some accounts. `requests` and `per_address`: how many are worked on at once."""

    def __init__(
        self,
        tenants: Tenants,
        *,
        region: str = DEFAULT_REGION,
        domain: str = "",
        requests: int = 512,
        per_address: int = 512,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.tenants = tenants
        self.region = region
        self.domain = domain
        self.clock = clock
        self.answered: Counter[tuple[str, int]] = Counter()  # by operation and status
        self._in_all, self._per_address = requests, per_address
        self._running: Counter[str] = Counter()
        self.turns = Turns()
        self._waste = Waste()
        self._is_closing = False
        self._is_idle = asyncio.Event()  # set when the last request is answered while closing
        self.pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="hash")

    async def close(self, seconds: float) -> None:
        """Take no more requests, and return once those that run are answered, or so many seconds have passed."""
        self._is_closing = True
        if self._running:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._is_idle.wait()
        self.pool.shutdown(wait=False)

    @property
    def running(self) -> int:
        """Requests that are being worked on."""
        return self._running.total()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to one request; aiohttp's handler."""
        call = Call(self, request)
        with self._counted(request) as address:
            response = await self._answer(call, address)
        if self._is_closing and not response.prepared:
            response.force_close()
        self.answered[call.operation.name if call.operation else "", response.status] += 1
        return response

    async def count(self, request: web.BaseRequest, handle: Plain) -> web.StreamResponse:
        """The answer of another handler to a request that counts as one of these, and is waited for as they are."""
        with self._counted(request) as address:
            try:
                self._check_room(address)
            except S3Error as error:
                response: web.StreamResponse = web.Response(status=error.status, headers=error.headers)
                response.force_close()
                return response
            try:
                response = await handle(request)
            except ConnectionError:
                raise
            except Exception:
                log.exception("a page failed")
                raise
        if self._is_closing and not response.prepared:
            response.force_close()
        return response

    @contextmanager
    def _counted(self, request: web.BaseRequest) -> Iterator[str]:
        """The address that a request counts for, as long as it runs."""
        address = address_of(request.remote)
        gate = request.transport.get_protocol() if request.transport is not None else None
        self._running[address] += 1
        if isinstance(gate, Gate):
            gate.requests += 1
        try:
            yield address
        finally:
            if isinstance(gate, Gate):
                gate.requests -= 1
            self._running[address] -= 1
            if not self._running[address]:
                del self._running[address]
            if self._is_closing and not self._running:
                self._is_idle.set()

    async def _answer(self, call: Call, address: str) -> web.StreamResponse:
        try:
            self._limit(address)
            call.parse()
            return await self._serve(call)
        except S3Error as error:
            if call.has_begun:
                raise self._cut_off(call, error) from None
            if error.code in _WASTEFUL:
                self._waste.count(address)
            return call.fail(error)
        except FreeholdError as error:
            if call.has_begun:
                raise self._cut_off(call, error) from None
            found = to_s3(error)
            if found.status >= 500:
                log.warning("%s %s: %s", call.request_id, call.operation and call.operation.name, error.message)
                if not call.is_owners:
                    found.message = ERRORS[found.code][1]  # which nodes do not answer is nobody else's business
            return call.fail(found)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("%s %s failed", call.request_id, call.operation and call.operation.name)
            if call.has_begun:
                raise self._cut_off(call, None) from None
            return call.fail(S3Error("InternalError"))

    def _cut_off(self, call: Call, error: Exception | None) -> ConnectionError:
        """End an answer that cannot be completed, so that its reader sees that it is not whole."""
        if error is not None:
            log.warning("%s %s is cut off: %s", call.request_id, call.operation and call.operation.name, error)
        if call.request.transport is not None:
            call.request.transport.abort()
        return ConnectionError("the answer is cut off")

    def _limit(self, address: str) -> None:
        self._check_room(address)
        try:
            self._waste.check(address)
        except Overloaded as error:
            raise to_s3(error) from None

    def _check_room(self, address: str) -> None:
        if self._is_closing:
            raise S3Error(
                "ServiceUnavailable", "This gateway is stopping.", headers={"Retry-After": str(RETRY_SECONDS)}
            )
        if self._running[address] > self._per_address or self._running.total() > self._in_all:
            raise S3Error("SlowDown", headers={"Retry-After": str(RETRY_SECONDS)})

    async def _serve(self, call: Call) -> web.StreamResponse:
        if call.method == "OPTIONS":
            return await answer_preflight(call)
        operation = call.operation = find_operation(call.level, call.method, call.query, call.headers)
        await authenticate(call)
        if operation is None:
            raise S3Error("MethodNotAllowed", Method=call.method, ResourceType=call.level.value.upper())
        if not operation.offered:
            raise S3Error(
                "NotImplemented", f"{operation.name} is not offered by this gateway.", Operation=operation.name
            )
        if operation.name in _WITHOUT_BUCKET:
            await self._place_account(call, operation)
        elif operation.name != _FORM:
            await locate(call)
            if "origin" in call.headers:
                call.common |= get_cors_headers(call)
            if operation.name != _KEY_BY_KEY:
                await authorize(call, operation)
            elif call.caller is None and "policy" not in call.record.documents:
                raise S3Error("AccessDenied")  # whatever the keys are: nothing of the body is read
        return await HANDLERS[operation.name](call)

    async def _place_account(self, call: Call, operation: Operation) -> None:
        """The request is about the caller's account as a whole."""
        if call.caller is None:
            raise S3Error("AccessDenied")
        call.place(call.caller.tenant, None)
        await check_grant(call, "", Ask(operation.action, operation.grant))
