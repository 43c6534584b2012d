"""One order held against ten thousand offers, both ways; with every reason worked out; and when nobody matches.

The offers are drawn from what machines have. A hundred different constraints stand among them, as operators write
their own but copy each other's.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from bench.rates import Figures, Options
from freehold.market.constraints import parse
from freehold.market.matching import Party, match_all, nearest

OFFERS = 10_000
ORDER = (
    'executor.wasm = true and cpu.cores >= 4 and memory.bytes >= 8 GiB and place in ["de-*", "fr", "nl"] '
    'and (gpu.count = 0 or gpu.model = "*4090*") and not operator = "0x01*"'
)
NOBODY = f"{ORDER} and disk.bytes >= 100 TiB"


def make_offers(count: int = OFFERS) -> list[Party]:
    """Offers, the same each time."""
    draw = random.Random(count)
    rules = [parse(f'seconds <= {60 * n} and client not in ["0x{n:040x}"] and network = false') for n in range(1, 101)]
    return [Party(f"0x{number:040x}", _properties(draw), draw.choice(rules)) for number in range(count)]


def make_order(text: str) -> Party:
    """What is asked."""
    return Party("order", {"seconds": 600, "client": "0x" + "ab" * 20, "network": False}, parse(text))


def _properties(draw: random.Random) -> dict[str, Any]:
    gpus = draw.choice([0, 0, 0, 1])
    found: dict[str, Any] = {
        "executor.wasm": draw.random() < 0.9,
        "cpu.cores": draw.choice([2, 4, 8, 16, 64]),
        "memory.bytes": draw.choice([4, 8, 16, 64, 256]) << 30,
        "disk.bytes": draw.randrange(10**10, 10**13),
        "place": draw.choice(["de-fra", "de-ber", "fr", "nl", "us", "sg"]),
        "operator": f"0x{draw.randbytes(20).hex()}",
        "gpu.count": gpus,
        "features": ["avx2", "sse4"],
    }
    return found | ({"gpu.model": draw.choice(["NVIDIA RTX 4090", "NVIDIA A100"])} if gpus else {})


def best(rounds: int, work: Callable[[], object]) -> float:
    """Milliseconds of the fastest round."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return 1000 * min(found)


def measure(options: Options) -> tuple[Figures, Figures]:
    """Milliseconds, and how much the reasons add."""
    rounds, offers = max(options.rounds, 5), make_offers()
    order, nobody = make_order(ORDER), make_order(NOBODY)

    def explain_all() -> None:
        for found in match_all(order, offers):
            assert found.matched or found.reasons

    match_ms, explain_ms = best(rounds, lambda: match_all(order, offers)), best(rounds, explain_all)
    figures = {
        "offers": float(len(offers)),
        "matched": float(sum(found.matched for found in match_all(order, offers))),
        "match_ms": match_ms,
        "match_with_every_reason_ms": explain_ms,
        "nearest_of_nobody_ms": best(rounds, lambda: nearest(nobody, offers)),
    }
    return {name: round(value, 2) for name, value in figures.items()}, {"reasons_over_match": explain_ms / match_ms}
