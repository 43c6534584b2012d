"""Environments of their own for what we are measured beside: each from its lock, under bench/.cache."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def install(name: str, builder: str = "") -> Path:
    """The `bin` directory of what bench/NAME.lock says, installed unless this very lock already is. `builder` is the
    package of the lock that the others are built with."""
    lock = HERE / f"{name}.lock"
    home = HERE / ".cache" / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    stamp, wanted = home / "lock.sha256", hashlib.sha256(lock.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing bench/{lock.name}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
        pip += ["--quiet", "--no-deps", "--require-hashes", "-r"]
        locks = [lock]
        if builder:
            first = home / "builder.lock"
            first.write_text(_entry(lock, builder))
            pip.insert(-1, "--no-build-isolation")
            locks.insert(0, first)
        for each in locks:
            subprocess.run([*pip, str(each)], check=True, stdout=sys.stderr)
        stamp.write_text(wanted)
    return home / "bin"


def _entry(lock: Path, name: str) -> str:
    """The lines of one package in a lock."""
    found = re.search(rf"^{name}==.*\\\n(?:    --hash=.*\n)+", lock.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{name} is not in {lock.name}")
    return found[0]
