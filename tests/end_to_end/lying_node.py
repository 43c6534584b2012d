"""A node that answers scripts without running them: `python -m tests.end_to_end.lying_node CONFIG`."""

from __future__ import annotations

import sys
from pathlib import Path

from freehold.node.process import main
from freehold.services.compute.executors.seam import Outcome, Work
from freehold.services.compute.executors.wasm import WasmExecutor

LIE = b"42\n"
_run = WasmExecutor.run


async def lie(self: WasmExecutor, work: Work) -> Outcome:
    """As if it had exited well, for most of what it could be billed."""
    if work.task.kind != "python":
        return await _run(self, work)
    return Outcome("exited", 0, LIE, work.most // 2)


if __name__ == "__main__":
    WasmExecutor.run = lie  # type: ignore[method-assign]
    sys.exit(main(Path(sys.argv[1])))
