"""The process that compiles one WebAssembly program, within bounds of time and memory: see `modules.py`.

python -m freehold.services.compute.executors.wasm_compile PROGRAM FOLDER NAME module|runner KEPT SECONDS MEMORY
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import resource
import sys
from pathlib import Path

import msgspec
import wasmtime
from wasmtime import component

from freehold.services.compute.executors.modules import Answer, find, get_path, prune
from freehold.services.compute.executors.wasm_engine import build_engine


def compile_program(program: Path, folder: Path, name: str, runner: bool, kept: int) -> Answer:
    """Compile it, unless another process has done so meanwhile."""
    place = folder / f"{name}.lock"
    with open(place, "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # goes with this process, however it ends
        found = find(folder, name)
        if found is not None:
            return Answer(digest=found.digest)
        engine = build_engine()
        data = program.read_bytes()
        try:
            if runner:
                code = component.Component(engine, data).serialize()
            else:
                code = wasmtime.Module(engine, data).serialize()
        except wasmtime.WasmtimeError as error:
            return Answer(refused=f"it is no program for this engine: {str(error).splitlines()[0][:300]}")
        except MemoryError:
            return Answer(refused="compiling it takes too much memory")
        digest = hashlib.sha256(code).hexdigest()
        draft = folder / f"{name}.{os.getpid()}.draft"
        with open(draft, "wb") as file:
            file.write(code)
            file.flush()
            os.fsync(file.fileno())
        path = get_path(folder, name, digest)
        draft.rename(path)
        prune(folder, kept, path)
        place.unlink(missing_ok=True)  # who comes from now on finds it compiled, or compiles it a second time
        return Answer(digest=digest)


def main() -> None:
    """Bounds first."""
    program, folder, name, kind, kept, seconds, memory = sys.argv[1:]
    wanted = {resource.RLIMIT_CPU: int(seconds), resource.RLIMIT_DATA: int(memory), resource.RLIMIT_CORE: 0}
    for bound, value in wanted.items():
        allowed = resource.getrlimit(bound)[1]
        most = value if allowed == resource.RLIM_INFINITY else min(value, allowed)
        resource.setrlimit(bound, (most, most))
    os.nice(5)
    answer = compile_program(Path(program), Path(folder), name, kind == "runner", int(kept))
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    main()
