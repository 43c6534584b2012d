"""What a client builds its programs with: the Python runner once a machine, and C by a compiler for WebAssembly.

The runner is CPython in a WebAssembly component (`executors/python_runner/`), made by componentize-py; any script runs
in it. Equal versions give equal bytes, whoever builds it and wherever (`steady.wat`, `component_stubs.py`), so that a
node compiles one runner for all of its clients; but nothing rests on that. A task names the one that its client has
(`engine` is "python:<SHA-256>"), and results depend on it alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from freehold.protocol.errors import InvalidInput, NotFound, Unavailable
from freehold.services.compute.component_stubs import sort_stubs

Tell = Callable[[str], None]  # is told, in a sentence, what takes long before it begins; in any thread

SOURCES = Path(__file__).parent / "executors" / "python_runner"
LIBRARY = "steady.cpython-314-wasm32-wasi.so"  # what CPython finds it by
BUILD_SECONDS = 600
COMPILE_SECONDS = 600  # the compiler's first run builds its C library


class MissingTool(Unavailable):
    """A program that builds others is not installed."""

    code, retryable = "missing_tool", False


def python_runner(cache: Path, tell: Tell = lambda _: None) -> Path:
    """The runner, built in about 15 s if this cache has none that is up to date; `tell` is told so. MissingTool,
    Unavailable."""
    _need("componentize_py", "componentize-py", "Install it with `pip install componentize-py`.")
    name = f"python-runner-{_hash_sources()}.wasm"
    cache.mkdir(parents=True, exist_ok=True)
    if (cache / name).exists():
        return cache / name
    tell("building the Python interpreter for WebAssembly, once on this machine")
    with open(cache / "python-runner.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cache / name).exists():
            _build_runner(cache, name)
    return cache / name


def compile_c(source: Path, cache: Path, tell: Tell = lambda _: None) -> Path:
    """The C program `source`, as a module for WASI preview 1; `tell` is told where it is compiled anew. InvalidInput
    with what the compiler says; MissingTool."""
    _need("ziglang", "ziglang", "Install it with `pip install ziglang`, or `pip install 'freehold[c]'`.")
    try:
        text = source.read_bytes()
    except OSError as error:
        raise NotFound(f"{source} cannot be read: {error.strerror}") from None
    name = f"{hashlib.sha256(version('ziglang').encode() + text).hexdigest()}.wasm"
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / name).exists():
        tell(f"compiling {source.name}")
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / name
            arguments = ["cc", "--target=wasm32-wasi", "-O2", "-s", "-o", str(made), str(source.resolve())]
            # Its own caches go where ours are: nothing is left in the user's folders.
            environment = os.environ | {f"ZIG_{kind}_CACHE_DIR": str(cache / "zig") for kind in ("LOCAL", "GLOBAL")}
            ended = _run([sys.executable, "-m", "ziglang", *arguments], environment, COMPILE_SECONDS)
            if ended.returncode or not made.exists():
                raise InvalidInput(f"{source} does not compile:\n{ended.stderr.strip()[-4000:]}")
            made.rename(cache / name)
    return cache / name


def _build_runner(cache: Path, name: str) -> None:
    import wasmtime  # takes a while to load, and few commands build anything

    with tempfile.TemporaryDirectory(dir=cache) as folder:
        sources = Path(folder) / "sources"
        shutil.copytree(SOURCES, sources, ignore=shutil.ignore_patterns("__pycache__", "*.wat"))
        (sources / LIBRARY).write_bytes(wasmtime.wat2wasm((SOURCES / "steady.wat").read_text()))
        made = Path(folder) / name
        arguments = ["-d", str(sources / "job.wit"), "-w", "script", "componentize", "--stub-wasi"]
        arguments += ["-p", str(sources), "runner", "-o", str(made)]
        # Only the sources go in, not what happens to be installed here.
        environment = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
        environment["PATH"] = str(Path(sys.executable).parent) + os.pathsep + environment.get("PATH", "")
        code = "from componentize_py import script; script()"
        ended = _run([sys.executable, "-c", code, *arguments], environment, BUILD_SECONDS)
        if ended.returncode or not made.exists():
            raise Unavailable(f"the Python runner was not built:\n{(ended.stderr or ended.stdout).strip()[-2000:]}")
        made.write_bytes(sort_stubs(made.read_bytes()))
        for old in cache.glob("python-runner-*.wasm"):
            old.unlink()
        made.rename(cache / name)


def _hash_sources() -> str:
    """Of what decides what the runner does."""
    digest = hashlib.sha256(version("componentize-py").encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".py", ".wit", ".wat"):
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _need(module: str, tool: str, hint: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise MissingTool(f"{tool} is not installed", hint=hint, tool=tool)


def _run(command: list[str], environment: dict[str, str], seconds: int) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[2]} took more than {seconds} s") from None
