"""A node whose operator has a quoter: what it advertises, which orders it takes, and what comes with their receipts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from freehold.protocol.errors import MalformedMessage, Refused, Unavailable
from freehold.services.compute.node.quoter import Quoter
from freehold.services.compute.ordering.checks import Parties, check_standing, parse_standing
from freehold.services.compute.verification.attestation.policy import make_policy
from freehold.services.compute.verification.attestation.verify import bind, verify
from tests.protocol.world import DOMAIN
from tests.services.compute.provider_world import CLIENT, PATIENCE, World, receipt_of
from tests.services.compute.quote_maker import MEASURED, NOW, Chip
from tests.services.compute.software_quoter import keep

CHIP = Chip()
POLICY = make_policy([f"sev-snp:{MEASURED.hex()}"], {"ark": CHIP.root.pem}, {}, accept_unchecked=True)


def go(path: Path, body: Callable[[World], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        async with World(path, settings=settings) as world:
            await body(world)

    asyncio.run(main())


def test_a_receipt_comes_with_a_quote_that_is_good_for_it_alone(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        properties = (await world.call("GET", "/properties", base="/v1/compute"))["properties"]
        assert properties["attestation"] == "sev-snp"
        task, plain = world.task("echo vouched", attested=True), world.task("echo vouched")
        order = world.order(task)
        standing = parse_standing(await world.submit(task, order=order))
        check_standing(standing, order.struct_hash(), Parties(CLIENT.address, world.node.address, DOMAIN), task, order)
        assert standing.receipt is not None
        found = verify(standing.quote, bind(standing.receipt), POLICY, NOW)
        assert (found.kind, found.measurement) == ("sev-snp", f"sev-snp:{MEASURED.hex()}")
        again = receipt_of(await world.submit(task))
        with pytest.raises(Exception, match="bound to something else"):
            verify(standing.quote, bind(again), POLICY, NOW)
        assert "quote" not in await world.submit(plain)
        await world.restart()
        assert parse_standing(await world.wait(str(standing.job))).quote == standing.quote

    go(tmp_path / "node", body, quoter=keep(CHIP, tmp_path / "chip"))


def test_without_a_quoter_nothing_is_attested(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        properties = (await world.call("GET", "/properties", base="/v1/compute"))["properties"]
        assert "attestation" not in properties
        with pytest.raises(Refused, match="no hardware that gives one"):
            await world.submit(world.task("echo vouched", attested=True))
        assert world.executor.runs == []

    go(tmp_path, body)


def test_a_quoter_that_does_not_work_offers_nothing(tmp_path: Path) -> None:
    command = keep(CHIP, tmp_path / "chip")
    (tmp_path / "chip" / "fails").touch()

    async def body(world: World) -> None:
        with pytest.raises(Refused, match="no hardware that gives one"):
            await world.submit(world.task("echo vouched", attested=True))

    go(tmp_path / "node", body, quoter=command)


def test_work_without_its_quote_gives_no_receipt(tmp_path: Path) -> None:
    """The hardware fails after it was advertised: nothing is billed."""
    command = keep(CHIP, tmp_path / "chip")

    async def body(world: World) -> None:
        (tmp_path / "chip" / "stale").touch()
        standing = await world.submit(world.task("echo vouched", attested=True))
        assert (standing["phase"], standing["receipt"], standing["measure"]) == ("finished", None, 0)
        assert "bound to something else" in standing["reason"]

    go(tmp_path / "node", body, quoter=command)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("/nowhere/quoter",), "does not start"),
        (("sh", "-c", "exit 4"), "ended with status 4"),
        (("sh", "-c", "echo nothing"), "gave no quote"),
        (("sh", "-c", "yes"), "gave no quote: a quote has at most"),
    ],
)
def test_what_a_command_may_do_wrong(command: tuple[str, ...], reason: str) -> None:
    with pytest.raises(Unavailable, match=reason):
        asyncio.run(Quoter(command)._ask(bytes(64)))


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! > {tmp_path}/child; wait"
    with pytest.raises(Unavailable, match=r"took more than 0\.5 s"):
        asyncio.run(Quoter(("sh", "-c", script), 0.5)._ask(bytes(64)))
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + PATIENCE
    while _runs(child):
        assert time.monotonic() < deadline


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_quote_that_is_no_base64_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match="quote is not in base64"):
        parse_standing({"job": "0x" + "11" * 32, "phase": "queued", "quote": "?"})
    with pytest.raises(MalformedMessage):
        parse_standing({"job": "0x" + "11" * 32, "phase": "queued", "quote": 7})
    with pytest.raises(MalformedMessage, match="quote has at most"):
        parse_standing({"job": "0x" + "11" * 32, "phase": "queued", "quote": "A" * 2**18})
