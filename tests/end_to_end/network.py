"""A real network of processes for tests: `freehold up` in a session of its own, from a snapshot of the deployed chain.

Epochs are ten chain seconds, and the chain's blocks come five a second with one chain second each: two seconds an
epoch, by blocks. Every wait has a condition and one deadline, scaled by FREEHOLD_TEST_SLOW.

Invariant: after `stop` no process, port or pid file of the network remains; `stop` asserts it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tests.conftest import SLOW

T = TypeVar("T")

DEADLINE = 60.0 * SLOW
POLL = 0.05
QUICK: dict[str, Any] = {
    "epoch_length": 10,
    "answering_window": 4,
    "dispute_window": 20,
    "block_interval": 0.2,
    "step": 1,
    "view_timeout": 1.0,
    "poll": 0.1,
    "restart": False,
}


ANY_CERTIFICATE = ssl.create_default_context()  # for looking on, which nothing depends on
ANY_CERTIFICATE.check_hostname, ANY_CERTIFICATE.verify_mode = False, ssl.CERT_NONE


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    stdout: str
    stderr: str

    @property
    def data(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.stdout)["data"]

    @property
    def error(self) -> dict[str, Any]:
        assert self.code == 1, self
        (error,) = json.loads(self.stdout)["errors"]
        return dict(error)


def wait_for(look: Callable[[], T | None], what: str, deadline: float = DEADLINE) -> T:
    """The first answer of `look` that is neither None nor False."""
    until = time.monotonic() + deadline
    while True:
        answer = look()
        if answer is not None and answer is not False:
            return answer
        assert time.monotonic() < until, f"not within {deadline:.0f} s: {what}"
        threading.Event().wait(POLL)


def get_json(url: str) -> Any:
    """The `data` of a GET's envelope; None where nobody answers, or with an error."""
    try:
        with urllib.request.urlopen(url, timeout=2, context=ANY_CERTIFICATE) as response:
            return json.load(response)["data"]
    except (urllib.error.URLError, OSError, ValueError, KeyError):
        return None


class RunningNetwork:
    """`freehold up` on one home directory. `settings` are for a new network only."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.home = home
        self.local = home / "local"
        self.info: dict[str, Any] = {}
        self._settings = home / "settings.json"
        self._process: subprocess.Popen[str] | None = None
        self._restarted: dict[str, subprocess.Popen[str]] = {}
        home.mkdir(parents=True, exist_ok=True)
        self._settings.write_text(json.dumps(QUICK | settings))

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FREEHOLD_")}
        anvil = {name: os.environ[name] for name in ("FREEHOLD_ANVIL",) if name in os.environ}
        own = {"FREEHOLD_HOME": str(self.home), "FREEHOLD_CONFIG": str(self.home / "config.toml")}
        return kept | anvil | own | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}

    @property
    def supervisor(self) -> subprocess.Popen[str]:
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Start, and return when the network says that it is up."""
        command = [sys.executable, "-m", "freehold.cli.main", "up", "--json", "--settings", str(self._settings)]
        with (self.home / "up.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                text=True, start_new_session=True,
            )  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self.log("up")
        envelope = json.loads(line)
        assert envelope["success"], envelope
        self.info = envelope["data"]

    def stop(self) -> None:
        """Ctrl-C, and nothing remains."""
        if self._process is None:
            return
        for own in self._restarted.values():
            own.terminate()
            own.communicate(timeout=DEADLINE)
        session, process = self._process.pid, self._process
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        code = process.wait(timeout=DEADLINE)
        self._forget()
        left = processes_of(session)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not left, f"processes remain: {left}"
        assert code == 0, self.log("up")
        assert not [p.name for p in (self.local / "logs").glob("*.pid")]
        assert not (self.local / "supervisor.json").exists()
        for url in self.urls().values():
            assert not is_listening(url), url

    def kill_everything(self) -> None:
        """SIGKILL to every process at once: what a power cut does to them."""
        session = self.supervisor.pid
        for pid in processes_of(session):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not processes_of(session), "every process is gone")
        self._forget()

    def kill_supervisor(self) -> None:
        """SIGKILL to the supervisor alone; what it had started is for the next start to end."""
        self.supervisor.kill()
        self._forget()

    def _forget(self) -> None:
        process, self._process = self.supervisor, None
        process.wait(timeout=DEADLINE)
        if process.stdout is not None:
            process.stdout.close()

    def run(self, *arguments: str, stdin: str = "", timeout: float = DEADLINE, **environment: str) -> Outcome:
        """The real command line, as another process."""
        command = [sys.executable, "-m", "freehold.cli.main", *arguments]
        done = subprocess.run(
            command, env=self.environment | environment, input=stdin, capture_output=True, text=True,
            timeout=timeout, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return Outcome(done.returncode, done.stdout, done.stderr)

    def ask(self, *arguments: str, **environment: str) -> Any:
        """The data of a command that must succeed."""
        return self.run(*arguments, "--json", **environment).data

    def launch(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """A command that is left running."""
        command = [sys.executable, "-m", "freehold.cli.main", *arguments]
        return subprocess.Popen(
            command, env=self.environment | environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def urls(self) -> dict[str, str]:
        """Where each program listens, by name."""
        return {program["name"]: program["url"] for program in self.info["programs"]}

    def pid(self, name: str) -> int:
        """The process id of a member or node."""
        if name in self._restarted:
            return self._restarted[name].pid
        return int(json.loads((self.local / "logs" / f"{name}.pid").read_text())["pid"])

    def signal(self, name: str, number: int) -> None:
        os.kill(self.pid(name), number)

    def kill(self, name: str) -> None:
        """SIGKILL to one program, and it is gone."""
        self.signal(name, signal.SIGKILL)
        if name in self._restarted:
            self._restarted.pop(name).communicate(timeout=DEADLINE)
        wait_for(lambda: not is_listening(self.urls()[name]), f"{name} is gone")

    def restart(self, name: str) -> None:
        """Start a program again as an operator would, by `freehold oracle run` or `freehold node run`, where it was."""
        config = self.local / "processes" / name / "config.json"
        port = int(self.urls()[name].rpartition(":")[2])
        config.write_text(json.dumps(json.loads(config.read_text()) | {"port": port}))
        kind = "oracle" if name.startswith("member") else "node"
        self._restarted[name] = self.launch(kind, "run", "--config", str(config))
        wait_for(lambda: get_json(f"{self.urls()[name]}/readyz"), f"{name} is back")

    def log(self, name: str) -> str:
        """The end of a program's log; `up` is the supervisor's."""
        path = self.home / "up.log" if name == "up" else self.local / "logs" / f"{name}.log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def reported(self) -> int:
        """The last epoch that any member has committed."""
        members = [url for name, url in self.urls().items() if name.startswith("member")]
        answers = [answer for url in members if (answer := get_json(f"{url}/v1/status"))]
        return max((int(answer["last_report"]["epoch"]) for answer in answers if answer["last_report"]), default=0)

    def stored_bytes(self) -> int:
        """What is in all nodes' directories, finished or not."""
        total = 0
        for path in (self.local / "processes").glob("operator-*/data/storage/**/*"):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size if path.is_file() else 0
        return total

    def rpc(self, method: str, *parameters: Any) -> Any:
        """The result of a JSON-RPC call to the local chain."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}).encode()
        request = urllib.request.Request(self.info["rpc_url"], body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)["result"]

    def give_gas(self, address: str) -> None:
        """Coins for transactions, as a faucet would."""
        self.rpc("anvil_setBalance", address, hex(10**18))

    def wait_epochs(self, count: int, deadline: float = DEADLINE) -> int:
        """Wait until `count` more epochs are reported; the last one's number."""
        wanted = self.reported() + count
        wait_for(lambda: self.reported() >= wanted, f"epoch {wanted} is reported", deadline)
        return self.reported()


def processes_of(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] not in ("Z", "X"):
            found.append(int(path.parent.name))
    return found


def is_listening(url: str) -> bool:
    host, port = url.rpartition("//")[2].split(":")
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, int(port))) == 0


def forget_addresses(local: Path) -> None:
    """A copy's programs take ports of their own: at the original's, another copy with the same keys may listen."""
    for path in (local / "processes").glob("*/port.json"):
        path.unlink()
    file = local / "network.json"
    network = json.loads(file.read_text())
    file.write_text(json.dumps(network | {"members": [member | {"url": ""} for member in network["members"]]}))


@contextlib.contextmanager
def running(home: Path, snapshot: Path | None = None, **settings: Any) -> Iterator[RunningNetwork]:
    """A network, from a snapshot if one is given; ended however the test ends."""
    network = RunningNetwork(home, **settings)
    if snapshot is not None:
        shutil.copytree(snapshot, network.local)
        (network.local / "settings.json").unlink()
        forget_addresses(network.local)
    try:
        network.start()
        yield network
    except BaseException:
        for name in ("up", "nursery", "member-1", "operator-1"):
            print(f"--- {name}\n{network.log(name)}")
        raise
    finally:
        network.stop()
