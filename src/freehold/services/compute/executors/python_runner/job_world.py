"""What a job has not: a calendar, chance, a network. Asking for one raises an error that says so.

What only measures works (`time.time`, `perf_counter`, `monotonic`, `process_time`): it shows the fuel taken so far, in
nanoseconds from zero. `time.sleep` returns at once. `random` starts from the same seed in every job.
"""

import datetime
import os
import posix
import random
import socket
import time
import types

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


def refuse_native(event, _):
    """CPython itself opens files in places (a script's, to show the line of a syntax error)."""
    if event == "open":
        raise OSError(NOT_HERE)


def leave(status):
    raise SystemExit(status)


def install():
    """Put all of this in the place of what would ask the operating system; before other modules take its names."""
    for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time"):
        setattr(time, name, lambda: get_spent() / 1e9)
        setattr(time, f"{name}_ns", get_spent)
    for name in ("clock_gettime", "clock_gettime_ns", "clock_getres"):
        setattr(time, name, refuse(NO_CLOCK))
    time.get_clock_info = lambda name: types.SimpleNamespace(
        implementation="fuel", monotonic=True, adjustable=False, resolution=1e-9
    )
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
    random.Random, random._inst = Random, Random()
    for name in random.__all__:
        if hasattr(random._inst, name):
            setattr(random, name, getattr(random._inst, name))
    socket.socket = socket.create_connection = socket.getaddrinfo = socket.socketpair = refuse(NO_NETWORK)
    for module in (os, posix):
        module._exit = leave
        module.times = refuse(NO_CLOCK)
        for name in ("open", "symlink", "link", "pipe", "kill", "truncate", "ftruncate", "isatty", "statvfs", "popen"):
            setattr(module, name, refuse(NOT_HERE))
