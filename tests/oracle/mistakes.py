"""Members that are wrong in one place each: what the checks have to catch."""

from __future__ import annotations

from typing import Any

from freehold.oracle.effects import Effect, Persist
from freehold.oracle.gathering import Gathering
from freehold.oracle.member import Member
from freehold.oracle.records import HELD, MANIFEST, OBSERVATION, SEAL, VIEW, VOTE
from freehold.oracle.round import Round
from freehold.protocol.messages import Certificate, Manifest, Report
from tests.oracle.adversary import HonestHost


class SendsFirst(HonestHost):
    """Writes after it has sent."""

    def outgoing(self, effects: list[Effect]) -> list[Effect]:
        return sorted(super().outgoing(effects), key=lambda effect: isinstance(effect, Persist))


def that_forgets(*kinds: str) -> type[HonestHost]:
    class Forgets(HonestHost):
        """Finds nothing of these kinds on its disk."""

        def start(self) -> None:
            if self.member is None:
                self.disk = {place: record for place, record in self.disk.items() if place[0] not in kinds}
            super().start()

    return Forgets


def leave_out(self: Gathering, epoch: int, right: Any = Gathering.observable) -> tuple[Certificate, ...]:
    kept: tuple[Certificate, ...] = right(self, epoch)[1:]
    return kept


def release_at_once(self: Round, view: int, right: Any = Round._release) -> None:
    needed, self.quorum = self.quorum, 1
    right(self, view)
    self.quorum = needed


def seal_again(self: Round, manifest: Manifest, report: Report, right: Any = Round.seal) -> None:
    self.said.votes.pop(manifest.view, None)
    right(self, manifest, report)


def take_any(self: Round, manifest: Manifest) -> None:
    if manifest.view <= self.said.view:
        self.checks.check_manifest(manifest, self.anchor_hash)
        self.manifests[manifest.view] = manifest


def settle_again(self: Round) -> list[Manifest]:
    return list(self.manifests.values())


def sign_closed(self: Member) -> int:
    return max(self.chain.epoch, self.committed.epoch + 1)


# What is wrong, the host and the patches that make it so, and the first seed to try.
MISTAKES: dict[str, tuple[type[HonestHost], list[tuple[type, str, Any]], int]] = {
    "sends before it writes": (SendsFirst, [], 0),
    "forgets its votes": (that_forgets(VOTE, SEAL, MANIFEST), [], 0),
    "forgets its observation": (that_forgets(OBSERVATION), [], 0),
    "forgets what it holds": (that_forgets(HELD), [], 0),
    "forgets its view": (that_forgets(VIEW), [], 6),
    "leaves a certificate out": (HonestHost, [(Gathering, "observable", leave_out)], 0),
    "votes before Q have sealed": (HonestHost, [(Round, "_release", release_at_once)], 0),
    "votes twice": (
        HonestHost,
        [(Round, "seal", seal_again), (Round, "_on_manifest", take_any), (Round, "to_settle", settle_again)],
        0,
    ),
    "acknowledges for a closed epoch": (HonestHost, [(Member, "epoch", property(sign_closed))], 0),
}
