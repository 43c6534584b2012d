"""Freehold's upload and download of one file beside the machine's own limit and beside Tahoe-LAFS, in one run; then
the S3 gateway's at every size (`bench/s3.py`).

All three use the same file, disk, loopback and code (3 of 6 over 8 nodes). Targets: at least 4 times Tahoe both ways,
at least 0.7 of the bare pipeline, client memory at most 300 MB whatever the file's size.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench import bare, s3, tahoe
from bench.freehold_storage import freehold_rates
from bench.rates import Figures, Options, Rates, make_file


def measure(options: Options) -> tuple[Figures, Figures]:
    """Round by round in turn, so that whatever else the machine does falls on all three."""
    rounds: list[tuple[Rates, Rates, Rates]] = []
    with tempfile.TemporaryDirectory(dir=options.work) as directory:
        path = make_file(Path(directory) / "file", options.size)
        for _ in range(options.rounds):
            rounds.append((freehold_rates(path, options.size), bare.rates(path), tahoe.rates(path)))
    ours, limit, peer = (Rates.best(each) for each in zip(*rounds, strict=True))
    figures = {**ours.figures("freehold"), **limit.figures("bare"), **peer.figures("tahoe")}
    ratios = {
        "upload_vs_tahoe": ours.upload / peer.upload,
        "download_vs_tahoe": ours.download / peer.download,
        "upload_vs_bare": ours.upload / limit.upload,
        "download_vs_bare": ours.download / limit.download,
    }
    s3_figures, s3_ratios = s3.measure(options)
    return figures | s3_figures, {name: round(ratio, 3) for name, ratio in ratios.items()} | s3_ratios
