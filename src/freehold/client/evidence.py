"""What nodes signed when they served garbage: a file for each node and shard, so that it can be shown.

The signed header names the lease, the shard asked for and the root of what was sent: a root other than the shard's is
proof by itself.
"""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path

from freehold.protocol.units import Address
from freehold.services.storage.terms import Served


class EvidenceFolder:
    """The evidence of one account on one network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, node: Address, served: Served, received_root: str) -> None:
        """Write one response's signed header, and the root of what really arrived."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        value = {
            "node": str(node),
            "served": served.to_json(),
            "received_root": received_root,
            "proven": served.content != served.shard,
            "time": int(time.time()),
        }
        name = f"{node.hex()[:8]}-{served.shard.hex()[:16]}.json"  # one, however often it is asked
        if not value["proven"] and (self.folder / name).exists():
            return  # what is there may prove more
        temporary = self.folder / f"{name}.{secrets.token_hex(4)}"
        temporary.write_text(json.dumps(value, indent=2) + "\n")
        temporary.replace(self.folder / name)

    def count(self) -> int:
        """How many are kept."""
        return sum(1 for _ in self.folder.glob("*.json"))
