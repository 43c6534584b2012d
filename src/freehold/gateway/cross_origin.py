"""CORS: the preflight, and the headers on answers, by the rules of the bucket that is asked."""

from __future__ import annotations

from functools import lru_cache

from aiohttp import web

from freehold.gateway.call import Call
from freehold.gateway.wire import cors
from freehold.gateway.wire.errors import S3Error


@lru_cache(maxsize=256)
def _rules(document: bytes) -> tuple[cors.CorsRule, ...]:
    return tuple(cors.parse_cors(document))


async def answer_preflight(call: Call) -> web.Response:
    """The answer to OPTIONS, which nobody signs: the bucket is looked for in all accounts, in their order.

    A URL that is presigned names its account.
    """
    origin, method = call.headers.get("origin"), call.headers.get("access-control-request-method")
    if origin is None or method is None:
        raise S3Error("InvalidRequest", "Insufficient information. Origin request header needed.")
    credential = call.query.get("X-Amz-Credential", "")
    record = None
    if credential:
        tenant = (await call.gateway.tenants.find(credential.rsplit("/", 4)[0])).tenant
        record = await tenant.bucket(call.bucket)
    else:
        found = await call.gateway.tenants.of_bucket(call.bucket)
        record = None if found is None else found[1]
    document = None if record is None else record.documents.get("cors")
    if document is None:
        raise S3Error("AccessForbidden", "CORSResponse: CORS is not enabled for this bucket.")
    wanted = call.headers.get("access-control-request-headers", "")
    return call.answer(200, cors.preflight(_rules(document), origin, method, wanted))


def get_cors_headers(call: Call) -> dict[str, str]:
    """What the answer to a request from another origin says besides; nothing where no rule fits."""
    document = call.record.documents.get("cors")
    return {} if document is None else cors.for_answer(_rules(document), call.headers["origin"], call.method)
