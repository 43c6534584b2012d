"""The bytes of a job by their SHA-256: small ones in the journal, large ones in the files that they came in.

Invariant: what stands under a hash has that hash when it is sent: nodes check it, and so does who reads it here.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import aiohttp

from freehold.client.bucket_types import ObjectInfo
from freehold.client.jobs_folder import place
from freehold.client.jobs_journal import JobJournal
from freehold.client.jobs_spec import File
from freehold.client.paths import ObjectPath
from freehold.market.placement import Survey
from freehold.protocol.errors import Corrupt, InvalidInput, NotFound, Unavailable
from freehold.services.compute.tasks import Blob

SMALL = 64 * 2**10  # bytes that the journal keeps itself
LARGEST = 256 * 2**20  # bytes of one content: what nodes take
URL_SECONDS = 300.0
REDIRECTS = 5
PIECE = 2**20
CACHED = 256  # small contents in memory


class Objects(Protocol):
    """The account's objects, as `Freehold` has them."""

    def walk(self, path: ObjectPath | str) -> AsyncIterator[ObjectInfo]: ...

    async def stat(self, path: ObjectPath | str) -> ObjectInfo: ...

    async def get(self, path: ObjectPath | str, local: Path) -> int: ...

    async def put(self, local: Path, path: ObjectPath | str) -> ObjectInfo: ...

    async def mb(self, bucket: str) -> None: ...

    async def survey(self) -> Survey: ...


class Contents:
    """Of all jobs of an account; `folder` holds what was fetched."""

    def __init__(self, journal: JobJournal, folder: Path, objects: Objects) -> None:
        self._journal = journal
        self._folder = folder
        self._objects = objects
        self._cache: dict[str, bytes | Path] = {}

    async def add(self, data: bytes) -> Blob:
        """Keep bytes."""
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 not in self._cache:
            if len(data) <= SMALL:
                await self._journal.keep_blob(sha256, data)
                self._remember(sha256, data)
            else:
                path = self.place(sha256)
                await asyncio.to_thread(place, data, path)
                await self._keep(sha256, path)
        return Blob(sha256=sha256, size=len(data))

    async def add_file(self, path: Path) -> Blob:
        """Keep a file's bytes: a small one's at once, a large one's where they are (an absolute path). InvalidInput,
        NotFound."""
        sha256, size, small = await asyncio.to_thread(_hash, path)
        if small is not None:
            return await self.add(small)
        await self._keep(sha256, path)
        return Blob(sha256=sha256, size=size)

    async def add_source(self, file: File, base: Path) -> Blob:
        """Keep what a spec names as one file: a text, a local file, an object, a URL."""
        if file.text is not None:
            return await self.add(file.text.encode())
        if file.base64 is not None:
            return await self.add(decode_base64(file.base64))
        if file.path is not None:
            return await self.add_file(base / file.path)
        if file.remote is not None:
            return await self._fetch(lambda path: self._get(str(file.remote), path))
        return await self._fetch(lambda path: download(str(file.url), path, file.sha256))

    async def _get(self, remote: str, path: Path) -> None:
        await self._objects.get(remote, path)

    async def _fetch(self, write: Callable[[Path], object]) -> Blob:
        """What `write` puts into a file, which is then named by its hash."""
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True, mode=0o700)
        temporary = self._folder / f".{secrets.token_hex(8)}"
        try:
            await write(temporary)  # type: ignore[misc]
            sha256, size, small = await asyncio.to_thread(_hash, temporary)
            if small is not None:
                return await self.add(small)
            await asyncio.to_thread(temporary.replace, self.place(sha256))
        finally:
            await asyncio.to_thread(temporary.unlink, missing_ok=True)
        await self._keep(sha256, self.place(sha256))
        return Blob(sha256=sha256, size=size)

    def place(self, sha256: str) -> Path:
        """Where a large content that was fetched stands."""
        return self._folder / sha256

    async def kept(self, sha256: str) -> None:
        """It stands at its place now."""
        await self._keep(sha256, self.place(sha256))

    async def _keep(self, sha256: str, path: Path) -> None:
        await self._journal.keep_source(sha256, path)
        self._remember(sha256, path)

    async def find(self, sha256: str) -> bytes | Path | None:
        """The bytes, or the file that has them; None where neither is here."""
        found = self._cache.get(sha256)
        if found is None and (found := await self._journal.content(sha256)) is not None:
            self._remember(sha256, found)
        if isinstance(found, Path) and not await asyncio.to_thread(found.is_file):
            return None
        return found

    async def read(self, sha256: str) -> bytes:
        """The bytes. NotFound, Corrupt where a file has changed since."""
        found = await self.find(sha256)
        if found is None:
            raise NotFound(f"the content {sha256} is not on this machine")
        data = found if isinstance(found, bytes) else await asyncio.to_thread(found.read_bytes)
        if isinstance(found, Path) and hashlib.sha256(data).hexdigest() != sha256:
            raise Corrupt(f"{found} has changed since the job was ordered", hint="Order the job again.")
        return data

    def _remember(self, sha256: str, found: bytes | Path) -> None:
        self._cache[sha256] = found
        while len(self._cache) > CACHED:
            del self._cache[next(iter(self._cache))]


def decode_base64(text: str) -> bytes:
    """The bytes behind a spec's base64. InvalidInput."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise InvalidInput("that is not base64") from None


async def download(url: str, path: Path, sha256: str = "") -> None:
    """A URL's bytes into a file, at most LARGEST of them. Unavailable, InvalidInput, Corrupt where they are others."""
    timeout = aiohttp.ClientTimeout(total=URL_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url, max_redirects=REDIRECTS) as answer,
        ):
            if answer.status != 200:
                raise Unavailable(f"{url} answered with status {answer.status}")
            digest = hashlib.sha256()
            with await asyncio.to_thread(path.open, "wb") as file:
                async for piece in answer.content.iter_chunked(PIECE):
                    digest.update(piece)
                    await asyncio.to_thread(file.write, piece)
                    if file.tell() > LARGEST:
                        raise InvalidInput(f"{url} has more than {LARGEST} bytes")
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise Unavailable(f"{url} could not be fetched: {error or type(error).__name__}") from None
    if sha256 and digest.hexdigest() != sha256:
        raise Corrupt(f"{url} has other bytes than the spec says", expected=sha256, found=digest.hexdigest())


def _hash(path: Path) -> tuple[str, int, bytes | None]:
    """A file's SHA-256 and size, and its bytes where they are few."""
    try:
        with path.open("rb") as file:
            small = file.read(SMALL + 1)
            if len(small) <= SMALL:
                return hashlib.sha256(small).hexdigest(), len(small), small
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256")
            size = file.tell()
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
    if size > LARGEST:
        raise InvalidInput(f"{path} has {size} bytes, and a node takes at most {LARGEST} as one file")
    return digest.hexdigest(), size, None
