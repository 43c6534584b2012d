"""From a step to its tasks: which program, which files, which items; each to its last byte, before any is ordered.

A step is expanded once, when all that it needs is there, and what it came to is written down with it: a resumed job has
the same tasks as the one that was interrupted, whatever has changed below a prefix or in a folder since.

Invariant: the tasks of a step are a function of the spec and of the contents that it names, in a fixed order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from freehold.client.jobs_contents import Contents, Objects
from freehold.client.jobs_spec import INDEX, ITEM, File, Map, Step
from freehold.client.jobs_yaml import spec_error
from freehold.client.paths import is_remote, parse_path
from freehold.protocol.errors import InvalidInput
from freehold.services.compute.benchmarks import Benchmark
from freehold.services.compute.tasks import (
    Blob,
    Delivery,
    ExecutorName,
    Input,
    ProgramKind,
    Resources,
    Service,
    Task,
    check_task,
    name_runner,
    runner_of,
)

ITEMS_LIMIT = 100_000
MODULES = ("wasm", "c")


class Tools(Protocol):
    """What turns sources into programs, on this machine."""

    engine: str  # that modules are run by
    tell: Callable[[str], None]  # is told what takes long when it begins, and "" when it has ended

    async def python_runner(self) -> Path:
        """The component that runs scripts; built once."""

    async def compile_c(self, source: Path) -> Path:
        """A WebAssembly module. InvalidInput with what the compiler says."""

    def rerunning(self) -> AbstractAsyncContextManager[Callable[[Benchmark], Awaitable[bytes]]]:
        """What runs benchmarks on this machine, and gives their standard output; ended on the way out."""


class Came(NamedTuple):
    """A file that a step's task put out, or (stdout) what it printed."""

    number: int
    path: str
    blob: Blob
    is_stdout: bool


class Item(NamedTuple):
    """What one task is for: texts, or files below /in by their names."""

    texts: tuple[str, ...]
    inputs: tuple[Input, ...] = ()

    @property
    def label(self) -> str:
        """What it is called where people look."""
        first = self.texts[0] if self.texts else ""
        more = f" and {len(self.texts) - 1} more" if len(self.texts) > 1 else ""
        return (first if len(first) <= 60 else first[:57] + "...") + more


class Planner:
    """Expands the steps of one job. `direct`: nodes read objects themselves, at a gateway."""

    def __init__(self, contents: Contents, objects: Objects, tools: Tools, base: Path, *, direct: bool) -> None:
        self._contents = contents
        self._objects = objects
        self._tools = tools
        self._base = base
        self._direct = direct
        self.object_bytes = 0  # of objects that tasks take

    async def expand(
        self, step: Step, came: Callable[[str], Sequence[Came]], delivery: Delivery | None
    ) -> list[tuple[str, Task]]:
        """The tasks of a step, each with its label; `came` gives what a step that it needs has put out."""
        program = await self._program(step)
        shared = [one for path, file in step.inputs.items() for one in await self._inputs(path, file, came)]
        stdin = await self._stdin(step, came)
        items = await self._items(step.map, came) if step.map is not None else [Item(())]
        if len(items) > ITEMS_LIMIT:
            raise InvalidInput(f"a map comes to at most {ITEMS_LIMIT} tasks, not {len(items)}", hint="Raise `each`.")
        made = []
        for number, item in enumerate(items):
            task = await self._task(step, program, shared, stdin, item, number, delivery)
            check_task(task)
            made.append((item.label or step.name, task))
        return made

    async def _stdin(self, step: Step, came: Callable[[str], Sequence[Came]]) -> Blob | None:
        if step.stdin is None:
            return None
        if step.stdin.step is not None:
            return _only(step, came(step.stdin.step), step.stdin.stdout).blob
        return await self._contents.add_source(step.stdin, self._base)

    async def _program(self, step: Step) -> _Program:
        kind = step.kind
        if kind in ("python", "script"):
            source = File(path=step.python) if kind == "python" else File(text=step.script)
            runner = await self._contents.add_file(await self._tools.python_runner())
            blob = await self._contents.add_source(source, self._base)
            return _Program("wasm", "python", blob, name_runner(runner.sha256, self._tools.engine))
        if kind in MODULES:
            path = (
                self._base / str(step.wasm) if kind == "wasm" else await self._tools.compile_c(self._base / str(step.c))
            )
            return _Program("wasm", "module", await self._contents.add_file(path), self._tools.engine)
        executor: ExecutorName = "service" if step.service is not None else "sandbox"
        if kind == "image":
            return _Program("service" if step.service else "container", "image", None, image=str(step.image))
        if kind == "command":
            return _Program(executor, "native", None)
        return _Program(executor, "native", await self._contents.add_file(self._base / str(step.program)))

    async def _task(
        self, step: Step, program: _Program, shared: Sequence[Input], stdin: Blob | None, item: Item, number: int,
        delivery: Delivery | None,
    ) -> Task:  # fmt: skip
        given = (*(step.command or ()), *step.arguments)
        mapped = step.map is not None
        arguments = tuple(text for one in given for text in _put_in(one, item, number, mapped=mapped))
        environment = tuple(
            (name, _put_in_text(text, item, number) if mapped else text)
            for name, text in sorted(step.environment.items())
        )
        if mapped and not item.inputs and not any(ITEM in text for text in (*given, *step.environment.values())):
            if stdin is not None:
                raise spec_error("a map's texts come on standard input, unless {item} says where", step.place())
            stdin = await self._contents.add("".join(f"{text}\n" for text in item.texts).encode())
        if delivery is not None and step.map is not None and step.map.folders:
            delivery = Delivery(bucket=delivery.bucket, prefix=f"{delivery.prefix}{number}/")
        inputs = tuple(sorted((*shared, *item.inputs), key=lambda one: one.path))
        want, service = step.resources, step.service
        return Task(
            executor=program.executor, kind=program.kind, engine=program.engine, program=program.blob,
            image=program.image, arguments=arguments, environment=environment, stdin=stdin, inputs=inputs,
            outputs=tuple(map(str, step.files)), delivery=delivery, network=step.network, steps=step.verify.steps,
            resources=Resources(
                processors=want.processors, memory=want.memory, disk=want.disk, seconds=want.time,
                processes=want.processes, gpus=want.gpus, gpu_model=str(want.gpu), gpu_memory=want.gpu_memory,
            ),
            service=Service(
                port=service.port, health=str(service.health), every=float(service.every), misses=service.misses
            ) if service else None,
            metric=str(step.verify.metric), threshold=step.verify.threshold, attested=step.verify.kind == "attested",
        )  # fmt: skip

    async def _items(self, mapping: Map, came: Callable[[str], Sequence[Came]]) -> list[Item]:
        if mapping.over is not None:
            inputs = await self._inputs("", mapping.over, came)
            groups = [inputs[at : at + mapping.each] for at in range(0, len(inputs), mapping.each)]
            return [Item(tuple(one.path for one in group), tuple(group)) for group in groups]
        texts: Sequence[str] = mapping.items or ()
        if mapping.lines is not None:
            texts = (await self._read(mapping.lines, came)).splitlines()
            if not texts and mapping.lines.step is None:
                raise spec_error(f"there is no line in {mapping.lines}", mapping.lines.place())
        return [Item(tuple(map(str, texts[at : at + mapping.each]))) for at in range(0, len(texts), mapping.each)]

    async def _read(self, file: File, came: Callable[[str], Sequence[Came]]) -> str:
        if file.step is not None:
            parts = [one for one in came(file.step) if one.is_stdout == file.stdout]
            data = b"".join([await self._contents.read(one.blob.sha256) for one in parts])
        else:
            data = await self._contents.read((await self._contents.add_source(file, self._base)).sha256)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise spec_error("lines are of a text in UTF-8, and this is none", file.place()) from None

    async def _inputs(self, path: str, file: File, came: Callable[[str], Sequence[Came]]) -> list[Input]:
        """The inputs that a file of the spec stands for, below `path` where it is many."""
        if file.step is not None:
            return _of_step(path, [one for one in came(file.step) if one.is_stdout == file.stdout])
        if not file.is_many():
            if file.remote is not None and self._direct:
                where = parse_path(file.remote)
                info = await self._objects.stat(where)
                self.object_bytes += info.size
                return [Input(path=path, bucket=where.bucket, key=where.key, etag=info.etag)]
            return [Input(path=path, blob=await self._contents.add_source(file, self._base))]
        if file.remote is not None:
            return await self._below_prefix(path, file.remote)
        return await self._below_folder(path, self._base / str(file.path))

    async def _below_prefix(self, path: str, remote: str) -> list[Input]:
        where, found = parse_path(remote), list[Input]()
        async for info in self._objects.walk(where):
            name = info.key[len(where.key) :]
            if not name or name.endswith("/"):
                continue
            if len(found) >= ITEMS_LIMIT:
                raise InvalidInput(f"{remote} has more than {ITEMS_LIMIT} objects")
            self.object_bytes += info.size
            if self._direct:
                found.append(Input(path=path + name, bucket=info.bucket, key=info.key, etag=info.etag))
            else:
                blob = await self._contents.add_source(File(remote=str(info.path)), self._base)
                found.append(Input(path=path + name, blob=blob))
        if not found:
            raise InvalidInput(f"there is nothing below {remote}")
        return found

    async def _below_folder(self, path: str, folder: Path) -> list[Input]:
        files = await asyncio.to_thread(lambda: sorted(one for one in folder.rglob("*") if one.is_file()))
        if not files:
            raise InvalidInput(f"there is no file below {folder}")
        if len(files) > ITEMS_LIMIT:
            raise InvalidInput(f"there are more than {ITEMS_LIMIT} files below {folder}")
        names = [path + one.relative_to(folder).as_posix() for one in files]
        return [
            Input(path=name, blob=await self._contents.add_file(one)) for name, one in zip(names, files, strict=True)
        ]


class _Program(NamedTuple):
    executor: ExecutorName
    kind: ProgramKind
    blob: Blob | None
    engine: str = ""
    image: str = ""


def delivery_to(output: str | None) -> Delivery | None:
    """Where an fh:// output goes, as a task has it; None for a local folder or none."""
    if output is None or not is_remote(output):
        return None
    where = parse_path(output)
    prefix = where.key if not where.key or where.key.endswith("/") else f"{where.key}/"
    return Delivery(bucket=where.bucket, prefix=prefix)


def name_outputs(came: Sequence[Came], *, folders: bool) -> dict[str, Came]:
    """A step's files by the paths at which they are delivered. InvalidInput where two tasks have the same."""
    named: dict[str, Came] = {}
    for one in came:
        if one.is_stdout:
            continue
        path = f"{one.number}/{one.path}" if folders else one.path
        if path in named and named[path].blob != one.blob:
            raise InvalidInput(
                f"tasks {named[path].number} and {one.number} have both put out {path!r}",
                hint="Name what they put out by {item} or {index}, or say `folders: true` in the map; "
                "`freehold job fetch --folders` keeps them apart, too.",
            )
        named[path] = one
    return named


def _of_step(path: str, came: Sequence[Came]) -> list[Input]:
    if not came:
        raise InvalidInput(f"nothing came out of the step that {path!r} takes")
    if came[0].is_stdout:
        return [Input(path=f"{path}{one.number}", blob=one.blob) for one in came]
    return [Input(path=path + name, blob=one.blob) for name, one in name_outputs(came, folders=False).items()]


def _only(step: Step, came: Sequence[Came], stdout: bool) -> Came:
    found = [one for one in came if one.is_stdout == stdout]
    if len(found) != 1:
        raise spec_error(f"standard input is one file, and the step that gives it has {len(found)}", step.place())
    return found[0]


def _put_in(text: str, item: Item, number: int, *, mapped: bool) -> tuple[str, ...]:
    if not mapped:
        return (text,)
    return item.texts if text == ITEM else (_put_in_text(text, item, number),)


def _put_in_text(text: str, item: Item, number: int) -> str:
    if ITEM in text and len(item.texts) != 1:
        raise InvalidInput("where a task has several items, {item} stands alone: it becomes several arguments")
    return (
        text.replace(INDEX, str(number)).replace(ITEM, item.texts[0])
        if ITEM in text
        else text.replace(INDEX, str(number))
    )


def blobs_of(task: Task) -> Mapping[str, int]:
    """The contents that a node must have for a task: size by SHA-256; the interpreter's size is not known here (0)."""
    named = [task.program, task.stdin, *(one.blob for one in task.inputs)]
    found = {blob.sha256: blob.size for blob in named if blob is not None}
    if task.kind == "python":
        found[runner_of(task) or ""] = 0
    return found
