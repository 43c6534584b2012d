"""Where the partitions of an epoch are worked on: in threads here, or by Ray on as many machines as there are.

    with spread_work("auto"): settle(...)           what a member does (`process.py`)
    with open_partitions("auto", 0) as partitions:  what is below it
        for result in partitions.map(function, first, second): ...

`map` is the builtin's: results in the order of the arguments. What it is given is a pure function and its partitions,
so where it runs changes nothing but the time it takes: a root from Ray is the root from one process. At most WAITING
partitions for each way are under way or not yet taken, so evidence streams through without being held.

Ray keeps the function, with what is bound to it, once on each machine; tasks of a worker that dies run again elsewhere.
Every machine must run this release: one with another judges nothing, and says so.
"""

from __future__ import annotations

import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import freehold
from freehold.protocol.errors import InvalidInput, Unavailable
from freehold.protocol.hashing import spread_over
from freehold.protocol.partitions import partition_over

T = TypeVar("T")

WAITING = 2  # partitions for each way: one under way, one to go on with
ATTEMPTS = 4  # of a partition whose worker dies
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0"}
# Ray listens on every address otherwise; this, made for desktops, keeps a machine's own Ray to 127.0.0.1.
LOCAL_SETTINGS = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


class Partitions(NamedTuple):
    """`map(function, *iterables)`, and how many calls it makes at once."""

    map: Callable[..., Iterator[Any]]
    ways: int


@contextmanager
def spread_work(address: str | None, ways: int = 0) -> Iterator[None]:
    """Within the block, and in tasks and threads begun in it (`asyncio.to_thread`), rows are worked on in threads, and
    signatures, the most of the work, by the Ray cluster at `address` if there is one. InvalidInput, Unavailable."""
    with open_partitions(None, 0) as threads, spread_over(threads.map, threads.ways):
        if address is None:
            yield
            return
        with open_partitions(address, ways) as apart, partition_over(apart.map, apart.ways):
            yield


@contextmanager
def open_partitions(address: str | None, ways: int) -> Iterator[Partitions]:
    """Threads of this process, or the Ray cluster at `address` ("local": processes here, which end with the context).

    `ways` 0 means as many as there are processors. InvalidInput, Unavailable.
    """
    if address is None:
        ways = ways or os.cpu_count() or 1
        with ThreadPoolExecutor(ways, thread_name_prefix="partition") as pool:
            yield Partitions(pool.map, ways)
        return
    with _connected(address, ways) as count:
        yield Partitions(lambda function, *iterables: _map(function, zip(*iterables, strict=True), count), count)


@contextmanager
def _connected(address: str, ways: int) -> Iterator[int]:
    """A session with Ray; how many processors it has for us."""
    is_local = address == "local"
    for name, value in (SETTINGS | LOCAL_SETTINGS if is_local else SETTINGS).items():
        os.environ.setdefault(name, value)  # before Ray is imported, which reads them then
    try:
        import ray
    except ImportError:
        raise InvalidInput("partitions on Ray need ray", hint="Install freehold[ray].") from None
    quiet = {"configure_logging": False, "log_to_driver": False}
    with TemporaryDirectory(prefix="freehold-ray-", ignore_cleanup_errors=True) as directory:
        try:
            if is_local:
                ray.init(num_cpus=ways or None, include_dashboard=False, _temp_dir=directory, **quiet)
            else:
                ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            hint = "Check the address, and that `ray start` ran."
            raise Unavailable(f"Ray at {address}: {error}", hint=hint) from error
        try:
            count = max(1, int(ray.cluster_resources().get("CPU", 1)))
            yield min(ways, count) if ways else count
        finally:
            ray.shutdown()


def _map(function: Callable[..., T], partitions: Iterable[tuple[Any, ...]], ways: int) -> Iterator[T]:
    import ray

    task = ray.remote(max_retries=ATTEMPTS - 1)(_apply)
    bound = ray.put(function)
    under_way: deque[Any] = deque()
    for partition in partitions:
        if len(under_way) == WAITING * ways:
            yield _take(under_way.popleft())
        under_way.append(task.remote(_release(), bound, *partition))
    while under_way:
        yield _take(under_way.popleft())


def _take(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
    except ray.exceptions.RayError as error:
        raise Unavailable(f"Ray: {error}") from error


def _apply(release: str, function: Callable[..., T], *partition: Any) -> T:
    """What runs on a worker."""
    if release != _release():
        raise InvalidInput(f"a Ray worker runs release {_release()}, and this member {release}")
    return function(*partition)


def _release() -> str:
    return freehold.__version__
