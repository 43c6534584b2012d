"""The programs that people use S3 with, each told of one account at one endpoint and of nothing else on the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import SLOW

DEADLINE = 120 * SLOW
REMOTE = "remote"  # rclone's name for the endpoint
PASSWORD = "correct horse"  # of restic's repositories: made up, and of no account


class S3Account(NamedTuple):
    """Where an S3 server is, and a key that it takes."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str

    def client(self, **options: Any) -> Any:
        """A boto3 client that asks once. Skips where boto3 is missing."""
        boto3 = pytest.importorskip("boto3", reason="not run: boto3 is not installed (make test-servers installs it)")
        from botocore.config import Config

        config = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=60, **options)
        session = boto3.session.Session(self.access_key, self.secret_key, region_name=self.region)
        return session.client("s3", endpoint_url=self.endpoint, config=config)


class Programs:
    """Runs programs with settings of their own below `home`."""

    def __init__(self, account: S3Account, home: Path) -> None:
        self.account = account
        self._home = home
        home.mkdir(parents=True, exist_ok=True)
        s3cmd = home / "s3cfg"
        host = account.endpoint.partition("://")[2]
        s3cmd.write_text(
            f"[default]\naccess_key = {account.access_key}\nsecret_key = {account.secret_key}\n"
            f"bucket_location = {account.region}\nhost_base = {host}\nhost_bucket = {host}\n"
            f"use_https = False\nsignature_v2 = False\n"
        )
        self._s3cmd = s3cmd

    @property
    def environment(self) -> dict[str, str]:
        """Everything that any of the programs reads."""
        account = self.account
        remote = f"RCLONE_CONFIG_{REMOTE.upper()}_"
        return {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self._home),
            "LC_ALL": "C.UTF-8",
            "AWS_ACCESS_KEY_ID": account.access_key,
            "AWS_SECRET_ACCESS_KEY": account.secret_key,
            "AWS_DEFAULT_REGION": account.region,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_PAGER": "",
            "RCLONE_CONFIG": str(self._home / "rclone.conf"),
            f"{remote}TYPE": "s3",
            f"{remote}PROVIDER": "Other",
            f"{remote}ENDPOINT": account.endpoint,
            f"{remote}ACCESS_KEY_ID": account.access_key,
            f"{remote}SECRET_ACCESS_KEY": account.secret_key,
            f"{remote}REGION": account.region,
            "RESTIC_PASSWORD": PASSWORD,
            "RESTIC_CACHE_DIR": str(self._home / "restic-cache"),
        }

    def aws(self, *arguments: str, code: int = 0) -> str:
        """Debian's `aws`; its output."""
        return self._run("aws", "--endpoint-url", self.account.endpoint, *arguments, code=code)

    def rclone(self, *arguments: str, code: int = 0) -> str:
        """Debian's `rclone`."""
        return self._run("rclone", "--retries", "1", "--low-level-retries", "1", *arguments, code=code)

    def s3cmd(self, *arguments: str, code: int = 0) -> str:
        """Debian's `s3cmd`."""
        return self._run("s3cmd", "--config", str(self._s3cmd), "--no-progress", *arguments, code=code)

    def restic(self, bucket: str, *arguments: str, code: int = 0) -> str:
        """Debian's `restic`, on a repository in a bucket."""
        return self._run("restic", "--repo", f"s3:{self.account.endpoint}/{bucket}/backup", *arguments, code=code)

    def _run(self, name: str, *arguments: str, code: int) -> str:
        program = shutil.which(name, path="/usr/bin:/usr/local/bin")
        if program is None:
            pytest.skip(f"not run: Debian's package of {name} is not installed")
        done = subprocess.run(
            [program, *arguments], env=self.environment, cwd=self._home, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=DEADLINE, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{name} {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + (done.stderr if code else "")


def make_tree(folder: Path) -> dict[str, bytes]:
    """Files that trouble programs: none, small, of several parts; names with spaces, '+', '%', '&', other scripts."""
    contents = {
        "empty": b"",
        "small.txt": b"one line\n",
        "folder/in folder/a b+c%20d&e=f.txt": b"awkward",
        "folder/\u00e4\u00f6\u00fc \u6771\u4eac \U0001f680.bin": bytes(range(256)) * 33,
        "folder.txt": b"beside a folder of the same name",
        "large.bin": b"".join(i.to_bytes(4) * 4096 for i in range(1200)),  # 19.7 MB
    }
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return contents


def read_tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
