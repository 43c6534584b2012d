"""A task: what one node is asked to run, to the last detail that may change its result; and the hash of what came out.

Client, node and referee build the same bytes from the same task, so its hash names it. What is secret (a storage grant)
or says nothing of the result (how much it may cost, who pays) is not in it. Contents are named by the SHA-256 of their
bytes, in lower-case hexadecimal; hashes that are signed are keccak (`protocol/typed.py`).

Invariant: equal tasks have equal bytes, and two runs of a deterministic task have the same output hash.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from freehold.protocol.errors import InvalidInput, MalformedMessage
from freehold.protocol.merkle import row_root
from freehold.protocol.typed import keccak
from freehold.protocol.units import Hash

TASK_LIMIT = 256 * 2**10  # bytes of a task
FILES_LIMIT = 4096  # inputs of a task, and files that come out
PATH_LIMIT = 512
PATTERNS_LIMIT = 4096  # letters of all patterns of the files that are taken: each is held against each file's path
_IMAGE = re.compile(r"(?!.*:/)[A-Za-z0-9][\w.\-/:]*@sha256:[0-9a-f]{64}", re.ASCII)  # no option, no "dir:/path"
RUNNER = "python:"  # what the engine of a Python task begins with
_HASH = re.compile(r"[0-9a-f]{64}")
_PATH = re.compile(r"(?!/)(?!.*(^|/)\.{1,2}(/|$))(?!.*//)[^\x00-\x1f\x7f\\]+(?<!/)")

ExecutorName = Literal["wasm", "sandbox", "container", "service"]
ProgramKind = Literal["python", "module", "native", "image"]


class Blob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes by their SHA-256, that a node keeps for its clients."""

    sha256: str
    size: int


class Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file below /in: a blob, or an object of a bucket that the node reads by the job's grant (`etag` pins it)."""

    path: str
    blob: Blob | None = None
    bucket: str = ""
    key: str = ""
    etag: str = ""


class Delivery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where files below /out go by the job's grant: objects bucket/prefix + path."""

    bucket: str
    prefix: str


class Resources(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the task may use, and no more. `seconds` is of the clock on the wall: a guard, no bill."""

    processors: int = 1
    memory: int = 512 * 2**20  # bytes
    disk: int = 256 * 2**20  # bytes below /out and /tmp
    seconds: int = 600
    processes: int = 64
    gpus: int = 0
    gpu_model: str = ""
    gpu_memory: int = 0


class Service(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A task that goes on: the port that it listens on (0: told by the environment variable PORT), and the path
    that answers 200 while it is healthy."""

    port: int = 0
    health: str = "/"
    every: float = 2.0  # seconds between checks
    misses: int = 3  # of them, after which it is started again


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one node runs.

    python   `program` is a script: it is run by the interpreter that `engine` names (`name_runner`), in WebAssembly
    module   `program` is a WebAssembly module for WASI preview 1
    native   `program` is an executable, or empty: `arguments[0]` is then a program of the node's read-only root
    image    `image` is an OCI image by digest (name@sha256:...)
    `engine` pins what decides the result: the executor's own name and version. `steps`: the program is run once for
    each, with the state that the step before left as its standard input; the first has `stdin`.
    """

    executor: ExecutorName
    kind: ProgramKind
    engine: str = ""
    program: Blob | None = None
    image: str = ""
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    stdin: Blob | None = None
    inputs: tuple[Input, ...] = ()
    outputs: tuple[str, ...] = ("**",)  # which files below /out are taken
    delivery: Delivery | None = None
    network: bool = False
    steps: int = 0
    resources: Resources = Resources()
    service: Service | None = None
    metric: str = ""  # what "near" means: see verification/metrics.py; empty: results must be equal
    threshold: int = 0  # the largest distance by that metric
    attested: bool = False  # whether its receipt comes with a quote of the node's hardware

    def encode(self) -> bytes:
        """Its canonical bytes."""
        return msgspec.json.encode(self, order="sorted")

    def hash(self) -> Hash:
        """What an order and a receipt name."""
        return keccak(b"freehold task" + self.encode())


class OutputFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file that came out."""

    path: str
    sha256: str
    size: int


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What came out. `ended` is "exited", or why it did not get there: "fuel", "time", "memory", "disk", "processes",
    "output", "trap", "stack", "refused", "stopped", "failed". Log lines are no part of it."""

    ended: str
    status: int  # what it exited with; 0 unless it exited
    stdout: OutputFile
    files: tuple[OutputFile, ...]

    def encode(self) -> bytes:
        """Its canonical bytes."""
        return msgspec.json.encode(self, order="sorted")

    def hash(self) -> Hash:
        """A receipt's `output`."""
        return keccak(b"freehold result" + self.encode())


DETERMINISTIC_ENDS = frozenset(
    {"exited", "fuel", "memory", "trap", "output"}
)  # of a WebAssembly module: the same anywhere


def decode_task(data: bytes) -> Task:
    """The task behind `encode`'s form. MalformedMessage, InvalidInput naming what is wrong."""
    if len(data) > TASK_LIMIT:
        raise MalformedMessage(f"a task has at most {TASK_LIMIT} bytes")
    try:
        task = msgspec.json.decode(data, type=Task)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(f"that is no task: {error}") from None
    if task.encode() != data:
        raise MalformedMessage("the task is not in its canonical form")
    check_task(task)
    return task


def decode_result(data: bytes) -> Result:
    """The result behind `encode`'s form. MalformedMessage."""
    try:
        result = msgspec.json.decode(data, type=Result)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(f"that is no result: {error}") from None
    if result.encode() != data:
        raise MalformedMessage("the result is not in its canonical form")
    # Who fetches what came out names files by these.
    if not all(_HASH.fullmatch(one.sha256) and one.size >= 0 for one in (result.stdout, *result.files)):
        raise MalformedMessage("a result names bytes by their SHA-256, in lower-case hexadecimal, and their size")
    return result


def check_task(task: Task) -> None:
    """InvalidInput, naming the field, unless the task makes sense by itself."""
    kinds = {
        "wasm": {"python", "module"},
        "sandbox": {"native"},
        "container": {"image"},
        "service": {"native", "image"},
    }
    if task.kind not in kinds[task.executor]:
        raise InvalidInput(f"executor {task.executor!r} does not run a {task.kind!r} program")
    if task.kind in ("python", "module") and task.program is None:
        raise InvalidInput(f"a {task.kind} task needs its program")
    if (task.kind == "image") != bool(task.image):
        raise InvalidInput("an image is named by a container's task, and only there")
    if task.kind == "image" and not _IMAGE.fullmatch(task.image):
        raise InvalidInput("an image is named by its digest: name@sha256:...")
    if (task.executor == "service") != (task.service is not None):
        raise InvalidInput("a service says how its health is checked, and only a service does")
    for blob in (task.program, task.stdin, *(one.blob for one in task.inputs)):
        if blob is not None and (not _HASH.fullmatch(blob.sha256) or blob.size < 0):
            raise InvalidInput("a blob is named by its SHA-256, in lower-case hexadecimal, and its size")
    paths = [one.path for one in task.inputs]
    if len(paths) > FILES_LIMIT or len(set(paths)) != len(paths):
        raise InvalidInput(f"a task has at most {FILES_LIMIT} inputs, each with a path of its own")
    for path in paths:
        check_path(path)
    for one in task.inputs:
        if (one.blob is None) == (not one.bucket):
            raise InvalidInput(f"the input {one.path!r} is either a blob or an object of a bucket")
    if sum(len(pattern) + 1 for pattern in task.outputs) > PATTERNS_LIMIT:
        raise InvalidInput(f"the patterns of a task's outputs have at most {PATTERNS_LIMIT} letters")
    limits = task.resources
    if min(limits.processors, limits.memory, limits.disk, limits.seconds, limits.processes) < 1 or limits.gpus < 0:
        raise InvalidInput("a task's processors, memory, disk, seconds and processes are at least 1")
    if task.steps < 0 or task.steps > 2**20:
        raise InvalidInput("a task has at most 1048576 steps")
    if task.threshold < 0 or (task.threshold and not task.metric):
        raise InvalidInput("a threshold is for a metric")


def memory_of(task: Task) -> int:
    """Bytes of its node's memory that it may come to have: its files too, but for WebAssembly's, which are on disk."""
    limits = task.resources
    return limits.memory if task.executor == "wasm" else limits.memory + limits.disk


def check_path(path: str) -> None:
    """InvalidInput unless this is a relative path that stays below where it starts."""
    if len(path) > PATH_LIMIT or not _PATH.fullmatch(path):
        raise InvalidInput(f"{path!r} is no path below a task's folder")


def input_root(contents: list[tuple[str, str]]) -> Hash:
    """A receipt's `input`: over (path, SHA-256) of each input as it was read, in the order of their paths."""
    return row_root([keccak(path.encode() + b"\x00" + digest.encode()) for path, digest in sorted(contents)])


def name_runner(sha256: str, engine: str) -> str:
    """The `engine` of a Python task: the interpreter's content, and the engine it runs in, which decides its fuel."""
    return f"{RUNNER}{sha256}@{engine}"


def runner_of(task: Task) -> str | None:
    """The SHA-256 of the interpreter that a Python task names; None for any other."""
    return task.engine.removeprefix(RUNNER).partition("@")[0] if task.engine.startswith(RUNNER) else None


def pinned_engine(task: Task) -> str:
    """The engine that decides a task's result and fuel; "" where it is left open."""
    return task.engine.partition("@")[2] if task.kind == "python" else task.engine


def state_leaf(sha256: str) -> Hash:
    """The leaf of a receipt's `steps` for one state: what a step wrote to its standard output, by its SHA-256."""
    return keccak(b"freehold state" + bytes.fromhex(sha256))
