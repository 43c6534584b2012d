"""An S3 server of the tests' own: versitygw over a temporary directory, built from source by `make test-servers`."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers.processes import Server

PROGRAM = Path(sys.prefix) / "bin" / "versitygw"
MISSING = "not run: versitygw is not built (`make test-servers` builds it where Go is installed)"
REGION = "us-east-1"


def find_program() -> Path | None:
    """The server's program."""
    if PROGRAM.exists():
        return PROGRAM
    found = shutil.which("versitygw")
    return Path(found) if found else None


class S3Server(Server):
    """Listens on 127.0.0.1 for one account; `environment` is how clients find it."""

    def __init__(self, program: Path, home: Path) -> None:
        super().__init__(home / "log")
        self._program = program
        self._data = home / "buckets"
        self._data.mkdir()
        self._access, self._secret = f"test{secrets.token_hex(4)}", secrets.token_hex(20)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that name endpoint, region and credentials."""
        return {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.port}",
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": self._access,
            "AWS_SECRET_ACCESS_KEY": self._secret,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A client of the tests' own, to look at the server from outside."""
        import boto3
        from botocore.config import Config

        client = boto3.session.Session(self._access, self._secret, region_name=REGION).client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL_S3"],
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=10),
        )
        try:
            yield client
        finally:
            client.close()

    def create_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        with self.client() as client:
            client.create_bucket(Bucket=name)

    def list_uploads(self, bucket: str) -> list[str]:
        """The keys of the uploads that have not ended."""
        with self.client() as client:
            return [item["Key"] for item in client.list_multipart_uploads(Bucket=bucket).get("Uploads") or []]

    def _launch(self, log: int) -> subprocess.Popen[bytes]:
        command = [self._program, "--port", f"127.0.0.1:{self.port}", "--region", REGION, "--keep-alive", "--quiet"]
        secret = {"ROOT_ACCESS_KEY_ID": self._access, "ROOT_SECRET_ACCESS_KEY": self._secret}
        return subprocess.Popen(
            [*command, "posix", self._data],
            cwd=self._data.parent, env=os.environ | secret, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip

    def _is_ready(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            with self.client() as client:
                client.list_buckets()
        except (BotoCoreError, ClientError):
            return False
        return True
