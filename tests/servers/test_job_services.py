"""A service over a real network: up behind the gateway, paid as it runs, moved when its node dies, and ended.

The process that ordered it is killed as soon as it is up: all the rest the gateway does.
"""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.end_to_end import jobs
from tests.end_to_end.jobs import TIMEOUT, read_figure, request
from tests.end_to_end.network import DEADLINE, RunningNetwork, get_json, running, wait_for
from tests.servers.boxes import MISSING

PRICE = 100 * 10**18  # credits (base units) for an hour of a local node's processor
SLICE = 4  # seconds that one order pays for
VIEW = 10  # seconds of a leader: no member is killed here, and on a busy machine views of a second come to nothing
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

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNetwork]:
    """A local network, whose nodes run native services."""
    if shutil.which("bwrap") is None:
        pytest.skip(MISSING)
    with running(tmp_path_factory.mktemp("network"), **jobs.SETTINGS, view_timeout=VIEW) as started:
        wait_for(lambda: started.reported() >= 1, "credits count", TIMEOUT)
        yield started


def test_a_service_keeps_its_url_when_its_client_and_its_node_die_and_ends_when_it_is_stopped(
    network: RunningNetwork, tmp_path: Path
) -> None:
    spec = tmp_path / "hello.yaml"
    spec.write_text(SPEC)
    wait_for(lambda: all(_runs_services(url) for url in _nodes(network)), "every node offers services", TIMEOUT)
    client = network.launch("job", "run", str(spec))
    try:
        url, own = wait_for(lambda: _urls(network, client), "the service is healthy", TIMEOUT)
    finally:
        client.kill()  # from now on the gateway supervises it
        client.communicate()
    assert wait_for(lambda: _answer(url), "it answers through the gateway") == b"/some/path?a=b"
    _check_own_host(url, own)

    first = _places(network)
    (node,) = {place["node"] for place in first}
    name = _name_of(network, node)
    paid = partial(read_figure, network.urls()[name], "receipts_total")
    wait_for(lambda: paid() >= 3, "further orders extend it", TIMEOUT)  # two were there when its client died
    assert _answer(url) == b"/some/path?a=b"
    assert _places(network) == first  # published once, however many orders pay for it
    # An order is billed for the time that it paid for, and that is all of its slice before the next one's turn comes.
    cost = _cost(network)
    assert int(cost["nodes"][node]) % -(-SLICE * PRICE // 3600) == 0
    assert 0 < int(cost["spent"]) <= int(cost["most"])

    network.kill(name)
    assert wait_for(lambda: _answer(url), "it answers again, where it has moved", TIMEOUT) == b"/some/path?a=b"
    assert _urls(network) == (url, own)
    assert _places(network)[-1]["node"] != node

    assert network.ask("job", "stop", "hello")["phase"] == "stopped"
    wait_for(lambda: request(url)[0] == 404, "its URL leads nowhere")
    assert _cost(network)["running"] == "0"
    assert not any(read_figure(url, "running") + read_figure(url, "waiting") for url in _nodes(network))


def _nodes(network: RunningNetwork) -> list[str]:
    return [url for name, url in network.urls().items() if name.startswith("operator")]


def _runs_services(url: str) -> bool:
    found = get_json(f"{url}/v1/compute/properties")
    return found is not None and bool(found["properties"].get("executor.service"))


def _urls(network: RunningNetwork, client: subprocess.Popen[str] | None = None) -> tuple[str, str] | None:
    """At the gateway's host, and at its own. `client`: who must not have given up."""
    if client is not None and client.poll() is not None:
        raise AssertionError(client.communicate())
    found = network.run("job", "open", "hello", "--json")
    return (str(found.data["plain_url"]), str(found.data["url"])) if found.code == 0 else None


def _answer(url: str) -> bytes | None:
    status, body = request(f"{url}some/path?a=b")
    return body if status == 200 else None


def _check_own_host(url: str, own: str) -> None:
    """Names below localhost are this machine's, whether its resolver knows or not."""
    gateway, host = urlsplit(url), urlsplit(own)
    assert (host.hostname or "").endswith(".localhost")
    asked = urllib.request.Request(f"http://{gateway.netloc}/own?x", headers={"Host": host.netloc})
    with urllib.request.urlopen(asked, timeout=DEADLINE) as answer:
        assert answer.read() == b"/own?x"


def _places(network: RunningNetwork) -> list[dict[str, Any]]:
    return [event for event in network.ask("job", "why", "hello")["events"] if event["kind"] == "service"]


def _cost(network: RunningNetwork) -> dict[str, Any]:
    return dict(network.ask("job", "cost", "hello"))


def _name_of(network: RunningNetwork, node: str) -> str:
    return next(str(row["name"]) for row in network.ask("operator", "list")["operators"] if row["node"] == node)
