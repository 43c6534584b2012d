"""`freehold job`: what it orders, prints, asks and exits with, over nodes in memory."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from freehold.cli import client as cli_client
from freehold.cli import connection, jobs_output
from freehold.cli import jobs as cli_jobs
from freehold.cli.jobs_output import Follower
from freehold.cli.output import plain, print_table
from freehold.client.jobs_driver import Progress
from freehold.protocol.errors import InsufficientCredits
from tests.cli.runner import Outcome, invoke
from tests.client.jobs_world import Came, FakeClient, World, script_job


class Bench:
    """An account whose compute is a World, and the commands on it."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder / "world")
        self.home = folder / "home"
        self.folder = folder

    def run(self, *arguments: str, stdin: str = "", **environment: str) -> Outcome:
        return invoke(self.home, "job", *arguments, stdin=stdin, **environment)

    def data(self, *arguments: str) -> Any:
        return self.run(*arguments, "--json").data

    def write(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        return str(self.folder / name)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(tmp_path)

    @asynccontextmanager
    async def open_client(*_: object) -> AsyncIterator[Any]:
        jobs = made.world.open()
        network = SimpleNamespace(parameters=SimpleNamespace(lock_release=2))
        yield SimpleNamespace(jobs=jobs, compute=FakeClient(made.world), network=network, folder=tmp_path)
        jobs.close()

    async def wait_for_credits(*_: object) -> None:
        pass

    monkeypatch.setattr(cli_client, "open_client", open_client)
    monkeypatch.setattr(cli_client, "wait_for_credits", wait_for_credits)
    yield made
    made.world.close()


def test_a_script_prints_what_it_printed(bench: Bench) -> None:
    bench.world.add(2)
    script = bench.write("primes.py", "print")
    done = bench.run("run", script, "--arg", "10", "--arg", "20", "--most", "1")
    assert (done.code, done.stdout) == (0, "10 20")
    data = bench.data("run", script, "--arg", "x", "--most", "1")
    assert (data["phase"], data["output"]) == ("done", ["x"])


def test_it_says_what_it_costs_and_asks(bench: Bench) -> None:
    bench.world.add(2)
    script = bench.write("a.py", "print")
    asked = bench.run("run", script)
    assert asked.code == 2
    assert "at most" in asked.stderr
    assert "say --yes" in asked.stderr
    assert bench.world.runs == 0
    assert bench.run("run", script, "--yes").code == 0
    assert bench.world.runs == 1


def test_a_spec_is_changed_on_the_command_line(bench: Bench) -> None:
    bench.world.add(6)
    bench.world.objects |= {"demo/photos/a": b"A", "demo/photos/b": b"B"}
    bench.world.programs["thumb\n"] = lambda ran: Came(files=dict.fromkeys(ran.inputs, b"t"))
    spec = bench.write(
        "thumbnails.yaml", "script: |\n  thumb\nmost: 1 credits\nmap: fh://demo/none/\noutput: fh://demo/no/\n"
    )
    done = bench.run(
        "run", spec, "--input", "fh://demo/photos/", "--output", "fh://demo/thumbs/", "--assurance", "0.99",
        "--where", "cpu.cores >= 2", FREEHOLD_GATEWAY="http://127.0.0.1:1",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert {"demo/thumbs/a", "demo/thumbs/b"} <= set(bench.world.objects)
    assert bench.world.runs > 4
    assert "cpu.cores >= 2" in bench.world.surveys[0].constraint


def test_without_a_gateway_it_warns_that_files_pass_through(bench: Bench) -> None:
    bench.world.add(1)
    bench.world.objects["demo/a"] = b"A"
    spec = bench.write("job.yaml", "script: x\nmost: 1 credits\ninputs: {a: 'fh://demo/a'}\n")
    done = bench.run("run", spec, "--json", FREEHOLD_GATEWAY="")
    assert any("passes through this machine" in text for text in done.envelope["warnings"])


def test_a_mistake_in_a_spec_is_shown_at_its_line(bench: Bench) -> None:
    spec = bench.write("job.yaml", "script: x\nresources:\n  memry: 1 GiB\n")
    failed = bench.run("run", spec, "--json")
    assert failed.code == 2
    error = failed.error
    assert error["code"] == "invalid_spec"
    assert f"{spec}:3:3" in error["message"]
    assert "Did you mean 'memory'?" in error["hint"]
    assert (error["details"]["line"], error["details"]["column"]) == (3, 3)


@pytest.mark.parametrize(("status", "code"), [(3, 3), (42, 42), (1, 1)])
def test_the_jobs_own_status_is_passed_on(bench: Bench, status: int, code: int) -> None:
    bench.world.add(1)
    bench.world.programs["bad"] = lambda ran: Came(status=status)
    done = bench.run("run", bench.write("a.py", "bad"), "--most", "1")
    assert done.code == code
    assert f"exited with status {status}" in done.stderr


def test_what_takes_long_is_said_once_where_nobody_watches_and_never_in_json(bench: Bench) -> None:
    bench.world.add(1)
    bench.world.builds = True
    script = bench.write("a.py", "print")
    assert bench.run("run", script, "--most", "1").stderr.splitlines() == ["building the interpreter"]
    assert bench.run("run", script, "--most", "1", "--json").stderr == ""
    assert "building the interpreter" in bench.run("quote", script).stderr


def test_a_line_on_a_terminal_says_what_goes_on_and_since_when(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(jobs_output, "REDRAW", 0.001)
    monkeypatch.setattr(jobs_output, "COMPILING", 0.0)
    with Follower(quiet=False) as follower:
        follower.busy("building it")
        terminal.wait_for("building it   1 s")
        follower.busy("")
        follower(Progress("pieces", "main", 0, 2))
        terminal.wait_for("main: 0 of 2   nodes compile")
        follower(Progress("pieces", "main", 1, 2))
        terminal.wait_for("main: 1 of 2   1 s")
        follower(Progress("say", "main", text="it moved"))
        terminal.wait_for("it moved\n")
        follower.end()
        drawn = terminal.getvalue()
        assert drawn[-1] in "\r\n"  # a clean line
    assert terminal.getvalue() == drawn


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + 20
        while text not in self.getvalue():
            assert time.monotonic() < until, self.getvalue()[-500:]
            time.sleep(0.002)


def test_what_came_out_is_said_with_the_way_to_it(bench: Bench) -> None:
    bench.world.add(1)
    bench.world.programs["two\n"] = lambda ran: Came(files={"out": ran.stdin})
    spec = bench.write("job.yaml", "script: |\n  two\nmost: 1 credits\nmap: [a, b]\n")
    done = bench.run("run", spec)
    assert "2 files came out: `freehold job fetch" in done.stderr
    data = bench.data("run", spec)
    assert data["files"] == 2
    clash = bench.run("fetch", data["job"], str(bench.folder / "one"), "--json")
    assert "tasks 0 and 1 have both put out 'out'" in clash.error["message"]
    assert not (bench.folder / "one").exists()
    bench.data("fetch", data["job"], str(bench.folder / "apart"), "--folders")
    assert (bench.folder / "apart" / "1" / "out").read_text() == "b\n"
    placed = bench.run("run", spec, "--output", str(bench.folder / "there"), "--deadline", "1h")
    assert "have both put out" in placed.stderr


def test_steps_whose_files_have_one_name_are_fetched_one_by_one(bench: Bench) -> None:
    bench.world.add(1)
    bench.world.programs |= {name: lambda _, name=name: Came(files={"out": name.encode()}) for name in ("x", "y")}
    spec = bench.write("job.yaml", "most: 1 credits\nsteps:\n- {name: a, script: x}\n- {name: b, script: y}\n")
    id = bench.data("run", spec)["job"]
    refused = bench.run("fetch", id, str(bench.folder / "both"), "--json").error
    assert (refused["code"], "`--step NAME`" in refused["hint"]) == ("cannot_place", True)
    bench.data("fetch", id, str(bench.folder / "b"), "--step", "b")
    assert (bench.folder / "b" / "out").read_text() == "y"
    assert "Did you mean" in bench.run("fetch", id, str(bench.folder / "b"), "--step", "bb").stderr


def test_ctrl_c_before_anything_was_ordered_is_130(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(connection, "run", interrupt)  # the coroutine never begins: it must not warn of that
    stopped = bench.run("run", bench.write("a.py", "x"), "--most", "1", "--json")
    assert stopped.code == 130
    assert stopped.error["code"] == "aborted"
    assert bench.world.runs == 0


def test_refused_and_failed_have_codes_of_their_own(bench: Bench) -> None:
    (node,) = bench.world.add(1)
    big = bench.write("big.yaml", "script: x\nmost: 1 credits\nresources: {memory: 4 TiB}\n")
    refused = bench.run("run", big)
    assert refused.code == cli_jobs.REFUSED
    assert "memory.bytes >= 4096 GiB" in refused.stderr
    assert bench.run("quote", big).code == cli_jobs.REFUSED
    node.refuses = "broken"
    assert bench.run("run", bench.write("a.py", "x"), "--most", "1").code == cli_jobs.REFUSED
    bench.world.now += 10_000
    node.refuses = ""
    bench.world.programs["loop"] = lambda ran: Came(ended="fuel", measure=10**18)
    failed = bench.run("run", bench.write("b.py", "loop"), "--most", "10")
    assert failed.code == cli_jobs.FAILED, failed


def test_jobs_are_listed_described_costed_and_explained(bench: Bench) -> None:
    bench.world.add(6)
    spec = bench.write("job.yaml", "name: pair\nscript: x\nmost: 1 credits\nassurance: 0.99\nmap: [a, b]\n")
    id = bench.data("run", spec)["job"]
    assert [(job["job"], job["phase"]) for job in bench.data("list")] == [(id, "done")]
    described = bench.data("describe", "pair")
    assert (described["steps"][0]["tasks"], described["steps"][0]["accepted"]) == (2, 2)
    cost = bench.data("cost", id[:4])
    assert int(cost["work"]) + int(cost["assurance"]) == int(cost["spent"]) == bench.world.billed
    why = bench.data("why", id)
    assert {event["kind"] for event in why["events"]} == {"survey", "plan"}
    for verb in ("list", "describe", "cost", "why", "logs"):
        shown = bench.run(verb, *([] if verb == "list" else [id]))
        assert shown.code == 0, shown
        assert shown.stdout
    assert "matched" in bench.run("why", id).stdout
    assert "said on standard error" in bench.run("logs", id).stdout
    assert bench.run("wait", id).stdout == "a\nb\n"


def test_files_are_fetched_from_the_nodes_that_kept_them(bench: Bench) -> None:
    bench.world.add(1)
    bench.world.programs["make"] = lambda ran: Came(files={"below/a.txt": b"data"})
    id = bench.data("run", bench.write("a.py", "make"), "--most", "1")["job"]
    target = bench.folder / "fetched"
    assert bench.data("fetch", id, str(target))["files"] == [str(target / "below/a.txt")]
    assert (target / "below/a.txt").read_bytes() == b"data"


def test_ctrl_c_stops_waiting_and_says_how_to_find_the_job(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (node,) = bench.world.add(1)
    node.gate = asyncio.Event()

    def interrupt_once_ordered(task: Any) -> Any:
        async def both() -> Any:
            running = asyncio.ensure_future(task)
            while not node.orders:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            running.cancel()  # as asyncio.run does on Ctrl-C
            return await running

        return asyncio.run(both())

    from freehold.cli import connection

    with monkeypatch.context() as patched:
        patched.setattr(connection, "run", interrupt_once_ordered)
        done = bench.run("run", bench.write("a.py", "x"), "--most", "1")
    assert done.code == cli_jobs.INTERRUPTED
    (job,) = bench.data("list")
    assert f"freehold job wait {job['job']}" in done.stderr
    assert f"freehold job stop {job['job']}" in done.stderr
    assert job["phase"] == "running"
    assert not node.stopped
    assert "nobody waits for it" in bench.run("describe", job["job"]).stdout
    node.gate = None
    assert bench.run("wait", job["job"]).code == 0
    assert len({order.struct_hash() for order in node.orders}) == 1


def test_a_job_is_stopped(bench: Bench) -> None:
    (node,) = bench.world.add(1)
    node.gate = asyncio.Event()
    ended: list[str] = []

    async def wait() -> None:
        jobs = bench.world.open()
        row = await jobs.submit(script_job(), most=10**18)
        ended.append((await jobs.wait(row.id)).phase)

    waiting = threading.Thread(target=lambda: asyncio.run(wait()))  # as another process would
    waiting.start()
    until = time.monotonic() + 30
    while not node.orders and time.monotonic() < until:
        time.sleep(0.01)
    (job,) = bench.data("list")
    assert bench.data("stop", job["job"])["phase"] == "stopped"
    waiting.join()
    assert ended == ["stopped"]
    assert bench.run("wait", job["job"]).code == cli_jobs.STOPPED


def test_a_lack_of_credits_is_a_refusal(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait_for_credits(*_: object) -> None:
        raise InsufficientCredits("5 credits are missing")

    monkeypatch.setattr(cli_client, "wait_for_credits", wait_for_credits)
    bench.world.add(1)
    assert bench.run("run", bench.write("a.py", "x"), "--most", "1").code == cli_jobs.REFUSED


def test_other_files_and_missing_ones_are_named(bench: Bench) -> None:
    assert "its name ends with one of" in bench.run("run", bench.write("a.txt", "x")).stderr
    assert "there is no file" in bench.run("run", str(bench.folder / "none.py")).stderr
    assert "no such job" in bench.run("describe", "none").stderr


def test_nodes_are_shown_and_measured_for_a_price_that_is_said_first(bench: Bench) -> None:
    honest, silent = bench.world.add(2)
    silent.silent = True
    shown = bench.run("nodes")
    assert shown.code == 0
    assert "it did not answer" in shown.stdout
    assert "not yet" in shown.stdout
    assert "1 not measured for a day" in shown.stdout
    asked = bench.run("nodes", "--measure")
    assert (asked.code, honest.ran) == (2, [])
    assert "1 node to be measured: at most <0.000001 credits" in asked.stderr
    assert "say --yes" in asked.stderr
    (first, second) = bench.data("nodes", "--measure", "--yes")
    assert [row["node"] for row in (first, second)] == [str(honest.address), str(silent.address)]
    assert int(first["cost"]) == bench.world.billed > 0
    assert bench.data("nodes")[0]["figures"] == first["figures"]  # they are kept
    runs = len(honest.ran)
    assert "no node that runs WebAssembly is due" in bench.run("nodes", "--measure").stderr
    assert len(honest.ran) == runs
    assert "measuring cost" in bench.run("nodes", "--measure", "--again", "--yes").stdout
    assert len(honest.ran) == 2 * runs
    assert "it needs --measure" in bench.run("nodes", "--again").stderr


def test_leases_under_which_nothing_hangs_are_released(bench: Bench) -> None:
    bench.world.add(1)
    assert bench.data("release") == {"leases": [], "lock_release": 2}
    bench.run("run", bench.write("a.py", "x"), "--most", "1")
    shown = bench.run("release")
    assert shown.stdout.splitlines()[0] == "closed 1 lease for compute"
    assert "2 reports later" in shown.stdout


def test_what_nodes_say_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["WHY"], [["\x1b[2J\x1b]0;x\x07gone\r\x9b1A"]])
    assert not set(capsys.readouterr().out) & set("\x1b\x07\r\x9b")
    assert plain("a\tb\nc: ä\u202e") == "a\tb\nc: ä\N{REPLACEMENT CHARACTER}"
