"""The S3 gateway beside another S3 server that one can run oneself, with and without TLS, in one run.

The same light client (`bench/s3_load.py`) puts and gets objects of each size, one and sixteen at a time. The peer is
versitygw over one directory (`make test-servers` builds it): a single process that neither encrypts, nor codes, nor
syncs, so that its figures are what a file server can do here. Ours go to six of eight nodes, each of which syncs.
Tahoe-LAFS codes and encrypts as we do, and gets the smaller sizes too.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench import bare, tahoe
from bench.children import Children
from bench.rates import MB, Figures, Options, make_file
from bench.s3_load import NAMESPACE
from bench.s3_signing import Credentials, presign

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
TARGETS = {"put_4k_16": 300.0, "get_4k_16": 1000.0}  # a second
WARM = 64 * MIB
PEER = Path(sys.prefix) / "bin" / "versitygw"
PORT = 18_431  # the peer cannot say which port it got
DEADLINE = 120.0
FIRST = "bench-first"  # the bucket that is there once there are credits


class Place(NamedTuple):
    """Where a server is; `certificate` is the file that vouches for it, `nodes` are the ends that have metrics."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str
    certificate: str | None = None
    nodes: tuple[str, ...] = ()


class Load(NamedTuple):
    """How many objects of one size, and how many at once."""

    name: str
    size: int
    count: int
    parallel: int


SMALL = (Load("4k_16", 4 * KIB, 2000, 16), Load("4k_1", 4 * KIB, 100, 1))
MIDDLE = (Load("1m_16", MIB, 256, 16), Load("1m_1", MIB, 32, 1))
LARGE = (Load("256m_1", 256 * MIB, 2, 1), Load("256m_16", 256 * MIB, 16, 16))
HUGE = (Load("4g_1", 4 * GIB, 1, 1),)


def measure(options: Options) -> tuple[Figures, Figures]:
    """Everything; sizes above `options.size` times sixteen are left out."""
    loads = [load for load in (*SMALL, *MIDDLE, *LARGE, *HUGE) if load.size <= 16 * options.size]
    some = [load for load in loads if load.name in ("4k_16", "1m_16", "256m_1")]
    figures: Figures = {}
    with tempfile.TemporaryDirectory(dir=options.work) as directory:
        home = Path(directory)
        with freehold(home / "plain") as place:
            ours = run(place, loads, keys=options.keys)
        with freehold(home / "tls", "--tls") as place:
            sealed = run(place, some)
        limit = bare.rates(make_file(home / "bare", LARGE[0].size))
        peer = {}
        if PEER.exists():
            with versitygw(home / "peer") as place:
                peer = run(place, loads, keys=options.keys)
        grid = {
            load: tahoe.load(home, load.size, min(load.count, 64), load.parallel)
            for load in loads
            if load in (*SMALL, *MIDDLE)
        }
    for name, found in (("s3", ours), ("s3_tls", sealed), ("versitygw", peer)):
        figures |= {f"{name}_{key}": value for key, value in found.items()}
    for load, rates in grid.items():
        figures[f"tahoe_put_{load.name}_per_s"] = round(rates.upload / load.size, 2)
        figures[f"tahoe_get_{load.name}_per_s"] = round(rates.download / load.size, 2)
    ratios = {f"s3_{name}_vs_target": ours[f"{name}_per_s"] / target for name, target in TARGETS.items()}
    compared = [f"{way}_{load.name}_per_s" for load in loads for way in ("put", "get")]
    for peer_name in ("tahoe", "versitygw"):
        theirs = {key: figures[f"{peer_name}_{key}"] for key in compared if f"{peer_name}_{key}" in figures}
        ratios |= {f"s3_{key}_vs_{peer_name}": ours[key] / theirs[key] for key in theirs}
    if LARGE[0] in loads:
        ratios["s3_put_256m_1_vs_bare"] = ours["put_256m_1_mb_s"] * MB / limit.upload
        ratios["s3_get_256m_1_vs_bare"] = ours["get_256m_1_mb_s"] * MB / limit.download
    ratios |= {f"s3_{key}_tls_vs_plain": sealed[key] / ours[key] for key in compared if key in sealed}
    return figures, {name: round(ratio, 3) for name, ratio in ratios.items()}


def run(place: Place, loads: list[Load], keys: int = 0) -> Figures:
    """Put and get what each load says, then list `keys` small objects under one prefix."""
    bucket = f"bench-{secrets.token_hex(4)}"
    request(place, "PUT", f"/{bucket}")
    jobs = [{"do": "put", "size": MIB, "count": WARM // MIB, "parallel": 4, "prefix": "warm/"}]
    for load in loads:
        job = {"size": load.size, "count": load.count, "parallel": load.parallel, "prefix": f"{load.name}/"}
        jobs += [{"do": "put"} | job, {"do": "get"} | job]
    if keys:
        jobs += [
            {"do": "put", "size": 4 * KIB, "count": keys, "parallel": 16, "prefix": "many/"},
            {"do": "list", "prefix": "many/"},
        ]
    order = place._asdict() | {"bucket": bucket, "jobs": jobs}
    done = subprocess.run(
        [sys.executable, "-m", "bench.s3_load"], input=json.dumps(order), text=True, stdout=subprocess.PIPE, check=True
    )
    results = json.loads(done.stdout)[1:]
    figures: Figures = {}
    for load, put, get in zip(loads, results[0::2], results[1::2], strict=False):
        for what, result in (("put", put), ("get", get)):
            figures[f"{what}_{load.name}_per_s"] = round(result["per_second"], 3)
            figures[f"{what}_{load.name}_mb_s"] = round(result["bytes_per_second"] / MB, 1)
            figures[f"{what}_{load.name}_median_ms"] = round(result["median_ms"], 2)
    if keys:
        if results[-1]["keys"] != keys:
            raise RuntimeError(f"{results[-1]['keys']} of {keys} keys were listed")
        figures["put_many_per_s"] = round(results[-2]["per_second"], 1)
        figures[f"list_{keys}_seconds"] = round(results[-1]["seconds"], 2)
        if place.nodes:
            figures[f"shards_with_{keys}_objects_of_4k"] = count_shards(place)
    return figures


@contextmanager
def freehold(home: Path, *options: str) -> Iterator[Place]:
    """A local network of its own (chain, 4 members, 8 nodes, a gateway)."""
    home.mkdir(parents=True)
    with Children() as children:
        free = {name: value for name, value in os.environ.items() if not name.startswith("FREEHOLD_")}
        anvil = {name: os.environ[name] for name in ("FREEHOLD_ANVIL",) if name in os.environ}
        environment = ["env", "-i", *(f"{n}={v}" for n, v in (free | anvil | {"FREEHOLD_HOME": str(home)}).items())]
        up = [*environment, sys.executable, "-m", "freehold.cli.main", "up", "--json", *options]
        told: dict[str, Any] = json.loads(children.ready_line(children.start(up, home / "up.log")))["data"]
        s3, nodes = told["s3"], tuple(p["url"] for p in told["programs"] if p["kind"] == "node" and not options)
        place = Place(s3["endpoint"], s3["access_key"], s3["secret"], s3["region"], find_certificate(home), nodes)
        until = time.monotonic() + DEADLINE
        while not can_write(place):  # credits count from the first report on
            if time.monotonic() > until:
                raise RuntimeError((home / "up.log").read_text()[-2000:])
            time.sleep(0.5)
        yield place


def find_certificate(home: Path) -> str | None:
    """The certificate that the gateway made for itself, if it speaks TLS."""
    return next((str(path) for path in home.glob("**/gateway/**/tls/certificate.pem")), None)


def can_write(place: Place) -> bool:
    try:
        request(place, "PUT", f"/{FIRST}")
    except urllib.error.HTTPError:
        return False
    return True


@contextmanager
def versitygw(home: Path) -> Iterator[Place]:
    """The peer, over a directory on the same disk."""
    (home / "buckets").mkdir(parents=True)
    place = Place(f"http://127.0.0.1:{PORT}", "bench", secrets.token_hex(20), "us-east-1")
    secret = ["env", f"ROOT_ACCESS_KEY_ID={place.access_key}", f"ROOT_SECRET_ACCESS_KEY={place.secret_key}"]
    command = [*secret, str(PEER), "--port", f"127.0.0.1:{PORT}", "--region", place.region, "--keep-alive", "--quiet"]
    with Children() as children:
        child = children.start([*command, "posix", str(home / "buckets")], home / "log", piped=False)
        while not is_up(place):
            if child.poll() is not None:
                raise RuntimeError((home / "log").read_text()[-2000:])
        yield place


def is_up(place: Place) -> bool:
    try:
        return NAMESPACE.encode()[1:-1] in request(place, "GET", "/")
    except (urllib.error.URLError, OSError):
        return False


def count_shards(place: Place) -> int:
    """Shards that all nodes keep, by their metrics."""
    found = 0
    for url in place.nodes:
        with urllib.request.urlopen(f"{url}/metrics", timeout=DEADLINE) as response:
            lines = response.read().decode().splitlines()
        found += sum(int(line.rpartition(" ")[2]) for line in lines if line.startswith("freehold_node_storage_shards{"))
    return found


def request(place: Place, method: str, path: str) -> bytes:
    """One small request; its answer."""
    host = place.endpoint.partition("://")[2]
    credentials = Credentials(place.access_key, place.secret_key, place.region)
    address = presign(credentials, method, host, path, {})
    context = None
    if place.certificate:
        import ssl

        context = ssl.create_default_context(cafile=place.certificate)
    asked = urllib.request.Request(f"{place.endpoint}{address}", method=method)
    with urllib.request.urlopen(asked, timeout=DEADLINE, context=context) as response:
        return bytes(response.read())
