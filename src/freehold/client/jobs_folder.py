"""Files that nodes have put out, as files of this machine: every name is checked before the first byte is written.

Names are strangers' text. One may be a folder to another (`a` and `a/b`), differ from it only by case where the file
system does not tell the two apart, be too long, hidden, or lead elsewhere; what is there already may be in the way.
Invariant: a file stands there whole or not at all; nothing is written outside the folder, but where a link of the
user's own leads.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from freehold.protocol.errors import Corrupt, DiskFull, FreeholdError, InvalidInput, Refused
from freehold.services.compute.tasks import check_path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CannotPlace(Refused):
    """What a job put out cannot stand in this folder as it is called."""

    code = "cannot_place"
    hint = "`freehold job fetch JOB FOLDER` takes another folder; --folders keeps the files of each task apart."


def check_places(folder: Path, names: Iterable[str]) -> None:
    """CannotPlace, saying which names are in each other's way or in that of what the folder has. Blocks."""
    wanted = sorted(set(names))
    for name in wanted:
        _check_name(folder, name)
    known = set(wanted)
    folders = {above: name for name in wanted for above in _folders(name)}
    for name in wanted:
        if name in folders:
            raise CannotPlace(f"{name!r} is a file and {folders[name]!r} lies below it: no folder can hold both")
    _check_case(folder, known | set(folders))
    above = next(one for one in (folder, *folder.absolute().parents) if os.path.lexists(one))
    if not above.is_dir():
        raise CannotPlace(f"{above} is a file, and not a folder")
    for name in sorted(folders):
        if os.path.lexists(folder / name) and not (folder / name).is_dir():
            raise CannotPlace(f"{folder / name} is a file here, and {folders[name]!r} is to lie below it")
    for name in wanted:
        if (folder / name).is_dir():
            raise CannotPlace(f"{folder / name} is a folder here, and a file of that name is to be written")


def place(data: bytes | Path, target: Path) -> None:
    """Write a file as a whole, with what it came as or in. DiskFull, CannotPlace. Blocks."""
    temporary = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(data, bytes):
                temporary.write_bytes(data)
            else:
                shutil.copyfile(data, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise explain(error, target) from None


def explain(error: OSError, target: Path) -> FreeholdError:
    """What the system's refusal to write a file means."""
    if error.errno in FULL:
        return DiskFull(f"{target} could not be written: {error.strerror}", hint="Make room, or use another folder.")
    return CannotPlace(f"{target} could not be written: {error.strerror}")


def _check_name(folder: Path, name: str) -> None:
    try:
        check_path(name)
        name.encode()
    except (InvalidInput, UnicodeEncodeError):
        raise Corrupt(f"a node has put out {name!r}, which is no path below a folder") from None
    if any(part.startswith(".") for part in name.split("/")):
        # A node that nobody checked could leave settings for this machine's programs there.
        raise CannotPlace(f"the job left {name!r}, and hidden files are not written here")
    longest = max(len(os.fsencode(part)) for part in name.split("/"))
    limit = _limit(folder, "PC_NAME_MAX", 255)
    if longest > limit:
        raise CannotPlace(f"{name!r} has a part of {longest} bytes, and names have at most {limit} here")
    whole = len(os.fsencode(folder.absolute() / name))
    if whole >= (limit := _limit(folder, "PC_PATH_MAX", 4096)):
        raise CannotPlace(f"{name!r} below {folder} is a path of {whole} bytes, and paths have less than {limit} here")


def _limit(folder: Path, name: str, usual: int) -> int:
    above = next((one for one in (folder, *folder.absolute().parents) if one.is_dir()), Path("/"))
    try:
        return os.pathconf(above, name)
    except (OSError, ValueError):
        return usual


def _folders(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _check_case(folder: Path, names: Iterable[str]) -> None:
    """Names that some file systems take for one: this one is asked whether it does."""
    alike: dict[str, str] = {}
    for name in sorted(names):
        other = alike.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name and _is_one(folder, other.rpartition("/")[2], name.rpartition("/")[2]):
            raise CannotPlace(f"{other!r} and {name!r} are one name to the file system of {folder}")


def _is_one(folder: Path, first: str, second: str) -> bool:
    if first == second:  # they differ further up, which is found there
        return False
    above = next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
    try:
        with TemporaryDirectory(dir=above, prefix=".freehold-") as trial:
            (Path(trial) / first).touch()
            return os.path.lexists(Path(trial) / second)
    except OSError as error:
        raise explain(error, above) from None
