"""Whether what a spec names on this machine is there, and may be taken and written: asked before anything is ordered.

What is wrong stands where the spec names it (file, line and column), as every other mistake in a spec does. Invariant:
nothing is read but names and sizes, and what quotes are held against; a file that goes away later is an error of its
own when it is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from freehold.client.jobs_attested import read_policy
from freehold.client.jobs_contents import LARGEST, decode_base64
from freehold.client.jobs_spec import File, Job, Step
from freehold.client.jobs_yaml import spec_error
from freehold.client.paths import is_remote
from freehold.protocol.errors import InvalidInput

PATHS = ("python", "wasm", "c", "program")  # the programs of a step that are local files


def check_sources(job: Job, base: Path) -> None:
    """SpecError for the first local file or folder that is not as the job needs it; paths start at `base`. Blocks."""
    for step in job.steps:
        for name in PATHS:
            if (path := getattr(step, name)) is not None:
                _check_file(path, base, f"{name}: ")
        for file in _files_of(step):
            _check(file, base)
        if step.verify.hardware is not None:
            read_policy(step.verify.hardware, base)
        if step.output is not None and not is_remote(step.output):
            _check_output(step.output, base)


def _files_of(step: Step) -> Iterator[File]:
    yield from step.inputs.values()
    for file in (step.stdin, step.map.over if step.map else None, step.map.lines if step.map else None):
        if file is not None:
            yield file


def _check(file: File, base: Path) -> None:
    if file.base64 is not None:
        try:
            decode_base64(file.base64)
        except InvalidInput as error:
            raise spec_error(error.message, file.base64) from None
    if file.path is None:
        return
    if not file.is_many():
        _check_file(file.path, base)
        return
    folder = base / file.path
    if not folder.is_dir():
        raise spec_error(f"there is no folder {folder}", file.path)
    if not any(one.is_file() for one in folder.rglob("*")):
        raise spec_error(f"there is no file below {folder}", file.path)


def _check_file(path: str, base: Path, what: str = "") -> None:
    place = base / path
    if place.is_dir():
        hint = "" if what else f'For all that is in it, write "{path}/", and a path below /in that ends with "/", too.'
        raise spec_error(f"{what}{place} is a folder", path, hint)
    if not place.exists():
        raise spec_error(f"{what}there is no file {place}", path, _suggest(place))
    if not place.is_file():
        raise spec_error(f"{what}{place} is no file that can be read to its end", path)
    if not os.access(place, os.R_OK):
        raise spec_error(f"{what}{place} cannot be read: permission denied", path)
    if (size := place.stat().st_size) > LARGEST:
        raise spec_error(f"{what}{place} has {size} bytes, and a node takes at most {LARGEST} as one file", path)


def _suggest(place: Path) -> str:
    """A hint: what is there and is called nearly so."""
    import difflib

    try:
        names = [one.name for one in place.parent.iterdir()]
    except OSError:
        return f"There is no folder {place.parent}."
    near = difflib.get_close_matches(place.name, names, 1, 0.6)
    return f"Did you mean {near[0]!r}?" if near else ""


def _check_output(output: str, base: Path) -> None:
    """Where results are to go: the nearest folder above that exists takes new entries."""
    folder = base / output
    above = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
    if not above.is_dir():
        raise spec_error(f"output: {above} is a file, and files are to go into a folder", output)
    if not os.access(above, os.W_OK | os.X_OK):
        raise spec_error(f"output: {above} cannot be written: permission denied", output)
