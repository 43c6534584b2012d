"""What an operator may say of compute in the node's configuration, checked before anything starts.

executors        which are probed and, where they work, offered; all of them by default
slots, queue     orders that run at once, each for one processor (default: as many as there are, and at least two);
                 orders that wait for one, of all clients
ahead            orders that are made ready while others run, so that they begin at once; default: as many as slots
processors, memory, disk    the most that one order may ask for; memory bounds what runs at once too. Default: all
                 processors, three quarters of the memory, the node's disk allowance
seconds          the longest that one order may run
module_cache     a folder of compiled modules that nodes of one machine share; default: one of the node's own
rules            a constraint over orders (`market/constraints.py`): what does not meet it is refused
pricing          how bids are priced (`bidding.py`); default: the node's list price
network          whether programs may reach the network where their task asks for it
container_pull   whether images that are not here are fetched
access_hosts     a regular expression: a job's storage gateway (host:port) that matches may be at any address, the
                 operator's own network included; all others must be at public ones
benchmark        whether the node measures itself at its start, once a day
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from freehold.protocol.errors import InvalidInput

EXECUTORS = ("wasm", "sandbox", "container", "service")
DAY = 86400


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `compute` part of a node's settings."""

    executors: tuple[str, ...] = EXECUTORS
    slots: int = 0
    ahead: int = 0
    queue: int = 1024
    processors: int = 0
    memory: int = 0
    disk: int = 0
    seconds: int = DAY
    module_cache: str = ""
    rules: str = ""
    pricing: dict[str, Any] = {}
    network: bool = False
    container_pull: bool = False
    access_hosts: str = ""
    quoter: tuple[str, ...] = ()
    benchmark: bool = True


def read_settings(value: Mapping[str, Any], allowance: int) -> Settings:
    """The settings with every default worked out for this machine. InvalidInput naming what is wrong."""
    try:
        given = msgspec.convert(dict(value), Settings)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the settings of compute: {error}") from None
    unknown = sorted(set(given.executors) - set(EXECUTORS))
    if unknown:
        raise InvalidInput(
            f"the settings of compute name an executor {unknown[0]!r}", hint=f"There are {', '.join(EXECUTORS)}."
        )
    for name in ("slots", "ahead", "queue", "processors", "memory", "disk", "seconds"):
        if getattr(given, name) < 0:
            raise InvalidInput(f"compute's {name!r} cannot be negative")
    if given.queue < 1 or given.seconds < 1:
        raise InvalidInput("compute's 'queue' and 'seconds' are at least 1")
    try:
        re.compile(given.access_hosts)
    except re.error as error:
        raise InvalidInput(f"compute's 'access_hosts' is no regular expression: {error}") from None
    processors = given.processors or available_processors()
    slots = given.slots or max(2, processors)
    return msgspec.structs.replace(
        given,
        slots=slots,
        ahead=given.ahead or slots,
        processors=processors,
        memory=given.memory or total_memory() * 3 // 4,
        disk=given.disk or allowance,
    )


def available_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def total_memory() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
