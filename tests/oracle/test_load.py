"""A member under far more evidence than it can take: it says so and when to return, keeps its word, and recovers."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from freehold.oracle.admission import LIMITS
from freehold.oracle.effects import Broadcast
from freehold.oracle.events import ChainAdvanced, Tick
from freehold.oracle.member import Member
from freehold.oracle.quotas import Standing
from freehold.oracle.server import INCOMING_LIMIT
from freehold.protocol.certificates import make_certificate
from freehold.protocol.messages import Acknowledgement, Observation
from freehold.protocol.units import Hash
from tests.conftest import SLOW
from tests.oracle.load_flood import batches_of
from tests.oracle.load_member import CLIENTS, STRANGER, chain, load_setup, open_store
from tests.oracle.simulation import DOMAIN, KEYS, MEMBERS, NODE

FLOOD_SECONDS = 1.5
SYNC_SECONDS = 0.05
HONEST_BATCHES = 10
BYTES_OF_UNIT = 1024  # of memory that a unit of work may take at most, decoded


@contextmanager
def child(*command: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    found = process.stdout.readline().strip()
    assert found, f"{process.args!r} ended early"
    return found


def memory(process: subprocess.Popen[str], what: str) -> int:
    """Bytes: VmRSS now, VmHWM at most so far."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(entry.split()[1]) * 1024 for entry in lines if entry.startswith(what))


async def post(url: str, path: str, address: str, **body: Any) -> tuple[int, Any]:
    connector = aiohttp.TCPConnector(local_addr=(address, 0))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post(url + path, **body) as response,
    ):
        return response.status, await response.json()


async def certify(url: str, subjects: list[str]) -> None:
    """Have the member hold certificates of these, which the test makes with the members' keys."""
    for subject in subjects:
        message = Acknowledgement(epoch=1, subject=Hash(subject))
        certificate = make_certificate(message, {k.address: k.sign(message, DOMAIN) for k in KEYS}, MEMBERS)
        status, answer = await post(url, "/v1/certificates", "127.0.0.9", json=certificate.to_json())
        assert status == 200, answer


@pytest.mark.timeout(90)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_ten_times_more_than_it_can_take(tmp_path: Path) -> None:
    with child("tests.oracle.load_member", str(tmp_path), str(SYNC_SECONDS)) as member:
        url = line(member)
        floods = [f"127.0.0.{2 + i}" for i in range(2)]
        spans = [",".join(str(i) for i in range(2 * n, 2 * n + 2)) for n in range(2)]
        seconds = str(FLOOD_SECONDS * SLOW)
        with (
            child("tests.oracle.load_flood", url, floods[0], spans[0], seconds) as first,
            child("tests.oracle.load_flood", url, floods[1], spans[1], seconds) as second,
        ):
            for process in (first, second):
                assert line(process) == "ready"
            quiet = memory(member, "VmRSS")
            for process in (first, second):
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            bonded = asyncio.run(send_all(url, batches_of(NODE, HONEST_BATCHES, 100)))
            found = [json.loads(line(process)) for process in (first, second)]
        peak = memory(member, "VmHWM")

        accepted = [subject for result in found for subject in result["accepted"]]
        refused = sum(count for result in found for count in result["refused"].values())
        assert {code for result in found for code in result["refused"]} == {"429 overloaded"}
        assert all(result["waits"][0] >= 1 for result in found)
        assert len(accepted) > 0
        assert refused >= 10 * len(accepted), (refused, len(accepted))
        assert peak - quiet <= INCOMING_LIMIT + BYTES_OF_UNIT * LIMITS[Standing.BONDED]

        # Whoever has a bond was not refused once; and now nobody is.
        assert [status for status, _ in bonded] == [200] * HONEST_BATCHES
        late = batches_of(CLIENTS[-1], 1, 500) + batches_of(STRANGER, 1, 10)
        assert [status for status, _ in asyncio.run(send_all(url, late))] == [200, 200]

        kept = {*accepted, *(subject for subject, _ in late), *(answer["data"]["subject"] for _, answer in bonded)}
        held = sorted(kept)[::7]
        asyncio.run(certify(url, held))
        member.send_signal(signal.SIGKILL)
        member.wait()
    batches, observed = asyncio.run(restarted(tmp_path))
    assert kept <= batches
    assert observed == set(held)


async def send_all(url: str, batches: list[tuple[str, bytes]]) -> list[tuple[int, Any]]:
    return [await post(url, "/v1/batches", "127.0.0.9", data=data) for _, data in batches]


async def restarted(directory: Path) -> tuple[set[str], set[str]]:
    """What a member has after the kill: its batches, and what it observes once its epoch is over."""
    store = open_store(directory)
    try:
        member = Member(load_setup(), *await store.load())
        batches = {str(subject) for subject in member.gathering.batches}
        assert all(store.batch(Hash(subject)) is not None for subject in batches)
        member.on(Tick(0))
        effects = member.on(ChainAdvanced(tuple(chain(4).blocks)))
    finally:
        store.close()
    said = [e.message for e in effects if isinstance(e, Broadcast) and isinstance(e.message, Observation)]
    return batches, {str(certificate.subject) for certificate in said[0].certificates}
