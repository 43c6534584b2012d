"""fh://bucket/key: how objects are named.

A bucket's name is what S3 takes (3 to 63 of a-z, 0-9, '.', '-'); a key is components joined by '/', each non-empty,
not '.' or '..', without control characters, in Unicode's NFC so that one name has one spelling. Invariant:
`parse(str(path)) == path`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from freehold.protocol.errors import InvalidInput

SCHEME = "fh://"
MAX_KEY_BYTES = 1024  # S3's limit

_BUCKET = re.compile(r"[a-z0-9](?:[a-z0-9-]|\.(?!\.)){1,61}[a-z0-9]")


class ObjectPath(NamedTuple):
    """A bucket and the components of a key or prefix; none for the bucket itself."""

    bucket: str
    components: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The components joined by '/'."""
        return "/".join(self.components)

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}" if self.components else f"{SCHEME}{self.bucket}"


def is_remote(text: str) -> bool:
    """Whether this names something on the network rather than a local file."""
    return text.startswith(SCHEME)


def parse_path(text: str) -> ObjectPath:
    """The path behind `fh://bucket[/key]`; a slash at the end marks a prefix. InvalidInput says what is wrong."""
    if not is_remote(text):
        raise InvalidInput(f"{text!r} is not a path on the network: it starts with {SCHEME}")
    bucket, slash, key = text[len(SCHEME) :].partition("/")
    check_bucket(bucket)
    return ObjectPath(bucket, split_key(key.removesuffix("/")) if slash and key else ())


def check_bucket(name: str) -> str:
    """The name, or InvalidInput with the rule."""
    if not _BUCKET.fullmatch(name):
        raise InvalidInput(
            f"{name!r} is not a bucket's name: 3 to 63 of a-z, 0-9, '-' and single '.', a letter or digit at each end"
        )
    return name


def split_key(key: str) -> tuple[str, ...]:
    """A key's components in NFC; InvalidInput for one that is empty, '.', '..', or has control characters."""
    try:
        normal = unicodedata.normalize("NFC", key)
        size = len(normal.encode())
    except UnicodeEncodeError:
        raise InvalidInput(f"{key!r} is not valid Unicode") from None
    if size > MAX_KEY_BYTES:
        raise InvalidInput(f"a key has at most {MAX_KEY_BYTES} bytes, not {size}")
    components = tuple(normal.split("/"))
    for component in components:
        if not component:
            raise InvalidInput(f"{key!r} has an empty component: two slashes in a row, or one at an end")
        if component in (".", ".."):
            raise InvalidInput(f"{key!r} has the component {component!r}, which names no object")
        if any(unicodedata.category(c) == "Cc" for c in component):
            raise InvalidInput(f"{key!r} has a control character")
    return components
