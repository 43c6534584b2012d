"""The nursery: one process that has imported everything, and forks the local network's members and nodes.

Thirteen processes that each import the libraries need twelve seconds of two cores and a gigabyte; forks of one need a
tenth of a second each and share the pages. So `freehold up` starts this, tells it what to run, one JSON line each, on
its stdin, and reads on its stdout what became of it:

    in   {"name": .., "module": .., "config": .., "log": ..}       stdin's end: stop everything, then end
    out  {"name": .., "pid": .., "started": ..}      {"name": .., "pid": .., "returncode": ..}

Invariant: it only imports and never uses the libraries before it forks, so that no lock of theirs is held in a fork;
and no fork outlives it (Linux: PR_SET_PDEATHSIG; elsewhere the next start ends leftovers by pid and start time).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

GRACE = 5.0  # seconds between SIGTERM and SIGKILL, where the supervisor is gone
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(modules: Sequence[str]) -> int:
    """Import, say so, then fork what stdin asks for until it ends."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's would start a thread before the forks
    warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
    deepest = sys.getrecursionlimit()
    for name in modules:
        importlib.import_module(name)
    sys.setrecursionlimit(deepest)  # a library raises it so far that a parser could overflow the stack
    gc.collect()
    gc.freeze()  # objects of the imports stay out of the forks' collections, and their pages shared
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the supervisor's business
    signal.signal(signal.SIGTERM, lambda *_: None)
    say({"ready": True})
    children: dict[int, str] = {}
    pending = b""
    while True:
        ready, _, _ = select.select([0, reading], [], [])
        if reading in ready:
            if signal.SIGTERM in os.read(reading, 4096):
                return stop(children)
            reap(children)
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                return stop(children)
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                fork(json.loads(line), children, (reading, writing))


def say(value: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(value).encode() + b"\n")


def fork(order: dict[str, Any], children: dict[int, str], pipe: tuple[int, int]) -> None:
    pid = os.fork()
    if pid == 0:
        run(order, pipe)
    children[pid] = order["name"]
    say({"name": order["name"], "pid": pid})


def run(order: dict[str, Any], pipe: tuple[int, int]) -> NoReturn:
    """The fork: a process of its own, that runs one program and ends."""
    code = 1
    try:
        parent = os.getppid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.setpgid(0, 0)
        if sys.platform == "linux":
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)
        for end in pipe:
            os.close(end)
        nothing = os.open(os.devnull, os.O_RDONLY)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(nothing)
        os.close(log)
        code = importlib.import_module(order["module"]).main(Path(order["config"])) or 0
    except SystemExit as end_:
        code = end_.code if isinstance(end_.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def reap(children: dict[int, str]) -> None:
    """Say who has ended."""
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        name = children.pop(pid, "")
        say({"name": name, "pid": pid, "returncode": os.waitstatus_to_exitcode(status)})


def stop(children: dict[int, str]) -> int:
    """The supervisor is gone: end everything."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + GRACE
        while children and time.monotonic() < deadline:
            reap(children)
            time.sleep(0.02)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
