"""How a member is: what /v1/status, /readyz and /metrics say."""

from __future__ import annotations

from typing import Any

from freehold.oracle.chain import Feed, Submitter
from freehold.oracle.member import Member
from freehold.oracle.peers import Peers
from freehold.oracle.round import LATE, PROVEN, UNPROVEN
from freehold.oracle.store import Store

KINDS_OF_WORK = (PROVEN, LATE, UNPROVEN)  # of the votes seen since the start, what their seals said
BEHIND = 8  # final blocks that a member may be behind and still call itself ready


class Status:
    """Counters, and views of what runs."""

    def __init__(self, member: Member, feed: Feed, peers: Peers, store: Store, submitter: Submitter) -> None:
        self._member, self._feed, self._peers = member, feed, peers
        self._store, self._submitter = store, submitter
        self.head = 0
        self.batches = 0
        self.certificates = 0
        self.messages = 0

    def ready(self) -> tuple[bool, str]:
        """Whether this member takes part, and if not why not."""
        member = self._member
        if member.fault:
            return False, f"STOPPED: {member.fault}"
        if self._feed.failure:
            return False, self._feed.failure
        behind = self.head - member.chain.block.number
        if self.head == 0 or behind > BEHIND:
            return False, f"reading the chain: {behind} final blocks behind"
        if member.contested:
            return False, (
                f"epoch {member.contested} is contested: the chain took a report that does not follow from its "
                "manifest; nothing is signed until it is revoked"
            )
        if not member.is_level:
            return False, f"epoch {member.committed.epoch} is committed here, the chain has {member.chain.epoch - 1}"
        return True, ""

    def to_json(self) -> dict[str, Any]:
        """For people and for `freehold status`."""
        member = self._member
        is_ready, why = self.ready()
        report = member.committed.report
        return {
            "member": str(member.setup.key.address),
            "epoch": member.epoch,
            "attempt": member.chain.attempt,
            "step": member.step,
            "contested": member.contested,
            "fault": member.fault,
            "frozen": member.chain.frozen_at is not None,
            "members": [str(one) for one in member.chain.members_of(member.chain.epoch)],
            "view": member.round.said.view if member.round else 0,
            "last_report": report.to_json() if report else None,
            "final_block": member.chain.block.number,
            "level": member.is_level,
            "ready": is_ready,
            "why": why,
            "price": str(member.price),
            "held": len(member.gathering.held),
            "peers": {str(peer): self._peers.failing.get(peer, "") for peer in member.peers},
            "submission": self._submitter.failure,
            "equivocations": member.equivocations,
            "work": {str(peer): {kind: member.work[peer, kind] for kind in KINDS_OF_WORK} for peer in member.peers},
        }

    def metrics(self) -> str:
        """Prometheus text."""
        member = self._member
        gauges = {
            "epoch_open": member.epoch,
            "epoch_committed": member.committed.epoch,
            "final_block": member.chain.block.number,
            "view": member.round.said.view if member.round else 0,
            "ready": int(self.ready()[0]),
            "batches_kept": len(member.gathering.batches),
            "certificates_held": len(member.gathering.held),
            "peers_failing": len(self._peers.failing),
            "blobs_bytes": self._store.used_bytes,
            "equivocations": len(member.equivocations),
            "contested": int(bool(member.contested)),
            "stopped": int(bool(member.fault)),
            "votes_unproven": sum(count for (_, kind), count in member.work.items() if kind == UNPROVEN),
        }
        counters = {
            "batches_received_total": self.batches,
            "certificates_received_total": self.certificates,
            "messages_received_total": self.messages,
            "reports_submitted_total": self._submitter.submitted,
        }
        lines = []
        for kind, values in (("gauge", gauges), ("counter", counters)):
            for name, value in values.items():
                lines += [f"# TYPE freehold_oracle_{name} {kind}", f"freehold_oracle_{name} {value}"]
        return "\n".join(lines) + "\n"
