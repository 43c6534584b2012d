"""The validators' program: go-ethereum, built from the versions and hashes in `testnet/go.mod` and `testnet/go.sum`.

Go's own module cache and settings are used as they are. The binary is kept under a name that follows from the two
files and the Go that built it, so a second run builds nothing.

Invariant: a file under that name is a whole binary of exactly these modules: it is built elsewhere, then renamed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from freehold.protocol.errors import Unavailable

MODULE = Path(__file__).resolve().parent
PROGRAM = "github.com/ethereum/go-ethereum/cmd/geth"
PLACES = (Path("/usr/local/go/bin/go"), Path("/usr/lib/go/bin/go"))  # where Go's installers put it, beside PATH
OLDEST = (1, 21)
# go-ethereum 1.13 links a function of Go's runtime (in a debugging page that nobody opens here), which Go refuses
# from this version on unless told.
LINKING_IS_CHECKED = (1, 23)
BUILD_SECONDS = 1800.0


class GoMissing(Unavailable):
    """There is no Go that builds the validators; the message says what was found."""

    code, retryable = "go_missing", False
    hint = "Install Go 1.21 or newer and put it on PATH, or name an existing geth 1.13 binary in FREEHOLD_GETH."


class BuildFailed(Unavailable):
    """Go could not build the validators; the message has the end of what it said."""

    code = "build_failed"


def find_go() -> Path:
    """The `go` program. GoMissing if there is none."""
    named = shutil.which("go")
    found = [Path(named)] if named else [place for place in PLACES if os.access(place, os.X_OK)]
    if not found:
        raise GoMissing("`make testnet` builds its validators with Go, and there is no `go` on this machine")
    return found[0]


def parse_version(text: str) -> tuple[int, int]:
    """(1, 26) of `go version go1.26.8 linux/amd64`. GoMissing where that is no version, or too old a one."""
    found = re.search(r"\bgo(\d+)\.(\d+)", text)
    if found is None:
        raise GoMissing(f"`go version` said {text.strip()!r}, which names no version")
    version = int(found[1]), int(found[2])
    if version < OLDEST:
        raise GoMissing(f"the Go of this machine is {version[0]}.{version[1]}, and 1.21 or newer is needed")
    return version


def get_build_flags(version: tuple[int, int]) -> list[str]:
    """What `go build` must be told beside the package."""
    flags = ["-trimpath", "-buildvcs=false"]
    return [*flags, "-ldflags=-checklinkname=0"] if version >= LINKING_IS_CHECKED else flags


def compute_name(module: Path, version: str) -> str:
    """The binary's file name: it changes with the modules' versions and hashes, and with Go's."""
    parts = [(module / name).read_bytes() for name in ("go.mod", "go.sum")]
    return "geth-" + hashlib.sha256(b"\0".join([*parts, version.encode()])).hexdigest()[:16]


async def ensure_geth(folder: Path, say: Callable[[str], None]) -> Path:
    """The binary, built into `folder` if it is not there yet (about two minutes, once). GoMissing, BuildFailed."""
    if named := os.environ.get("FREEHOLD_GETH"):
        if not os.access(named, os.X_OK):
            raise GoMissing(f"FREEHOLD_GETH names {named}, which is not a program")
        return Path(named)
    go = find_go()
    version = (await run(str(go), "version", cwd=MODULE)).strip()
    flags = get_build_flags(parse_version(version))
    binary = folder / compute_name(MODULE, version)
    if not binary.exists():
        say(f"building {PROGRAM} with {version}: some minutes, once")
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as name:
            await run(str(go), "build", *flags, "-o", f"{name}/geth", PROGRAM, cwd=MODULE)
            os.replace(f"{name}/geth", binary)
    return binary


async def run(*command: str, cwd: Path | None = None) -> str:
    """What a program printed on its standard output. BuildFailed with the end of both outputs if it failed."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, process_group=0,
    )  # fmt: skip
    try:
        async with asyncio.timeout(BUILD_SECONDS):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, 9)
            await process.wait()
    if process.returncode:
        tail = (output + errors).decode(errors="replace").strip()[-2000:]
        raise BuildFailed(f"{' '.join(command[:2])} ended with code {process.returncode}: {tail}")
    return output.decode()
