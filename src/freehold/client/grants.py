"""Access grants: tokens for some of an account's objects, narrowed offline by whoever holds them.

    "fhg_" + base64url(root public key (32 bytes) + biscuit)      a biscuit (biscuitsec.org) is a chain of signed blocks

    the first, signed by the account's root key:   account("0x..."); right("read", SCOPE); check if time($time), ...;
    every later one, added without any key:        check if resource($path), $path.starts_with(SCOPE); and so on

A scope is the start of "bucket/key": "" is every bucket, "bucket/" all of one, "bucket/a!" just the object "a". The
library checks the signatures and decides. The blocks' text is read here too, to say what a token is for and why it does
not allow something, and every statement that is not made here is refused: so evaluation is cheap. Since the library
prints texts without escaping them, a doctored token can read otherwise than it is: it is good for what both allow.

Invariants: a narrowed token allows a subset of what it came from; what users name can never become Datalog, since it is
passed as parameters and `quote` leaves neither quotes, backslashes nor control characters in it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections import OrderedDict
from collections.abc import Collection, Container, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from biscuit_auth import (
    Algorithm,
    AuthorizationError,
    AuthorizerBuilder,
    Biscuit,
    BiscuitBuilder,
    BlockBuilder,
    KeyPair,
    PrivateKey,
    PublicKey,
)

from freehold.client.errors import AccessDenied
from freehold.client.secrets import derive_secret
from freehold.protocol.errors import InvalidInput
from freehold.protocol.units import Address

OPERATIONS = ("read", "list", "write", "delete")
PREFIX = "fhg_"
TOKEN_LIMIT = 4_096  # characters: with a key of 1,024 bytes it still fits into the line of an HTTP request
MAX_BLOCKS = 16
LATEST = 253_402_300_799  # the last second of the year 9999, which is as far as dates go

_KEY_SIZE = 32
_ED25519 = Algorithm.Ed25519  # type: ignore[attr-defined]  # the stubs lag behind the library
_CACHED = 1_024  # verified tokens kept in memory, a few KiB each
_END = "!"  # after an object's whole key: `quote` leaves none inside
_LIMITS = {"max_facts": 64, "max_iterations": 8, "max_time": timedelta(seconds=1)}

_POLICY = """
    operation({operation}); resource({path}); time({now});
    allow if operation($operation), resource($path), right($operation, $scope), $path.starts_with($scope);
"""
_TEXT = r'"([^"\\\x00-\x1f\x7f]*)"'
_ACCOUNT = re.compile(r'account\("(0x[0-9a-f]{40})"\);')
_RIGHT = re.compile(rf'right\("({"|".join(OPERATIONS)})", {_TEXT}\);')
_IN_SCOPE = re.compile(rf"check if resource\(\$path\), \$path\.starts_with\({_TEXT}\);")
_IN_OPERATIONS = re.compile(r"check if operation\(\$operation\), \{([a-z\", ]*)\}\.contains\(\$operation\);")
_IN_TIME = re.compile(r"check if time\(\$time\), \$time < (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ);")
_ESCAPED = re.compile(r"%([0-9A-F]{2})")
_ESCAPES = {code: f"%{code:02X}" for code in (*range(0x20), *b'"\\%!', 0x7F)}


class Grant(NamedTuple):
    """What a token allows: `operations` below one scope, before `expires` (Unix seconds; None: without end).

    `ids` are the blocks' revocation ids, and `lapses` what `expires` was as of each block, first to last.
    """

    account: Address
    scope: str
    operations: frozenset[str]
    expires: int | None
    ids: tuple[str, ...]
    lapses: tuple[int | None, ...]

    @property
    def bucket(self) -> str | None:
        """The only bucket; None: every one."""
        return self.scope.partition("/")[0] or None

    @property
    def exact(self) -> bool:
        """Whether it is for one object, whose key is `prefix`."""
        return self.scope.endswith(_END)

    @property
    def prefix(self) -> str:
        """What keys start with."""
        return unquote(self.scope.partition("/")[2].removesuffix(_END))

    def allows(self, operation: str, bucket: str, key: str, now: float) -> bool:
        """Whether a token of just this description allows the operation."""
        return self.why_not(operation, bucket, key, now) is None

    def why_not(self, operation: str, bucket: str, key: str, now: float) -> tuple[str, str] | None:
        """The reason and a sentence for a refusal; None where nothing speaks against it."""
        if self.expires is not None and int(now) >= self.expires:
            return "expired", f"this grant was good until {format_time(self.expires)}"
        if operation not in self.operations:
            allowed = ", ".join(name for name in OPERATIONS if name in self.operations) or "nothing"
            return "operation", f"this grant allows {allowed}, not {operation}"
        if not resource(operation, bucket, key).startswith(self.scope):
            return "outside", f"this grant is for {self.describe_scope()} only"
        return None

    def describe_scope(self) -> str:
        """The scope as a path: fh://bucket/key, fh://bucket/prefix*, or `every bucket`."""
        if self.bucket is None:
            return "every bucket"
        return f"fh://{self.bucket}/{self.prefix}{'' if self.exact else '*'}"


class GrantKey:
    """An account's root key pair, derived from its seed: what it signs, it grants."""

    def __init__(self, seed: bytes) -> None:
        secret = derive_secret(seed, "grants")
        self._private = PrivateKey.from_bytes(secret, _ED25519)  # type: ignore[call-arg]
        self.public_key = bytes(KeyPair.from_private_key(self._private).public_key.to_bytes())

    def issue(
        self,
        account: Address,
        operations: Collection[str],
        *,
        bucket: str | None = None,
        prefix: str = "",
        exact: bool = False,
        expires: int | None = None,
    ) -> str:
        """A token for `operations` on keys of `bucket` (None: all) that start with `prefix`, or (exact) just that key.

        `expires` is in Unix seconds. InvalidInput for what cannot be granted.
        """
        scope = make_scope(bucket, prefix, exact=exact)
        builder = BiscuitBuilder("account({account});", {"account": str(account)})
        for operation in sorted(_check_operations(operations)):
            builder.add_code("right({operation}, {scope});", {"operation": operation, "scope": scope})
        if expires is not None:
            builder.add_code("check if time($time), $time < {expires};", {"expires": _date(expires)})
        return _to_text(self.public_key, builder.build(self._private))


def narrow(
    token: str,
    *,
    bucket: str | None = None,
    prefix: str | None = None,
    exact: bool = False,
    operations: Collection[str] | None = None,
    expires: int | None = None,
) -> str:
    """The token with less allowed; neither key nor network is needed. What is not named stays as it is.

    `bucket` need not be named where the token has one. InvalidInput where more is asked for than the token allows, or
    where it would grow beyond what is taken.
    """
    public_key, biscuit, grant = _open(token)
    block = BlockBuilder("")
    if bucket is not None or prefix is not None or exact:
        scope = make_scope(bucket if bucket is not None else grant.bucket, prefix or "", exact=exact)
        if not scope.startswith(grant.scope):
            raise InvalidInput(f"the token is for {grant.describe_scope()} only: this is outside")
        block.add_code("check if resource($path), $path.starts_with({scope});", {"scope": scope})
    if operations is not None:
        chosen = _check_operations(operations)
        if not chosen <= grant.operations:
            raise InvalidInput(f"the token does not allow to {' or '.join(sorted(chosen - grant.operations))}")
        block.add_code(
            "check if operation($operation), {operations}.contains($operation);", {"operations": set(chosen)}
        )
    if expires is not None:
        if grant.expires is not None and expires > grant.expires:
            raise InvalidInput(f"the token ends sooner, on {format_time(grant.expires)}")
        block.add_code("check if time($time), $time < {expires};", {"expires": _date(expires)})
    return _to_text(public_key, biscuit.append(block))


def describe(token: str) -> Grant:
    """What a token allows, without any key. AccessDenied if it is none (see `Grants.check`).

    That the account itself signed it is known only to `Grants.check`.
    """
    return _open(token)[2]


def root_key_of(token: str) -> bytes:
    """The root public key (32 bytes) that a token names, by which its account is found; nothing is verified yet."""
    return _split(token)[0]


class Grants:
    """Judges the tokens of one account, by its root public key. Verified tokens are remembered."""

    def __init__(self, public_key: bytes) -> None:
        self.public_key = public_key
        self._known: OrderedDict[str, tuple[Biscuit, Grant]] = OrderedDict()

    def check(self, token: str, operation: str, bucket: str, key: str, now: float, revoked: Container[str]) -> Grant:
        """The token's grant, or AccessDenied; `now` in Unix seconds.

        `details["reason"]` of the error: malformed, signer, revoked, expired, operation, outside.
        To list, `key` is the prefix of what is listed; bucket and key "" are the list of buckets.
        """
        biscuit, grant = self._verify(token, revoked)
        why_not = grant.why_not(operation, bucket, key, now)
        if why_not is None and not decide(biscuit, operation, resource(operation, bucket, key), now):
            why_not = "outside", "this grant does not allow that"
        if why_not is not None:
            raise AccessDenied(why_not[1], reason=why_not[0])
        return grant

    def verify(self, token: str, revoked: Container[str]) -> Grant:
        """What a token says that this account signed and did not revoke; it may have expired. Else AccessDenied."""
        return self._verify(token, revoked)[1]

    def _verify(self, token: str, revoked: Container[str]) -> tuple[Biscuit, Grant]:
        known = self._known.get(token)
        if known is None:
            if _split(token)[0] != self.public_key:
                raise AccessDenied("this grant is not signed by this account", reason="signer")
            known = self._known[token] = _open(token)[1:]
            if len(self._known) > _CACHED:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(token)
        if any(number in revoked for number in known[1].ids):
            raise AccessDenied("this grant was revoked", reason="revoked")
        return known


def decide(biscuit: Biscuit, operation: str, path: str, now: float) -> bool:
    """What the library says: the first block has the right, and every block's checks hold.

    AccessDenied for a block that it took and cannot work with.
    """
    parameters = {"operation": operation, "path": path, "now": _date(int(now))}
    with _library():
        builder = AuthorizerBuilder(_POLICY, parameters)
        limits = builder.limits()  # type: ignore[attr-defined]
        for name, value in _LIMITS.items():
            setattr(limits, name, value)
        builder.set_limits(limits)  # type: ignore[attr-defined]
        try:
            return builder.build(biscuit).authorize() == 0
        except AuthorizationError:
            return False


def resource(operation: str, bucket: str, key: str) -> str:
    """What an operation is on, as scopes are compared with it: the whole key, or the prefix of what is listed."""
    if not bucket:
        return ""
    return f"{bucket}/{quote(key)}{'' if operation == 'list' else _END}"


def make_scope(bucket: str | None, prefix: str, *, exact: bool) -> str:
    """The scope of a bucket (None: all) and a prefix, or (exact) of one key."""
    if bucket is None or not bucket:
        if prefix or exact:
            raise InvalidInput("a prefix needs a bucket")
        return ""
    if "/" in bucket:
        raise InvalidInput(f"{bucket!r} is not the name of a bucket")
    if exact and not prefix:
        raise InvalidInput("an object needs a key")
    return f"{quote(bucket)}/{quote(prefix)}{_END if exact else ''}"


def quote(text: str) -> str:
    """`text` without quotes, backslashes, control characters, "%" and "!"; keeps what starts with what."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{text!r} is not valid Unicode") from None
    return text.translate(_ESCAPES)


def unquote(text: str) -> str:
    """What `quote` was given."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


def format_time(seconds: int) -> str:
    """Unix seconds as people read them, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _to_text(public_key: bytes, biscuit: Biscuit) -> str:
    token = PREFIX + base64.urlsafe_b64encode(public_key + bytes(biscuit.to_bytes())).decode().rstrip("=")
    if len(token) > TOKEN_LIMIT or biscuit.block_count() > MAX_BLOCKS:
        raise InvalidInput(
            f"the token would have {len(token)} characters in {biscuit.block_count()} blocks; "
            f"{TOKEN_LIMIT} and {MAX_BLOCKS} are taken",
            hint="Narrow an earlier token at once instead of a narrowed one again, or grant a shorter prefix.",
        )
    return token


def _split(token: str) -> tuple[bytes, bytes]:
    if len(token) > TOKEN_LIMIT or not token.startswith(PREFIX):
        raise _malformed()
    body = token[len(PREFIX) :]
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _malformed() from None
    if len(raw) <= _KEY_SIZE or base64.urlsafe_b64encode(raw).decode().rstrip("=") != body:  # one token, one spelling
        raise _malformed()
    return raw[:_KEY_SIZE], raw[_KEY_SIZE:]


def _open(token: str) -> tuple[bytes, Biscuit, Grant]:
    """A token's root key, the biscuit (its signatures hold for that key), and what it says."""
    public_key, raw = _split(token)
    with _library():
        biscuit = Biscuit.from_bytes(raw, PublicKey.from_bytes(public_key, _ED25519))  # type: ignore[call-arg]
        count = biscuit.block_count()
        if count > MAX_BLOCKS:
            raise _malformed()
        sources = [biscuit.block_source(index) for index in range(count)]
        return public_key, biscuit, _read(sources, tuple(biscuit.revocation_ids))


@contextmanager
def _library() -> Iterator[None]:
    """Whatever the library finds wrong with a token, its panics included, is AccessDenied."""
    try:
        yield
    except AccessDenied:
        raise
    except BaseException as error:  # a panic is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _malformed() from None


def _read(sources: list[str], ids: tuple[str, ...]) -> Grant:
    """What blocks of our shape say together; AccessDenied for any other."""
    account, scopes, operations, expires = None, [], set[str](), None
    lapses = list[int | None]()
    for line in _lines(sources[0]):
        if account is None and (found := _ACCOUNT.fullmatch(line)):
            account = Address(found[1])
        elif found := _RIGHT.fullmatch(line):
            operations.add(found[1])
            scopes.append(found[2])
        elif expires is None and (found := _IN_TIME.fullmatch(line)):
            expires = _seconds(found[1])
        else:
            raise _malformed()
    if account is None or len(set(scopes)) != 1:
        raise _malformed()
    lapses.append(expires)
    scope, nothing = scopes[0], False
    for source in sources[1:]:
        for line in _lines(source):
            if found := _IN_SCOPE.fullmatch(line):
                nothing |= not (found[1].startswith(scope) or scope.startswith(found[1]))
                scope = max(scope, found[1], key=len)
            elif found := _IN_OPERATIONS.fullmatch(line):
                operations &= {name.strip('"') for name in found[1].split(", ")}
            elif found := _IN_TIME.fullmatch(line):
                expires = _seconds(found[1]) if expires is None else min(expires, _seconds(found[1]))
            else:
                raise _malformed()
        lapses.append(expires)
    return Grant(account, scope, frozenset(() if nothing else operations), expires, ids, tuple(lapses))


def _lines(source: str) -> list[str]:
    return source.removesuffix("\n").split("\n") if source else []


def _malformed() -> AccessDenied:
    return AccessDenied("this is not a whole access grant, signed by the account it names", reason="malformed")


def _check_operations(operations: Collection[str]) -> frozenset[str]:
    chosen = frozenset(operations)
    if not chosen or not chosen <= set(OPERATIONS):
        raise InvalidInput(f"operations are some of {', '.join(OPERATIONS)}, not {', '.join(sorted(chosen)) or 'none'}")
    return chosen


def _date(seconds: int) -> Any:
    if not 0 <= seconds <= LATEST:
        raise InvalidInput(f"{seconds} is not a time, in seconds since 1970")
    return datetime.fromtimestamp(seconds, UTC)


def _seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())
