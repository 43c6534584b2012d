"""Connections that reach the internet at large alone: for whoever asks hosts that a stranger has named.

A name is looked up by whoever owns it, and again at any time: so it is the address that counts, of each connection, at
the moment at which it is made. Loopback, an operator's own network, a cloud's metadata are no public addresses.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any

import aiohttp


def is_address(host: str) -> bool:
    """Whether a host is an address rather than a name."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def is_public(host: str) -> bool:
    """Whether an address (IPv4, or IPv6 also where it stands for an IPv4 one) is one of the internet at large. False
    where it is no address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if any(address in network for network in _TRANSLATED):
            return False
        inner = address.ipv4_mapped or address.sixtofour or _behind_nat64(address)
        if inner is not None:
            return is_public(str(inner))
    return address.is_global and not address.is_multicast


def public_connector() -> aiohttp.TCPConnector:
    """Connects to public addresses; PermissionError (within aiohttp's ClientConnectorError) elsewhere."""
    return aiohttp.TCPConnector(socket_factory=_open_socket)


# IPv4-compatible and site-local (both given up), SIIT (RFC 2765), NAT64 for local use (RFC 8215).
_TRANSLATED = [ipaddress.IPv6Network(text) for text in ("::/96", "fec0::/10", "::ffff:0:0:0/96", "64:ff9b:1::/48")]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052, section 2.1


def _behind_nat64(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    return ipaddress.IPv4Address(int(address) & 2**32 - 1) if address in _NAT64 else None


def _open_socket(info: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, address = info
    if not is_public(address[0]):
        raise PermissionError(errno.EPERM, f"{address[0]} is no public address")
    return socket.socket(family, kind, protocol)
