"""What a bench is asked for, and what one way of storing a file reached."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

MB = 1_000_000

Figures = dict[str, float]


class Options(NamedTuple):
    """`size` in bytes; the best of `rounds` counts; `work` is a directory on the disk that is measured; `devices` is
    how many report in an epoch, `keys` how many are listed under one prefix."""

    size: int
    rounds: int
    work: Path
    devices: int = 1_000_000
    keys: int = 100_000


class Rates(NamedTuple):
    """Plaintext bytes per second both ways, and the client's peak resident bytes (0 where it is not measured)."""

    upload: float
    download: float
    client_memory: int = 0

    @staticmethod
    def best(rounds: Iterable[Rates]) -> Rates:
        """The fastest of several rounds each way, with the most memory any of them took."""
        every = list(rounds)
        return Rates(
            max(rates.upload for rates in every),
            max(rates.download for rates in every),
            max(rates.client_memory for rates in every),
        )

    def figures(self, name: str) -> Figures:
        """The JSON's figures, in MB/s and MB."""
        found = {f"{name}_upload_mb_s": self.upload / MB, f"{name}_download_mb_s": self.download / MB}
        if self.client_memory:
            found[f"{name}_client_peak_mb"] = self.client_memory / MB
        return {key: round(value, 1) for key, value in found.items()}


def make_file(path: Path, size: int) -> Path:
    """A file of `size` bytes that nothing can compress, the same each time."""
    draw = random.Random(size)
    with path.open("wb") as file:
        for at in range(0, size, 1 << 20):
            file.write(draw.randbytes(min(1 << 20, size - at)))
    return path
