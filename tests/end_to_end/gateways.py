"""S3 gateways as processes of their own, and a client whose calls are recorded as what they were answered, or not.

The client keeps no connection: what it sends is sent once, so an answer that did not come means that nobody knows.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from xml.etree import ElementTree

import aiohttp
from yarl import URL

from freehold.gateway.wire.request import Request, canonical_query
from freehold.gateway.wire.sigv4 import sign_request
from tests.end_to_end.network import DEADLINE, RunningNetwork, get_json, is_listening, wait_for

NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


class Keys(NamedTuple):
    """What requests are signed with."""

    access_key: str
    secret: str
    region: str = "us-east-1"


class Gateway:
    """`freehold gateway run` of one wallet, with a data folder and a network file of its own."""

    def __init__(self, network: RunningNetwork, folder: Path, wallet: Path, passphrase: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(network.local / "network.json", folder / "network.json")
        self.network, self.folder = network, folder
        self.url = ""
        self._config, self._ready = folder / "gateway-config.json", folder / "ready.json"
        self._settings: dict[str, Any] = {
            "network": "network.json",
            "data": str(folder),
            "wallets": [str(wallet)],
            "key_label": "test",
            "ready_file": str(self._ready),
        }
        self._passphrase = passphrase
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def keys(self) -> Keys:
        """The access key that the gateway itself accepts."""
        (own,) = json.loads(self._ready.read_text())["keys"]
        return Keys(own["access_key"], own["secret"])

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, at the port of last time, and return when it is ready."""
        self._ready.unlink(missing_ok=True)
        self._config.write_text(json.dumps(self._settings))
        command = [sys.executable, "-m", "freehold.cli.main", "gateway", "run", "--config", str(self._config)]
        environment = self.network.environment | {"FREEHOLD_PASSPHRASE": self._passphrase}
        with (self.folder / "gateway.log").open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        process = self._process
        wait_for(lambda: self._ready.exists() or process.poll() is not None, "the gateway listens")
        assert process.poll() is None, self.log()
        self.url = json.loads(self._ready.read_text())["url"]
        self._settings["port"] = urlsplit(self.url).port
        wait_for(lambda: get_json(f"{self.url}/-/readyz"), "the gateway is ready")

    def kill(self) -> None:
        """SIGKILL, and it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        self._end()

    def stop(self) -> None:
        """SIGTERM, as systemd would; it must end well."""
        assert self._process is not None
        self._process.terminate()
        assert self._end() == 0, self.log()
        assert "Traceback" not in self.log(), self.log()

    def _end(self) -> int:
        process, self._process = self._process, None
        assert process is not None
        code = process.wait(timeout=DEADLINE)
        assert not is_listening(self.url)
        return code

    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """The end of its log."""
        return (self.folder / "gateway.log").read_text(errors="replace")[-4000:]


@contextmanager
def running_gateway(network: RunningNetwork, folder: Path, wallet: Path, passphrase: str) -> Iterator[Gateway]:
    """A gateway that runs; ended however the test ends, by a kill if it does not end well."""
    gateway = Gateway(network, folder, wallet, passphrase)
    try:
        gateway.start()
        yield gateway
    except BaseException:
        print(f"--- gateway\n{gateway.log()}")
        if gateway.is_running():
            gateway.kill()
        raise
    if gateway.is_running():
        gateway.stop()


def client_wallet(network: RunningNetwork) -> tuple[Path, str]:
    """The keystore of a local network's client, and what opens it."""
    config = json.loads((network.local / "processes" / "gateway" / "config.json").read_text())
    return Path(config["wallets"][0]), Path(config["passphrase_file"]).read_text().strip()


class Answer(NamedTuple):
    """What came back: header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The S3 error's code; "" where there is none."""
        return ElementTree.fromstring(self.body).findtext("Code", "") if self.status >= 300 and self.body else ""

    @property
    def etag(self) -> str:
        return self.headers["etag"].strip('"')


class NotSent(Exception):
    """Nobody listens: the request surely did nothing."""


class NoAnswer(Exception):
    """The request was sent, or half sent, and nobody knows what it did."""


class S3:
    """Signed requests to one gateway."""

    def __init__(self, session: aiohttp.ClientSession, url: str, keys: Keys) -> None:
        self.url, self._session, self._keys = url, session, keys

    async def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: bytes | AsyncIterator[bytes] = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request for `path` ("bucket/key"), sent once. NotSent, NoAnswer."""
        pairs = canonical_query([(name, value) for name, value in (query or {}).items()])
        raw = f"/{path}"
        given = {"host": urlsplit(self.url).netloc, **(headers or {})}
        signed = sign_request(Request(method, raw, pairs, given), *self._keys, time.time())
        where = URL(f"{self.url}{raw}{'?' + pairs if pairs else ''}", encoded=True)
        try:
            data = io.BytesIO(body) if isinstance(body, bytes) else body
            async with self._session.request(method, where, data=data, headers=signed) as response:
                read = await response.read()
                return Answer(response.status, {n.lower(): v for n, v in response.headers.items()}, read)
        except aiohttp.ClientConnectorError as error:
            raise NotSent(str(error)) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NoAnswer(repr(error)) from None

    async def must(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: bytes | AsyncIterator[bytes] = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """A request that must succeed."""
        answer = await self.ask(method, path, query, body, headers)
        assert answer.status < 300, answer
        return answer

    async def list(self, bucket: str, prefix: str = "") -> dict[str, str]:
        """ETags by key, page by page."""
        found: dict[str, str] = {}
        query = {"list-type": "2", "prefix": prefix}
        while True:
            page = ElementTree.fromstring((await self.must("GET", bucket, query)).body)
            found |= read_entries(page)
            token = page.findtext(f"{NAMESPACE}NextContinuationToken")
            if token is None:
                return found
            query["continuation-token"] = token

    async def upload(self, path: str) -> str:
        """A new multipart upload's id."""
        body = (await self.must("POST", path, {"uploads": ""})).body
        return ElementTree.fromstring(body).findtext(f"{NAMESPACE}UploadId", "")

    async def complete(self, path: str, upload: str, etags: Mapping[int, str]) -> Answer:
        """Complete an upload; an error that stands in the body of a 200 has its code in `Answer.body`."""
        parts = "".join(
            f"<Part><PartNumber>{n}</PartNumber><ETag>{etag}</ETag></Part>" for n, etag in sorted(etags.items())
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        return await self.must("POST", path, {"uploadId": upload}, body)


def read_entries(page: ElementTree.Element) -> dict[str, str]:
    """ETags by key of one page of a list."""
    return {
        entry.findtext(f"{NAMESPACE}Key", ""): entry.findtext(f"{NAMESPACE}ETag", "").strip('"')
        for entry in page.iter(f"{NAMESPACE}Contents")
    }


@asynccontextmanager
async def s3_session(seconds: float = DEADLINE) -> AsyncIterator[aiohttp.ClientSession]:
    """Connections that are used once each."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True, limit=0),
        timeout=aiohttp.ClientTimeout(total=seconds),
        auto_decompress=False,
    ) as session:
        session._retry_connection = False  # else a put whose connection breaks is sent twice, and the first forgotten
        yield session


def md5_hex(data: bytes) -> str:
    """What S3 has as the ETag of an object put at once."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def md5_base64(data: bytes) -> str:
    """A Content-MD5 header."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


async def in_thread(work: Any, *arguments: Any) -> Any:
    """Commands and waits, which block, beside the clients of this loop."""
    return await asyncio.to_thread(work, *arguments)
