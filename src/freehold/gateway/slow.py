"""Answers that take long to come about: the client hears something before it gives up.

S3 begins such an answer with 200 and sends white space until it knows how it ends; an error then stands in the body.
Clients know that of CopyObject, UploadPartCopy and CompleteMultipartUpload, and of nothing else. What is done within
PATIENCE_SECONDS is answered as usual.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from aiohttp import web

from freehold.gateway.call import XML, Call
from freehold.gateway.faults import to_s3
from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.xml_writer import DECLARATION
from freehold.protocol.errors import FreeholdError

PATIENCE_SECONDS = 10.0
PAUSE_SECONDS = 5.0


async def answer_slowly(
    call: Call,
    work: Coroutine[None, None, web.Response],
    patience: float = PATIENCE_SECONDS,
    pause: float = PAUSE_SECONDS,
) -> web.StreamResponse:
    """The answer that `work` makes: as it is, or as the end of one that has begun meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=patience)
        if task.done():
            return task.result()
        response = web.StreamResponse(status=200, headers={**call.common, "Content-Type": XML})
        await response.prepare(call.request)
        call.has_begun = True
        await response.write(DECLARATION.encode())
        while not task.done():
            await response.write(b" ")
            await asyncio.wait([task], timeout=pause)
        body = _outcome(call, task)
        await response.write(body.removeprefix(DECLARATION.encode()))
        await response.write_eof()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    return response


def _outcome(call: Call, task: asyncio.Task[web.Response]) -> bytes:
    try:
        body = task.result().body
    except S3Error as error:
        return error.to_xml(call.path, call.request_id)
    except FreeholdError as error:
        return to_s3(error).to_xml(call.path, call.request_id)
    assert isinstance(body, bytes)
    return body
