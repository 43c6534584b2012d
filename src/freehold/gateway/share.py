"""Shared links: what an access grant allows, in a browser or with curl, without any key.

    /-/share/TOKEN                     leads to what the token is for
    /-/share/TOKEN/bucket/key          GET, HEAD: the object, also a range of it.  PUT, DELETE where granted
    /-/share/TOKEN/bucket/folder/      GET: a page of what is below.  POST: a form's files are put there, where granted
    ...?list, ?after=NAME, ?download   the names that start with the path; the next page; as a file to save

No bucket can be called "-". The token is in the URL: so no answer tells it on (Referrer-Policy), no shared page may act
in the gateway's name (CSP sandbox, nosniff), and no shared cache keeps anything. Invariant: nothing is read or written
before the account's `Grants.check` has allowed just that, with its revocations as of a moment ago.
"""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
import time
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Container, Mapping
from contextlib import aclosing
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, Protocol
from urllib.parse import parse_qs, quote, unquote_to_bytes

import aiohttp
from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from freehold.client.bucket_types import DeleteWhat, ObjectInfo, PutOptions
from freehold.client.errors import AccessDenied, KeyNotFound
from freehold.client.grants import Grant, Grants, root_key_of
from freehold.client.shares import URL_PATH, landing, link_to
from freehold.gateway.bodies import GRACE_SECONDS, LEAST_RATE, Turns, digests_of, send_continue
from freehold.gateway.conditions import Span, check_read, holds_range, parse_range, unquote_tag
from freehold.gateway.share_page import STYLE, Row, write_error, write_folder
from freehold.gateway.wire.checksums import BodyDigests, header_name
from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.headers import read_text
from freehold.net.limits import Waste, address_of
from freehold.protocol.errors import Conflict, FreeholdError, InvalidInput
from freehold.services.storage.client_sources import IterSource

if TYPE_CHECKING:
    from freehold.client.buckets import Buckets

PREFIX = URL_PATH
PAGE_SIZE = 500  # names on a page
MAX_FILES = 100  # of one form

_CHUNK = 256 * 1024
_ATTEMPTS = 3  # to read an object that is being replaced
_MALFORMED = (
    aiohttp.ClientPayloadError,
    web.RequestPayloadError,
    HttpProcessingError,
    ValueError,
    AssertionError,
    RuntimeError,
)
_METHODS = "GET, HEAD, POST, PUT, DELETE"
_STATUS = {"malformed": 404, "signer": 404, "expired": 410, "revoked": 410, "operation": 403, "outside": 403}
_TITLES = {403: "This link does not allow that", 404: "There is nothing here", 410: "This link has ended"}
_COMMON = {
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "private, no-cache",
    "Server": "Freehold",
}
_STYLE_HASH = b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
_PAGE = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
}
_SANDBOX = {"Content-Security-Policy": "sandbox"}
_OPEN = "application/pdf"  # browsers show none in a sandbox; its viewer runs apart from the page's origin anyway
_KEPT = ("content-encoding", "content-language")


class ShareTenant(Protocol):
    """An account, as far as links to it need it."""

    @property
    def grants(self) -> Grants: ...
    @property
    def objects(self) -> Buckets: ...
    async def revoked(self) -> Container[str]: ...


class ShareTenants(Protocol):
    """The accounts of a gateway."""

    def by_grant_key(self, public_key: bytes) -> ShareTenant | None: ...


class _Visit:
    """One request: whose token it brings, and the bucket and key that it names."""

    def __init__(self, tenants: ShareTenants, request: web.BaseRequest, now: float, turns: Turns) -> None:
        self.request, self.now, self.turns = request, now, turns
        raw, _, query = request.raw_path.partition("?")
        self.token, _, path = raw.partition(PREFIX)[2].partition("/")
        try:
            self.query = parse_qs(query, keep_blank_values=True, max_num_fields=20, errors="strict")
        except ValueError as error:
            raise InvalidInput(f"the query cannot be read: {error}") from None
        tenant = tenants.by_grant_key(root_key_of(self.token))
        if tenant is None:
            raise AccessDenied("this gateway does not serve the account of this grant", reason="signer")
        self.tenant = tenant
        self.bucket, self.key = map(_decode, path.partition("/")[::2])
        self.is_start = not self.bucket
        self.is_listing = not self.key or self.key.endswith("/") or "list" in self.query

    async def check(self, operation: str, key: str | None = None) -> Grant:
        """The grant, or AccessDenied unless it allows the operation on the key (the one named by the path)."""
        wanted = self.key if key is None else key
        revoked = await self.tenant.revoked()
        return self.tenant.grants.check(self.token, operation, self.bucket, wanted, self.now, revoked)

    def allows(self, grant: Grant, operation: str, key: str) -> bool:
        return grant.allows(operation, self.bucket, key, self.now)

    def link(self, key: str, query: str = "") -> str:
        """The URL of a key or prefix under the same token."""
        return link_to(self.token, self.bucket, key, query)


class SharePages:
    """Answers everything below PREFIX. `clock`: Unix seconds."""

    def __init__(
        self, tenants: ShareTenants, clock: Callable[[], float] = time.time, turns: Turns | None = None
    ) -> None:
        self._tenants = tenants
        self._turns = turns or Turns()
        self._clock = clock
        self._waste = Waste()  # tokens that nobody here has signed, by address

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer, also where it is no; only a client that is gone, and faults of this program, come out."""
        address = address_of(request.remote)
        try:
            self._waste.check(address)
            return await self._answer(request)
        except S3Error as error:
            if error.status == 304:
                return web.Response(status=304, headers=error.headers)
            return _fail(request, error.status, error.code, error.message, headers=error.headers)
        except FreeholdError as error:
            reason = str(error.details.get("reason"))
            if reason in ("malformed", "signer"):
                self._waste.count(address)
            wait = error.details.get("retry_after")
            headers = {} if wait is None else {"Retry-After": str(wait)}
            return _fail(
                request, _STATUS.get(reason, error.status), error.code, error.message, error.advice, headers=headers
            )

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        act = _ACTS.get(request.method)
        if act is None:
            headers = {"Allow": _METHODS}
            return _fail(request, 405, "method_not_allowed", f"{request.method} is not offered here", headers=headers)
        return await act(_Visit(self._tenants, request, self._clock(), self._turns))


def routes(tenants: ShareTenants, clock: Callable[[], float] = time.time) -> list[web.RouteDef]:
    """Everything below PREFIX, for an application."""
    return [web.route("*", PREFIX + "{rest:.*}", SharePages(tenants, clock).handle)]


async def _get(visit: _Visit) -> web.StreamResponse:
    if visit.is_start:
        return await _lead_on(visit)
    if visit.is_listing:
        return await _show_folder(visit)
    await visit.check("read")
    return await _send_object(visit)


async def _lead_on(visit: _Visit) -> web.StreamResponse:
    """From the token alone to what it is for."""
    grant = visit.tenant.grants.verify(visit.token, await visit.tenant.revoked())
    if grant.bucket is None:
        raise AccessDenied("this grant is for every bucket: say which, as /bucket/ after it", reason="outside")
    return web.Response(status=302, headers={**_COMMON, "Location": landing(visit.token, grant)})


async def _show_folder(visit: _Visit) -> web.StreamResponse:
    """The names below a prefix, if they may be listed; the form, if files may be added."""
    prefix = visit.key
    try:
        grant = await visit.check("list")
    except AccessDenied as error:
        if error.details.get("reason") != "operation":
            raise
        grant = await visit.check("write", prefix)  # a box that takes files and shows none
        return _html(write_folder(_title(prefix, visit.bucket), [], upload=True, may_list=False, expires=grant.expires))
    after = visit.query.get("after", [""])[0]
    page = await visit.tenant.objects.list(visit.bucket, prefix=prefix, delimiter="/", after=after, limit=PAGE_SIZE)
    folder = prefix[: prefix.rfind("/") + 1]  # of a prefix like "a/b", names are shown as they stand below "a/"
    rows = [Row(name[len(folder) :], visit.link(name)) for name in page.prefixes]
    rows += [
        Row(entry.key[len(folder) :], visit.link(entry.key), entry.size, entry.modified)
        for entry in page.entries
        if entry.key != prefix
    ]
    above = folder[: folder.rstrip("/").rfind("/") + 1]
    text = write_folder(
        _title(prefix, visit.bucket),
        rows,
        up=visit.link(above) if folder and visit.allows(grant, "list", above) else None,
        next_page=None if page.next is None else visit.link(prefix, f"?list&after={quote(page.next, safe='')}"),
        upload=visit.allows(grant, "write", prefix),
        expires=grant.expires,
    )
    return _html(text)


async def _send_object(visit: _Visit) -> web.StreamResponse:
    """The object, or the range of it that is asked for, streamed."""
    request = visit.request
    for _ in range(_ATTEMPTS):
        reading = await visit.tenant.objects.open(visit.bucket, visit.key)
        info = reading.info
        response, span = _prepare(visit, info)
        if request.method == "HEAD" or not span.length:
            await response.prepare(request)
            await response.write_eof()
            return response
        async with visit.turns.take(span.length), aclosing(reading.read(span.start, span.length)) as views:
            first = await anext(views)
            if reading.info == info:
                return await _send(request, response, first, views)
    raise Conflict("this object is being replaced all the time")


def _prepare(visit: _Visit, info: ObjectInfo) -> tuple[web.StreamResponse, Span]:
    """How the answer begins, and which bytes it has. S3Error 304, 412, 416."""
    headers = _describe(info, save="download" in visit.query)
    asked = {name.lower(): value for name, value in visit.request.headers.items()}
    try:
        check_read(asked, info.etag, info.modified)
        span = parse_range(asked.get("range"), info.size) if visit.request.method == "GET" else None
    except S3Error as error:
        error.headers |= _COMMON | ({"ETag": headers["ETag"]} if error.status == 304 else {})
        raise
    if span is None or not holds_range(asked.get("if-range"), info.etag, info.modified):
        headers["Content-Length"] = str(info.size)
        return web.StreamResponse(headers=headers), Span(0, info.size)
    headers["Content-Length"] = str(span.length)
    headers["Content-Range"] = f"bytes {span.start}-{span.start + span.length - 1}/{info.size}"
    return web.StreamResponse(status=206, headers=headers), span


async def _send(
    request: web.BaseRequest, response: web.StreamResponse, first: memoryview, views: AsyncGenerator[memoryview, None]
) -> web.StreamResponse:
    """Send the views as they come, of which the first is there: what failed before it was an answer of its own."""
    await response.prepare(request)
    view: memoryview | None = first
    try:
        while view is not None:
            async with asyncio.timeout(GRACE_SECONDS + len(view) / LEAST_RATE):
                for start in range(0, len(view), _CHUNK):
                    await response.write(bytes(view[start : start + _CHUNK]))  # what waits to be sent outlives the view
            view = await anext(views, None)
    except (FreeholdError, TimeoutError) as error:
        if request.transport is not None:
            request.transport.abort()  # before the length that was announced: nobody takes it for whole
        raise ConnectionResetError("what was shared was not sent to its end") from error
    await response.write_eof()
    return response


class _Digested(IterSource):
    """A body, and the checksum that its sender names, if any: InvalidInput where it comes to another."""

    def __init__(self, chunks: AsyncIterator[bytes], size: int | None, digests: BodyDigests | None) -> None:
        super().__init__(chunks if digests is None else _feed(chunks, digests), size)
        self._digests = digests

    async def finish(self) -> None:
        """See `Source`."""
        await super().finish()
        if self._digests is not None:
            try:
                self._digests.finish()
            except S3Error as error:
                raise InvalidInput(error.message) from None


async def _feed(chunks: AsyncIterator[bytes], digests: BodyDigests) -> AsyncIterator[bytes]:
    async for data in chunks:
        digests.update(data)
        yield data


def _digests_named(headers: Mapping[str, str]) -> BodyDigests | None:
    """What a body is held to, and is kept with the object: a node that delivers a job's files names their SHA-256."""
    if header_name("SHA256") not in headers:
        return None
    try:
        return BodyDigests(headers)
    except S3Error as error:
        raise InvalidInput(error.message) from None


async def _put(visit: _Visit) -> web.StreamResponse:
    """Store the body as the object."""
    await visit.check("write")
    if not visit.key:
        raise InvalidInput("the path names no object")
    request = visit.request
    options = PutOptions(
        headers={"content-type": _type_of(request.headers)},
        if_match=_tag(request, "If-Match"),
        if_none_match=_tag(request, "If-None-Match"),
    )
    await _expect(request)
    digests = _digests_named(request.headers)
    source = _Digested(_receive(request.content.readany), request.content_length, digests)
    async with visit.turns.take(request.content_length):
        info = await visit.tenant.objects.put(
            visit.bucket, visit.key, source, options, (lambda: digests_of(digests)) if digests else None
        )
    made = {"bucket": info.bucket, "key": info.key, "size": info.size, "etag": info.etag}
    return web.json_response(made, status=201, headers={**_COMMON, "ETag": f'"{info.etag}"'})


async def _post(visit: _Visit) -> web.StreamResponse:
    """Store the files of a form below the folder, under their own names; then show it again.

    Each is stored as it arrives: what stood before a fault in the form stays.
    """
    await visit.check("write")
    request = visit.request
    if not visit.is_listing or request.content_type != "multipart/form-data":
        raise InvalidInput("files are sent to a folder, as multipart/form-data; PUT stores one object")
    await _expect(request)
    count = 0
    async for part in _parts(request):
        if not part.filename:
            continue
        count += 1
        if count > MAX_FILES:
            raise InvalidInput(f"a form has at most {MAX_FILES} files")
        key = visit.key + part.filename.replace("\\", "/").rpartition("/")[2]
        await visit.check("write", key)
        options = PutOptions(headers={"content-type": _type_of(part.headers)})
        async with visit.turns.take(request.content_length):
            await visit.tenant.objects.put(
                visit.bucket, key, IterSource(_receive(partial(part.read_chunk, _CHUNK))), options
            )
    if not count:
        raise InvalidInput("the form has no file")
    return web.Response(status=303, headers={**_COMMON, "Location": visit.link(visit.key, "?list")})


async def _delete(visit: _Visit) -> web.StreamResponse:
    """Delete the object."""
    await visit.check("delete")
    (done,) = await visit.tenant.objects.delete(visit.bucket, [DeleteWhat(visit.key)])
    if isinstance(done, FreeholdError) and not isinstance(done, KeyNotFound):
        raise done
    return web.Response(status=204, headers=_COMMON)


_ACTS: Mapping[str, Callable[[_Visit], Awaitable[web.StreamResponse]]] = {
    "GET": _get,
    "HEAD": _get,
    "PUT": _put,
    "POST": _post,
    "DELETE": _delete,
}


def _decode(part: str) -> str:
    try:
        return unquote_to_bytes(part).decode()
    except UnicodeError:
        raise InvalidInput("the path is not UTF-8") from None


def _describe(info: ObjectInfo, *, save: bool) -> dict[str, str]:
    """The headers of an object."""
    name = info.key.rstrip("/").rpartition("/")[2] or "file"
    kind = "attachment" if save else "inline"
    headers = {
        **_COMMON,
        "Content-Type": _content_type(info),
        "Content-Disposition": f"{kind}; filename*=UTF-8''{quote(name, safe='')}",
        "ETag": f'"{info.etag}"',
        "Last-Modified": formatdate(info.modified // 1000, usegmt=True),
        "Accept-Ranges": "bytes",
    }
    headers |= {header.title(): info.headers[header] for header in _KEPT if header in info.headers}
    return headers if headers["Content-Type"] == _OPEN else headers | _SANDBOX


def _content_type(info: ObjectInfo) -> str:
    """The type that was given, else what the name says; text is UTF-8 unless it says otherwise itself."""
    given = info.headers.get("content-type", "")
    if given in ("", "application/octet-stream", "binary/octet-stream") or not given.isprintable():
        given = mimetypes.guess_type(info.key)[0] or "application/octet-stream"
    if given.startswith("text/") and given != "text/html" and "charset" not in given:
        given += "; charset=utf-8"
    return given


def _type_of(headers: Mapping[str, str]) -> str:
    """The type that is given."""
    return read_text(headers.get("Content-Type", "application/octet-stream"))


def _tag(request: web.BaseRequest, header: str) -> str | None:
    value = request.headers.get(header)
    return None if value is None else unquote_tag(value)


async def _expect(request: web.BaseRequest) -> None:
    """Tell a client that waits for it that its body is wanted."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await send_continue(request)


async def _parts(request: web.BaseRequest) -> AsyncIterator[BodyPartReader]:
    """The parts of a form. InvalidInput where it is none."""
    try:
        reader = await request.multipart()
        while True:
            async with asyncio.timeout(GRACE_SECONDS):
                part = await reader.next()
            if part is None:
                return
            if isinstance(part, BodyPartReader):
                yield part
    except TimeoutError:
        raise InvalidInput("the form comes too slowly") from None
    except _MALFORMED as error:
        raise InvalidInput(f"the form cannot be read: {error}") from None


async def _receive(read: Callable[[], Awaitable[bytes]]) -> AsyncIterator[bytes]:
    """A body as it arrives. InvalidInput where it breaks off, or comes slower than LEAST_RATE."""
    loop = asyncio.get_running_loop()
    arrived, waited = 0, 0.0
    while True:
        began = loop.time()
        try:
            async with asyncio.timeout(max(0.0, GRACE_SECONDS + arrived / LEAST_RATE - waited)):
                data = await read()
        except TimeoutError:
            raise InvalidInput("the body comes too slowly") from None
        except _MALFORMED as error:
            raise InvalidInput(f"the body cannot be read to its end: {error}") from None
        if not data:
            return
        waited += loop.time() - began
        arrived += len(data)
        yield data


def _title(prefix: str, bucket: str) -> str:
    return prefix.rstrip("/").rpartition("/")[2] or bucket


def _html(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type="text/html", charset="utf-8", headers=_COMMON | _PAGE)


def _fail(
    request: web.BaseRequest,
    status: int,
    code: str,
    message: str,
    hint: str = "",
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """Why not, as a page for browsers and as JSON for programs."""
    if "text/html" in request.headers.get("Accept", ""):
        response = _html(write_error(_TITLES.get(status, "This did not work"), message, hint), status)
    else:
        error = {"code": code, "message": message, "hint": hint}
        response = web.json_response({"error": error}, status=status, headers=_COMMON)
    response.headers.update(headers or {})
    if not request.content.is_eof():
        response.force_close()
    return response
