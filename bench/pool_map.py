"""One map of small Python functions over a pool of local processes: run by the environment of bench/pools.lock.

    python bench/pool_map.py dask|ray COUNT LIMIT WORKERS      prints {"seconds": ..., "sum": ...}

The pool is up and has run each function once before anything is timed.
"""

from __future__ import annotations

import json
import sys
import time

BATCH = 1  # a function a task, as a user writes it


def count_primes(limit: int) -> int:
    """Primes below `limit`, by trial division: some milliseconds of plain Python."""
    found = 0
    for number in range(2, limit):
        for divisor in range(2, int(number**0.5) + 1):
            if number % divisor == 0:
                break
        else:
            found += 1
    return found


def with_dask(arguments: list[int], workers: int) -> dict[str, float]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, processes=True
        ) as cluster,
        Client(cluster) as client,
    ):
        client.gather(client.map(count_primes, [10 + i for i in range(workers * 4)], pure=False))
        start = time.perf_counter()
        found = client.gather(client.map(count_primes, arguments, pure=False))
        return {"seconds": time.perf_counter() - start, "sum": sum(found)}


def with_ray(arguments: list[int], workers: int) -> dict[str, float]:
    import ray

    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    remote = ray.remote(count_primes)
    ray.get([remote.remote(10 + i) for i in range(workers * 4)])
    start = time.perf_counter()
    found = ray.get([remote.remote(limit) for limit in arguments])
    seconds = time.perf_counter() - start
    ray.shutdown()
    return {"seconds": seconds, "sum": sum(found)}


if __name__ == "__main__":
    pool, count, limit, workers = sys.argv[1], *map(int, sys.argv[2:])
    work = [limit + i % 7 for i in range(count)]
    print(json.dumps({"dask": with_dask, "ray": with_ray}[pool](work, workers)), flush=True)
