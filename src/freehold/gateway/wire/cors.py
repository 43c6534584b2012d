"""CORS: a bucket's rules, and the headers with which they answer browsers.

The first rule that fits a request counts. A bucket without rules answers no CORS headers, and refuses preflights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.xml import Node, malformed, parse_xml

MOST_RULES = 100
METHODS = ("GET", "PUT", "HEAD", "POST", "DELETE")
VARY = "Origin, Access-Control-Request-Headers, Access-Control-Request-Method"


class CorsRule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule. Origins and headers may hold one "*" each; headers are compared without case."""

    id: str = ""
    origins: tuple[str, ...]
    methods: tuple[str, ...]
    headers: tuple[str, ...] = ()
    exposed: tuple[str, ...] = ()
    max_age: int | None = None


def parse_cors(data: bytes) -> tuple[CorsRule, ...]:
    """The rules of a CORSConfiguration."""
    root = parse_xml(data, "CORSConfiguration")
    root.check_children("CORSRule")
    if not 1 <= len(root.children) <= MOST_RULES:
        raise malformed(f"<CORSConfiguration> takes from 1 to {MOST_RULES} rules")
    return tuple(_read_rule(node) for node in root.children)


def _read_rule(node: Node) -> CorsRule:
    node.check_children("ID", "AllowedOrigin", "AllowedMethod", "AllowedHeader", "ExposeHeader", "MaxAgeSeconds")
    origins, methods, headers, exposed = (
        tuple(child.text.strip() for child in node.all(name))
        for name in ("AllowedOrigin", "AllowedMethod", "AllowedHeader", "ExposeHeader")
    )
    if not origins or not methods:
        raise malformed("<CORSRule> needs <AllowedOrigin> and <AllowedMethod>")
    for method in methods:
        if method not in METHODS:
            message = f"Found unsupported HTTP method in CORS config. Unsupported method is {method}"
            raise S3Error("InvalidRequest", message)
    for name, values in (("AllowedOrigin", origins), ("AllowedHeader", headers)):
        for value in values:
            if value.count("*") > 1:
                raise S3Error("InvalidRequest", f'{name} "{value}" can not have more than one wildcard.')
            if not value or not _is_header_text(value):
                raise malformed(f"<{name}> must be text that a header can hold")
    for value in exposed:
        if "*" in value:
            message = (
                f'ExposeHeader "{value}" contains wildcard. We currently do not support wildcard for ExposeHeader.'
            )
            raise S3Error("InvalidRequest", message)
        if not value or not _is_header_text(value):
            raise malformed("<ExposeHeader> must be the name of a header")
    return CorsRule(
        id=node.get_text("ID") or "",
        origins=origins,
        methods=methods,
        headers=headers,
        exposed=exposed,
        max_age=node.get_integer("MaxAgeSeconds", 0, 2**31 - 1),
    )


def _is_header_text(text: str) -> bool:
    return all("\x20" < sign < "\x7f" for sign in text)


def preflight(rules: Sequence[CorsRule], origin: str, method: str, requested: str) -> dict[str, str]:
    """The headers that answer an OPTIONS request; `requested` is its Access-Control-Request-Headers.

    S3Error AccessForbidden where no rule allows it.
    """
    names = tuple(name.strip().lower() for name in requested.split(",") if name.strip())
    for rule in rules:
        if _allows(rule, origin, method) and all(_fits_any(rule.headers, name) for name in names):
            headers = _headers(rule, origin)
            if names:
                headers["Access-Control-Allow-Headers"] = ", ".join(names)
            if rule.max_age is not None:
                headers["Access-Control-Max-Age"] = str(rule.max_age)
            return headers
    raise S3Error("AccessForbidden", headers={"Vary": VARY}, Method=method, ResourceType="BUCKET")


def for_answer(rules: Sequence[CorsRule], origin: str, method: str) -> dict[str, str]:
    """The headers to add to the answer of a request from `origin`; none where no rule fits."""
    return next((_headers(rule, origin) for rule in rules if _allows(rule, origin, method)), {})


def _allows(rule: CorsRule, origin: str, method: str) -> bool:
    return method in rule.methods and any(_fits(pattern, origin) for pattern in rule.origins)


def _headers(rule: CorsRule, origin: str) -> dict[str, str]:
    everyone = "*" in rule.origins
    headers = {
        "Access-Control-Allow-Origin": "*" if everyone else origin,
        "Access-Control-Allow-Methods": ", ".join(rule.methods),
        "Vary": VARY,
    }
    if not everyone:
        headers["Access-Control-Allow-Credentials"] = "true"
    if rule.exposed:
        headers["Access-Control-Expose-Headers"] = ", ".join(rule.exposed)
    return headers


def _fits_any(patterns: Sequence[str], name: str) -> bool:
    return any(_fits(pattern.lower(), name) for pattern in patterns)


def _fits(pattern: str, text: str) -> bool:
    return _compile(pattern).fullmatch(text) is not None


@lru_cache(maxsize=1024)
def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")))
