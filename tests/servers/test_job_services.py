"""A service over a real network: up behind the gateway, paid as it runs, moved when its node dies, and ended."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end import jobs
from tests.end_to_end.jobs import TIMEOUT, request, wait_for_job
from tests.end_to_end.network import RunningNetwork, running, wait_for
from tests.servers.boxes import MISSING

PRICE = 100 * 10**18  # credits (base units) for an hour of a local node's processor
SLICE = 6  # seconds that one order pays for
SPEC = f"""
name: hello
deadline: 1 h
most: 50 credits
command:
  - python3
  - -c
  - |
    import http.server, os, socket

    class Hello(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.path.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Hello).serve_forever()
service: {{health: /, every: 1 s}}
resources: {{memory: 256 MiB, work: {SLICE} s}}
"""

pytestmark = [pytest.mark.timeout(600), pytest.mark.soak]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNetwork]:
    """A local network, whose nodes run native services."""
    if shutil.which("bwrap") is None:
        pytest.skip(MISSING)
    with running(tmp_path_factory.mktemp("network"), **jobs.SETTINGS) as started:
        wait_for(lambda: started.reported() >= 1, "credits count")
        yield started


def test_a_service_keeps_its_url_when_its_node_dies_and_ends_when_it_is_stopped(
    network: RunningNetwork, tmp_path: Path
) -> None:
    spec = tmp_path / "hello.yaml"
    spec.write_text(SPEC)
    network.ask("job", "run", "--detach", str(spec))
    url = wait_for(lambda: _url(network), "the service is healthy", TIMEOUT)
    assert wait_for(lambda: _answer(url), "it answers through the gateway") == b"/some/path?a=b"

    first = _places(network)
    wait_for(lambda: _cost(network)["orders"] > 3, "further orders extend it", TIMEOUT)
    assert _answer(url) == b"/some/path?a=b"
    assert _places(network) == first  # published once, however many orders pay for it
    # An order is billed for the time that it paid for, and that is all of its slice before the next one's turn comes.
    cost = _cost(network)
    (node,) = {place["node"] for place in first}
    assert int(cost["nodes"][node]) % -(-SLICE * PRICE // 3600) == 0
    assert 0 < int(cost["spent"]) <= int(cost["most"])

    network.kill(_name_of(network, node))
    assert wait_for(lambda: _answer(url), "it answers again, where it has moved", TIMEOUT) == b"/some/path?a=b"
    assert _url(network) == url
    assert _places(network)[-1]["node"] != node

    network.ask("job", "stop", "hello")
    wait_for_job(network, "hello", "stopped")
    wait_for(lambda: request(url)[0] == 404, "its URL leads nowhere")
    cost = _cost(network)
    assert cost["running"] == "0"
    network.wait_epochs(2)
    assert _cost(network)["spent"] == cost["spent"]  # nothing runs on


def _url(network: RunningNetwork) -> str | None:
    found = network.run("job", "open", "hello", "--json")
    return str(found.data["url"]) if found.code == 0 else None


def _answer(url: str) -> bytes | None:
    status, body = request(f"{url}some/path?a=b")
    return body if status == 200 else None


def _places(network: RunningNetwork) -> list[dict[str, Any]]:
    return [event for event in network.ask("job", "why", "hello")["events"] if event["kind"] == "service"]


def _cost(network: RunningNetwork) -> dict[str, Any]:
    return dict(network.ask("job", "cost", "hello"))


def _name_of(network: RunningNetwork, node: str) -> str:
    return next(str(row["name"]) for row in network.ask("operator", "list")["operators"] if row["node"] == node)
