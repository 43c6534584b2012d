"""OpeningProof says of openings and manifests what the judge and the messages' hashes say of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import boa
import msgspec
import pytest
from eth_abi.abi import encode
from hypothesis import example, given
from hypothesis import strategies as st

from freehold.protocol import disputes
from freehold.protocol.disputes import (
    OPENING,
    Contradiction,
    answer_verdict,
    find_wrong_verdict,
    index_at,
    path_of,
)
from freehold.protocol.epoch import make_context
from freehold.protocol.errors import NotFound
from freehold.protocol.merkle import RowTree, verify_row
from freehold.protocol.messages import Report
from freehold.protocol.tables import Table
from freehold.protocol.typed import Message, fields_of, keccak
from freehold.protocol.units import Address, Hash
from freehold.protocol.verdicts import GOOD, SILENT, Verdict
from freehold.services.judging import JUDGES
from freehold.services.storage.proof import judge_proof
from freehold.services.storage.terms import Opening, StorageProof
from tests.contracts.budgets import budget
from tests.contracts.world import deployer_of, hexed, tuple_of
from tests.protocol.world import World, busy_world, key

SHARDS = (b"a" * 9000, b"b" * 4096, b"c", bytes(range(256)) * 80)


@pytest.fixture(scope="module")
def contract() -> Iterator[Any]:
    with boa.env.anchor():
        yield deployer_of("OpeningProof").deploy()


@cache
def settled() -> World:
    """Three epochs; in the last, three nodes answer four openings each."""
    world = busy_world(SHARDS)
    world.settle(world.proofs())
    return world


def pairs() -> list[tuple[Opening, StorageProof]]:
    """Openings of the last epoch with their answers."""
    world = settled()
    rows = [row for batch in world.bundles[-1].batches.values() for row in batch.table]
    by_draw = {(row.node, row.draw): row for row in rows if isinstance(row, StorageProof)}
    return [(o, by_draw[o.node, o.draw]) for o in openings()]


def openings(world: World | None = None) -> list[Opening]:
    bundle = (world or settled()).bundles[-1]
    judge = JUDGES["storage"]
    return list(judge.obligations(make_context(bundle.state, bundle.anchor, judge, bundle.domain, bundle.state.leases)))


def value_of(message: Message) -> tuple[Any, ...]:
    """A message as the contracts' ABI takes it, without its signatures."""
    values = [(f, getattr(message, f.name)) for f in fields_of(type(message)) if f.solidity != "signature"]
    return tuple(value_of(v) if f.item else hexed(v) if isinstance(v, Address) else v for f, v in values)


def changed(message: Any, **values: Any) -> Any:
    return msgspec.structs.replace(message, **values)


def claim(reason: str = SILENT, **changes: Any) -> tuple[Report, Table[Verdict]]:
    """The last epoch's report and verdicts, where the first good opening is called something else."""
    settlement = settled().settlements[-1]
    at = next(i for i, v in enumerate(settlement.verdicts) if v.reason == GOOD and v.kind == "storage.proof")
    rows = list(settlement.verdicts)
    rows[at] = changed(rows[at], reason=reason, measure=0)
    verdicts = Table.of(Verdict, rows)
    return changed(settlement.report, verdicts_root=verdicts.root, **changes), verdicts


def find(verdicts: Table[Verdict], world: World | None = None) -> Contradiction:
    world = world or settled()
    found = find_wrong_verdict(verdicts, world.settlements[-1], world.bundles[-1], JUDGES)
    assert found is not None
    assert found.kind == OPENING
    return found


def test_every_good_answer_is_good(contract: Any) -> None:
    seen = {(o.size, p.position) for o, p in pairs()}
    assert len(seen) > 2
    for opening, proof in pairs():
        assert judge_proof(opening, proof) == GOOD
        assert contract.is_good(value_of(opening), value_of(proof))


flips = st.tuples(st.integers(0, 10**6), st.integers(1, 255))
integers = st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1), st.integers(-4097, 4097))


def mutate(opening: Opening, proof: StorageProof, what: str, number: int, flip: tuple[int, int]) -> Any:
    """One thing changed: a number nudged or set, a byte flipped, a path cut or grown."""

    def moved(value: int) -> int:
        return max(0, min(2**64 - 1, value + number if abs(number) <= 4097 else number))

    def flipped(data: bytes) -> bytes:
        at = flip[0] % len(data) if data else 0
        return data[:at] + bytes([data[at] ^ flip[1]]) + data[at + 1 :] if data else b""

    def resized(data: bytes, limit: int) -> bytes:
        return data[: max(0, len(data) + number)] if number < 0 else (data + bytes(number % 80))[:limit]

    entry = proof.entry
    match what:
        case "offset" | "count" | "size":
            return changed(opening, **{what: moved(getattr(opening, what))}), proof
        case "root":
            return changed(opening, root=Hash(flipped(opening.root))), proof
        case "unused byte":
            return changed(opening, root=Hash(opening.root[:31] + bytes([flip[1]]))), proof
        case "lease":
            return opening, changed(proof, lease=Hash(flipped(proof.lease)))
        case "position":
            return opening, changed(proof, position=moved(proof.position))
        case "entry size":
            return opening, changed(proof, entry=changed(entry, size=moved(entry.size)))
        case "entry root":
            return opening, changed(proof, entry=changed(entry, root=Hash(flipped(entry.root))))
        case "cut list" | "cut shard" | "cut leaf":
            name = {"cut list": "list_path", "cut shard": "shard_path", "cut leaf": "leaf"}[what]
            limit = {"cut list": 39 * 40, "cut shard": 32 * 40, "cut leaf": 4096}[what]
            return opening, changed(proof, **{name: resized(getattr(proof, name), limit)})
        case _:
            return opening, changed(proof, **{what: flipped(getattr(proof, what))})


WHAT = (
    *("offset", "count", "size", "root", "unused byte", "lease", "position", "entry size", "entry root"),
    *("list_path", "shard_path", "leaf", "cut list", "cut shard", "cut leaf"),
)


@budget(examples=150)
@given(st.sampled_from(WHAT), st.integers(0, 11), integers, flips)
@example("offset", 0, 1, (0, 1))
@example("unused byte", 0, 0, (0, 255))
@example("count", 0, 1, (0, 1))
@example("count", 0, -1, (0, 1))
@example("cut list", 0, -39, (0, 1))
@example("cut shard", 0, 32, (0, 1))
@example("cut leaf", 0, -1, (0, 1))
@example("size", 0, 2**64 - 1, (0, 1))
@example("entry size", 0, 2**64 - 1, (0, 1))
def test_contract_and_judge_say_the_same(
    contract: Any, what: str, which: int, number: int, flip: tuple[int, int]
) -> None:
    opening, proof = mutate(*pairs()[which % len(pairs())], what, number, flip)
    assert contract.is_good(value_of(opening), value_of(proof)) == (judge_proof(opening, proof) == GOOD)


def test_a_list_whose_sizes_overflow_holds_nothing(contract: Any) -> None:
    opening, proof = next((o, p) for o, p in pairs() if p.position == 0)
    path = bytearray(proof.list_path)
    path[31:39] = b"\xff" * 8
    opening, proof = changed(opening, size=2**64 - 1), changed(proof, list_path=bytes(path))
    assert judge_proof(opening, proof) != GOOD
    assert not contract.is_good(value_of(opening), value_of(proof))


def test_an_honest_report_has_no_wrong_verdict(contract: Any) -> None:
    world = settled()
    assert find_wrong_verdict(world.settlements[-1].verdicts, world.settlements[-1], world.bundles[-1], JUDGES) is None
    evidence = find(claim()[1]).evidence
    with boa.reverts("opening: verdict not in report"):
        contract.contradiction(tuple_of(world.settlements[-1].report), evidence)


@pytest.mark.parametrize("reason", ["silent", "slept", "wrong_leaf", "", "x" * 64])
def test_a_good_opening_against_its_verdict_is_shown(contract: Any, reason: str) -> None:
    report, verdicts = claim(reason)
    wrong = next(v for v in verdicts if v.reason == reason)
    assert contract.contradiction(tuple_of(report), find(verdicts).evidence).lower() == hexed(wrong.node)


@pytest.mark.parametrize("field", ["epoch", "attempt", "view", "manifest"])
def test_the_proof_must_stand_in_that_very_manifest(contract: Any, field: str) -> None:
    report, verdicts = claim()
    old = getattr(report, field)
    report = changed(report, **{field: Hash(keccak(b"other")) if field == "manifest" else old + 1})
    reason = "opening: another epoch or node" if field == "epoch" else "opening: another manifest"
    with boa.reverts(reason):
        contract.contradiction(tuple_of(report), find(verdicts).evidence)


@pytest.mark.parametrize("count", [11, 1024, 5001])
def test_a_proof_is_shown_among_any_number_of_certificates(contract: Any, count: int) -> None:
    """The evidence grows by a hash for each doubling."""
    world, (_, verdicts) = settled(), claim()
    bundle = world.bundles[-1]
    observations = []
    for observation in bundle.manifest.observations:
        (first, *_) = observation.certificates
        more = [changed(first, signers=i) for i in range(count - len(observation.certificates))]
        observations.append(changed(observation, certificates=(*more, *observation.certificates, *more[:1])))
    manifest = changed(bundle.manifest, observations=tuple(observations))
    report = changed(claim()[0], manifest=manifest.struct_hash())
    found = find_wrong_verdict(verdicts, world.settlements[-1], bundle._replace(manifest=manifest), JUDGES)
    assert found is not None
    assert contract.contradiction(tuple_of(report), found.evidence)
    assert len(found.evidence) <= 32 * count.bit_length() + len(find(verdicts).evidence)


@budget(examples=60)
@given(st.integers(0, 2**20), st.integers(1, 255))
def test_a_changed_byte_of_the_evidence_shows_nothing(contract: Any, at: int, flip: int) -> None:
    """Padding of the ABI aside, every byte counts: whatever still passes names the same node."""
    report, verdicts = claim()
    evidence = bytearray(find(verdicts).evidence)
    evidence[at % len(evidence)] ^= flip
    node = next(v for v in verdicts if v.reason == SILENT).node
    with suppress(boa.BoaError):
        assert contract.contradiction(tuple_of(report), bytes(evidence)).lower() == hexed(node)


def test_rows_from_another_sender_do_not_count(contract: Any) -> None:
    """Members acknowledge a node's proofs from that node only: what stands in a stranger's batch proves nothing."""
    world = busy_world(SHARDS)
    stranger = key(99)
    batches = [world.batch("storage.proof", list(batch.table), stranger) for batch in world.proofs()]
    world.settle(batches)
    honest, manifest = world.settlements[-1], world.bundles[-1].manifest
    at, good = next((i, v) for i, v in enumerate(honest.verdicts) if v.reason == GOOD and v.kind == "storage.proof")
    rows = list(honest.verdicts)
    rows[at] = changed(good, reason=SILENT)
    verdicts = Table.of(Verdict, rows)
    with pytest.raises(NotFound):
        find(verdicts, world)
    report = changed(honest.report, verdicts_root=verdicts.root)
    opening = next(o for o in openings(world) if o.row_hash() == good.subject)
    batch, index, proof = next(
        (batch, i, row)
        for batch in batches
        for i, row in enumerate(batch.table)
        if (row.node, row.draw) == (opening.node, opening.draw)
    )
    place = disputes._sight(manifest, batch, index)
    types = f"({disputes._abi_type(Opening)},{disputes._abi_type(StorageProof)},{disputes._SIGHTING})"
    siblings = RowTree(verdicts.row_hashes).proof(at)
    evidence = encode(
        [f"({disputes._abi_type(Verdict)},uint64,bytes32[],{types})"],
        [(value_of(rows[at]), path_of(len(rows), at), siblings, (value_of(opening), value_of(proof), place))],
    )
    with boa.reverts("opening: wrong sender"):
        contract.contradiction(tuple_of(report), evidence)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7, 11, 12, 13, 64, 65])
def test_every_path_ends_at_one_row_and_every_row_has_one(count: int) -> None:
    hashes = [keccak(bytes([i])) for i in range(count)]
    tree, root = RowTree(hashes), RowTree(hashes).root
    depth = max(len(tree.proof(i)) for i in range(count))
    for index in range(count):
        path, proof = path_of(count, index), tree.proof(index)
        assert verify_row(root, count, index, hashes[index], proof)
        assert index_at(count, path) == index
        assert path < 1 << len(proof)
    assert {index_at(count, path) for path in range(1 << depth)} == set(range(count))
    assert 0 <= index_at(count, 2**64 - 1) < count


@pytest.mark.parametrize("path", [*range(24), 2**64 - 1])
def test_the_row_at_any_path_of_an_honest_report_can_be_shown(contract: Any, path: int) -> None:
    world = settled()
    answer = answer_verdict(world.settlements[-1], world.bundles[-1], path, JUDGES)
    report = tuple_of(world.report)
    assert contract.is_shown(report, path, answer.shown, answer.backing)
    count = len(world.settlements[-1].verdicts)
    other = next(p for p in range(64) if index_at(count, p) != index_at(count, path))
    with boa.reverts("opening: verdict not in report"):
        contract.is_shown(report, other, answer.shown, answer.backing)


def test_a_verdict_that_calls_an_opening_good_needs_the_proof(contract: Any) -> None:
    """A quorum that calls a silent node's opening good has nothing to show for it."""
    world = busy_world(SHARDS)
    silent = world.nodes[0].address
    world.settle(world.proofs(frozenset({silent})))
    honest, bundle = world.settlements[-1], world.bundles[-1]
    rows = [changed(v, reason=GOOD) if v.node == silent else v for v in honest.verdicts]
    lied = msgspec.structs.replace(honest.report, verdicts_root=Table.of(Verdict, rows).root)
    settlement = type(honest)(**{**vars(honest), "verdicts": Table.of(Verdict, rows), "report": lied})
    count = len(rows)
    at = next(i for i, row in enumerate(rows) if row.node == silent)
    other = next(i for i, row in enumerate(rows) if row.node != silent and row.reason == GOOD)
    borrowed = answer_verdict(settlement, bundle, path_of(count, other), JUDGES)
    assert contract.is_shown(tuple_of(lied), path_of(count, other), borrowed.shown, borrowed.backing)
    with pytest.raises(NotFound):
        answer_verdict(settlement, bundle, path_of(count, at), JUDGES)
    honest_answer = answer_verdict(honest, bundle, path_of(count, at), JUDGES)
    assert honest_answer.backing == b""
