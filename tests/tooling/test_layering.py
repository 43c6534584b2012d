"""The layering check must fail on each kind of breach, and pass what the design allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import layering

TREE = {
    "__init__": "VERSION = '0'",
    "protocol/__init__": "",
    "protocol/units": "import hashlib\nX = 7 // 2",
    "services/__init__": "",
    "services/judging": "from freehold.services.disk import proof, terms",
    "services/working": "from freehold.services.disk import provider",
    "services/disk/__init__": "",
    "services/disk/terms": "from freehold.protocol.units import X",
    "services/disk/proof": "from freehold.services.disk import terms",
    "services/disk/provider": "import pyeclib\nfrom freehold.net import server\nimport freehold.services.disk.proof",
    "services/radio/__init__": "",
    "services/radio/terms": "",
    "net/__init__": "",
    "net/server": "import aiohttp\nfrom freehold.protocol import units\nTIMEOUT = 0.5",
    "market/__init__": "from freehold import VERSION",
    "client/__init__": "from freehold.services import working",
    "oracle/__init__": "from freehold.services import judging",
    "node/__init__": "from freehold.services import working",
    "local/__init__": "from freehold.node import *\nfrom freehold.oracle import *",
    "cli/__init__": "def up():\n    from freehold import local",
}


def check(tmp_path: Path, changes: dict[str, str]) -> list[str]:
    for name, text in (TREE | changes).items():
        path = tmp_path / "freehold" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    return [breach.rpartition("/freehold/")[2] for breach in layering.check_tree(tmp_path)]


def test_the_designs_own_shape_passes(tmp_path: Path) -> None:
    assert check(tmp_path, {}) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("protocol/units", "from freehold.net import server"),
        ("protocol/units", "import os.path"),
        ("protocol/units", "def now():\n    from time import time"),
        ("protocol/units", "X = 1 / 2"),
        ("protocol/units", "X = 3\nX /= 2"),
        ("protocol/units", "X = 0.5"),
        ("protocol/units", "X = open('x')"),
        ("protocol/units", "import io\nX = io.open('x')"),
        ("protocol/units", "X = hash('x')"),
        ("protocol/units", "from . import other"),
        ("services/disk/terms", "from freehold.services.disk import provider"),
        ("services/disk/terms", "from freehold.services.radio import terms"),
        ("services/disk/proof", "import pyeclib.ec_iface"),
        ("services/disk/proof", "from freehold.market import offers"),
        ("services/disk/provider", "import freehold.services.radio.terms"),
        ("services/disk/provider", "from freehold.client import buckets"),
        ("services/judging", "from freehold.services.disk import provider"),
        ("net/server", "from freehold.store import blobs"),
        ("node/__init__", "from freehold.services.disk import client"),
        ("oracle/__init__", "from freehold.services import working"),
        ("oracle/__init__", "import freehold.node"),
        ("node/__init__", "import importlib\nX = importlib.import_module('freehold.oracle')"),
        ("node/__init__", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from freehold import oracle"),
        ("web/__init__", "from freehold.client import buckets"),
        ("local/__init__", "from freehold.cli import main"),
        ("helpers/__init__", ""),
    ],
)
def test_a_breach_is_found(tmp_path: Path, name: str, text: str) -> None:
    breaches = check(tmp_path, {name: text})
    assert len(breaches) == 1, breaches
    assert breaches[0].startswith(f"{name}.py:")
