"""A PostgreSQL server of the tests' own: its programs are Debian's, its data a temporary directory."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.servers.processes import DEADLINE, Server

MISSING = "not run: PostgreSQL is not installed (apt-get install postgresql)"
USER = "freehold"


def find_programs() -> Path | None:
    """The newest installed server's programs."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if versions:
        return versions[-1].parent
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


class PostgresServer(Server):
    """Listens on 127.0.0.1, and asks for a password. `create` makes databases; `url` is where one is."""

    def __init__(self, programs: Path) -> None:
        # Not below pytest's own directory: PostgreSQL runs as another user, who may not enter that.
        self.home = Path(tempfile.mkdtemp(prefix="freehold-postgres-"))
        super().__init__(self.home / "log")
        self._programs = programs
        self._password = secrets.token_hex(16)
        self._as_user: Mapping[str, Any] = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            account = next(a for name in ("postgres", "nobody") for a in pwd.getpwall() if a.pw_name == name)
            self._as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            os.chown(self.home, account.pw_uid, account.pw_gid)
        password = self.home / "password"
        password.write_text(self._password)
        password.chmod(0o644)
        made = [programs / "initdb", "-D", self.home / "data", "-U", USER, f"--pwfile={password}", "--no-sync"]
        subprocess.run(
            [*made, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"],
            cwd=self.home, check=True, capture_output=True, timeout=DEADLINE, **self._as_user,
        )  # fmt: skip

    def url(self, database: str = "postgres") -> str:
        """The database's URL, password and all."""
        return f"postgresql://{USER}:{self._password}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """Make an empty database; its URL."""
        self.execute(f'CREATE DATABASE "{database}"')
        return self.url(database)

    def execute(self, sql: str) -> None:
        """Run a statement as the server's administrator."""
        import psycopg

        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(sql)

    def show(self, setting: str) -> str:
        """What a new connection finds a setting to be."""
        import psycopg

        with psycopg.connect(self.url(), autocommit=True) as connection:
            row = connection.execute("SELECT current_setting(%s)", (setting,)).fetchone()
        assert row is not None
        return str(row[0])

    def remove(self) -> None:
        """Stop, without a last checkpoint of what goes anyway, and leave nothing."""
        try:
            self.stop(signal.SIGQUIT)
        finally:
            shutil.rmtree(self.home)

    def _launch(self, log: int) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "shared_buffers": "32MB",
            "max_connections": 40,
        }
        command = [self._programs / "postgres", "-D", self.home / "data"]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        return subprocess.Popen(
            command, cwd=self.home, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            **self._as_user,
        )  # fmt: skip

    def _is_ready(self) -> bool:
        try:
            lines = (self.home / "data" / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        assert self._process is not None
        return len(lines) >= 8 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready"
