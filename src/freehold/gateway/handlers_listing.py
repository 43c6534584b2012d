"""Listings: objects (both ways), versions, uploads, parts."""

from __future__ import annotations

from aiohttp import web

from freehold.client.bucket_types import Page, UploadPage, VersionPage
from freehold.gateway.call import Call
from freehold.gateway.wire.listing import (
    ListQuery,
    parse_list_parts,
    parse_list_uploads,
    parse_list_v1,
    parse_list_v2,
    parse_list_versions,
    write_list_parts,
    write_list_uploads,
    write_list_v1,
    write_list_v2,
    write_list_versions,
)


async def list_objects(call: Call) -> web.StreamResponse:
    """ListObjects, as it first was."""
    query = parse_list_v1(call.query)
    return call.xml(write_list_v1(call.bucket, query, await _list(call, query), call.tenant.owner))


async def list_objects_v2(call: Call) -> web.StreamResponse:
    """ListObjectsV2."""
    query = parse_list_v2(call.query)
    return call.xml(write_list_v2(call.bucket, query, await _list(call, query), call.tenant.owner))


async def _list(call: Call, query: ListQuery) -> Page:
    if query.limit == 0:
        return Page([], [], None)
    return await call.objects.list(call.bucket, query.prefix, query.delimiter, query.after, query.limit)


async def list_versions(call: Call) -> web.StreamResponse:
    """Versions and delete markers."""
    query = parse_list_versions(call.query)
    page = VersionPage([], [], None, None)
    if query.limit:
        page = await call.objects.list_versions(
            call.bucket, query.prefix, query.delimiter, query.after, query.second_marker, query.limit
        )
    return call.xml(write_list_versions(call.bucket, query, page, call.tenant.owner))


async def list_uploads(call: Call) -> web.StreamResponse:
    """Unfinished multipart uploads."""
    query = parse_list_uploads(call.query)
    page = UploadPage([], [], None, None)
    if query.limit:
        page = await call.objects.list_uploads(
            call.bucket, query.prefix, query.delimiter, query.after, query.second_marker, query.limit
        )
    return call.xml(write_list_uploads(call.bucket, query, page, call.tenant.owner))


async def list_parts(call: Call) -> web.StreamResponse:
    """The parts of an unfinished upload."""
    query = parse_list_parts(call.query)
    page = await call.objects.list_parts(call.bucket, call.key, call.query["uploadId"], query.after, query.limit)
    return call.xml(write_list_parts(call.bucket, query, page, call.tenant.owner))


HANDLERS = {
    "ListObjects": list_objects,
    "ListObjectsV2": list_objects_v2,
    "ListObjectVersions": list_versions,
    "ListMultipartUploads": list_uploads,
    "ListParts": list_parts,
}
