"""What `freehold job run FILE` means: a spec as it is written, or a script, source or module as a job of one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from freehold.client.jobs_spec import File, Job, Map, Step, load
from freehold.client.paths import is_remote
from freehold.market.constraints import parse
from freehold.protocol.errors import InvalidInput, NotFound

PROGRAMS = {".py": "python", ".c": "c", ".wasm": "wasm"}
SPECS = (".yaml", ".yml", ".json")


def read_spec(
    what: Path,
    arguments: Sequence[str] = (),
    inputs: Sequence[str] = (),
    output: str | None = None,
    assurance: str | None = None,
    most: int | None = None,
    deadline: int | None = None,
    where: Sequence[str] = (),
) -> tuple[Job, Path]:
    """The job, and the folder that its paths start at. SpecError, NotFound, InvalidInput."""
    if not what.is_file():
        raise NotFound(f"there is no file {what}")
    if what.suffix in SPECS:
        job = load(what)
    elif what.suffix in PROGRAMS:
        step = Step.of({PROGRAMS[what.suffix]: what.name})
        job = Job(name=_name(what), steps=(step,))
    else:
        known = ", ".join((*SPECS, *PROGRAMS))
        raise InvalidInput(f"{what} is neither a spec nor a program: its name ends with one of {known}")
    steps = job.steps
    if arguments or inputs or output:
        steps = _change(steps, arguments, inputs, output)
    for text in where:
        parse(text)
    constraint = " and ".join(f"({text})" for text in (job.where, *where) if text.strip())
    changed = {"assurance": assurance, "most": most, "deadline": deadline}
    wanted = {name: value for name, value in changed.items() if value is not None}
    return replace(job, steps=steps, where=constraint, **wanted), what.parent  # type: ignore[arg-type]


def _name(path: Path) -> str:
    text = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in path.stem.lower())
    return text.strip("-")[:40] or "job"


def _change(
    steps: tuple[Step, ...], arguments: Sequence[str], inputs: Sequence[str], output: str | None
) -> tuple[Step, ...]:
    """Arguments and inputs are the first step's, the output is the last's."""
    first = steps[0]
    given = dict(first.inputs)
    mapping = first.map
    for text in inputs:
        path, separator, source = text.partition("=")
        if not separator or is_remote(path):
            mapping = _map_over(first, mapping, text)
        else:
            given[path] = _file(source)
    changed = replace(first, arguments=(*first.arguments, *arguments), inputs=given, map=mapping)
    made = (changed, *steps[1:])
    return made if output is None else (*made[:-1], replace(made[-1], output=_local(output)))


def _map_over(step: Step, mapping: Map | None, source: str) -> Map:
    if mapping is None:
        raise InvalidInput(
            f"step {str(step.name)!r} has no map: --input {source} does not say what the file is called",
            hint=f"Say --input NAME={source}, or give the step a `map`.",
        )
    return replace(mapping, over=_file(source), items=None, lines=None)


def _file(source: str) -> File:
    """A source as the command line has it: local paths start where the command runs."""
    if is_remote(source):
        return File(remote=source)
    if source.startswith(("https://", "http://")):
        return File(url=source)
    return File(path=_local(source))


def _local(path: str) -> str:
    if is_remote(path):
        return path
    return str(Path(path).absolute()) + ("/" if path.endswith("/") else "")
