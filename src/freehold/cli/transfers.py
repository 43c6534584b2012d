"""What a `cp` comes to: which local file and which object, one by one, before anything is moved."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from freehold.client.buckets import ObjectInfo
from freehold.client.paths import ObjectPath, parse_path
from freehold.client.sdk import Freehold
from freehold.protocol.errors import InvalidInput, NotFound


class Job(NamedTuple):
    """One file and one object; `size` in bytes."""

    local: Path
    remote: ObjectPath
    size: int

    @property
    def name(self) -> str:
        return self.remote.components[-1]


def plan_uploads(source: Path, target: str, *, recursive: bool) -> list[Job]:
    """The files to send. NotFound, or InvalidInput where a directory is meant and -r is not said."""
    where = parse_path(target)
    if not source.exists():
        raise NotFound(f"there is no file {source}")
    if source.is_dir():
        if not recursive:
            raise InvalidInput(f"{source} is a directory", hint="Say -r to copy everything below it.")
        files = sorted(path for path in source.rglob("*") if path.is_file())
        root = (
            where if not target.endswith("/") else where._replace(components=(*where.components, source.resolve().name))
        )
        return [_upload(path, _below(root, path.relative_to(source))) for path in files]
    if not source.is_file():
        raise InvalidInput(f"{source} is not a regular file")
    if target.endswith("/") or not where.components:
        where = where._replace(components=(*where.components, source.name))
    return [_upload(source, where)]


def _upload(path: Path, where: ObjectPath) -> Job:
    return Job(path, parse_path(str(where)), path.stat().st_size)


def _below(root: ObjectPath, relative: Path) -> ObjectPath:
    return root._replace(components=(*root.components, *relative.parts))


async def plan_downloads(client: Freehold, source: str, target: Path, *, recursive: bool) -> list[Job]:
    """The objects to fetch. NotFound; a name that would leave the target directory is InvalidInput."""
    where = parse_path(source)
    if not recursive:
        if not where.components:
            raise InvalidInput(f"{where} is a bucket", hint="Say -r to copy everything in it.")
        return [_download(target, where, (await client.stat(where)).size)]
    objects = await client.ls(where)
    if not objects:
        raise NotFound(f"there is nothing at {where}")
    return _downloads(target, where, objects)


def _download(target: Path, where: ObjectPath, size: int) -> Job:
    return Job(target / where.components[-1] if target.is_dir() else target, where, size)


def _downloads(target: Path, where: ObjectPath, objects: list[ObjectInfo]) -> list[Job]:
    jobs = []
    for item in objects:
        below = item.path.components[len(where.components) :] or item.path.components[-1:]
        local = target.joinpath(*below)
        if not local.resolve().is_relative_to(target.resolve()):
            raise InvalidInput(f"{item.path} would be written outside {target}")
        jobs.append(Job(local, item.path, item.size))
    return jobs
