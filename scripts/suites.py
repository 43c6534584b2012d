"""Runs the project's suites one after another, each within its time budget.

    python scripts/suites.py lint | unit | services | client | quorum | chain | contracts | end-to-end | members ...

A suite is a few commands that share one budget: lint's tools, or pytest over the directories named in SUITES. Tests
that touch nothing but memory and their own temporary directory (PURE, services, SIMULATED, contracts) run in parallel;
all others run one at a time. A suite fails if a command fails or if it took longer than its budget; at twice the
budget it is stopped. FREEHOLD_TEST_SLOW multiplies every budget and deadline (3 on a machine three times slower).

Invariant: a test file under tests/ belongs to exactly one of unit, services, client, quorum, chain, contracts,
end-to-end, members, compute, gateway, faults and servers; `fuzz` and `soak` run what is marked so, wherever it is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
SLOW = float(os.environ.get("FREEHOLD_TEST_SLOW", "1"))
TEST_DEADLINE = 60  # seconds for one test that names none of its own
STOP_GRACE = 20  # seconds for pytest to end its fixtures once interrupted

PURE = ("protocol", "fuzz", "market", "tooling", "docs", "cli", "store", "gateway")
# Whole quorums over a net, clocks and disks of their own: as pure, and most of what takes long.
SIMULATED = tuple(f"oracle/test_{name}.py" for name in ("simulation", "membership", "byzantine", "exhaustive"))
CHAIN = ("chain", "local")  # a real local chain each
WALK = "contracts/test_stateful.py"
# End to end with liars, silence and a chain that misbehaves.
FAULTS = tuple(
    f"end_to_end/test_{name}.py" for name in ("byzantine", "chain_faults", "disputes", "freeze", "governance")
)
# S3 gateways over real networks, among kills and losses.
GATEWAY = tuple(f"end_to_end/test_{name}.py" for name in ("gateway", "gateway_losses", "two_devices"))
# Compute over a real network: jobs that move, are paid, are lied about.
COMPUTE = ("end_to_end/test_compute.py", "end_to_end/test_jobs_storage.py")
# Members that come up, fall silent, lie and come back; and a network over https.
MEMBERS = tuple(f"end_to_end/test_{name}.py" for name in ("members", "quorum", "tls"))
# Clients over real nodes in one process, by real HTTP: one at a time. All other tests of clients are over memory.
WORLDS = tuple(
    f"client/test_{name}.py"
    for name in (
        "memory", "network_heads", "recovery", "sdk", "tls", "two_devices", "vault", "vault_faults", "chain_side"
    )
)  # fmt: skip
APART = ("services", "client", "contracts", "end_to_end", "servers", "oracle", *CHAIN)
WITHOUT_COMPILER = ("-p", "no:boa_test")  # titanoboa's plugin loads Vyper into every worker
NO_TESTS = 5  # pytest's exit code where nothing was collected

# What is generated, by the script that generates it: each is asked whether it would write the same now.
GENERATED = {
    "scripts/compile_contracts.py": "contracts",
    "scripts/generate_wrappers.py": "src/freehold/chain",
    "scripts/command_reference.py": "docs/commands.md",
    "scripts/job_fields.py": "docs/jobs.md",
    "scripts/terminal_picture.py": "docs/terminal.svg",
}

Command = list[str]


@dataclass(frozen=True)
class Suite:
    budget: int
    commands: Callable[[], Iterator[Command]]


def get_lint_commands() -> Iterator[Command]:
    yield ["ruff", "format", "--check", "."]
    yield ["ruff", "check", "."]
    yield [sys.executable, "scripts/layering.py"]
    yield ["mypy"]
    for script, product in GENERATED.items():
        if (ROOT / script).exists() and (ROOT / product).exists():
            yield [sys.executable, script, "--check"]


def get_unit_commands() -> Iterator[Command]:
    entries = sorted(path.name for path in TESTS.iterdir() if is_tests(path))
    pure = [name for name in PURE if is_tests(TESTS / name)]
    rest = [name for name in entries if name not in PURE + APART]
    if pure:
        yield build_pytest(pure, "-n", "2", *WITHOUT_COMPILER)
    if rest:
        yield build_pytest(rest, *WITHOUT_COMPILER)


def get_quorum_commands() -> Iterator[Command]:
    simulated = [name for name in SIMULATED if (TESTS / name).exists()]
    yield build_pytest(simulated, "-n", "2", *WITHOUT_COMPILER)
    yield build_pytest(["oracle"], *(f"--ignore=tests/{name}" for name in simulated), *WITHOUT_COMPILER)


def get_client_commands() -> Iterator[Command]:
    yield build_pytest(["client"], "-n", "2", *(f"--ignore=tests/{name}" for name in WORLDS), *WITHOUT_COMPILER)
    yield build_pytest(list(WORLDS), *WITHOUT_COMPILER)


def get_contract_commands() -> Iterator[Command]:
    """The walk beside the mirror goes alone: in a worker of xdist it takes ten times as long."""
    yield build_pytest(["contracts"], "-n", "2", f"--ignore=tests/{WALK}")
    yield build_pytest([WALK])


def get_end_to_end_commands() -> Iterator[Command]:
    others = COMPUTE + FAULTS + GATEWAY + MEMBERS
    yield build_pytest(["end_to_end"], *(f"--ignore=tests/{name}" for name in others), *WITHOUT_COMPILER)


def is_tests(path: Path) -> bool:
    return any(path.rglob("test_*.py")) if path.is_dir() else path.name.startswith("test_")


def get_directory_commands(name: str, *options: str) -> Iterator[Command]:
    if is_tests(TESTS / name):
        yield build_pytest([name], *options)


def build_pytest(names: list[str], *options: str, deadline: int = TEST_DEADLINE) -> Command:
    """A pytest run over the files and directories `names` of tests/, the twenty slowest tests listed."""
    limits = ["--durations=20", "--durations-min=0.2", f"--timeout={deadline * SLOW:.0f}"]
    return [sys.executable, "-m", "pytest", *(f"tests/{name}" for name in names), *limits, *options]


def get_fuzz_commands() -> Iterator[Command]:
    yield build_pytest([""], "-m", "hypothesis or fuzz", deadline=3600)
    yield [sys.executable, "-m", "tests.fuzz.run_atheris"]


def get_soak_commands() -> Iterator[Command]:
    yield build_pytest([""], "-m", "soak", deadline=24 * 3600)


SUITES = {
    "lint": Suite(60, get_lint_commands),
    "unit": Suite(120, get_unit_commands),
    "services": Suite(120, lambda: iter([build_pytest(["services"], "-n", "2", *WITHOUT_COMPILER)])),
    "client": Suite(240, get_client_commands),
    "quorum": Suite(120, get_quorum_commands),
    "chain": Suite(120, lambda: iter([build_pytest(list(CHAIN), *WITHOUT_COMPILER)])),
    "contracts": Suite(120, get_contract_commands),
    "end-to-end": Suite(300, get_end_to_end_commands),
    "members": Suite(300, lambda: iter([build_pytest(list(MEMBERS), *WITHOUT_COMPILER)])),
    "compute": Suite(300, lambda: iter([build_pytest(list(COMPUTE), *WITHOUT_COMPILER)])),
    "gateway": Suite(300, lambda: iter([build_pytest(list(GATEWAY), *WITHOUT_COMPILER)])),
    "faults": Suite(300, lambda: iter([build_pytest(list(FAULTS), *WITHOUT_COMPILER)])),
    "servers": Suite(420, lambda: get_directory_commands("servers", *WITHOUT_COMPILER)),
    "fuzz": Suite(3600, get_fuzz_commands),
    "soak": Suite(12 * 3600, get_soak_commands),
}


def run_command(command: Command, seconds: float) -> int | None:
    """The exit code, or None where the command had to be stopped after `seconds`."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            stop_group(process)


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """Interrupts the process and its children, so that fixtures end what they started; kills what is left then."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(timeout=STOP_GRACE * SLOW)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_suite(name: str) -> list[str]:
    """Runs every command of the suite, whether or not an earlier one failed. Returns what went wrong."""
    suite = SUITES[name]
    budget = suite.budget * SLOW
    faults: list[str] = []
    tested = 0
    started = time.monotonic()
    for command in suite.commands():
        is_pytest = "pytest" in command
        shown = " ".join(Path(part).name if part == sys.executable else part for part in command)
        print(f"-- {name}: {shown}", flush=True)
        code = run_command(command, max(1.0, started + 2 * budget - time.monotonic()))
        if code is None:
            faults.append(f"{name}: stopped at twice its budget of {budget:.0f} s")
            break
        if is_pytest and code == NO_TESTS:
            continue
        tested += 1
        if code != 0:
            faults.append(f"{name}: exit {code} from {shown}")
    took = time.monotonic() - started
    if took > budget:
        faults.append(f"{name}: took {took:.0f} s of a budget of {budget:.0f} s")
    if tested == 0:
        print(f"{name}: no tests yet: 0 passed, 0 failed")
    print(f"== {name}: {'failed' if faults else 'ok'}, {took:.1f} s of {budget:.0f} s", flush=True)
    return faults


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in SUITES]
    if unknown or not names:
        print(f"usage: suites.py {' | '.join(SUITES)}", file=sys.stderr)
        return 2
    try:
        faults = [fault for name in names for fault in run_suite(name)]
    except KeyboardInterrupt:
        return 130
    for fault in faults:
        print(f"FAILED {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
