"""Partitions on Ray: two worker processes, the same results in the same order, and a worker that is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.devices import read_state, write_epoch
from bench.settling import settle_all
from freehold.oracle import partitions
from freehold.oracle.partitions import Partitions, open_partitions
from freehold.protocol.errors import InvalidInput, WrongSignature
from freehold.protocol.partitions import partition_over
from freehold.protocol.state import TABLES
from freehold.protocol.typed import keccak
from freehold.services.judging import JUDGES
from tests.servers.processes import get_descendants, is_running, wait_until

pytest.importorskip("ray", reason="not run: ray is not installed (make test-servers installs it)")

STATE_KINDS: dict[str, Any] = TABLES | {f"service.{judge.name}": judge.state_kind for judge in JUDGES.values()}


@pytest.fixture(scope="module")
def on_ray() -> Iterator[Partitions]:
    before = get_descendants(os.getpid())
    with open_partitions("local", 2) as opened:
        yield opened
        started = set(get_descendants(os.getpid())).difference(before)
    wait_until(lambda: not any(map(is_running, started)), "Ray's processes are gone")


def hash_part(salt: bytes, part: bytes) -> tuple[int, bytes]:
    return os.getpid(), keccak(salt + part)


def hash_when_met(directory: Path, number: int) -> tuple[int, bytes]:
    """Waits until another process is inside too: so two have worked at once."""
    (directory / str(os.getpid())).touch()
    while len(list(directory.iterdir())) < 2:
        os.sched_yield()
    return os.getpid(), keccak(number.to_bytes(4))


def die_once(mark: Path, number: int) -> int:
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def refuse(number: int) -> int:
    raise WrongSignature(f"no {number}")


def test_two_workers_give_what_one_process_gives_in_the_same_order(on_ray: Partitions, tmp_path: Path) -> None:
    numbers = range(20)
    results = list(on_ray.map(hash_when_met, [tmp_path] * 20, numbers))
    assert [result for _, result in results] == [keccak(number.to_bytes(4)) for number in numbers]
    assert len({pid for pid, _ in results} - {os.getpid()}) == 2


def test_threads_are_the_same_map(on_ray: Partitions) -> None:
    with open_partitions(None, 2) as threads:
        parts = [os.urandom(100) for _ in range(10)]
        salts = [b"salt"] * 10
        here, there = (list(each.map(hash_part, salts, parts)) for each in (threads, on_ray))
    assert [result for _, result in here] == [result for _, result in there]
    assert {pid for pid, _ in here} == {os.getpid()}


def test_partitions_are_asked_for_as_results_are_taken(on_ray: Partitions) -> None:
    asked: list[int] = []

    def partitions_of() -> Iterator[int]:
        for number in range(100):
            asked.append(number)
            yield number

    results = on_ray.map(abs, partitions_of())
    for number in range(10):
        assert next(results) == number
    assert len(asked) <= 10 + partitions.WAITING * on_ray.ways + 1


def test_a_worker_that_is_killed_costs_nothing_but_time(on_ray: Partitions, tmp_path: Path) -> None:
    mark = tmp_path / "killed"
    assert list(on_ray.map(die_once, [mark] * 6, range(6))) == [0, 1, 4, 9, 16, 25]
    assert mark.exists()


def test_what_a_partition_raises_comes_back_as_it_was(on_ray: Partitions) -> None:
    with pytest.raises(WrongSignature, match="no 7"):
        list(on_ray.map(refuse, [7]))


def test_another_release_judges_nothing(on_ray: Partitions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "_release", lambda: "0.0.0")
    with pytest.raises(InvalidInput, match=r"release .* and this member 0\.0\.0"):
        list(on_ray.map(abs, [1]))


def with_pid(function: Callable[..., Any], *part: Any) -> tuple[int, Any]:
    return os.getpid(), function(*part)


def settle_to_report(directory: Path) -> bytes:
    return settle_all(directory, read_state(directory, STATE_KINDS)).report.to_bytes()


def test_a_root_from_ray_over_two_workers_is_the_root_from_one_process(on_ray: Partitions, tmp_path: Path) -> None:
    write_epoch(tmp_path, 5000)
    alone = settle_to_report(tmp_path)
    checked: list[tuple[int, int]] = []

    def run(function: Callable[..., Any], *parts: Any) -> Iterator[Any]:
        for pid, found in on_ray.map(partial(with_pid, function), *parts):
            checked.append((pid, len(found[0])))
            yield found

    with partition_over(run, 8):
        assert settle_to_report(tmp_path) == alone
    assert sum(rows for _, rows in checked) >= 5000
    assert len({pid for pid, _ in checked} - {os.getpid()}) == 2
