"""The conditions of bucket policies: operators, their values checked when a policy is put, and how they hold.

Several values of one key: any may fit (for negated operators: none may). Several keys, several operators: all must.
An operator or a key that is not in the tables is refused at PUT.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, NamedTuple

from freehold.gateway.wire.documents import parse_iso
from freehold.gateway.wire.errors import S3Error

# Condition keys by lower-case name, which are compared without case: those that every request is asked for (access.py).
KEYS = frozenset(
    {
        "aws:currenttime", "aws:epochtime", "aws:referer", "aws:securetransport", "aws:sourceip", "aws:useragent",
        "aws:username", "aws:principaltype", "aws:userid", "s3:authtype", "s3:delimiter", "s3:max-keys", "s3:prefix",
        "s3:signatureage", "s3:signatureversion", "s3:versionid", "s3:x-amz-acl", "s3:x-amz-content-sha256",
        "s3:x-amz-copy-source", "s3:x-amz-metadata-directive", "s3:x-amz-server-side-encryption",
        "s3:x-amz-storage-class", "s3:if-match", "s3:if-none-match",
    }
)  # fmt: skip
EXISTING_TAG = "s3:existingobjecttag/"
_OPERATOR = re.compile(r"([A-Za-z]+?)(IfExists)?")
_NUMBER = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?", re.ASCII)

Test = Callable[[str, Any], bool]  # (what the request has, the policy's value as it was read)


class Operator(NamedTuple):
    read: Callable[[str], Any]  # a policy's value; ValueError for what is none
    test: Test
    is_negated: bool = False


class Condition(NamedTuple):
    """One operator on one key, with the values that a policy gives."""

    operator: str
    if_exists: bool
    key: str
    values: tuple[Any, ...]

    def holds(self, facts: Mapping[str, Sequence[str]]) -> bool:
        """Whether the request's facts meet it."""
        found = facts.get(self.key)
        if self.operator == "Null":
            return self.values == (not found,)
        operator = OPERATORS[self.operator]
        if not found:
            return self.if_exists or operator.is_negated
        hit = any(operator.test(fact, value) for fact in found for value in self.values)
        return hit != operator.is_negated


def parse_conditions(value: Any) -> tuple[Condition, ...]:
    """The conditions of a statement. S3Error MalformedPolicy that says which operator, key or value is wrong."""
    if not isinstance(value, dict):
        raise S3Error("MalformedPolicy", "Condition must be an object")
    found: list[Condition] = []
    for name, block in value.items():
        match = _OPERATOR.fullmatch(name)
        if match is None or not (match[1] in OPERATORS or name == "Null"):
            raise S3Error("MalformedPolicy", f"Invalid Condition type : {name}")
        if not isinstance(block, dict) or not block:
            raise S3Error("MalformedPolicy", f"Condition {name} must be an object that is not empty")
        found += (_read_condition(match[1], bool(match[2]), key, values) for key, values in block.items())
    return tuple(found)


def _read_condition(operator: str, if_exists: bool, key: str, values: Any) -> Condition:
    name = key.lower()
    if name.startswith(EXISTING_TAG) and len(name) > len(EXISTING_TAG):
        name = EXISTING_TAG + key[len(EXISTING_TAG) :]  # tags have a case
    elif name not in KEYS:
        raise S3Error("MalformedPolicy", f"Policy has an invalid condition key: {key}")
    listed = values if isinstance(values, list) else [values]
    if not listed:
        raise S3Error("MalformedPolicy", f"The condition on {key} has no values")
    read = _read_bool if operator == "Null" else OPERATORS[operator].read
    try:
        return Condition(operator, if_exists, name, tuple(read(_to_text(item)) for item in listed))
    except ValueError:
        message = f"Invalid value in the condition {operator} on {key}: {listed}"[:500]
        raise S3Error("MalformedPolicy", message) from None


def _to_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError("not a value")


# --- values -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _compile(pattern: str) -> re.Pattern[str]:
    head, *rest = (
        "".join("." if sign == "?" else re.escape(sign) for sign in piece) for piece in re.split(r"\*+", pattern)
    )
    if not rest:
        return re.compile(head, re.DOTALL)
    # Each piece at the first place where it fits, never tried again (atomic groups): no pattern takes long.
    middle = "".join(f"(?>.*?{piece})" for piece in rest[:-1])
    return re.compile(f"{head}{middle}.*{rest[-1]}", re.DOTALL)


def matches(pattern: str, text: str) -> bool:
    """Whether `text` fits a pattern in which "*" is any text and "?" any one character."""
    return _compile(pattern).fullmatch(text) is not None


def _read_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _read_number(text: str) -> Decimal:
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    return Decimal(text)


def _read_date(text: str) -> int:
    at = int(text) * 1000 if re.fullmatch(r"[0-9]{1,12}", text, re.ASCII) else parse_iso(text)
    if at is None:
        raise ValueError(text)
    return at


def _read_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text, strict=False)


def _is_within(fact: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        address = ipaddress.ip_address(fact)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.version == network.version and address in network


def _comparing(read: Callable[[str], Any], test: Callable[[Any, Any], bool]) -> Test:
    def compare(fact: str, value: Any) -> bool:
        try:
            return test(read(fact), value)
        except (ValueError, InvalidOperation):
            return False

    return compare


def _same_case(fact: str, value: str) -> bool:
    return fact.lower() == value.lower()


def _like(fact: str, pattern: str) -> bool:
    return matches(pattern, fact)


def _equal(fact: Any, value: Any) -> bool:
    return bool(fact == value)


def _ordered(name: str, read: Callable[[str], Any]) -> dict[str, Operator]:
    """The six comparisons of an ordered type."""
    return {
        f"{name}Equals": Operator(read, _comparing(read, _equal)),
        f"{name}NotEquals": Operator(read, _comparing(read, _equal), is_negated=True),
        f"{name}LessThan": Operator(read, _comparing(read, lambda fact, value: fact < value)),
        f"{name}LessThanEquals": Operator(read, _comparing(read, lambda fact, value: fact <= value)),
        f"{name}GreaterThan": Operator(read, _comparing(read, lambda fact, value: fact > value)),
        f"{name}GreaterThanEquals": Operator(read, _comparing(read, lambda fact, value: fact >= value)),
    }


OPERATORS: dict[str, Operator] = {
    "StringEquals": Operator(str, _equal),
    "StringNotEquals": Operator(str, _equal, is_negated=True),
    "StringEqualsIgnoreCase": Operator(str, _same_case),
    "StringNotEqualsIgnoreCase": Operator(str, _same_case, is_negated=True),
    "StringLike": Operator(str, _like),
    "StringNotLike": Operator(str, _like, is_negated=True),
    "IpAddress": Operator(_read_network, _is_within),
    "NotIpAddress": Operator(_read_network, _is_within, is_negated=True),
    "Bool": Operator(_read_bool, _comparing(_read_bool, _equal)),
    **_ordered("Numeric", _read_number),
    **_ordered("Date", _read_date),
}
