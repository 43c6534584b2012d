"""Where a node's quotes come from: a command of its operator, that asks the hardware that the node runs inside.

The command is given 64 bytes as its last argument, in hexadecimal, and prints a quote that is bound to them: bytes as
`verification/attestation/` describes them, certificates included. For SEV-SNP that is what configfs-tsm gives as
`outblob` and `auxblob`, one after the other; for TDX and SGX its `outblob`. A quote is asked for when a run has ended,
before its receipt is signed, of the result as it stands in this process.

Invariant: a quote that is given out is bound to its receipt; a node whose command does not work offers no attestation.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

from freehold.protocol.errors import FreeholdError, Unavailable
from freehold.services.compute.terms import Receipt
from freehold.services.compute.verification.attestation.policy import PROPERTY
from freehold.services.compute.verification.attestation.verify import (
    QUOTE_LIMIT,
    REPORT_DATA,
    bind,
    get_kind,
    get_report_data,
)

log = logging.getLogger(__name__)

SECONDS = 20.0  # that one quote may take


class Quoter:
    """One node's quotes. `command` is empty where there is no such hardware."""

    def __init__(self, command: Sequence[str], seconds: float = SECONDS) -> None:
        self._command = tuple(command)
        self._seconds = seconds
        self._kind = ""
        self._turn = asyncio.Lock()  # hardware answers one at a time, and some only so often

    async def start(self) -> None:
        """Try it: what it gives says which kind of hardware this is."""
        if not self._command:
            return
        try:
            self._kind = get_kind(await self._ask(secrets.token_bytes(REPORT_DATA)))
        except FreeholdError as error:
            log.warning("this node offers no attestation: %s", error.message)

    def properties(self) -> Mapping[str, object]:
        """What is advertised."""
        return {PROPERTY: self._kind} if self._kind else {}

    async def quote(self, receipt: Receipt) -> bytes:
        """A quote for this receipt. Unavailable."""
        if not self._command:
            raise Unavailable("this node cannot quote its hardware")
        return await self._ask(bind(receipt))

    async def _ask(self, bound: bytes) -> bytes:
        async with self._turn:
            quote = await self._run(bound)
        try:
            said = get_report_data(quote)
        except FreeholdError as error:
            raise Unavailable(f"the quoter {self._command[0]!r} gave no quote: {error.message}") from None
        if said != bound:
            raise Unavailable(f"the quoter {self._command[0]!r} gave a quote that is bound to something else")
        return quote

    async def _run(self, bound: bytes) -> bytes:
        # A pipe of our own: asyncio's would have us wait for whoever holds its other end.
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, bound.hex(), stdin=asyncio.subprocess.DEVNULL, stdout=writing,
                stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            os.close(reading)
            raise Unavailable(f"the quoter {self._command[0]!r} does not start: {error.strerror}") from None
        finally:
            os.close(writing)
        printed = asyncio.StreamReader()
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(printed), _open(reading)
        )
        try:
            async with asyncio.timeout(self._seconds):
                quote = b""
                while chunk := await printed.read(QUOTE_LIMIT + 1 - len(quote)):
                    quote += chunk
                status = await process.wait() if len(quote) <= QUOTE_LIMIT else 0
        except TimeoutError:
            raise Unavailable(f"the quoter {self._command[0]!r} took more than {self._seconds:g} s") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            pipe.close()
            await process.wait()
        if status:
            raise Unavailable(f"the quoter {self._command[0]!r} ended with status {status}")
        return quote


def _open(end: int) -> IO[bytes]:
    return open(end, "rb", buffering=0)  # its transport closes it
