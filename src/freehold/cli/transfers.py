"""What a `cp` comes to: which local file and which object, one by one, before anything is moved."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from freehold.client.bucket_types import ObjectInfo
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
        return self.remote.name


def plan_uploads(source: Path, target: str, *, recursive: bool) -> list[Job]:
    """The files to send. NotFound, or InvalidInput where a directory is meant and -r is not said."""
    where = parse_path(target)
    if not source.exists():
        raise NotFound(f"there is no file {source}")
    is_folder = target.endswith("/") or not where.key
    if source.is_dir():
        if not recursive:
            raise InvalidInput(f"{source} is a directory", hint="Say -r to copy everything below it.")
        files = sorted(path for path in source.rglob("*") if path.is_file())
        root = where.below(f"{source.resolve().name}/") if target.endswith("/") else _folder(where)
        return [_upload(path, root.below(path.relative_to(source).as_posix())) for path in files]
    if not source.is_file():
        raise InvalidInput(f"{source} is not a regular file")
    return [_upload(source, where.below(source.name) if is_folder else where)]


def _folder(where: ObjectPath) -> ObjectPath:
    return where if not where.key or where.key.endswith("/") else where.below("/")


def _upload(path: Path, where: ObjectPath) -> Job:
    return Job(path, parse_path(str(where)), path.stat().st_size)


async def plan_downloads(client: Freehold, source: str, target: Path, *, recursive: bool) -> list[Job]:
    """The objects to fetch. NotFound; a key that no file can be called, or that leaves the target, is InvalidInput."""
    where = parse_path(source)
    if not recursive:
        if not where.key:
            raise InvalidInput(f"{where} is a bucket", hint="Say -r to copy everything in it.")
        return [_download(target, where, (await client.stat(where)).size)]
    objects = await client.ls(where)
    if not objects:
        raise NotFound(f"there is nothing at {where}")
    return [_place(target, _folder(where), item) for item in objects if not _is_folder_mark(item)]


def _download(target: Path, where: ObjectPath, size: int) -> Job:
    return Job(target / where.name if target.is_dir() else target, where, size)


def _is_folder_mark(item: ObjectInfo) -> bool:
    """An empty object "dir/", by which some programs make a folder be there."""
    return item.key.endswith("/") and not item.size


def _place(target: Path, root: ObjectPath, item: ObjectInfo) -> Job:
    below = item.key[len(root.key) :] if item.key.startswith(root.key) else item.path.name
    parts = below.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise InvalidInput(f"{item.path} cannot be written below {target}", hint="Copy it by itself, to a file name.")
    return Job(target.joinpath(*parts), item.path, item.size)
