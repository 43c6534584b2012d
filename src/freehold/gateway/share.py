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

import hashlib
import mimetypes
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping
from contextlib import aclosing
from email.utils import formatdate
from typing import TYPE_CHECKING, Protocol
from urllib.parse import parse_qs, quote, unquote_to_bytes

from aiohttp import BodyPartReader, web

from freehold.client.bucket_types import DeleteWhat, ObjectInfo, PutOptions
from freehold.client.errors import AccessDenied, KeyNotFound
from freehold.client.grants import Grant, Grants, root_key_of
from freehold.client.shares import URL_PATH, landing, link_to
from freehold.gateway.conditions import Span, check_read, holds_range, parse_range, unquote_tag
from freehold.gateway.share_page import STYLE, Row, write_error, write_folder
from freehold.gateway.wire.errors import S3Error
from freehold.protocol.errors import FreeholdError, InvalidInput
from freehold.services.storage.client_sources import IterSource

if TYPE_CHECKING:
    from freehold.client.buckets import Buckets

PREFIX = URL_PATH
PAGE_SIZE = 500  # names on a page
MAX_FILES = 100  # of one form

_CHUNK = 256 * 1024
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

    def __init__(self, tenants: ShareTenants, request: web.BaseRequest, now: float) -> None:
        self.request, self.now = request, now
        raw, _, query = request.raw_path.partition("?")
        self.token, _, path = raw[raw.index(PREFIX) + len(PREFIX) :].partition("/")
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

    def __init__(self, tenants: ShareTenants, clock: Callable[[], float] = time.time) -> None:
        self._tenants = tenants
        self._clock = clock

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer, also where it is no; only a client that is gone, and faults of this program, come out."""
        try:
            return await self._answer(request)
        except S3Error as error:
            return _fail(request, error.status, error.code, error.message, headers=error.headers)
        except FreeholdError as error:
            status = _STATUS.get(str(error.details.get("reason")), error.status)
            return _fail(request, status, error.code, error.message, error.advice)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        act = _ACTS.get(request.method)
        if act is None:
            headers = {"Allow": _METHODS}
            return _fail(request, 405, "method_not_allowed", f"{request.method} is not offered here", headers=headers)
        return await act(_Visit(self._tenants, request, self._clock()))


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
    reading = await visit.tenant.objects.open(visit.bucket, visit.key)
    info = reading.info
    headers = _describe(info, save="download" in visit.query)
    asked = {name.lower(): value for name, value in request.headers.items()}
    try:
        check_read(asked, info.etag, info.modified)
    except S3Error as error:
        if error.status != 304:
            raise
        return web.Response(status=304, headers=headers)
    span = parse_range(asked.get("range"), info.size) if request.method == "GET" else None
    if span is not None and not holds_range(asked.get("if-range"), info.etag, info.modified):
        span = None
    status = 200
    if span is not None:
        status = 206
        headers["Content-Range"] = f"bytes {span.start}-{span.start + span.length - 1}/{info.size}"
    start, length = span or Span(0, info.size)
    response = web.StreamResponse(status=status, headers={**headers, "Content-Length": str(length)})
    await response.prepare(request)
    if request.method == "GET" and length:
        try:
            async with aclosing(reading.read(start, length)) as views:
                async for view in views:
                    await response.write(view)
        except FreeholdError:  # too late for another answer: the connection ends before the announced length
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("what was shared could not be read to its end") from None
    await response.write_eof()
    return response


async def _put(visit: _Visit) -> web.StreamResponse:
    """Store the body as the object."""
    await visit.check("write")
    if not visit.key:
        raise InvalidInput("the path names no object")
    request = visit.request
    options = PutOptions(
        headers={"content-type": request.headers.get("Content-Type", "application/octet-stream")},
        if_match=_tag(request, "If-Match"),
        if_none_match=_tag(request, "If-None-Match"),
    )
    source = IterSource(request.content.iter_chunked(_CHUNK), request.content_length)
    info = await visit.tenant.objects.put(visit.bucket, visit.key, source, options)
    made = {"bucket": info.bucket, "key": info.key, "size": info.size, "etag": info.etag}
    return web.json_response(made, status=201, headers={**_COMMON, "ETag": f'"{info.etag}"'})


async def _post(visit: _Visit) -> web.StreamResponse:
    """Store the files of a form below the folder, under their own names; then show it again."""
    await visit.check("write")
    request = visit.request
    if not visit.is_listing or request.content_type != "multipart/form-data":
        raise InvalidInput("files are sent to a folder, as multipart/form-data; PUT stores one object")
    count = 0
    async for part in await request.multipart():
        if not isinstance(part, BodyPartReader) or not part.filename:
            continue
        count += 1
        if count > MAX_FILES:
            raise InvalidInput(f"a form has at most {MAX_FILES} files")
        key = visit.key + part.filename.replace("\\", "/").rpartition("/")[2]
        await visit.check("write", key)
        options = PutOptions(headers={"content-type": part.headers.get("Content-Type", "application/octet-stream")})
        await visit.tenant.objects.put(visit.bucket, key, IterSource(_chunks(part)), options)
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
    except UnicodeDecodeError:
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


def _tag(request: web.BaseRequest, header: str) -> str | None:
    value = request.headers.get(header)
    return None if value is None else unquote_tag(value)


async def _chunks(part: BodyPartReader) -> AsyncIterator[bytes]:
    while chunk := await part.read_chunk(_CHUNK):
        yield chunk


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
