"""Compiled WebAssembly, kept by the hash of its program: each is compiled once on a machine.

A program is anybody's, and compiling it takes time and memory, so a process of its own does it within bounds that grow
with the program (`wasm_compile.py`), under a lock that all nodes sharing the folder take. A node compiles one large and
one small program at a time, each on all processors: who comes with a small one does not wait for others' large ones,
and no more wait than orders are made ready at once, for which clients take turns. What comes of it is native code, so
the folder is this user's alone, and the name of a file carries the hash of its bytes: a worker checks it before it
loads the file. Time spent on compiling is the node's; no order is billed for it.

Invariant: a file is in place only whole, under a name that says what it is and was made by which engine.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from freehold.protocol.errors import InvalidInput, Unavailable
from freehold.services.compute.executors.wasm_terms import CODE, Stop

SECONDS = 300  # that compiling may take, waiting for others that compile the same included
SMALL = 2**20  # bytes of a program that does not wait for large ones
FOUND = 4096  # programs of which a node remembers where they lie
KEPT_BYTES = 4 * 2**30  # of compiled code in a folder; the longest unused go first


class Compiled(NamedTuple):
    """A compiled program: its file, and the SHA-256 that the file's bytes must have."""

    path: Path
    digest: str


class Bounds(NamedTuple):
    """What compiling may take: processor seconds, and bytes of memory."""

    seconds: int
    memory: int


class Answer(msgspec.Struct):
    """What the compiling process prints: the digest of what it made, or why the program is none."""

    digest: str = ""
    refused: str = ""


class ModuleCache:
    """The folder of compiled programs. Nodes that share the folder share the work."""

    def __init__(self, folder: Path, kept: int = KEPT_BYTES) -> None:
        self.folder, self._kept = folder, kept
        self._found: dict[str, Compiled] = {}
        self._small, self._large = asyncio.Lock(), asyncio.Lock()

    async def get(self, program: Path, sha256: str, *, runner: bool) -> Compiled:
        """The program with this hash, compiled: a module, or a runner (a component).

        Stop ("refused") where it does not compile, or not within the bounds. Unavailable where nothing can be compiled.
        """
        name = get_name(sha256, runner)
        found = self._found.get(name)
        if found is not None and found.path.exists():
            return found
        size = (await asyncio.to_thread(program.stat)).st_size
        async with self._small if size <= SMALL else self._large:
            found = await asyncio.to_thread(find, self._make_folder(), name)
            if found is None:
                found = await self._compile(program, name, runner, get_bounds(size))
        self._found[name] = found
        if len(self._found) > FOUND:
            del self._found[next(iter(self._found))]
        return found

    def forget(self, compiled: Compiled) -> None:
        """Its file is gone or broken: it is compiled again when next asked for."""
        self._found = {name: one for name, one in self._found.items() if one != compiled}
        with suppress(OSError):
            compiled.path.unlink()

    def _make_folder(self) -> Path:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.folder.stat()
        if status.st_uid != os.getuid():
            raise InvalidInput(
                f"{self.folder} belongs to another user: compiled code there cannot be trusted",
                hint="Set services.compute.module_cache to a folder of this user.",
            )
        self.folder.chmod(0o700)
        return self.folder

    async def _compile(self, program: Path, name: str, runner: bool, bounds: Bounds) -> Compiled:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "freehold.services.compute.executors.wasm_compile"),
            *(str(program), str(self.folder), name, "runner" if runner else "module", str(self._kept)),
            *map(str, bounds),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=get_environment(),
        )
        try:
            said, errors = await asyncio.wait_for(process.communicate(), SECONDS)
        except TimeoutError:
            raise Stop("refused", f"compiling it takes more than {SECONDS} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode and process.returncode < 0:
            raise Stop("refused", f"compiling it takes too much time or memory (signal {-process.returncode})")
        if process.returncode:
            raise Unavailable(f"programs cannot be compiled here: {errors.decode(errors='replace')[-500:].strip()}")
        answer = msgspec.json.decode(said, type=Answer)
        if answer.refused:
            raise Stop("refused", answer.refused)
        return Compiled(get_path(self.folder, name, answer.digest), answer.digest)


def get_bounds(size: int) -> Bounds:
    """For a program of so many bytes; several times what programs take that are not made to take long (the Python
    runner: 29 MB, 18 s, 300 MB)."""
    return Bounds(min(240, 20 + 4 * size // 2**20), min(6 * 2**30, 768 * 2**20 + 64 * size))


def get_environment() -> dict[str, str]:
    """What a process that works on others' programs is given of this one's environment: no secrets."""
    return {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}


def get_name(sha256: str, runner: bool) -> str:
    """What a compiled program's file is named by, before its digest."""
    return f"{sha256}-{'runner' if runner else 'module'}-{CODE}"


def get_path(folder: Path, name: str, digest: str) -> Path:
    """Where it lies."""
    return folder / f"{name}.{digest}.cwasm"


def find(folder: Path, name: str) -> Compiled | None:
    """The compiled program of this name, which is then the last to be forgotten."""
    for path in folder.glob(f"{name}.*.cwasm"):
        with suppress(OSError):
            os.utime(path)
            return Compiled(path, path.name.removesuffix(".cwasm").rpartition(".")[2])
    return None


def prune(folder: Path, kept: int, keep: Path) -> None:
    """Remove the longest unused until `kept` bytes are left; `keep` stays."""
    sizes = []
    for path in folder.glob("*.cwasm"):
        with suppress(OSError):
            status = path.stat()
            sizes.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in sizes)
    for _, size, path in sorted(sizes):
        if total > kept and path != keep:
            path.unlink(missing_ok=True)
            total -= size
