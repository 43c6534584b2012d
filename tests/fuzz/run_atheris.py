"""`python -m tests.fuzz.run_atheris [SECONDS]`: every decoder under atheris, guided by what its code covers.

Each decoder is a process of its own, for an equal part of SECONDS (600): libFuzzer ends the process that it runs in.
An input that breaks one is written to corpus/<decoder>/, where test_decoders.py tries it from then on. atheris has
wheels for Linux alone; where it is not installed this says so, and `make fuzz` has Hypothesis.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 600
LONGEST_INPUT = 16_384
MEGABYTES = 1_024  # that a process may take


def fuzz(name: str, seconds: int, found: Path, seeds: Path) -> None:
    """Never returns."""
    import atheris

    with atheris.instrument_imports(include=["freehold"]):
        from freehold.protocol.errors import FreeholdError
        from tests.fuzz.decoders import all_decoders

    decoder = all_decoders()[name]
    for i, seed in enumerate(decoder.seeds()):
        (seeds / f"seed-{i}").write_bytes(seed)

    def try_one(data: bytes) -> None:
        try:
            value = decoder.decode(data)
        except FreeholdError:
            return
        if decoder.encode is not None:
            again = decoder.encode(value)
            assert decoder.encode(decoder.decode(again)) == again

    limits = [f"-max_total_time={seconds}", f"-max_len={LONGEST_INPUT}", f"-rss_limit_mb={MEGABYTES}", "-timeout=10"]
    atheris.Setup([name, *limits, "-verbosity=0", f"-artifact_prefix={found}/", str(seeds)], try_one)
    atheris.Fuzz()


def main(seconds: int) -> int:
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: not run")
        return 0
    from tests.fuzz.decoders import all_decoders

    names = [name for name in all_decoders() if not name.startswith(("table.", "message.")) or name.endswith(BROADEST)]
    broken = []
    for name in names:
        found = CORPUS / name
        had = found.exists()
        found.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as seeds:
            arguments = [name, str(max(1, seconds // len(names))), str(found), seeds]
            command = [sys.executable, "-m", "tests.fuzz.run_atheris", *arguments]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
        if not had and not any(found.iterdir()):
            found.rmdir()
        print(f"{name}: {'ok' if done.returncode == 0 else 'BROKEN, see ' + str(found)}", flush=True)
        if done.returncode:
            print(done.stderr[-4000:], flush=True)
            broken.append(name)
    return 1 if broken else 0


# Messages go through the same code: one with every sort of field stands for all.
BROADEST = (".Lease", ".Reservation", ".Manifest", ".Report")


if __name__ == "__main__":
    if len(sys.argv) == 5:
        fuzz(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else SECONDS))
