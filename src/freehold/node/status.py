"""Whether the node takes part, why not, and its figures."""

from __future__ import annotations

from collections.abc import Mapping

from freehold.node.epochs import EpochLoop
from freehold.protocol.units import Address
from freehold.services.seam import HostedProvider


class Status:
    """What /readyz and /metrics say of one node."""

    def __init__(self, node: Address) -> None:
        self._node = node
        self._waiting = "the node is starting"
        self._loop: EpochLoop | None = None
        self._providers: Mapping[str, HostedProvider] = {}
        self.book: Mapping[str, int] = {}

    def watch(self, loop: EpochLoop, providers: Mapping[str, HostedProvider]) -> None:
        """What is to be reported on."""
        self._loop, self._providers = loop, providers
        self._waiting = "the node is not registered yet"

    def wait_for(self, reason: str) -> None:
        """The registration is held up."""
        self._waiting = f"not registered: {reason}"

    def registered(self) -> None:
        """The chain knows the node at its endpoint, with its bond."""
        self._waiting = ""

    def ready(self) -> tuple[bool, str]:
        """Whether the node takes part in epochs, or what it waits for."""
        if self._waiting:
            return False, self._waiting
        if self._loop is not None and self._loop.failure is not None:
            return False, f"epoch {self._loop.epoch}: {self._loop.failure.message}"
        return True, ""

    def metrics(self) -> str:
        """Prometheus text."""
        figures = {"ready": int(self.ready()[0]), **self.book}
        if self._loop is not None:
            figures |= {"epoch": self._loop.epoch, "batches_sent_total": self._loop.batches_sent}
        for name, provider in self._providers.items():
            figures |= {f"{name}_{figure}": value for figure, value in provider.metrics().items()}
        lines = []
        for name, value in figures.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# TYPE freehold_node_{name} {kind}", f'freehold_node_{name}{{node="{self._node}"}} {value}']
        return "\n".join(lines) + "\n"
