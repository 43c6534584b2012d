"""Twenty epochs with real processes, one of which is faulty by turns: stopped, killed and started again, without room
on its disk, or lying to the others with its real key.

Which, when, and who lies follows from a seed (FREEHOLD_SEED); how the processes meet does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import urllib.request
from collections.abc import Callable

import pytest

from freehold.local.accounts import derive_accounts
from freehold.protocol.bundle import replay
from freehold.protocol.units import Hash
from freehold.services.judging import JUDGES
from tests.end_to_end.network import RunningNetwork, get_json, wait_for
from tests.end_to_end.test_quorum import equivocations, lying_member, signed_headers

pytestmark = pytest.mark.timeout(240)

SETTINGS = {"block_interval": 0.1, "poll": 0.05, "view_timeout": 0.5}
EPOCHS = 20
SEED = int(os.environ.get("FREEHOLD_SEED", "1"))
LITTLE = 2**20  # bytes of an allowance that is used up from the start


class Faulty:
    """One member that is at fault until `heal`."""

    def __init__(self, network: RunningNetwork) -> None:
        self.network = network

    def _start(self, name: str, **changes: int) -> None:
        """With its configuration, changed for this run of it."""
        path = self.network.local / "processes" / name / "config.json"
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | changes))
        try:
            self.network.restart(name)
        finally:
            path.write_text(before)

    def stopped(self, name: str) -> Callable[[], None]:
        """SIGSTOP: nothing is answered, and connections hang."""
        pid = self.network.pid(name)
        os.kill(pid, signal.SIGSTOP)
        return lambda: os.kill(pid, signal.SIGCONT)

    def killed(self, name: str) -> Callable[[], None]:
        """SIGKILL, whatever it is doing, and a start at once."""
        self.network.kill(name)
        self._start(name)
        return lambda: None

    def full(self, name: str) -> Callable[[], None]:
        """Started again with an allowance that is used up."""
        self.network.kill(name)
        self._start(name, allowance=LITTLE)
        return lambda: self.killed(name)()

    def lying(self, name: str) -> Callable[[], None]:
        """Its process is gone; whoever has its key lies to the others until the fault ends."""
        self.network.kill(name)
        liar = int(name.removeprefix("member-"))
        others = [url for other, url in self.network.urls().items() if other.startswith("member") and other != name]
        for lie in lying_member(self.network, liar):
            for url in others:
                headers = signed_headers(self.network, url, lie, liar)
                request = urllib.request.Request(f"{url}/v1/messages", lie, headers)
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(request, timeout=10).close()
        return lambda: self._start(name)


def test_twenty_epochs_while_one_member_is_faulty_by_turns(network: RunningNetwork) -> None:
    draw, faulty = random.Random(SEED), Faulty(network)
    members = [name for name in network.urls() if name.startswith("member")]
    liar = draw.choice(members)
    kinds = [faulty.stopped, faulty.killed, faulty.full, faulty.lying]
    first = last = network.reported()
    turns: list[str] = []
    while last < first + EPOCHS:
        kind = kinds[len(turns) % len(kinds)] if len(turns) < len(kinds) else draw.choice(kinds)
        name = liar if kind == faulty.lying else draw.choice(members)
        turns.append(f"{name} {kind.__name__}")
        heal = kind(name)
        try:
            last = network.wait_epochs(2)
        except AssertionError as error:
            error.add_note(f"FREEHOLD_SEED={SEED}, {turns}")
            raise
        finally:
            heal()
        wait_for(lambda name=name: is_level(network, name), f"{name} is level again: {turns}")
    print(f"{last - first} epochs: {', '.join(turns)}")
    check_bundles(network, first + 1, last)
    check_accused(network, members.index(liar))
    assert network.ask("epoch", "replay", str(last))["on_chain"]


def is_level(network: RunningNetwork, name: str) -> bool:
    """Whether this member has committed what the others have, up to one epoch."""
    answer = get_json(f"{network.urls()[name]}/v1/status")
    own = int(answer["last_report"]["epoch"]) if answer and answer["last_report"] else 0
    return own + 1 >= network.reported()


def check_bundles(network: RunningNetwork, first: int, last: int) -> None:
    """Every epoch's bundle replays, and each report names the one before it: the last one's is compared by the command
    line with the chain's."""
    urls = [url for name, url in network.urls().items() if name.startswith("member")]
    before: Hash | None = None
    for epoch in range(first, last + 1):
        report = replay(fetch_bundle(urls, epoch), JUDGES).report
        assert report.epoch == epoch
        assert before in (None, report.previous)
        before = report.struct_hash()


def fetch_bundle(urls: list[str], epoch: int) -> bytes:
    """From the first member that has it: one that was short of room may not."""
    for url in urls:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/v1/bundles/{epoch}", timeout=10) as response:
            data: bytes = response.read()
            return data
    raise AssertionError(f"nobody has the bundle of epoch {epoch}")


def check_accused(network: RunningNetwork, liar: int) -> None:
    """Nobody but the liar was ever shown to have signed twice."""
    accused = {log["topics"][1][-40:] for log in equivocations(network)}
    address = str(derive_accounts(4, 0).members[liar].address).lower().removeprefix("0x")
    assert accused <= {address}, f"honest members stand accused: {accused}"
