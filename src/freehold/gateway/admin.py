"""What the gateway says of itself, below `/-/`, where no bucket can be: healthy, ready, in figures."""

from __future__ import annotations

from aiohttp import web

from freehold.gateway.app import Gateway
from freehold.gateway.expiry import Expiry
from freehold.net.server import failure, ok
from freehold.protocol.errors import NotFound


class Admin:
    """`/-/healthz` (live), `/-/readyz` (ready, else why not), `/-/metrics` (Prometheus text). `waits_for`: why not."""

    def __init__(self, gateway: Gateway, expiry: Expiry) -> None:
        self._gateway = gateway
        self._expiry = expiry
        self.waits_for = "starting"

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to one request below `/-/`."""
        match request.raw_path.partition("?")[0]:
            case "/-/healthz":
                return ok({"live": True})
            case "/-/readyz":
                data = {"ready": not self.waits_for, "why": self.waits_for, "region": self._gateway.region}
                return ok(data) if data["ready"] else ok(data, 503)
            case "/-/metrics":
                text = write_metrics(self._gateway, self._expiry)
                return web.Response(text=text, content_type="text/plain", charset="utf-8")
        return failure(NotFound("there is nothing here: buckets' names do not begin with '-'"))


def write_metrics(gateway: Gateway, expiry: Expiry) -> str:
    """The figures, as Prometheus reads them."""
    lines = [
        "# TYPE freehold_gateway_requests_running gauge",
        f"freehold_gateway_requests_running {gateway.running}",
        "# TYPE freehold_gateway_expired_total counter",
        f"freehold_gateway_expired_total {expiry.removed}",
        "# TYPE freehold_gateway_requests_total counter",
    ]
    for (operation, status), count in sorted(gateway.answered.items()):
        labels = f'operation="{operation or "unknown"}",status="{status}"'
        lines.append(f"freehold_gateway_requests_total{{{labels}}} {count}")
    return "\n".join(lines) + "\n"
