"""Where an account's services run, as its gateways find them: in the account's root, by an id that nobody guesses.

A service that moves to another node keeps its id, and so its URL: at a host of its own, or `/-/service/ID/`, of any
gateway of the account.
"""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit

import msgspec

from freehold.client.root import AccountRoot, Root, ServicePlace
from freehold.protocol.errors import Refused

URL_PATH = "/-/service/"  # below a gateway; no bucket can be called "-"
MAX_SERVICES = 500
TOKEN_HEADER = "Freehold-Service-Token"
ANSWER_HEADER = "Freehold-Service"  # a node sets it on what the service itself answered


def new_service_id() -> str:
    """An id for a service that is about to start: whoever knows it may use the service."""
    return secrets.token_hex(16)


def host_of(service: str, domain: str, port: str) -> str:
    """A service's own host; `port` has the colon before it, or is empty."""
    return f"{service}.{domain}{port}"


def url_of(gateway: str, service: str, domain: str = "") -> str:
    """Where a service is an origin of its own at a gateway: below the domain that the gateway has for services, or
    below localhost where it is on this machine; else the path at the gateway's own host."""
    parts = urlsplit(gateway)
    port = f":{parts.port}" if parts.port is not None else ""
    if domain or (parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1")):
        return f"{parts.scheme}://{host_of(service, domain or 'localhost', port)}/"
    return path_url_of(gateway, service)


def path_url_of(gateway: str, service: str) -> str:
    """Where a service is at the gateway's own host, for programs that do not know names below localhost."""
    return f"{gateway.rstrip('/')}{URL_PATH}{service}/"


async def publish(root: AccountRoot, service: str, place: ServicePlace) -> None:
    """From now on the service runs there. Refused beyond MAX_SERVICES."""

    def change(old: Root) -> Root:
        if service not in old.services and len(old.services) >= MAX_SERVICES:
            raise Refused(
                f"an account runs at most {MAX_SERVICES} services", hint="Stop some with `freehold job stop`."
            )
        return msgspec.structs.replace(old, services=old.services | {service: place})

    await root.change(change)


async def withdraw(root: AccountRoot, service: str) -> None:
    """It does not run any more."""

    def change(old: Root) -> Root:
        return msgspec.structs.replace(old, services={k: v for k, v in old.services.items() if k != service})

    await root.change(change)
