"""A worker process: runs WebAssembly jobs, one at a time, as its node tells it to over its standard input.

It loads the engine and little else, so that what a hostile program may bring down is this process and no node. One
thread runs jobs; the other listens, and ends a run by the engine's epoch when its time is over or the node says so.
Compiled code is native code: a file is loaded only if its bytes have the hash that the node names.

Invariant: the process ends with its standard input, that is with its node.
"""

from __future__ import annotations

import hashlib
import os
import queue
import re
import resource
import select
import shutil
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import wasmtime
from wasmtime import component

from freehold.services.compute.executors import wasm_script, wasm_wasi
from freehold.services.compute.executors.wasm_engine import THREAD_STACK, Meter, build_engine, build_store
from freehold.services.compute.executors.wasm_files import Files
from freehold.services.compute.executors.wasm_terms import (
    LENGTH,
    LOG_PART,
    OUTPUT_LIMIT,
    TO_WORKER,
    Ended,
    Halt,
    Log,
    Run,
    State,
    Stop,
    Unusable,
    frame,
)

KEPT = 32  # compiled programs kept loaded
OVERHEAD = 2**30  # bytes of memory that a worker may use beside its job's
LOG_SECONDS = 0.05  # that a line of the log waits for others
OUT_OF_MEMORY_SCORE = 500  # the kernel ends workers before it ends nodes

Code = wasmtime.InstancePre | component.Component


class Streams:
    """The standard output and error of one step. Lines of the log wait LOG_SECONDS at most for others."""

    def __init__(self, send: Callable[[msgspec.Struct], None], measure: Callable[[], int], room: int) -> None:
        self._send, self._measure, self._room = send, measure, room
        self.stdout = bytearray()
        self._log = bytearray()
        self._noted = 0
        self._lock = threading.Lock()

    def write(self, stream: int, data: bytes) -> None:
        """Take what the program writes. Stop ("output") where its standard output is too long."""
        if stream == 1:
            left = self._room - len(self.stdout)
            self.stdout += data[:left]
            if len(data) > left:
                raise Stop("output", f"it wrote more than {OUTPUT_LIMIT} bytes to its standard output")
            return
        with self._lock:
            self._log += data
            self._noted = self._measure()
        if len(self._log) >= LOG_PART:
            self.flush()

    def flush(self) -> None:
        """Send what there is of the log."""
        with self._lock:
            for start in range(0, len(self._log), LOG_PART):
                self._send(Log(bytes(self._log[start : start + LOG_PART]), self._noted))
            self._log.clear()


class Worker:
    """The process. `source` and `sink` are its pipes."""

    def __init__(self, source: int, sink: int) -> None:
        self._source, self._sink = source, sink
        self._engine = build_engine()
        self._modules = wasmtime.Linker(self._engine)
        self._components = component.Linker(self._engine)
        self._wasi: wasm_wasi.Wasi | None = None
        self._script: wasm_script.ScriptHost | None = None
        wasm_wasi.define(self._modules, self._get_wasi)
        wasm_script.define(self._components, self._get_script)
        self._loaded: OrderedDict[str, Code] = OrderedDict()
        self._runs: queue.SimpleQueue[Run] = queue.SimpleQueue()
        self._lock, self._sending = threading.Lock(), threading.Lock()
        self._streams: Streams | None = None
        self._running: Run | None = None
        self._why = ""  # the run was interrupted: "time" or "stopped"

    def listen(self) -> None:
        """Take messages until the node closes its end, and watch the time."""
        threading.stack_size(THREAD_STACK)
        threading.Thread(target=self._work, daemon=True).start()
        deadline = 0.0
        data = bytearray()
        while True:
            left = None if self._running is None else LOG_SECONDS
            if not select.select([self._source], [], [], left)[0]:
                streams = self._streams
                if streams is not None:
                    streams.flush()
                if time.monotonic() >= deadline:
                    self._interrupt("time")
                continue
            part = os.read(self._source, 65536)
            if not part:
                return
            data += part
            while len(data) >= LENGTH.size and len(data) >= LENGTH.size + LENGTH.unpack_from(data)[0]:
                end = LENGTH.size + LENGTH.unpack_from(data)[0]
                message = TO_WORKER.decode(bytes(data[LENGTH.size : end]))
                del data[:end]
                if isinstance(message, Halt):
                    self._interrupt("stopped")
                else:
                    deadline = time.monotonic() + message.seconds
                    with self._lock:
                        self._running, self._why = message, ""
                    self._runs.put(message)

    def _interrupt(self, why: str) -> None:
        with self._lock:
            if self._running is not None and not self._why:
                self._why = why
                self._engine.increment_epoch()

    def _send(self, message: msgspec.Struct) -> None:
        view = memoryview(frame(message))
        with self._sending:
            while view:
                view = view[os.write(self._sink, view) :]

    def _work(self) -> None:
        try:
            while True:
                run = self._runs.get()
                answer = self._answer(run)
                with self._lock:
                    self._running = None
                self._send(answer)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)  # the node sees the end of this process, and takes another

    def _answer(self, run: Run) -> Ended | Unusable:
        resource.setrlimit(resource.RLIMIT_DATA, (run.memory + OVERHEAD, resource.getrlimit(resource.RLIMIT_DATA)[1]))
        try:
            code = self._load(run)
        except (OSError, wasmtime.WasmtimeError) as error:
            return Unusable(_sentence(error))
        except Stop as stop:
            return Ended(stop.ended, 0, b"", 0, stop.reason)
        taken, room = 0, OUTPUT_LIMIT
        stdin = Path(run.stdin).read_bytes() if run.stdin else b""
        for step in range(run.steps or 1):
            ended = self._step(run, code, stdin, taken, room, last=step + 1 >= run.steps)
            taken, stdin, room = ended.measure, ended.stdout, room - len(ended.stdout)
            if ended.ended != "exited" or ended.status:
                break
            if run.steps:
                self._send(State(ended.stdout, taken))
        return ended

    def _load(self, run: Run) -> Code:
        """The program, loaded. Stop ("refused"), OSError, WasmtimeError."""
        code = self._loaded.pop(run.digest, None)
        if code is None:
            if hashlib.sha256(Path(run.code).read_bytes()).hexdigest() != run.digest:
                raise OSError("the compiled program is not what it was")
            if run.script:
                code = component.Component.deserialize_file(self._engine, run.code)
            else:
                module = wasmtime.Module.deserialize_file(self._engine, run.code)
                _check_imports(module)
                try:
                    code = self._modules.instantiate_pre(module)
                except wasmtime.WasmtimeError as error:
                    raise Stop("refused", _sentence(error)) from None
        self._loaded[run.digest] = code
        if len(self._loaded) > KEPT:
            self._loaded.popitem(last=False)
        return code

    def _step(self, run: Run, code: Code, stdin: bytes, taken: int, room: int, last: bool) -> Ended:
        """Run the program once; what it left below /out is kept of the last step only."""
        scratch = Path(run.folder) / "scratch"
        scratch.mkdir()
        files = Files(Path(run.folder) / "in", scratch, run.disk)
        store = build_store(self._engine, run.memory, run.most - taken)
        meter = Meter(store)
        streams = self._streams = Streams(self._send, lambda: taken + meter.taken(), room)
        stop = Stop("exited", "")
        began = time.thread_time_ns()
        try:
            if self._why:
                raise self._build_stop()
            if run.steps:
                meter.charge_step()
            if isinstance(code, component.Component):
                self._script = wasm_script.ScriptHost(files, meter, stdin, streams.write)
                stop.status = self._call_script(run, store, code)
            else:
                arguments = ("program", *run.arguments)
                self._wasi = wasm_wasi.Wasi(files, meter, arguments, run.environment, stdin, streams.write)
                _call_start(code.instantiate(store), store)
        except Stop as raised:
            stop = raised
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            stop = self._explain(error, store)
        finally:
            self._wasi = self._script = self._streams = None
            files.close_all()
        measure = taken + meter.taken()
        if stop.ended in ("time", "stopped"):  # an interrupt loses the fuel taken since the last call of the host
            measure = min(run.most, max(measure, taken + time.thread_time_ns() - began))
        streams.flush()
        try:
            if last or stop.ended != "exited" or stop.status:
                files.finish(Path(run.folder) / "out")
        except Stop as raised:
            stop = raised
        shutil.rmtree(scratch)
        return Ended(stop.ended, stop.status & 0xFF, bytes(streams.stdout), measure, stop.reason)

    def _call_script(self, run: Run, store: wasmtime.Store, code: component.Component) -> int:
        try:
            source = Path(run.script).read_text("utf-8")
        except UnicodeDecodeError:
            raise Stop("refused", "the script is not UTF-8") from None
        try:
            instance = self._components.instantiate(store, code)
        except wasmtime.WasmtimeError as error:
            if "wasm trap" in str(error) or "limit" in str(error):
                raise
            raise Stop("refused", _sentence(error)) from None
        function = instance.get_func(store, "run")
        if function is None:
            raise Stop("refused", "the runner has no function called run")
        try:
            return int(function(store, source, list(run.arguments), list(run.environment)))
        except (TypeError, AttributeError, AssertionError, ValueError, LookupError, ArithmeticError) as error:
            # Only the calls' names are checked when a component is linked, not their types.
            raise Stop("refused", f"the runner is none: {_sentence(error)}") from None

    def _explain(self, error: Exception, store: wasmtime.Store) -> Stop:
        text = str(error)
        trap = re.search(r"wasm trap: (.*)", text)
        if self._why and "interrupt" in text:
            return self._build_stop()
        if "all fuel consumed" in text:
            store.set_fuel(0)
            return Stop("fuel", "it used up what its order allows")
        if trap is None and "exceeds memory limits" in text:
            return Stop("memory", "it needs more memory than its task allows to start with")
        if trap is None and "limit" not in text:
            return Stop("refused", _sentence(error))
        if trap is not None and "call stack exhausted" in trap[1]:
            # Frames are as large as this processor's code makes them: another would have got further, or less far.
            return Stop("stack", "its calls nest deeper than the stack has room for here")
        return Stop("trap", trap[1] if trap else _sentence(error))

    def _build_stop(self) -> Stop:
        """Why the run was interrupted."""
        return Stop(self._why, "it was stopped" if self._why == "stopped" else "its time was over")

    def _get_wasi(self) -> wasm_wasi.Wasi:
        assert self._wasi is not None
        return self._wasi

    def _get_script(self) -> wasm_script.ScriptHost:
        assert self._script is not None
        return self._script


def _call_start(instance: wasmtime.Instance, store: wasmtime.Store) -> None:
    start = instance.exports(store).get("_start")
    if not isinstance(start, wasmtime.Func):
        raise Stop("refused", 'it exports no function called "_start"')
    start(store)


def _check_imports(module: wasmtime.Module) -> None:
    unknown = [
        f"{one.module}.{one.name}"
        for one in module.imports
        if one.module != wasm_wasi.MODULE or one.name not in wasm_wasi.SIGNATURES
    ]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise Stop("refused", f"it imports what no job has: {', '.join(unknown[:5])}{more}")


def _sentence(error: Exception) -> str:
    """The first line of an error's text, within reason."""
    return (str(error).splitlines() or [""])[0][:300]


def main() -> None:
    """The process: pipes moved away from where a library might print, and bounds."""
    source, sink = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OUT_OF_MEMORY_SCORE))
    Worker(source, sink).listen()
    os._exit(0)


if __name__ == "__main__":
    main()
