"""What one device costs a member, measured; and what that comes to for more devices than fit here.

The unit costs are those of `docs/scaling.md`: bytes of a report and of a device's state, a core's time for a signature
and for the rest of settlement, memory, PostgreSQL's rows and an S3 server's bytes a second. Both servers are the tests'
own, on this machine; what is not installed is not measured, and said.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.devices import DOMAIN, ROWS, read_state, write_epoch
from bench.epoch import run
from bench.rates import MB, Figures, Options
from bench.settling import read_batches, settle_all
from freehold.oracle.store import STATES
from freehold.protocol.hashing import load_kernels
from freehold.protocol.keys import are_signed_by
from freehold.protocol.state import TABLES
from freehold.protocol.tables import Table
from freehold.services.judging import JUDGES
from freehold.services.sensing.terms import DeviceReport
from freehold.store.blob_store import BlobStore
from freehold.store.group_commit import GroupCommit
from tests.servers import postgres_server, s3_server

DEVICES = 100_000  # of the larger of two epochs; what a device adds to memory is the difference
WRITERS = 8
WRITES = 2_000  # each a transaction of its own, sharing commits
BULK = 100_000  # rows of one transaction
OBJECTS, OBJECT_BYTES = 24, 16 << 20
SHARE = 6  # of an epoch's length, one part is for settling it
KEPT_EPOCHS = 56  # bundles: thaw (24), window (24), and eight more
SIZES = (100_000_000, 1_000_000_000)
LENGTHS = {"1 h": 3_600, "24 h": 86_400}


def measure(options: Options) -> tuple[Figures, Figures]:
    """The unit costs; prints what they come to."""
    figures = measure_devices(min(DEVICES, options.devices), options.work)
    with started(postgres_server.find_programs(), open_postgres) as database:
        if database is not None:
            figures |= measure_database(database)
    with started(s3_server.find_program(), open_bucket) as bucket:
        if bucket is not None:
            figures |= measure_blobs(bucket)
    figures = {name: round(value, 2) for name, value in figures.items()}
    print(describe_needs(figures))
    return figures, {"settled_vs_signatures": round(1 + figures["rest_us"] / figures["signature_us"], 3)}


def measure_devices(count: int, work: Path) -> Figures:
    """Bytes and a core's microseconds a device: of processor time, so that neighbours do not count."""
    peaks: list[int] = []
    figures: Figures = {}
    load_kernels()
    for devices in (count // 4, count):
        with tempfile.TemporaryDirectory(dir=work) as name:
            directory = Path(name)
            write_epoch(directory, devices)
            peaks.append(run("bench.settling", name)["peak_bytes"])
            batches = sum(path.stat().st_size for path in (directory / "batches").iterdir())
            state = sum(path.stat().st_size for path in directory.glob("*.table"))
            total, signatures = settle_here(directory)
            figures = {
                "report_bytes": batches / devices,
                "state_bytes": state / devices,
                "signature_us": signatures / devices * 1e6,
                "rest_us": (total - signatures) / devices * 1e6,
            }
    return figures | {"memory_bytes": (peaks[1] - peaks[0]) / (count - count // 4)}


def settle_here(directory: Path) -> tuple[float, float]:
    """Processor seconds of settling the epoch in a directory, and of its signature checks alone; without threads."""
    state = read_state(directory, TABLES | {f"service.{judge.name}": judge.state_kind for judge in JUDGES.values()})
    state.root()
    state.accounts_tree()
    start = time.process_time()
    settle_all(directory, state)
    total = time.process_time() - start
    reports = Table.concat(DeviceReport, [batch.table for batch in read_batches(directory).values()])
    digests, signatures = reports.digests(DOMAIN), reports.column("device_signature").padded(65)
    start = time.process_time()
    are_signed_by(digests, signatures, reports.column("device"))
    return total, time.process_time() - start


@contextmanager
def started(program: Path | None, opened: Callable[[Path], Any]) -> Iterator[Any]:
    """What `opened` gives, or None where there is no program."""
    if program is None:
        print(f"not measured: {opened.__name__.removeprefix('open_')} is not installed (make test-servers)")
        yield None
        return
    with opened(program) as kept:
        yield kept


@contextmanager
def open_postgres(programs: Path) -> Iterator[GroupCommit]:
    from freehold.store.postgres import Postgres

    server = postgres_server.PostgresServer(programs)
    try:
        server.start()
        table = "CREATE TABLE t (k INTEGER PRIMARY KEY, kind TEXT NOT NULL, data BLOB)"
        database = Postgres(server.create("bench"), "bench", [table])
        yield database
        database.close()
    finally:
        server.remove()


@contextmanager
def open_bucket(program: Path) -> Iterator[BlobStore]:
    from freehold.store.bucket import Bucket

    with tempfile.TemporaryDirectory() as directory:
        server = s3_server.S3Server(program, Path(directory))
        try:
            server.start()
            os.environ.update(server.environment)
            server.create_bucket("bench")
            bucket = Bucket("s3://bench/blobs", 1 << 40)
            yield bucket
            bucket.close()
        finally:
            server.stop()


def measure_database(database: GroupCommit) -> Figures:
    """Rows a second of one transaction, and durable transactions a second of several writers that share commits."""
    insert = "INSERT INTO t (k, kind, data) VALUES (?, ?, ?)"
    rows = [(k, "held", bytes(200)) for k in range(BULK)]
    bulk = timed(lambda: database.submit(lambda c: c.executemany(insert, rows)).result())

    def write(writer: int) -> None:
        first = BULK + writer * WRITES
        futures = [database.submit(lambda c, k=k: c.execute(insert, (k, "held", bytes(200))).rowcount)
                   for k in range(first, first + WRITES)]  # fmt: skip
        for future in futures:
            future.result()

    with ThreadPoolExecutor(WRITERS) as pool:
        single = timed(lambda: list(pool.map(write, range(WRITERS))))
    return {"postgres_rows_s": BULK / bulk, "postgres_writes_s": WRITERS * WRITES / single}


def measure_blobs(blobs: BlobStore) -> Figures:
    """MB a second of large objects, WRITERS at a time."""
    data = os.urandom(OBJECT_BYTES)
    names = [f"object.{number}" for number in range(OBJECTS)]
    with ThreadPoolExecutor(WRITERS) as pool:
        put = timed(lambda: list(pool.map(lambda name: blobs.put(name, [data]), names)))
        get = timed(lambda: list(pool.map(lambda name: len(blobs.read(name)), names)))
    total = OBJECTS * OBJECT_BYTES / MB
    return {"s3_put_mb_s": total / put, "s3_get_mb_s": total / get}


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def describe_needs(unit: Figures) -> str:
    """What each member needs, as the table of docs/scaling.md: D devices, an epoch of L seconds."""
    report, state, bundle = unit["report_bytes"], unit["state_bytes"], unit["report_bytes"] + unit["state_bytes"]
    written, kept = bundle + state, KEPT_EPOCHS * bundle + STATES * state
    signature, rest, memory = unit["signature_us"], unit["rest_us"], unit["memory_bytes"]
    rows: list[tuple[str, str, Callable[[float, float], float]]] = [
        ("reports in, GB", f"D x {report:.0f} B", lambda d, _: d * report / 1e9),
        ("reports in, Mbit/s", "8 x that / L", lambda d, s: d * report * 8 / 1e6 / s),
        ("batches", f"D / {ROWS:,}", lambda d, _: d / ROWS),
        ("time to settle, s", f"L / {SHARE}", lambda _, s: s / SHARE),
        ("signatures, core-seconds", f"D x {signature:.1f} us", lambda d, _: d * signature / 1e6),
        ("cores for them", "that / time to settle", lambda d, s: d * signature / 1e6 * SHARE / s),
        ("the rest, core-seconds", f"D x {rest:.1f} us", lambda d, _: d * rest / 1e6),
        ("cores for it", "that / time to settle", lambda d, s: d * rest / 1e6 * SHARE / s),
        ("memory where it settles, GB", f"D x {memory:,.0f} B", lambda d, _: d * memory / 1e9),
        ("state, GB", f"D x {state:.0f} B", lambda d, _: d * state / 1e9),
        ("bundle, GB", f"D x ({report:.0f} + {state:.0f}) B", lambda d, _: d * bundle / 1e9),
        ("bundle and next state written, MB/s", f"D x {written:.0f} B / L", lambda d, s: d * written / 1e6 / s),
        ("kept, TB", f"{KEPT_EPOCHS} bundles, {STATES} states", lambda d, _: d * kept / 1e12),
    ]
    if "s3_put_mb_s" in unit:
        rate = unit["s3_put_mb_s"]
        rows.append(("seconds to write to this S3 server", f"/ {rate:.0f} MB/s", lambda d, _: d * written / 1e6 / rate))
    if "postgres_rows_s" in unit:
        rate_of_rows = unit["postgres_rows_s"]
        how = f"2 x batches / {rate_of_rows:,.0f} rows/s"
        rows.append(("seconds of PostgreSQL", how, lambda d, _: 2 * d / ROWS / rate_of_rows))
    cases = [(devices, name, length) for devices in SIZES for name, length in LENGTHS.items()]
    lines = [
        "| a member, an epoch | how | " + " | ".join(f"1e{len(str(d)) - 1}, {name}" for d, name, _ in cases) + " |",
        "|---|---|" + "---:|" * len(cases),
    ]
    for name, how, compute in rows:
        cells = [f"{value:,.0f}" if (value := compute(d, s)) >= 10 else f"{value:,.2g}" for d, _, s in cases]
        lines.append(f"| {name} | {how} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
