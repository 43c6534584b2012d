"""How jobs look to people: tables, a line of progress, and the reasons behind what was chosen and believed."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import click

from freehold.cli.amounts import format_amount, format_seconds, format_size, short
from freehold.cli.output import plain, print_table

if TYPE_CHECKING:
    from freehold.client.jobs_driver import Progress

REDRAW = 0.2  # seconds
COMPILING = 5.0  # seconds without a first result, after which it is said what may take so long


class Follower:
    """`with Follower(...) as follower`: a line on stderr that says what goes on, how far each step is and since when,
    where a person watches; elsewhere only sentences are printed, each once, and where `quiet` nothing is."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._shown = not quiet and sys.stderr.isatty()
        self._busy = ""
        self._steps: dict[str, tuple[int, int]] = {}
        self._since = time.monotonic()  # of the last change
        self._width = 0
        self._drawing = threading.Lock()
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="freehold-progress", daemon=True)

    def __enter__(self) -> Self:
        if self._shown:
            self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Draw nothing more, and leave a clean line."""
        self._ended.set()
        if self._shown:
            self._ticker.join()
        self.clear()

    def busy(self, text: str) -> None:
        """What this machine does now, and takes long for; "" once it has ended."""
        self.clear()
        self._busy, self._since = text, time.monotonic()
        if text and not self._quiet and not self._shown:
            click.echo(text, err=True)

    def __call__(self, progress: Progress) -> None:
        if progress.kind == "say":
            if not self._quiet:
                with self._drawing:
                    self._erase()
                    click.echo(plain(progress.text), err=True)
            return
        standing = (progress.done, progress.total)
        if self._steps.get(progress.step) != standing:
            self._steps[progress.step], self._since = standing, time.monotonic()

    def clear(self) -> None:
        """Leave a clean line."""
        with self._drawing:
            self._erase()

    def _erase(self) -> None:
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0

    def _tick(self) -> None:
        while not self._ended.wait(REDRAW):
            text = self._describe()
            with self._drawing:
                if text and not self._ended.is_set():
                    text = text[: max(20, shutil.get_terminal_size().columns - 1)]
                    sys.stderr.write("\r" + text.ljust(self._width))
                    sys.stderr.flush()
                    self._width = len(text)

    def _describe(self) -> str:
        seconds = time.monotonic() - self._since
        since = f"   {format_seconds(seconds)}" if seconds >= 1 else ""
        if self._busy:
            return f"{self._busy}{since}"
        steps = list(self._steps.items())
        text = "   ".join(
            f"{step}: {done} of {total}" for step, (done, total) in steps if done < total or len(steps) < 4
        )
        is_first = steps and not any(done for _, (done, _) in steps)
        waits = "   nodes compile what they have not run before" if is_first and seconds > COMPILING else ""
        return f"{text}{since}{waits}" if text else ""


def amount(text: str) -> str:
    """Credits of a JSON answer, for people."""
    return format_amount(int(text))


def show_quote(data: dict[str, Any]) -> None:
    for step in data["steps"]:
        tasks = (
            _count(step["tasks"], "task") if step["tasks"] is not None else "a task for each that the step before gives"
        )
        nodes = "1 node matches" if step["nodes"] == 1 else f"{step['nodes']} nodes match"
        click.echo(f"{step['step']}: {tasks}, {nodes}, the best at {amount(step['price'])} credits an hour")
        for reason in step["reasons"]:
            click.echo(f"  {plain(reason)}")
    click.echo(f"work       {amount(data['work'])} credits")
    click.echo(f"assurance  {amount(data['assurance'])} credits, on average")
    if data["storage_bytes"]:
        click.echo(f"storage    {amount(data['storage'])} credits, to read {format_size(data['storage_bytes'])}")
    click.echo(f"at most    {amount(data['most'])} credits")


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"


def show_jobs(data: list[dict[str, Any]]) -> None:
    rows = [[job["job"], job["name"], _phase(job), _when(job["created"]), amount(job["most"])] for job in data]
    print_table(["JOB", "NAME", "PHASE", "ORDERED", "AT MOST"], rows)


def _phase(job: dict[str, Any]) -> str:
    if job["phase"] == "failed" and job["status"]:
        return f"failed ({job['status']})"
    return str(job["phase"])


def _when(seconds: int) -> str:
    return f"{format_seconds(max(0, time.time() - seconds))} ago"


def _show_head(job: dict[str, Any]) -> None:
    why = f": {plain(job['reason'])}" if job["reason"] else ""
    click.echo(f"job {job['job']}  {job['name']}  {_phase(job)}{why}")


def show_job(data: dict[str, Any]) -> None:
    _show_head(data)
    if data["phase"] == "running":
        left = data["deadline"] - time.time()
        click.echo(f"  {format_seconds(left)} until its deadline" if left > 0 else "  past its deadline")
        if not data["driven"]:
            click.echo(f"  nobody waits for it: `freehold job wait {data['job']}` goes on with it")
    print_table(
        ["STEP", "PHASE", "TASKS", "ACCEPTED", "ORDERS", "RUNNING", "SILENT"],
        [
            [s["step"], s["phase"], s["tasks"], s["accepted"], s["orders"], s["running"], s["lost"]]
            for s in data["steps"]
        ],
    )
    cost = data["cost"]
    click.echo(f"spent {amount(cost['spent'])} of {amount(cost['most'])} credits")


def show_cost(data: dict[str, Any]) -> None:
    click.echo(f"spent        {amount(data['spent'])} credits for {_count(data['orders'], 'order')}")
    for name in ("work", "assurance", "delivery"):
        click.echo(f"  {name:<10} {amount(data[name])}")
    if int(data["running"]):
        click.echo(f"running      {amount(data['running'])} at most")
    if int(data["silent"]):
        click.echo(f"silent       {amount(data['silent'])} at most, of orders that nodes refused or did not answer")
    click.echo(f"at most      {amount(data['most'])}")
    for node, cost in data["nodes"].items():
        click.echo(f"  {short(node)}  {amount(cost)}")


def show_why(data: dict[str, Any]) -> None:
    _show_head(data)
    for event in data["events"]:
        _show_event(event)
    if not data["orders"]:
        return
    click.echo("\nresults")
    rows = [
        [
            f"{order['step']} {order['number']}", short(order["node"]), order["purpose"], order["phase"],
            _end(order), short(order["output"] or ""), amount(order["cost"]), "accepted" if order["accepted"] else "",
        ]
        for order in data["orders"]
    ]  # fmt: skip
    print_table(["TASK", "NODE", "FOR", "PHASE", "ENDED", "RESULT", "CREDITS", ""], rows)


def _end(order: dict[str, Any]) -> str:
    if order["ended"] == "exited":
        return f"exited {order['status']}"
    return str(order["ended"] or order["reason"])


def _node_row(node: dict[str, Any]) -> list[object]:
    price = amount(node["price"]) if node["price"] else ""
    return [node["place"] or "", short(node["node"]), price, node["reason"] or "matched"]


def _show_event(event: dict[str, Any]) -> None:
    step = event["step"]
    if event["kind"] == "survey":
        click.echo(f"\nstep {step}: {event['executor']}, {event['constraint'] or 'no constraint'}")
        print_table(["RANK", "NODE", "BID", "WHY"], [_node_row(node) for node in event["nodes"]])
        for line in event["help"]:
            click.echo(f"  {plain(line)}")
    elif event["kind"] == "plan":
        click.echo(f"checked as {event['class']}: {'; '.join(event['reasons'])}")
    elif event["kind"] == "failure":
        click.echo(f"task {event['number']} at {short(event['node'])}: {plain(event['reason'])}")
    elif event["kind"] == "attested":
        said = "".join(f"; not checked: {plain(one)}" for one in event["unchecked"])
        click.echo(f"task {event['number']} at {short(event['node'])}: vouched for by {event['hardware']}{said}")
    elif event["kind"] == "dispute":
        case = f"case {short(event['case'])}" if "case" in event else f"not opened: {plain(event['error'])}"
        pair = f"{short(event['first'])} and {short(event['second'])}"
        click.echo(f"task {event['number']}: {pair} contradict each other, {case}")
    elif event["kind"] == "wrong":
        click.echo(f"task {event['number']}: the result of {short(event['node'])} was outvoted")
    elif event["kind"] == "service":
        click.echo(f"the service runs at {short(event['node'])}")
    elif event["kind"] == "delivery":
        what = f"delivery of {_count(event['files'], 'file')} by {short(event['node'])}"
        click.echo(f"{what}: {plain(event['reason'])}")
    elif event["kind"] == "grant":
        click.echo(f"what its nodes were granted ends with its deadline: {plain(event['reason'])}")
    elif event["kind"] == "withdraw":
        click.echo(f"the service's URL still stands, and leads nowhere: {plain(event['reason'])}")
    elif event["kind"] == "end":
        click.echo(f"ended: {plain(event['reason'])}")


def show_nodes(data: list[dict[str, Any]]) -> None:
    rows = [
        [
            row["place"] or "", short(row["node"]), amount(row["price"]) if "price" in row else "",
            " ".join(row.get("executors", [])), _percent(row["reliability_ppm"] // 100) if "price" in row else "",
            "; ".join([row["reason"] or "offers", *row.get("problems", [])]),
        ]
        for row in data
    ]  # fmt: skip
    print_table(["RANK", "NODE", "PRICE", "EXECUTORS", "RELIABLE", "WHY"], rows)
    offering = [row for row in data if "price" in row]
    if offering:
        click.echo()
        figures = [_figure_row(row["node"], figure) for row in offering for figure in row["figures"]]
        print_table(["NODE", "FIGURE", "ADVERTISED", "MEASURED", "SHORT BY", "COUNTS AS"], figures)
    if cost := sum(int(row["cost"]) for row in offering):
        click.echo(f"\nmeasuring cost {format_amount(cost)} credits")
    if due := [int(row["measuring"]) for row in offering if int(row["measuring"])]:
        click.echo(
            f"\n{len(due)} not measured for a day: `freehold job nodes --measure` does, "
            f"for at most {format_amount(sum(due))} credits"
        )


def _figure_row(node: str, figure: dict[str, Any]) -> list[object]:
    name, measured = figure["name"], figure["measured"]
    shown = "not yet" if measured is None else _rate(name, measured) if measured else "failed"
    short_by = _percent(figure["deviation"]) if figure["deviation"] else ""
    return [short(node), name, _rate(name, figure["advertised"]), shown, short_by, _rate(name, figure["counts"])]


def _rate(name: str, rate: int) -> str:
    if not rate:
        return "nothing"
    return f"{rate // 10**6:,} M/s" if name == "speed.fuel" else f"{format_size(rate)}/s"


def _percent(basis_points: int) -> str:
    return f"{basis_points // 100} %"


def show_released(data: dict[str, Any]) -> None:
    click.echo(f"closed {_count(len(data['leases']), 'lease')} for compute")
    if data["leases"]:
        click.echo(f"  their credits can be reserved again {data['lock_release']} reports later")


def show_results(data: dict[str, Any]) -> None:
    """What the last steps printed, as it is: on stdout, and nothing besides."""
    for text in data["output"]:
        click.echo(text, nl=False)
