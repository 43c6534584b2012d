"""fh://bucket/key: how objects are named.

A bucket's name is what S3 takes: 3 to 63 of a-z, 0-9, '.', '-', and not an IP address. A key is any Unicode of up to
1,024 bytes of UTF-8, taken as it is: "a//b", "a/" and two spellings of one letter are keys of their own. Invariant:
`parse_path(str(path)) == path`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from freehold.protocol.errors import InvalidInput

SCHEME = "fh://"
MAX_KEY_BYTES = 1024  # S3's limit

_BUCKET = re.compile(r"[a-z0-9](?:[a-z0-9-]|\.(?!\.)){1,61}[a-z0-9]")
_IP_ADDRESS = re.compile(r"(?:[0-9]+\.){3}[0-9]+")


class ObjectPath(NamedTuple):
    """A bucket and a key or prefix; "" for the bucket itself."""

    bucket: str
    key: str = ""

    @property
    def name(self) -> str:
        """What comes after the key's last slash, as a file would be called."""
        return self.key.rpartition("/")[2]

    def below(self, name: str) -> ObjectPath:
        """The key with something put after it."""
        return ObjectPath(self.bucket, self.key + name)

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}" if self.key else f"{SCHEME}{self.bucket}"


def is_remote(text: str) -> bool:
    """Whether this names something on the network rather than a local file."""
    return text.startswith(SCHEME)


def parse_path(text: str) -> ObjectPath:
    """The path behind `fh://bucket[/key]`. InvalidInput says what is wrong."""
    if not is_remote(text):
        raise InvalidInput(f"{text!r} is not a path on the network: it starts with {SCHEME}")
    bucket, _, key = text[len(SCHEME) :].partition("/")
    encode_key(key)
    return ObjectPath(check_bucket(bucket), key)


def check_bucket(name: str) -> str:
    """The name, or InvalidInput with the rule."""
    if not _BUCKET.fullmatch(name) or _IP_ADDRESS.fullmatch(name):
        raise InvalidInput(
            f"{name!r} is not a bucket's name: 3 to 63 of a-z, 0-9, '-' and single '.', a letter or digit at each end, "
            "and no IP address"
        )
    return name


def encode_key(key: str) -> bytes:
    """The UTF-8 of a key or prefix; InvalidInput if it has none, or more than 1,024 bytes of it."""
    try:
        data = key.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{key!r} is not valid Unicode") from None
    if len(data) > MAX_KEY_BYTES:
        raise InvalidInput(f"a key has at most {MAX_KEY_BYTES} bytes of UTF-8, not {len(data)}", limit=MAX_KEY_BYTES)
    return data
