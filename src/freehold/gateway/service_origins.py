"""Origins of services: each has a host of its own below `localhost` and below the gateway's `service_domain`.

    http://ID.localhost:PORT/       browsers and curl take names below localhost for this machine (RFC 6761)
    https://ID.SERVICE_DOMAIN/      where the operator has wildcard DNS and a certificate for it
    /-/service/ID/                  at the gateway's own host, for programs that do not know such names

A page's scripts may do as they like with all of its origin: so at its own host a service is by itself; at the gateway's
host its pages are sandboxed (Content Security Policy, level 3: an origin that is nobody's), and browsers that open one
there are led to the service's own host, where it has one. Invariant: nothing that a service answers speaks for another
host than its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from multidict import CIMultiDict

from freehold.client.service_places import ANSWER_HEADER, TOKEN_HEADER, URL_PATH, host_of
from freehold.net.passing import Headers, pass_headers

SANDBOX = "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts"
FORWARDED = ("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix")
_TO_NODE = frozenset({TOKEN_HEADER.lower(), ANSWER_HEADER.lower(), *(name.lower() for name in FORWARDED)})
# What speaks for more than the host that it is said by, or for ways to it that are the gateway's.
_BEYOND = frozenset(
    {"clear-site-data", "strict-transport-security", "alt-svc", "public-key-pins", "nel", "report-to", "server"}
    | {TOKEN_HEADER.lower(), ANSWER_HEADER.lower()}
)
_OF_THE_HOST = frozenset({"service-worker-allowed", "reporting-endpoints", "origin-agent-cluster"})
_ID = re.compile(r"[0-9a-f]{32}")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


def service_at(host: str, domain: str) -> str | None:
    """The service whose own host this is (a Host header); None for any other."""
    label, _, rest = _split(host)[0].partition(".")
    return label if rest and rest in ("localhost", domain) and _ID.fullmatch(label) else None


def own_host(service: str, host: str, domain: str) -> str | None:
    """The service's own host and port, for who asked at `host` (a Host header); None where it has none there."""
    name, port = _split(host)
    if domain:
        return host_of(service, domain, port)
    return host_of(service, "localhost", port) if name in _LOOPBACK else None


def is_page_visit(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a browser opens a page: it says so itself, over plain http to other hosts in its older way."""
    said = headers.get("Sec-Fetch-Mode", "")
    return method in ("GET", "HEAD") and (said == "navigate" or (not said and "Upgrade-Insecure-Requests" in headers))


def headers_to_node(headers: Headers, token: str, visitor: str, scheme: str, prefix: str) -> CIMultiDict[str]:
    """What goes on to the node: nothing of one connection, and who asks, as this gateway sees it."""
    passed = pass_headers(headers, _TO_NODE)
    for name, value in zip(FORWARDED, (visitor, headers.get("Host", ""), scheme, prefix), strict=True):
        if value:
            passed[name] = value
    passed[TOKEN_HEADER] = token
    return passed


def headers_to_visitor(headers: Headers, service: str, *, is_own: bool) -> CIMultiDict[str]:
    """What goes back: cookies for this host, or this path alone; at the gateway's host nothing for all of it."""
    passed = pass_headers(headers, _BEYOND if is_own else _BEYOND | _OF_THE_HOST)
    cookies = passed.popall("Set-Cookie", [])
    for value in cookies:
        if cookie := _confined(value, None if is_own else f"{URL_PATH}{service}/"):
            passed.add("Set-Cookie", cookie)
    if not is_own:
        passed.add("Content-Security-Policy", SANDBOX)  # beside the service's own: all of them hold
    return passed


def _confined(value: str, path: str | None) -> str:
    """A cookie for the host that answers alone, or for a path of it; taken apart as browsers do (RFC 6265, section
    5.2), quotes or not. Empty where it is none."""
    if any(ord(char) < 32 or ord(char) == 127 for char in value):
        return ""
    first, *attributes = (part.strip() for part in value.split(";"))
    beyond = {"", "domain"} if path is None else {"", "domain", "path"}
    kept = [part for part in attributes if part.partition("=")[0].strip().lower() not in beyond]
    return "; ".join([first, *kept, *([f"Path={path}"] if path is not None else [])]) if first else ""


def _split(host: str) -> tuple[str, str]:
    """A Host header's name, and its port with the colon before it."""
    name, colon, port = host.lower().rpartition(":")
    if colon and port.isdecimal():
        return name.rstrip("."), f":{port}"
    return host.lower().rstrip("."), ""
