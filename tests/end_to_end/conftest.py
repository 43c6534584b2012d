"""The snapshot of a deployed, funded and registered network, made once for each version of contracts and settings."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.network import QUICK, RunningNetwork, running, wait_for

ROOT = Path(__file__).resolve().parent.parent.parent
MADE_OF = (
    "src/freehold/chain/artifacts",
    "src/freehold/local",
    "src/freehold/protocol",
    "src/freehold/oracle",
    "src/freehold/node",
)


def compute_digest() -> str:
    """What the snapshot depends on: contracts, whoever writes its files, and the network's settings."""
    digest = hashlib.sha256(json.dumps(QUICK).encode())
    for folder in MADE_OF:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".json"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="session")
def snapshot(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a network whose first epoch is reported, at rest."""
    assert pytestconfig.cache is not None
    target = pytestconfig.cache.mkdir("networks") / compute_digest()
    if not target.exists():
        home = tmp_path_factory.mktemp("snapshot")
        with running(home) as network:
            wait_for(lambda: network.reported() >= 1, "the first epoch is reported")
        for old in target.parent.iterdir():
            shutil.rmtree(old)
        part = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.copytree(home / "local", part)
        part.replace(target)
    return target


@pytest.fixture(scope="module")
def network(
    request: pytest.FixtureRequest, snapshot: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningNetwork]:
    """A network of the module's own, with the module's SETTINGS, ended with it."""
    settings = getattr(request.module, "SETTINGS", {})
    with running(tmp_path_factory.mktemp("network"), snapshot, **settings) as started:
        yield started
