"""Attested jobs from the spec to the accepted result: nodes in memory, hardware made of software."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freehold.cli.jobs_output import _show_event
from freehold.client.jobs_attested import Hardware, Quotes, read_policy
from freehold.client.jobs_journal import JobRow, OrderRow
from freehold.client.jobs_market import NobodyMatches
from freehold.client.jobs_spec import Job, Step, Verify, parse
from freehold.protocol.errors import InvalidInput
from freehold.services.compute.terms import Receipt
from freehold.services.compute.verification.attestation.verify import bind
from tests.client.jobs_world import Came, Crash, FakeNode, Ran, World
from tests.services.compute.quote_maker import MEASURED, NOW, TCB, Chip, Platform

SNP = f"sev-snp:{MEASURED.hex()}"
DOMAIN = f"tdx:{MEASURED.hex()}"
CHIP, PLATFORM = Chip(), Platform()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.now = NOW.timestamp()
    (tmp_path / "amd.pem").write_bytes(CHIP.root.pem)
    (tmp_path / "intel.pem").write_bytes(PLATFORM.root.pem)
    (tmp_path / "amd.crl").write_bytes(CHIP.root.crl())
    (tmp_path / "intel.json").write_bytes(PLATFORM.collateral())
    yield made
    made.close()


def accepted(**given: Any) -> Hardware:
    honest = Hardware(
        measurements=(SNP, DOMAIN), roots=("amd.pem", "intel.pem"), collateral=("amd.crl", "intel.json"),
        firmware=TCB.hex(),
    )  # fmt: skip
    return replace(honest, **given)


def job(hardware: Hardware, **more: Any) -> Job:
    step = Step(script="do it", verify=Verify(kind="attested", hardware=hardware))
    return Job(steps=(step,), **more)


honest_quotes: list[bytes] = []


def honest_amd(receipt: Receipt) -> bytes:
    honest_quotes.append(CHIP.quote(bind(receipt)))
    return honest_quotes[-1]


def honest_intel(receipt: Receipt) -> bytes:
    return PLATFORM.quote(bind(receipt))


def attest(node: FakeNode, kind: str, quote: Callable[[Receipt], bytes]) -> None:
    """Let a node offer quotes, and give these."""
    node.properties = node.properties | {"attestation": kind}
    node.quotes = quote


def go(world: World, wanted: Job) -> tuple[JobRow, list[dict[str, Any]]]:
    async def run() -> tuple[JobRow, list[dict[str, Any]]]:
        jobs = world.open()
        row = await jobs.submit(wanted, world.folder)
        done = await jobs.wait(row.id)
        return done, (await jobs.why(row.id))["events"]

    return asyncio.run(run())


def told(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [one for one in events if one["kind"] == kind]


def attested(events: list[dict[str, Any]]) -> list[str]:
    return [one["node"] for one in told(events, "attested")]


@pytest.mark.parametrize(("kind", "quote"), [("sev-snp", honest_amd), ("tdx", honest_intel)])
def test_an_attested_job_runs_once_where_the_hardware_is(
    world: World, kind: str, quote: Callable[[Receipt], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    plain, vouched = world.add(2)
    attest(vouched, kind, quote)
    done, events = go(world, job(accepted()))
    assert (done.phase, done.reason) == ("done", "")
    assert (plain.orders, len(vouched.ran)) == ([], 1)
    assert attested(events) == [str(vouched.address)]
    assert vouched.tasks[vouched.ran[0]].attested
    _show_event(told(events, "attested")[0])
    assert f"vouched for by {kind}\n" in capsys.readouterr().out


def test_a_job_that_nobody_can_attest_matches_nobody_and_says_why(world: World) -> None:
    world.add(2)
    with pytest.raises(NobodyMatches, match="attestation") as refused:
        go(world, job(accepted()))
    assert all("attestation" in row["reason"] for row in refused.value.details["nodes"])
    assert not any(node.orders for node in world.nodes)


def test_a_node_with_other_hardware_does_not_match(world: World) -> None:
    (node,) = world.add()
    attest(node, "sgx", honest_intel)
    with pytest.raises(NobodyMatches, match="attestation"):
        go(world, job(accepted()))


@pytest.mark.parametrize(
    ("quote", "reason"),
    [
        (lambda receipt: b"", "came without a quote"),
        (lambda receipt: b"no quote", "ends before all of it is there"),
        (lambda receipt: CHIP.quote(bytes(64)), "bound to something else"),
        (lambda receipt: honest_amd(msgspec.structs.replace(receipt, number=receipt.number ^ 1)), "something else"),
        (lambda receipt: honest_amd(msgspec.structs.replace(receipt, task=receipt.output)), "something else"),
        (lambda receipt: honest_amd(msgspec.structs.replace(receipt, output=receipt.task)), "something else"),
        (lambda receipt: honest_amd(msgspec.structs.replace(receipt, input=receipt.task)), "something else"),
        (lambda receipt: Chip().quote(bind(receipt)), "is not signed by the configured"),
        (lambda receipt: CHIP.quote(bind(receipt), measured=(0x90, bytes(48))), "is not accepted"),
        (lambda receipt: CHIP.quote(bind(receipt), policy=(8, (0xB0000).to_bytes(8, "little"))), "may be debugged"),
    ],
)
def test_a_quote_that_does_not_count_is_told_and_another_node_is_asked(
    world: World, quote: Callable[[Receipt], bytes], reason: str
) -> None:
    cheap, dear = world.add(1, price=10**10) + world.add(1, price=10**12)
    attest(cheap, "sev-snp", quote)
    attest(dear, "sev-snp", honest_amd)
    done, events = go(world, job(accepted()))
    assert done.phase == "done"
    (failure,) = told(events, "failure")
    assert failure["node"] == str(cheap.address)
    assert reason in failure["reason"]
    assert attested(events) == [str(dear.address)]


def test_a_quote_of_another_order_is_no_quote_of_this_one(world: World) -> None:
    """A node that was honest once shows that quote again."""
    (node,) = world.add()
    shown: list[bytes] = []

    def replay(receipt: Receipt) -> bytes:
        shown.append(honest_amd(receipt))
        return shown[0]

    attest(node, "sev-snp", replay)
    assert go(world, job(accepted()))[0].phase == "done"
    done, events = go(world, job(accepted(), retries=0))
    assert done.phase == "failed"
    assert "bound to something else" in told(events, "failure")[0]["reason"]


def test_a_node_cannot_show_anothers_quote(world: World) -> None:
    honest, thief = world.add(2)
    attest(thief, "sev-snp", lambda receipt: honest_amd(msgspec.structs.replace(receipt, node=honest.address)))
    done, events = go(world, job(accepted(), retries=0))
    assert done.phase == "failed"
    assert "bound to something else" in told(events, "failure")[0]["reason"]


def test_collateral_is_asked_for_unless_the_spec_does_without(world: World) -> None:
    (node,) = world.add()
    attest(node, "tdx", honest_intel)
    bare = accepted(collateral=())
    done, events = go(world, job(bare, retries=0))
    assert done.phase == "failed"
    assert "collateral not checked" in told(events, "failure")[0]["reason"]
    world.now += 10_000  # the node that failed is asked again later
    done, events = go(world, job(replace(bare, unchecked=True)))
    assert done.phase == "done"
    assert "no collateral says how up to date the platform is" in told(events, "attested")[0]["unchecked"]


def test_makers_roots_are_trusted_only_where_they_are_named(world: World) -> None:
    """Nobody trusts the tests' hardware by itself."""
    (node,) = world.add()
    attest(node, "sev-snp", honest_amd)
    makers = accepted(roots=("amd-milan", "amd-genoa", "amd-turin", "intel-sgx"), collateral=(), unchecked=True)
    done, events = go(world, job(makers, retries=0))
    assert done.phase == "failed"
    assert "leads to no root" in told(events, "failure")[0]["reason"]


def test_a_client_that_was_killed_holds_quotes_against_the_policy_again(world: World) -> None:
    """Killed between the node's end and the answer; and, once all is written down, with another policy."""
    (node,) = world.add()
    attest(node, "sev-snp", honest_amd)

    def end(_: Ran) -> Came:
        world.crash_at = len(world.steps)
        return Came(b"done")

    world.programs["do it"] = end

    async def finish(id: str) -> tuple[JobRow, list[OrderRow]]:
        jobs = world.open()
        done = await jobs.wait(id)
        return done, await (await jobs._open()).journal.orders(id)

    id = asyncio.run(world.open().submit(job(accepted(), retries=0), world.folder, most=10**18)).id
    with pytest.raises((Crash, BaseExceptionGroup)):
        asyncio.run(finish(id))
    done, (order,) = asyncio.run(finish(id))
    assert (done.phase, done.reason, len(node.ran)) == ("done", "", 1)
    assert order.receipt is not None
    assert order.quote == honest_quotes[-1]
    policy = read_policy(accepted(measurements=(f"sev-snp:{'00' * 48}",)), world.folder)
    assert "is not accepted" in str(Quotes(policy, lambda: world.now).judge(order))
    assert not Quotes(read_policy(accepted(), world.folder), lambda: world.now).refuses(order)


SPEC = """
script: print(1)
verify:
  kind: attested
  hardware:
    measurements: [{measurement}]
    roots: [{root}]
"""


def test_a_spec_says_what_is_accepted(tmp_path: Path) -> None:
    text = SPEC.format(measurement=f'"{SNP}"', root="amd-milan").encode()
    (step,) = parse(text, "job.yaml").steps
    assert step.verify.hardware is not None
    assert step.verify.hardware.roots == ("amd-milan",)
    assert Job.of(msgspec.json.decode(msgspec.json.encode(parse(text, "x").to_json()))).steps[0].verify == step.verify


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (SPEC.format(measurement="abc", root="amd-milan"), "job.yaml:6:20: .*'abc' is no measurement"),
        (SPEC.format(measurement="", root="amd-milan"), "at least one measurement"),
        ("script: x\nverify: attested\n", "`hardware` says what `attested` accepts"),
        ("script: x\nverify: {kind: bit_exact, hardware: {measurements: [a], roots: [b]}}\n", "no measurement"),
        (SPEC.replace("script: print(1)", "command: [a]\nservice: {{}}").format(measurement=f"'{SNP}'", root="a"),
         "a service has no result"),
    ],
)  # fmt: skip
def test_a_spec_that_makes_no_sense(text: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        parse(text.encode(), "job.yaml")


def test_roots_are_read_before_anything_is_ordered(world: World) -> None:
    (node,) = world.add()
    attest(node, "sev-snp", honest_amd)
    (world.folder / "junk.pem").write_bytes(b"junk")
    for root, reason in (("nowhere.pem", "cannot be read: No such file"), ("junk.pem", "junk.pem cannot be read")):
        with pytest.raises(InvalidInput, match=reason):
            go(world, job(accepted(roots=(root,))))
    assert node.orders == []
