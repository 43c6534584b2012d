"""What every suite shares: Hypothesis profiles, deadlines on slow machines, and what a skipped test means.

FREEHOLD_FUZZ=1 and FREEHOLD_SOAK=1 select the long profiles and the tests marked `fuzz` and `soak`, which otherwise
are not even counted. FREEHOLD_TEST_SLOW multiplies the deadline that a test names. With CI=true a skipped test is a
failure: whatever a test needs must be on that machine.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, settings

# Before anything imports eth-hash, which would otherwise choose a slower keccak.
os.environ.setdefault("ETH_HASH_BACKEND", "pysha3")

SLOW = float(os.environ.get("FREEHOLD_TEST_SLOW", "1"))
LONG = {name: bool(os.environ.get(f"FREEHOLD_{name.upper()}")) for name in ("fuzz", "soak")}

# The same examples on every machine and in every run; `make fuzz` searches at random and keeps what it finds.
settings.register_profile(
    "default",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=50,
    stateful_step_count=30,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "fuzz",
    deadline=None,
    max_examples=5_000,
    stateful_step_count=100,
    print_blob=True,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fuzz" if LONG["fuzz"] else "default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unwanted = [item for item in items if any(item.get_closest_marker(name) and not on for name, on in LONG.items())]
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]
    for item in items:
        marker = item.get_closest_marker("timeout")
        if marker is not None and marker.args and SLOW != 1:
            item.add_marker(pytest.mark.timeout(marker.args[0] * SLOW, **marker.kwargs), append=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = len(terminalreporter.stats.get("skipped", []))
    if skipped:
        means = "which fails where CI=true" if is_ci() else "which says nothing about them"
        terminalreporter.write_line(f"not run: {skipped} (reasons above), {means}", yellow=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if is_ci() and reporter is not None and reporter.stats.get("skipped") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def is_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true")
