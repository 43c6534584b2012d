"""Where an account's services run, as its gateways find them: in the account's root, by an id that nobody guesses.

A service that moves to another node keeps its id, and so its URL: `/-/service/ID/` below any gateway of the account.
"""

from __future__ import annotations

import secrets

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
