"""Presigned S3 addresses (Signature Version 4, query parameters), as AWS documents them.

The bench signs by its own few lines, so that the server's code is not measured against itself.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote

ALGORITHM = "AWS4-HMAC-SHA256"
EXPIRES = 86400


class Credentials(NamedTuple):
    """An access key and the region that its signatures name."""

    access_key: str
    secret_key: str
    region: str


def presign(credentials: Credentials, method: str, host: str, path: str, query: dict[str, str]) -> str:
    """Path and query, signed for a day; only the host header is signed."""
    now = datetime.now(UTC)
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    scope = f"{day}/{credentials.region}/s3/aws4_request"
    parameters = query | {
        "X-Amz-Algorithm": ALGORITHM,
        "X-Amz-Credential": f"{credentials.access_key}/{scope}",
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(EXPIRES),
        "X-Amz-SignedHeaders": "host",
    }
    path = quote(path, safe="/~")
    text = "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in sorted(parameters.items()))
    request = f"{method}\n{path}\n{text}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
    to_sign = f"{ALGORITHM}\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    signature = hmac.digest(_key(credentials, day), to_sign.encode(), "sha256").hex()
    return f"{path}?{text}&X-Amz-Signature={signature}"


@lru_cache(maxsize=8)
def _key(credentials: Credentials, day: str) -> bytes:
    key = f"AWS4{credentials.secret_key}".encode()
    for part in (day, credentials.region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
