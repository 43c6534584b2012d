"""The job spec: what a user asks for, as YAML or as Python (`freehold.job`), in one page of fields.

    job      when, how much, how sure: and steps, or the fields of its only step
    step     what to run, on what, where the results go; once, or mapped over many items; after the steps it needs

docs/jobs.md has the table of fields, made from the definitions here. Invariants: a Job that exists makes sense by
itself (one program a step, needs that exist, no cycle); what is wrong says so at its line.
"""

# ruff: noqa: RUF009  # one_of is dataclasses.field

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from freehold.client.jobs_attested import Hardware
from freehold.client.jobs_fields import (
    ASSURANCE,
    CREDITS,
    DURATION,
    FLAG,
    NAME,
    SIZE,
    TEXT,
    Kind,
    Part,
    choice,
    count,
    many,
    measured,
    named,
    one_of,
    part,
    suggest,
)
from freehold.client.jobs_units import CREDITS as _CREDITS
from freehold.client.jobs_yaml import Entries, Mark, mark_of, read_yaml, spec_error
from freehold.client.paths import is_remote, parse_path
from freehold.market.constraints import parse as parse_constraint
from freehold.protocol.errors import InvalidInput
from freehold.services.compute.tasks import check_path

__all__ = ["File", "Job", "Map", "Resources", "Service", "Step", "Verify", "load", "parse"]

MiB = 2**20
CLASSES = ("bit_exact", "tolerance", "refereed", "sampled", "attested")
PROGRAMS = ("python", "script", "wasm", "c", "program", "command", "image")
ITEM, INDEX = "{item}", "{index}"  # what a map puts in


def _file(value: Any) -> Any:
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, bytes):
        import base64

        return {"base64": base64.b64encode(value).decode()}
    if not isinstance(value, str):
        return value
    name = "remote" if is_remote(value) else "url" if value.startswith(("https://", "http://")) else "path"
    return {name: value}


def _remote(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(value)
    try:
        parse_path(value)
    except InvalidInput as error:
        raise spec_error(error.message, value) from None
    return value


def _url(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith(("https://", "http://")):
        raise ValueError(value)
    return value


def _constraint(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(value)
    try:
        parse_constraint(value)
    except InvalidInput as error:
        raise spec_error(error.message, value) from None
    return value


def _image(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(value)
    name, _, digest = value.partition("@sha256:")
    if not name:
        raise ValueError(value)
    _digest(digest)
    return value


def _digest(value: Any) -> str:
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ValueError(value)
    return value


CONSTRAINT = Kind("a constraint", _constraint)


@dataclass(frozen=True, kw_only=True)
class File(Part):
    """Where bytes come from. As text alone: `fh://bucket/key`, `https://...`, or a local path."""

    path: str | None = one_of(TEXT, "a local file, or with a `/` at the end all below a folder", None)
    remote: str | None = one_of(Kind("an fh:// path", _remote), "an object, or with `/` a prefix", None)
    url: str | None = one_of(Kind("an http(s) URL", _url), "fetched by the client, before the job is ordered", None)
    sha256: str = one_of(
        Kind("64 hexadecimal digits", _digest),
        "what a URL's bytes must be; else they are as they come",
        "",
    )
    text: str | None = one_of(TEXT, "the bytes themselves, as text", None)
    base64: str | None = one_of(TEXT, "the bytes themselves", None)
    step: str | None = one_of(NAME, "what another step has put out (which is then needed)", None)
    stdout: bool = one_of(FLAG, "of that step: its standard output rather than its files", False)

    def check(self) -> None:
        given = [name for name in _SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            raise spec_error(f"a file is one of {', '.join(_SOURCES)}; here are {len(given)}", self.place())
        if self.stdout and self.step is None:
            raise spec_error("`stdout` is for the output of a step", self.place())
        if self.sha256 and self.url is None:
            raise spec_error("`sha256` is for a URL", self.place())

    def place(self) -> Mark | None:
        """Where its first field stands."""
        return min((mark for one in fields(self) if (mark := mark_of(getattr(self, one.name)))), default=None)

    def is_many(self) -> bool:
        """Whether it stands for files below a folder, whose names follow."""
        return self.step is not None or (self.path or self.remote or "").endswith("/")

    def __str__(self) -> str:
        name = next(name for name in _SOURCES if getattr(self, name) is not None)
        return (
            f"step {self.step}" if name == "step" else "inline" if name in ("text", "base64") else getattr(self, name)
        )


_SOURCES = ("path", "remote", "url", "text", "base64", "step")
FILE = part(File, "fh://bucket/key, https://..., a local path, or a mapping (text, step, url and so on)", _file)


@dataclass(frozen=True, kw_only=True)
class Resources(Part):
    """What one task may use; a node that has less does not match."""

    processors: int = one_of(count(1, 1024), "how many at once", 1)
    memory: int = one_of(SIZE, "main memory", 512 * MiB)
    disk: int = one_of(SIZE, "for its files", 256 * MiB)
    time: int = one_of(DURATION, "on the wall, after which it is ended", 600)
    work: int = one_of(
        DURATION, "the most that a task is billed, as time of one processor, until receipts say what it takes", 300
    )
    processes: int = one_of(count(1, 4096), "how many at once, of a native program", 64)
    gpus: int = one_of(count(0, 64), "how many", 0)
    gpu: str = one_of(TEXT, "the model, like `NVIDIA A100`", "")
    gpu_memory: int = one_of(SIZE, "of each", 0)

    def check(self) -> None:
        if (self.gpu or self.gpu_memory) and not self.gpus:
            object.__setattr__(self, "gpus", 1)


@dataclass(frozen=True, kw_only=True)
class Map(Part):
    """One task for each item. As text or a list alone: `over`, `items`."""

    over: File | None = one_of(FILE, "each object of a prefix, each file of a folder, or each output of a step", None)
    items: tuple[str, ...] | None = one_of(many(TEXT, "item"), "each text of a list", None)
    lines: File | None = one_of(FILE, "each line of a file", None)
    each: int = one_of(count(1, 100_000), "how many items a task takes", 1)
    folders: bool = one_of(FLAG, "put each task's files into a folder of its number", False)

    def check(self) -> None:
        given = [name for name in ("over", "items", "lines") if getattr(self, name) is not None]
        if len(given) != 1:
            raise spec_error("a map has one of `over`, `items` and `lines`")
        if self.items == ():
            raise spec_error("a map over a list without items runs nothing")
        if self.over is not None and not self.over.is_many():
            raise spec_error('a map goes over a folder, a prefix (with "/" at the end) or a step', self.over.place())

    @property
    def has_files(self) -> bool:
        """Whether its items are files rather than texts."""
        return self.over is not None


def _map(value: Any) -> Any:
    """The shorter ways to write a map, as a mapping that stands where they do."""
    if not isinstance(value, str | File | list | tuple):
        return value
    made = Entries({"over" if isinstance(value, str | File) else "items": value})
    if (mark := mark_of(value)) is not None:
        made.at = mark
    return made


MAP = part(
    Map,
    "a prefix or folder, a list, or a mapping (over, items, lines)",
    _map,
)


@dataclass(frozen=True, kw_only=True)
class Service(Part):
    """A step that goes on: a web application, an API."""

    port: int = one_of(count(0, 65535), "where it listens; 0: it is told by the environment variable PORT", 0)
    health: str = one_of(TEXT, "the path that answers 200 while it is healthy", "/")
    every: int = one_of(DURATION, "between two checks", 2)
    misses: int = one_of(count(1, 100), "of them, after which it is started again", 3)


@dataclass(frozen=True, kw_only=True)
class Verify(Part):
    """What makes two results equal. As text alone: `kind`."""

    kind: str = one_of(
        choice(*CLASSES), "how results are compared (docs/calibration.md has each one's error rates)", "bit_exact"
    )
    metric: str = one_of(TEXT, "for `tolerance` and `sampled`: how far two results are apart", "")
    threshold: int = one_of(count(0, 2**62), "the largest distance, in the metric's unit", 0)
    steps: int = one_of(
        count(0, 2**20), "for `refereed`: how often the program is run on its own state, each run checkable alone", 0
    )
    hardware: Hardware | None = one_of(
        part(Hardware, "a mapping (measurements, roots and so on)"),
        "for `attested`: what hardware and programs count",
        None,
    )

    def check(self) -> None:
        if self.kind == "tolerance" and not self.metric:
            raise spec_error("`tolerance` goes by a metric", self.kind)
        if self.metric and self.kind not in ("tolerance", "sampled"):
            raise spec_error(f"`{self.kind}` compares bytes: a metric is for `tolerance` and `sampled`", self.metric)
        if self.steps and self.kind != "refereed":
            raise spec_error("`steps` are for `refereed`", self.kind)
        if (self.hardware is not None) != (self.kind == "attested"):
            raise spec_error("`hardware` says what `attested` accepts, and only that", self.kind)


@dataclass(frozen=True, kw_only=True)
class Step(Part):
    """What is run, and on what. Exactly one of python, script, wasm, c, program, command and image."""

    name: str = one_of(NAME, "what other steps and `freehold job` call it", "main")
    python: str | None = one_of(TEXT, "a Python script's path; it runs inside WebAssembly", None)
    script: str | None = one_of(TEXT, "a Python script itself", None)
    wasm: str | None = one_of(TEXT, "the path of a WebAssembly module for WASI preview 1", None)
    c: str | None = one_of(TEXT, "the path of a C source, compiled to WebAssembly here", None)
    program: str | None = one_of(TEXT, "the path of an executable for Linux; it runs in the node's sandbox", None)
    command: tuple[str, ...] | None = one_of(
        many(TEXT, "argument"), "a program that nodes have, with its arguments", None
    )
    image: str | None = one_of(Kind("an image by its digest, name@sha256:...", _image), "an OCI image", None)
    service: Service | None = one_of(
        part(Service, "a mapping (port, health, every, misses)"), "the program goes on, and is reached over HTTP", None
    )
    arguments: tuple[str, ...] = one_of(many(TEXT, "argument"), "its arguments; {item} and {index} are a map's", ())
    environment: dict[str, str] = one_of(named(TEXT), "its environment variables", {})
    stdin: File | None = one_of(FILE, "its standard input", None)
    inputs: dict[str, File] = one_of(named(FILE), "files below /in, by path; one that ends with a slash takes many", {})
    files: tuple[str, ...] = one_of(many(TEXT, "pattern"), "which files below /out are taken", ("**",))
    output: str | None = one_of(TEXT, "where they go: a local folder or fh://bucket/prefix/", None)
    map: Map | None = one_of(MAP, "run it for each of many items", None)
    needs: tuple[str, ...] = one_of(many(NAME, "step"), "steps that must be done before", ())
    resources: Resources = one_of(
        part(Resources, "a mapping (processors, memory and so on)"), "what one task may use", Resources()
    )
    network: bool = one_of(FLAG, "whether it may open connections", False)
    where: str = one_of(CONSTRAINT, "what nodes must meet, besides the job's", "")
    verify: Verify = one_of(
        part(Verify, f"one of {', '.join(CLASSES)}, or a mapping", lambda v: {"kind": v} if isinstance(v, str) else v),
        "how results are compared", Verify(),
    )  # fmt: skip

    def check(self) -> None:
        given = [name for name in PROGRAMS if getattr(self, name) is not None]
        mark = self.place()
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise spec_error(f"step {self.name!r} runs exactly one of {', '.join(PROGRAMS)}; here is {found}", mark)
        if self.service is not None and given[0] not in ("program", "command", "image"):
            raise spec_error(f"a service is a program, a command or an image, not {given[0]!r}", mark)
        if self.service is not None and self.map is not None:
            raise spec_error("a service is not mapped", mark)
        if self.service is not None and self.verify.kind == "attested":
            raise spec_error("a service has no result that could be attested", mark)
        if self.verify.steps and given[0] not in ("python", "script", "wasm", "c"):
            raise spec_error("only what runs in WebAssembly is declared in steps", mark)
        for path in self.inputs:
            try:
                check_path(str(path).removesuffix("/"))
            except InvalidInput as error:
                raise spec_error(error.message, path) from None
            if path.endswith("/") != self.inputs[path].is_many():
                raise spec_error(f'{str(path)!r}: both end with "/", the path and what it takes, or neither does', path)
            if above := next((one for one in self.inputs if path.startswith(f"{one}/")), None):
                raise spec_error(f"{str(above)!r} is a file below /in, and {str(path)!r} would lie below it", path)

    def place(self) -> Mark | None:
        """Where it stands: its name or its program."""
        marks = (mark_of(getattr(self, name)) for name in ("name", *PROGRAMS))
        return next((mark for mark in marks if mark), None)

    @property
    def kind(self) -> str:
        """Which of PROGRAMS it is."""
        return next(name for name in PROGRAMS if getattr(self, name) is not None)

    @property
    def before(self) -> tuple[str, ...]:
        """The steps that must be done first: those it names and those whose outputs it takes."""
        mapped = (self.map.over, self.map.lines) if self.map else ()
        taken = [one.step for one in (*self.inputs.values(), self.stdin, *mapped) if one is not None and one.step]
        return tuple(dict.fromkeys((*self.needs, *taken)))


@dataclass(frozen=True, kw_only=True)
class Job(Part):
    """A job. A job of one step may have that step's fields beside its own, and no `steps`."""

    name: str = one_of(NAME, "what `freehold job list` shows", "job")
    steps: tuple[Step, ...] = one_of(many(part(Step, "a step"), "step"), "what to do")
    deadline: int = one_of(DURATION, "from when it is ordered; what is not done then is stopped", 3600)
    most: int | None = one_of(
        measured(_CREDITS, CREDITS.take), "the most that it may cost, checks included; asked if it is not said", None
    )
    where: str = one_of(CONSTRAINT, 'what nodes must meet, like `place == "EU"`', "")
    assurance: str = one_of(ASSURANCE, "how sure to be of every result; 0: each task is run once and believed", "0")
    retries: int = one_of(count(0, 100), "how often a task that failed is tried again, elsewhere", 3)

    def check(self) -> None:
        if not self.steps:
            raise spec_error("a job has at least one step")
        names = set[str]()
        for step in self.steps:
            if step.name in names:
                raise spec_error(f"two steps are called {str(step.name)!r}", step.place())
            names.add(step.name)
        for step in self.steps:
            for need in step.before:
                if need not in names:
                    message = f"step {step.name!r} needs {str(need)!r}, and there is no such step"
                    raise spec_error(message, mark_of(need) or step.place(), suggest(need, names))
        self.order()

    def order(self) -> list[Step]:
        """The steps, each after those it needs. SpecError names a cycle."""
        by_name = {step.name: step for step in self.steps}
        done: dict[str, Step] = {}
        for step in self.steps:
            _visit(step, by_name, done, [])
        return list(done.values())


def _visit(step: Step, by_name: Mapping[str, Step], done: dict[str, Step], trail: list[str]) -> None:
    if step.name in done:
        return
    if step.name in trail:
        cycle = " -> ".join([*trail[trail.index(step.name) :], step.name])
        raise spec_error(f"the steps need each other in a circle: {cycle}", step.place())
    for need in step.before:
        _visit(by_name[need], by_name, done, [*trail, step.name])
    done[step.name] = step


def parse(data: bytes, file: str) -> Job:
    """The job that a YAML text describes; `file` is what errors call it. SpecError."""
    value = read_yaml(data, file)
    if not isinstance(value, Entries):
        raise spec_error("a spec is a mapping: name, steps, deadline and so on", value)
    return of_mapping(value)


def of_mapping(value: Entries) -> Job:
    """The job behind a mapping, in either form."""
    own = {one.name for one in fields(Job)}
    of_step = {one.name for one in fields(Step)} - own
    if "steps" in value:
        if wrong := next((key for key in value if key in of_step), None):
            raise spec_error(f"{str(wrong)!r} is a step's: with `steps`, it stands in one of them", wrong)
        return Job.of(value)
    for key in value:
        if key not in own | of_step:
            raise spec_error(f"there is no {str(key)!r} here", key, suggest(key, own | of_step))
    step, rest = Entries(), Entries()
    step.at = rest.at = value.at
    step.update({key: one for key, one in value.items() if key in of_step})
    rest.update({key: one for key, one in value.items() if key in own})
    rest["steps"] = (Step.of(step),)
    return Job.of(rest)


def load(path: Path) -> Job:
    """The job in a YAML file. SpecError, InvalidInput if it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
    return parse(data, str(path))
