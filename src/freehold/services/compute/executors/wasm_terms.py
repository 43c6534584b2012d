"""What the WebAssembly executor and its worker processes share: names, limits, and the messages between them.

Nothing here loads the engine, so a client may ask for its name. Messages are msgpack behind their length, 4 bytes,
big-endian, over the worker's standard input and output.
"""

from __future__ import annotations

import struct
from importlib.metadata import version

import msgspec

HOST = 2  # goes up with any change of what a call of the host costs or answers, or a step
_VERSION = version("wasmtime")
ENGINE = f"wasmtime-{_VERSION.partition('.')[0]}" + (f".{HOST}" if HOST > 1 else "")
CODE = f"{_VERSION}-1"  # names compiled code: the engine's version, and that of its configuration

OUTPUT_LIMIT = 64 * 2**20  # bytes of standard output, over all steps
LOG_PART = 32 * 2**10  # bytes of the log in one message
FRAME_LIMIT = OUTPUT_LIMIT + 2**20
MOST_FUEL = 2**63 - 1
LENGTH = struct.Struct(">I")


class Stop(Exception):
    """A run ends here and now. `ended` is as in `tasks.Result`."""

    def __init__(self, ended: str, reason: str, status: int = 0) -> None:
        super().__init__(reason)
        self.ended, self.reason, self.status = ended, reason, status


class Run(msgspec.Struct, tag=True, kw_only=True):
    """To a worker: run this. `code` is a compiled file with this SHA-256; `script` is set for a runner component.
    `folder` has `in/` and `out/`; the worker works in `scratch` below it. `most` is fuel."""

    code: str
    digest: str
    script: str
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    stdin: str
    folder: str
    steps: int
    memory: int
    disk: int
    seconds: int
    most: int


class Halt(msgspec.Struct, tag=True):
    """To a worker: end what runs, as "stopped"."""


class Log(msgspec.Struct, tag=True):
    """From a worker: what the program wrote to its standard error, and the fuel taken so far."""

    data: bytes
    measure: int


class State(msgspec.Struct, tag=True):
    """From a worker: what a step left as its standard output, once it exited with status 0."""

    data: bytes
    measure: int


class Ended(msgspec.Struct, tag=True):
    """From a worker: how the run ended; the fields of `Outcome`."""

    ended: str
    status: int
    stdout: bytes
    measure: int
    reason: str


class Unusable(msgspec.Struct, tag=True):
    """From a worker: the compiled file is gone, is not what it was, or is not for this machine."""

    reason: str


TO_WORKER = msgspec.msgpack.Decoder(Run | Halt)
FROM_WORKER = msgspec.msgpack.Decoder(Log | State | Ended | Unusable)


def frame(message: msgspec.Struct) -> bytes:
    """A message as it is sent."""
    data = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(data)) + data
