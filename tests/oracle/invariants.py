"""What has to hold after a schedule, whatever it was."""

from __future__ import annotations

from collections import defaultdict

from freehold.oracle.hidden import compute_seal
from freehold.protocol.batches import RESERVATION
from freehold.protocol.certificates import faults, quorum
from freehold.protocol.epoch import certified_subjects, check_manifest
from freehold.protocol.messages import Observation, Seal, Vote
from freehold.protocol.state import genesis
from freehold.protocol.units import Hash
from freehold.protocol.verdicts import GOOD
from tests.oracle.fake_chain import START
from tests.oracle.simulation import DOMAIN, World, settle_once


def check(world: World) -> None:
    """Raises AssertionError with what is broken."""
    assert not world.signed, world.signed
    assert world.is_done(), f"stopped at {[h.member and h.member.committed.epoch for h in world.honest]}"
    assert all(not host.member.fault for host in world.honest if host.member)
    check_reports(world)
    check_signatures(world)
    check_observed(world)


def check_reports(world: World) -> None:
    """Each accepted report is what anyone who knows everything computes; each member committed exactly those."""
    block = START.block
    state = genesis(block.number, block.hash, block.time)
    manifests = {}
    held = {(request.subject, epoch) for request in world.requests for epoch in request.held}
    for i, accepted in enumerate(world.chain.accepted):
        report = accepted.accepted.report
        manifest = world.manifests[report.manifest]
        check_manifest(manifest, accepted.anchor, DOMAIN)
        subjects = certified_subjects(manifest)
        settlement = settle_once(state, manifest, {s: world.batches[s] for s in subjects}, accepted.anchor)
        assert settlement.report == report
        manifests[i + 1] = set(subjects)
        good = {v.subject for v in settlement.verdicts if v.kind == RESERVATION and v.reason == GOOD}
        for subject, epoch in held:
            if epoch != i + 1:
                continue
            assert any(subject in manifests[e] for e in range(1, epoch + 1)), f"{subject}, held in {epoch}, is missing"
            batch = world.batches[subject]
            if batch.header.kind == RESERVATION:
                assert batch.table.rows[0].row_hash() in good, f"the held reservation {subject} does not count"
        state = settlement.state
        for host in world.honest:
            if host.member.committed.epoch == i + 1:
                assert host.member.committed.state.root() == state.root()
            if i + 1 in host.bundles:
                assert host.bundles[i + 1].report == report


def check_signatures(world: World) -> None:
    """No honest member ever signed two observations over an anchor, or two seals or two reports of a view; and each
    vote opens the seal that was sent before it."""
    for host in world.honest:
        observed: dict[tuple[int, Hash], Hash] = {}
        sealed: dict[tuple[int, int, int], Hash] = {}
        voted: dict[tuple[int, int, int], Hash] = {}
        for message in host.said:
            if isinstance(message, Observation):
                over = (message.epoch, message.anchor)
                assert observed.setdefault(over, message.row_hash()) == message.row_hash()
            elif isinstance(message, Seal):
                place = (message.epoch, message.attempt, message.view)
                assert sealed.setdefault(place, message.seal) == message.seal, place
            elif isinstance(message, Vote) and message.member == host.key.address:
                report = message.report
                key = (report.epoch, report.attempt, report.view)
                assert voted.setdefault(key, report.struct_hash()) == report.struct_hash(), key
                assert sealed[key] == compute_seal(message.salt, report.struct_hash(), message.member), key
    assert not world.accused & {host.key.address for host in world.honest}


def check_observed(world: World) -> None:
    """No certificate that f+1 honest members held when they observed is left out."""
    holders: dict[tuple[int, Hash, Hash], set[int]] = defaultdict(set)
    for host in world.honest:
        for message in host.said:
            if isinstance(message, Observation):
                for certificate in message.certificates:
                    holders[message.epoch, message.anchor, certificate.subject].add(host.index)
    for accepted in world.chain.accepted:
        report, count = accepted.accepted.report, len(accepted.anchor.members)
        needed = count - quorum(count) + 1
        assert needed == faults(count) + 1
        subjects = set(certified_subjects(world.manifests[report.manifest]))
        for (epoch, anchor, subject), members in holders.items():
            if epoch == report.epoch and anchor == accepted.anchor.struct_hash() and len(members) >= needed:
                assert subject in subjects, f"{subject} is left out of epoch {epoch}"
