"""How well verification works is what docs/calibration.md says, within the bounds that it states.

The short form runs here: a few seeded campaigns a row. FREEHOLD_SOAK=1 runs as many as the page stands for (`make
soak`).
"""

from __future__ import annotations

from math import comb

import pytest

from bench import calibration, calibration_work
from bench.binomial import MISS, lower_bound, upper_bound
from bench.calibration import CAMPAIGNS, TRIALS, Cell, run_cell
from bench.calibration_work import all_work, are_near
from freehold.services.compute.verification import decision
from scripts.calibration_table import (
    PAGE,
    ROUNDS,
    SHORT,
    SHORT_TRIALS,
    Row,
    at_least,
    at_most,
    find_problems,
    measure,
    read_page,
    render,
    to_row,
)


def test_a_short_run_is_no_worse_than_the_page_allows() -> None:
    assert find_problems(measure(SHORT, SHORT_TRIALS), PAGE.read_text(encoding="utf-8")) == []


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_long_run_is_no_worse_than_the_page_allows() -> None:
    assert find_problems(measure(ROUNDS * CAMPAIGNS, ROUNDS * TRIALS), PAGE.read_text(encoding="utf-8")) == []


def test_the_page_is_the_generators_but_for_its_figures() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert render(list(read_page(text).values())) == text


def test_the_page_shows_what_it_promises() -> None:
    """Who cheats from the start among strangers is found; nobody honest is blamed; assurances are kept."""
    rows = read_page(PAGE.read_text(encoding="utf-8")).values()
    for row in rows:
        if row.name[0] == "promise":
            assert row.accepted[0] <= (1 - float(row.name[1])) * row.accepted[1]
        else:
            assert row.blamed[0] == 0
            if row.caught[1] and "trusted" not in row.name[2] and row.name[2] != "collusion":
                assert lower_bound(*row.caught) > 0.95


WORSE = [
    Row(("bit_exact", "wasm", "random"), (50, 100), (0, 100), (0, 100), 4.0),
    Row(("bit_exact", "wasm", "random"), (100, 100), (20, 100), (0, 100), 4.0),
    Row(("bit_exact", "wasm", "random"), (100, 100), (0, 100), (20, 100), 4.0),
    Row(("bit_exact", "wasm", "random"), (100, 100), (0, 100), (0, 100), 40.0),
    Row(("promise", "0.99", "nobody is known"), (0, 0), (0, 0), (50, 100), 3.0),
    Row(("bit_exact", "wasm", "somebody new"), (100, 100), (0, 100), (0, 100), 4.0),
]


@pytest.mark.parametrize("worse", WORSE)
def test_what_is_worse_is_a_problem(worse: Row) -> None:
    good = [
        Row(("bit_exact", "wasm", "random"), (100, 100), (0, 900), (0, 400), 4.0),
        WORSE[4]._replace(accepted=(0, 9)),
    ]
    page = render(good)
    assert find_problems(good, page) == []
    rest = [row for row in good if row.name != worse.name]
    assert len(find_problems([*rest, worse], page)) >= 1
    assert len(find_problems(good[:1], page)) == 1


@pytest.mark.parametrize(
    ("where", "name", "broken"),
    [
        (calibration, "draw_audit", lambda *_: False),
        (calibration_work, "_distance", lambda *_: 0),
        (decision, "has_consensus", lambda *_: True),
        (calibration.Evidence, "is_available", lambda *_: True),
    ],
    ids=["no audits", "a blind metric", "no consensus", "nobody is left alone"],
)
def test_what_breaks_verification_is_found(
    where: object, name: str, broken: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, broken)
    cells = [Cell("numbers", "random"), Cell("wasm", "collusion"), Cell("steps", "collusion")]
    rows = [to_row(cell, run_cell(cell, 3 * SHORT)) for cell in cells]
    found = find_problems(rows, PAGE.read_text(encoding="utf-8"))
    assert [problem for problem in found if "no longer measured" not in problem]


def test_bounds_are_clopper_and_pearsons() -> None:
    assert upper_bound(0, 100) == pytest.approx(1 - MISS ** (1 / 100))
    assert lower_bound(100, 100) == pytest.approx(MISS ** (1 / 100))
    assert (lower_bound(0, 10), upper_bound(10, 10), upper_bound(0, 0), lower_bound(0, 0)) == (0, 1, 1, 0)
    for hits, trials in ((3, 17), (9, 20), (40, 41)):
        top = upper_bound(hits, trials)
        tail = sum(comb(trials, k) * top**k * (1 - top) ** (trials - k) for k in range(hits + 1))
        assert tail == pytest.approx(MISS)
    assert at_least(1, 2) == "1/2 = 50 %, at least 1.26 %"
    assert at_most(0, 0) == ""


@pytest.mark.parametrize("work", all_work(), ids=lambda work: work.name)
def test_honest_runs_are_near_whatever_the_setting_and_all_else_is_not(work: object) -> None:
    for job in range(20):
        right = [work.right(job, setting) for setting in range(8)]  # type: ignore[attr-defined]
        assert all(are_near(work, right[0], each) for each in right)  # type: ignore[arg-type]
        for wrong in (work.partial(job), work.made_up(f"{job}"), work.nothing(), work.right(job + 1, 0)):  # type: ignore[attr-defined]
            assert not are_near(work, right[0], wrong)  # type: ignore[arg-type]


def test_settings_of_tolerant_work_do_make_a_difference() -> None:
    for work in all_work():
        spelled = {work.right(1, setting).data for setting in range(8)}
        assert (len(spelled) > 1) == bool(work.metric)


def test_a_campaign_is_the_same_each_time() -> None:
    cell = Cell("wasm", "collusion")
    assert run_cell(cell, 2) == run_cell(cell, 2)
