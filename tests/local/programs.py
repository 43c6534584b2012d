"""A program for tests of the nursery: does what its configuration says."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path


def main(config: Path) -> int:
    """exit: end with this code; raise: fail; otherwise be ready, and end with 0 on SIGTERM (stubborn: never)."""
    orders = json.loads(config.read_text())
    print(f"started in group {os.getpgid(0) == os.getpid()}", flush=True)
    if "exit" in orders:
        return int(orders["exit"])
    if "raise" in orders:
        raise RuntimeError(orders["raise"])
    signal.signal(signal.SIGTERM, signal.SIG_IGN if orders.get("stubborn") else lambda *_: sys.exit(0))
    ready = Path(orders["ready"])
    ready.with_suffix(".new").write_text(json.dumps({"pid": os.getpid(), "url": "http://127.0.0.1:1"}))
    ready.with_suffix(".new").replace(ready)
    while True:
        signal.pause()
