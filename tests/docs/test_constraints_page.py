"""The page on constraints says what the language does."""

from __future__ import annotations

import pytest

from freehold.market.constraint_terms import UNITS
from freehold.market.constraints import DEPTH_LIMIT, LENGTH_LIMIT, RULE_LIMIT, parse
from freehold.market.matching import Party, match
from freehold.protocol.errors import InvalidInput
from freehold.services.compute.bidding import CLIENTS, BidRequest, get_order_party
from tests.docs.pages import ROOT

TEXT = (ROOT / "docs" / "constraints.md").read_text(encoding="utf-8")
REASONS = [
    ("cpu.cores >= 8", {"cpu.cores": 2}),
    ("memory.bytes >= 16 GiB", {"memory.bytes": 8 * 2**30}),
    ('gpu.model = "*RTX 40*"', {}),
    ("cpu.cores >= 8", {"cpu.cores": "eight"}),
    ('not place in ["us", "cn"]', {"place": "us"}),
    ('features has "avx2" or cpu.architecture = "aarch64"', {"features": ["sse4"], "cpu.architecture": "x86_64"}),
]


def test_its_examples_are_constraints() -> None:
    lines = [line for line in TEXT.partition("## Grammar")[0].splitlines() if line.startswith("    ")]
    assert len(lines) == 5
    for line in lines:
        assert str(parse(line)) == line.strip()


@pytest.mark.parametrize(("text", "properties"), REASONS)
def test_its_reasons_are_those_that_are_given(text: str, properties: dict[str, object]) -> None:
    assert f"| `{parse(text).evaluate(properties).reason}` |" in TEXT


def test_an_offers_reason_and_an_error_read_as_it_says() -> None:
    found = match(Party("order", {"seconds": 7200}, parse("")), Party("node", {}, parse("seconds <= 3600")))
    assert f"| `{found.reasons[0].text}` |" in TEXT
    with pytest.raises(InvalidInput) as caught:
        parse("cpu.cores >= eight")
    assert f"    {caught.value.message}\n" in TEXT


def test_its_numbers_and_names_are_the_codes() -> None:
    assert f"at most {LENGTH_LIMIT} characters, {RULE_LIMIT} rules, and {DEPTH_LIMIT} brackets" in " ".join(
        TEXT.split()
    )
    order = get_order_party(BidRequest(client="0x" + "00" * 20, executor="wasm", kind="module"))
    assert not [name for name in (*UNITS, *CLIENTS, *order.properties) if f"`{name}`" not in TEXT]
