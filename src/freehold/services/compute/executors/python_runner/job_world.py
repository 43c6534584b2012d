"""What a job has not: a calendar, chance, a network. Asking for one raises an error that says so.

What only measures works (`time.time`, `perf_counter`, `monotonic`, `process_time`): it shows the fuel taken so far, in
nanoseconds from zero. Sleeping returns at once, and moves `asyncio`'s time on. `random` starts from the same seed in
every job.
"""

import asyncio
import datetime
import os
import posix
import random
import socket
import time

from wit_world.imports import host

NO_CLOCK = "there is no clock in a job"
NO_CHANCE = "there is no entropy in a job; give random.seed() a seed"
NO_NETWORK = "there is no network in a job"
NOT_HERE = "there is no such thing in a job"

started = False  # no host answers while the component is built


def get_spent():
    """Fuel taken so far, in nanoseconds."""
    return host.spent() if started else 0


def refuse(message):
    def function(*_, **__):
        raise OSError(message)

    return function


def given(function):
    """`function` of a time, which must be given."""

    def wrapped(*arguments):
        if arguments and arguments[0] is not None:
            return function(*arguments)
        raise OSError(NO_CLOCK)

    return wrapped


class Random(random.Random):
    """Starts from a fixed seed where none is given."""

    def __init__(self, x=0):
        super().__init__(x)

    def seed(self, a=0, version=2):
        super().seed(0 if a is None else a, version)


class Date(datetime.date):
    @classmethod
    def today(cls):
        raise OSError(NO_CLOCK)


class DateTime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        raise OSError(NO_CLOCK)

    utcnow = today = now


Date.__name__ = Date.__qualname__ = "date"
DateTime.__name__ = DateTime.__qualname__ = "datetime"
Date.__module__ = DateTime.__module__ = "datetime"


class Waiting:
    """A selector with nothing to select: time moves on to the next thing that is due."""

    slept = 0.0

    def select(self, timeout=None):
        if timeout is None:
            raise RuntimeError("nothing will ever happen: every task waits")
        self.slept += max(0.0, timeout)
        return []


class Loop(asyncio.BaseEventLoop):
    """An event loop of tasks and timers."""

    def __init__(self):
        super().__init__()
        self._selector = Waiting()
        self._clock_resolution = 1e-9

    def time(self):
        return get_spent() / 1e9 + self._selector.slept

    def _process_events(self, events):
        pass

    def _write_to_self(self):
        pass


def leave(status):
    raise SystemExit(status)


def install():
    """Put all of this in the place of what would ask the operating system; before other modules take its names."""
    for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time"):
        setattr(time, name, lambda: get_spent() / 1e9)
        setattr(time, f"{name}_ns", get_spent)
    for name in ("clock_gettime", "clock_gettime_ns"):
        setattr(time, name, refuse(NO_CLOCK))
    for name in ("localtime", "gmtime", "ctime"):
        setattr(time, name, given(getattr(time, name)))
    format_time = time.strftime

    def strftime(form, *when):
        if not when:
            raise OSError(NO_CLOCK)
        return format_time(form, *when)

    time.strftime = strftime
    time.sleep = lambda seconds: None
    datetime.date, datetime.datetime = Date, DateTime
    os.urandom = random._urandom = refuse(NO_CHANCE)
    random.Random = Random
    socket.socket = socket.create_connection = socket.getaddrinfo = socket.socketpair = refuse(NO_NETWORK)
    asyncio.EventLoop = asyncio.new_event_loop = asyncio.events.new_event_loop = Loop
    for module in (os, posix):
        module._exit = leave
        for name in ("open", "symlink", "link", "pipe", "kill", "truncate", "ftruncate", "isatty", "statvfs", "popen"):
            setattr(module, name, refuse(NOT_HERE))
