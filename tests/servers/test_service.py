"""Services: reached by their node alone, asked for their health, started again, billed while they run, and ended."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import msgspec
import pytest

from freehold.protocol.errors import NotFound, Unavailable
from freehold.services.compute.executors.seam import Work
from freehold.services.compute.executors.service import PORT, ServiceExecutor
from freehold.services.compute.tasks import Service, Task
from tests.conftest import SLOW
from tests.servers.boxes import MARK, MISSING, SMALL, Traces, has_logged, make_work, wait_for

CHECKED = Service(health="/healthy", every=0.1, misses=2)
PLENTY = 2**62
SERVER = r"""
use IO::Socket::INET;
my $s = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $ENV{PORT}, Listen => 9) or die "listen: $!";
$| = 1; print "listening\n";
while (my $c = $s->accept) {
    my ($path) = (scalar <$c>) =~ m{^\w+ (\S+)};
    exit 3 if $path eq "/die";
    $sick = 1 if $path eq "/sicken";
    my $host = IO::Socket::INET->new(PeerAddr => $ENV{HOST_TCP}, Timeout => 1) ? "reached" : "alone";
    print $c ($sick ? "HTTP/1.1 500 Sick" : "HTTP/1.1 200 OK"), "\r\nConnection: close\r\n\r\n", $host;
    close $c;
}
"""


@pytest.fixture(scope="module")
def executor() -> ServiceExecutor:
    """Services, seen to work."""
    if shutil.which("bwrap") is None:
        pytest.skip(MISSING)
    found = ServiceExecutor()
    capability = asyncio.run(found.probe())
    assert capability.works, capability.reason
    assert "native" in capability.properties["executor.service.kinds"]  # type: ignore[operator]
    return found


def make_task(script: str, service: Service = CHECKED, mark: str = "") -> Task:
    words = ("perl", "-e", script)
    return Task(
        executor="service",
        kind="native",
        arguments=words,
        service=service,
        environment=((MARK, mark), ("HOST_TCP", "127.0.0.1:22")),
        resources=msgspec.structs.replace(SMALL, seconds=2**31 - 1),
    )


async def get(executor: ServiceExecutor, folder: Path, path: str) -> tuple[int, str]:
    """What the service answers, by the socket that a node proxies to."""
    connector = aiohttp.UnixConnector(path=str(executor.socket(folder)))
    async with aiohttp.ClientSession(connector=connector) as session, session.get(f"http://service{path}") as answer:
        return answer.status, await answer.text()


def serve(executor: ServiceExecutor, work: Work, use: Callable[[asyncio.Task[object]], Awaitable[None]]) -> None:
    """Run a service, and use it once it is healthy."""

    async def main() -> None:
        running: asyncio.Task[object] = asyncio.create_task(executor.run(work))  # type: ignore[arg-type]
        try:
            await wait_for(lambda: running.done() or is_up(executor, work.folder))
            await use(running)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def is_up(executor: ServiceExecutor, folder: Path) -> bool:
    try:
        return executor.status(folder).healthy
    except NotFound:
        return False


def test_service_is_reached_started_again_and_stopped(executor: ServiceExecutor, tmp_path: Path) -> None:
    traces = Traces()
    work = make_work(tmp_path, make_task(SERVER, mark=traces.mark), PLENTY)

    async def use(running: asyncio.Task[object]) -> None:
        assert await get(executor, work.folder, "/") == (200, "alone")
        reader, writer = await executor.connect(work.folder)
        writer.write(b"GET /die HTTP/1.0\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        await wait_for(lambda: executor.status(work.folder).restarts == 1 and is_up(executor, work.folder))
        assert executor.status(work.folder).reason == "it ended with status 3"
        assert await get(executor, work.folder, "/sicken") == (500, "alone")
        await wait_for(lambda: executor.status(work.folder).restarts == 2 and is_up(executor, work.folder))
        assert "missed 2 checks" in executor.status(work.folder).reason
        assert await get(executor, work.folder, "/") == (200, "alone")
        before = executor.measure(work.folder)
        executor.end(work.folder)
        outcome = await running
        assert outcome.ended == "stopped"  # type: ignore[attr-defined]
        assert outcome.measure >= before > 0  # type: ignore[attr-defined]

    serve(executor, work, use)
    assert (work.folder / "log").read_bytes().count(b"listening") == 3
    with pytest.raises(NotFound):
        executor.status(work.folder)
    traces.assert_none()


def test_service_that_listens_on_a_port_of_its_own(executor: ServiceExecutor, tmp_path: Path) -> None:
    """Two of them have the same port: each has a network of its own."""
    script = SERVER.replace("$ENV{PORT}", "8081")
    first = make_work(tmp_path, make_task(script, Service(port=8081, every=0.1)), PLENTY)
    second = make_work(tmp_path, make_task(script, Service(port=8081, every=0.1)), PLENTY)

    async def use(_: asyncio.Task[object]) -> None:
        other = asyncio.create_task(executor.run(second))
        await wait_for(lambda: other.done() or is_up(executor, second.folder))
        assert await get(executor, first.folder, "/sicken") == (500, "alone")
        assert await get(executor, second.folder, "/") == (200, "alone")
        executor.end(second.folder)
        assert (await other).ended == "stopped"

    serve(executor, first, use)


def test_service_ends_when_what_was_ordered_is_used_up(executor: ServiceExecutor, tmp_path: Path) -> None:
    most = int(1e9 * SLOW)
    work = make_work(tmp_path, make_task(SERVER), most)

    async def use(running: asyncio.Task[object]) -> None:
        outcome = await running
        assert outcome[:2] == ("time", 0)  # type: ignore[index]
        assert outcome.measure == most  # type: ignore[attr-defined]

    serve(executor, work, use)


def test_service_that_never_answers_has_failed(
    executor: ServiceExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freehold.services.compute.executors.service.FIRST_PAUSE", 0.01)
    work = make_work(tmp_path, make_task("exit 4"), PLENTY)

    async def use(running: asyncio.Task[object]) -> None:
        outcome = await running
        assert outcome.ended == "failed"  # type: ignore[attr-defined]
        assert "it ended with status 4" in outcome.reason  # type: ignore[attr-defined]
        assert outcome.measure > 0  # type: ignore[attr-defined]

    serve(executor, work, use)


def test_service_that_is_not_up_says_so(executor: ServiceExecutor, tmp_path: Path) -> None:
    work = make_work(tmp_path, make_task("exit 4"), PLENTY)

    async def main() -> None:
        running = asyncio.create_task(executor.run(work))
        await wait_for(lambda: work.folder in executor._going and executor.status(work.folder).state == "waiting")
        with pytest.raises(Unavailable, match="status 4"):
            executor.socket(work.folder)
        measured = executor.measure(work.folder)
        executor.end(work.folder)  # in the pause before the next start
        outcome = await running
        assert (outcome.ended, outcome.measure) == ("stopped", measured)

    asyncio.run(main())


@pytest.mark.parametrize(
    "wrong",
    [
        Service(health="no slash"),
        Service(health="/with blank"),
        Service(health="/x\r\nHost: evil"),
        Service(every=float("nan")),
        Service(every=0),
        Service(misses=0),
        Service(port=2**16),
    ],
)
def test_service_that_cannot_be_checked_is_refused(executor: ServiceExecutor, tmp_path: Path, wrong: Service) -> None:
    outcome = asyncio.run(executor.run(make_work(tmp_path, make_task(SERVER, wrong))))
    assert (outcome.ended, outcome.measure) == ("refused", 0)


def test_port_is_told(executor: ServiceExecutor, tmp_path: Path) -> None:
    work = make_work(tmp_path, make_task('print "port $ENV{PORT}\\n"; exit 1'), PLENTY)

    async def main() -> None:
        running = asyncio.create_task(executor.run(work))
        await wait_for(lambda: has_logged(work.folder, f"port {PORT}".encode()))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())
