"""Replay: a bundle alone leads to its report; any changed byte is found and named."""

from __future__ import annotations

import dataclasses
import io
import random
import zipfile
from typing import Any

import msgspec
import pytest

from freehold.protocol.batches import make_batch
from freehold.protocol.bundle import Bundle, check_start, decode_bundle, encode_bundle, replay
from freehold.protocol.errors import ReplayMismatch
from freehold.services.judging import JUDGES
from freehold.services.storage.terms import PROOF
from tests.protocol.world import DOMAIN, MEMBERS, World, busy_world, key


@pytest.fixture(scope="module")
def world() -> World:
    world = busy_world()
    world.settle(world.proofs())
    return world


def test_every_epoch_replays_from_its_bundle_alone(world: World) -> None:
    for bundle, settlement in zip(world.bundles, world.settlements, strict=True):
        again = replay(encode_bundle(bundle), JUDGES)
        assert again.report == settlement.report
        assert again.state.root() == settlement.state.root()
        assert again.payments == settlement.payments


def test_a_bundle_has_one_spelling(world: World) -> None:
    data = encode_bundle(world.bundles[-1])
    assert encode_bundle(decode_bundle(data, JUDGES)) == data


def test_any_changed_byte_is_found_and_named(world: World) -> None:
    data = encode_bundle(world.bundles[-1])
    names = {"container"} | set(zipfile.ZipFile(io.BytesIO(data)).namelist())
    places = random.Random(5).sample(range(len(data)), 400)
    for place in [*range(80), *places, *range(len(data) - 80, len(data))]:
        changed = bytearray(data)
        changed[place] ^= 0x41
        with pytest.raises(ReplayMismatch) as caught:
            replay(bytes(changed), JUDGES)
        assert caught.value.details["first"] in names or place < 80 or "container" not in str(caught.value)


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -30])
def test_a_truncated_bundle_is_found(world: World, cut: int) -> None:
    with pytest.raises(ReplayMismatch):
        replay(encode_bundle(world.bundles[-1])[:cut], JUDGES)


def _report(bundle: Bundle, **change: Any) -> Bundle:
    report = msgspec.structs.replace(bundle.report, **change)
    return bundle._replace(report=report, signatures=b"".join(m.sign(report, DOMAIN) for m in MEMBERS[:3]))


@pytest.mark.parametrize(
    ("lie", "first"),
    [
        (lambda b: _report(b, tokens_earned=b.report.tokens_earned + 1), "report.tokens_earned"),
        (lambda b: _report(b, verdicts_root=b.report.state_root), "report.verdicts_root"),
        (lambda b: _report(b, price=1), "report.price"),
        (lambda b: b._replace(signers=0b11, signatures=b.signatures[:130]), "report.json"),
        (lambda b: b._replace(signers=0b1011), "report.json"),
        (lambda b: b._replace(previous=msgspec.structs.replace(b.previous, price=5)), "anchor.json"),
        (lambda b: b._replace(state=world_state(b)), "state"),
        (lambda b: b._replace(anchor=msgspec.structs.replace(b.anchor, anchor_time=5)), "manifest.json"),
    ],
)
def test_a_consistent_lie_is_found_by_recomputing(world: World, lie: Any, first: str) -> None:
    with pytest.raises(ReplayMismatch) as caught:
        replay(encode_bundle(lie(world.bundles[-1])), JUDGES)
    assert caught.value.details["first"] == first


def test_the_first_epoch_starts_from_nothing(world: World) -> None:
    bundle = world.bundles[0]
    later = world.bundles[-1].state
    for name in ("clients", "operators", "locks", "members"):
        state = dataclasses.replace(bundle.state, **{name: getattr(later, name)})
        with pytest.raises(ReplayMismatch) as caught:
            check_start(bundle._replace(state=state))
        assert caught.value.details["first"] == "previous.json"


def test_rows_that_their_sender_may_not_send_do_not_count_in_a_replay(world: World) -> None:
    bundle = world.bundles[-1]
    proofs = next(batch for batch in bundle.batches.values() if batch.header.kind == PROOF)
    strange = make_batch(PROOF, proofs.table, key(666), DOMAIN)
    manifest = world.manifest(bundle.anchor, [strange], (1, 1, 1))
    lie = bundle._replace(manifest=manifest, batches={strange.subject: strange})
    with pytest.raises(ReplayMismatch, match="must be sent by its node"):
        decode_bundle(encode_bundle(lie), JUDGES)


def world_state(bundle: Bundle) -> Any:
    """The state with one total a little higher, as a member that pays itself would like it."""
    state = bundle.state
    clients = {k: msgspec.structs.replace(c, spent=c.spent + 1) for k, c in state.clients.items()}
    return type(state)(**{f: getattr(state, f) for f in state.__dataclass_fields__} | {"clients": clients})
