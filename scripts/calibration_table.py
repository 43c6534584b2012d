"""Measures how well verification works and writes `docs/calibration.md`.

    python scripts/calibration_table.py             write the page (minutes)
    python scripts/calibration_table.py --check     exit 1 if a short run is worse than the page's bounds allow

Measured by `bench/calibration.py`. Counts stand beside their shares, so that a later run can be compared by bounds
rather than digits: `find_problems` says what is worse with an error of less than one in a thousand a figure.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench.binomial import lower_bound, upper_bound  # noqa: E402
from bench.calibration import (  # noqa: E402
    ASSURANCE,
    CAMPAIGNS,
    JOBS,
    OPERATORS,
    STAKE,
    TRIALS,
    Cell,
    Promise,
    Tally,
    all_cells,
    run_cell,
    run_promises,
)
from bench.calibration_work import all_work  # noqa: E402
from freehold.services.compute.verification.plan import DEFAULT_ADVERSARY, audit_floor_ppm  # noqa: E402

PAGE = ROOT / "docs" / "calibration.md"
CERTAIN = 0.0005  # what a bound may miss by chance, on each side
DEARER = 1.5  # times the runs written, that a short run may need
SHORT, SHORT_TRIALS, ROUNDS = 2, 40, 2
CLASSES = {work.name: work.kind for work in all_work()}

FACTS = {
    "campaigns": ROUNDS * CAMPAIGNS,
    "jobs": JOBS,
    "operators": OPERATORS,
    "assurance": ASSURANCE,
    "loss": STAKE.bond * STAKE.slashed,
    "floor": f"{audit_floor_ppm(STAKE) / 10_000:.4g} %",
    "prior": f"{float(100 * DEFAULT_ADVERSARY.prior):g} %",
}


class Row(NamedTuple):
    """A line of the page: counts of what should be rare or sure, and runs for one."""

    name: tuple[str, ...]
    caught: tuple[int, int]
    blamed: tuple[int, int]
    accepted: tuple[int, int]
    runs: float


def measure(campaigns: int, trials: int) -> list[Row]:
    """Every line: first the cells, then the promises."""
    rows = [to_row(cell, run_cell(cell, campaigns)) for cell in all_cells()]
    return rows + [to_promise(promise) for promise in run_promises(trials)]


def to_row(cell: Cell, tally: Tally) -> Row:
    cheat = {"honest": "nobody"}.get(cell.kind, cell.kind) + ", long trusted" * cell.trusted
    return Row(
        (CLASSES[cell.work], cell.work, cheat),
        (tally.caught, tally.attempts),
        (tally.blamed, tally.honest),
        (tally.accepted, tally.jobs),
        float(tally.runs / tally.jobs),
    )


def to_promise(promise: Promise) -> Row:
    name = ("promise", promise.assurance, promise.population)
    return Row(name, (0, 0), (0, 0), (promise.accepted, promise.jobs), promise.runs)


def render(rows: Sequence[Row]) -> str:
    cells = [row for row in rows if row.name[0] != "promise"]
    promises = [row for row in rows if row.name[0] == "promise"]
    lines = [
        f"| {' | '.join(row.name)} | {at_least(*row.caught)} | {at_most(*row.blamed)} | {share(*row.accepted)} "
        f"| {row.runs:.2f} |"
        for row in cells
    ]
    promised = [
        f"| {row.name[1]} | {row.name[2]} | {percent(1 - float(row.name[1]))} | {at_most(*row.accepted)} "
        f"| {row.runs:.2f} |"
        for row in promises
    ]
    head, middle = HEAD.format(**FACTS), MIDDLE.format(**FACTS)
    return head + "\n".join(lines) + "\n" + middle + "\n".join(promised) + "\n" + TAIL


def at_least(hits: int, trials: int) -> str:
    return f"{share(hits, trials)}, at least {percent(lower_bound(hits, trials))}" if trials else ""


def at_most(hits: int, trials: int) -> str:
    return f"{share(hits, trials)}, at most {percent(upper_bound(hits, trials))}" if trials else ""


def share(hits: int, trials: int) -> str:
    return f"{hits}/{trials} = {percent(hits / trials)}"


def percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def read_page(text: str) -> dict[tuple[str, ...], Row]:
    """The rows of a page, by their names."""
    found: dict[tuple[str, ...], Row] = {}
    for line in text.splitlines():
        parts = [part.strip() for part in line.strip("|").split("|")]
        if not re.fullmatch(r"[\d.]+", parts[-1]):
            continue
        if len(parts) == 7:
            row = Row(tuple(parts[:3]), *(read_counts(part) for part in parts[3:6]), float(parts[6]))
        else:
            row = Row(("promise", *parts[:2]), (0, 0), (0, 0), read_counts(parts[3]), float(parts[4]))
        found[row.name] = row
    return found


def read_counts(text: str) -> tuple[int, int]:
    match = re.match(r"(\d+)/(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def find_problems(rows: Sequence[Row], page: str) -> list[str]:
    """What is worse than the page's bounds allow, row by row and for each cheat over all classes; and what is not on
    both."""
    known = read_page(page)
    problems = [f"{', '.join(row.name)}: not on the page" for row in rows if row.name not in known]
    problems += [f"{', '.join(name)}: no longer measured" for name in known.keys() - {row.name for row in rows}]
    rows = [row for row in rows if row.name in known]
    for row in rows:
        before = known[row.name]
        problems += compare(", ".join(row.name), row, before)
        if row.runs > DEARER * before.runs:
            problems.append(f"{', '.join(row.name)}: takes {row.runs:.2f} runs, and took {before.runs:.2f}")
        if row.name[0] == "promise" and lower_bound(*row.accepted, CERTAIN) > 1 - float(row.name[1]):
            problems.append(f"{', '.join(row.name)}: accepts {row.accepted}, which is more than was promised")
    for cheat in sorted({row.name[2] for row in rows}):
        of_cheat = [row for row in rows if row.name[2] == cheat]
        problems += compare(f"{cheat}, in all", add(of_cheat), add([known[row.name] for row in of_cheat]))
    return problems


def compare(name: str, now: Row, then: Row) -> Iterator[str]:
    """What is worse now, beyond chance."""
    if upper_bound(*now.caught, CERTAIN) < lower_bound(*then.caught, CERTAIN):
        yield f"{name}: finds {now.caught}, and found {then.caught}"
    if lower_bound(*now.blamed, CERTAIN) > upper_bound(*then.blamed, CERTAIN):
        yield f"{name}: blames {now.blamed}, and blamed {then.blamed}"
    if lower_bound(*now.accepted, CERTAIN) > upper_bound(*then.accepted, CERTAIN):
        yield f"{name}: accepts {now.accepted}, and accepted {then.accepted}"


def add(rows: Sequence[Row]) -> Row:
    """Their counts in one."""
    caught, blamed, accepted = (
        (sum(each[0] for each in counts), sum(each[1] for each in counts))
        for counts in ([row.caught for row in rows], [row.blamed for row in rows], [row.accepted for row in rows])
    )
    return Row((), caught, blamed, accepted, 0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure verification.")
    parser.add_argument("--check", action="store_true", help="compare a short run with the page, write nothing")
    arguments = parser.parse_args()
    rows = measure(SHORT, SHORT_TRIALS) if arguments.check else measure(ROUNDS * CAMPAIGNS, ROUNDS * TRIALS)
    if not arguments.check:
        PAGE.write_text(render(rows), encoding="utf-8")
    problems = find_problems(rows, PAGE.read_text(encoding="utf-8"))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


HEAD = """# How well verification works

Written by `scripts/calibration_table.py` from `bench/calibration.py`; do not edit. Every row is {campaigns} seeded
campaigns of {jobs} jobs, at an assurance of {assurance}, with {operators} operators of which one cheats (or two
together). Cheats ask the least, so they are asked first; once caught, they are not asked again. What a client runs is
run here: plans, draws, decisions, records, metrics, bisection; and the judge's court, with referees from among the same
operators. Not run: orders, transport and signatures.

Honest nodes differ too. *wasm* and *steps* are a WebAssembly module with floats, compiled with and without
optimisation; *numbers* are sums of 32-bit floats split over 1 to 8 threads; *pixels* are pictures rounded differently,
some moved by a pixel; *items* is a map over 400 items, whose results are stood for by hashes. Two runs in a hundred
fail. The cheats: *random* output; *partial* work; *copied* from an honest friend that happens to be asked too, else
from another job; *lazy* reuse of its own last result, whose receipt names the earlier input or lies about it; *lowest*:
nothing at all; *collusion* of two; *selective*: wrong in a fifth of its runs, once it is *long trusted* (400 results in
a row were right).

- **found**: of wrong receipts, those that the client found wrong (or useless: on another input) before it accepted a
  result. Shares are followed by their 95 % bound (Clopper and Pearson).
- **honest, blamed**: of honest receipts, those that the client counted as wrong, or that referees did.
- **accepted**: of jobs, those that ended with a wrong result, *given that somebody here cheats from the first job on*.
  The second table says how often that is where nobody knows who does.
- **runs**: of the task for one job, those by referees included.

At this assurance operators that are long trusted run alone, and one that turns is found at the audit rate: seldom, but
never less often than makes it lose. Here a cheat that is found loses {loss} times what a job brings, so the floor is
{floor} of runs: what it gains by the others is less. Where more is at stake the floor falls, to 1 % and no further. Who
wants to be surer of such operators asks for more assurance.

A receipt that names another input than the task's is useless and is found, but it is paid: nothing contradicts it. The
class *attested* is not here: there is no hardware to try it on.

| class | workload | who cheats | found | honest, blamed | accepted | runs |
|---|---|---|---|---|---|---:|
"""
MIDDLE = """
## What an assurance promises, and what it costs

Populations as plans assume them: each of {operators} operators is bad as probably as its record leaves open ({prior}
where nothing is known), two of them are bad together, and all that are bad always give the same wrong result. One job
each.

| assurance | population | wrong results allowed | wrong results accepted | runs |
|---:|---|---:|---|---:|
"""
TAIL = """
Under *sampled* a map pays for its sample only, and what is assured is that a run with a twentieth of its items wrong is
found out: a cheat that spoils fewer is found less often, and does less harm.
"""


if __name__ == "__main__":
    raise SystemExit(main())
