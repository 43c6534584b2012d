"""Bids: what is asked, who says no and why, what it costs, and which answers count."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.market.constraints import parse
from freehold.market.matching import Match, Party, match
from freehold.protocol.errors import FreeholdError, InvalidInput, MalformedMessage, Overflow
from freehold.protocol.keys import Key
from freehold.protocol.typed import Domain, canonical_json, parse_json
from freehold.protocol.units import Address
from freehold.services.compute.bidding import (
    NAMES_LIMIT,
    NUMBER_LIMIT,
    REQUEST_LIMIT,
    TEXT_LIMIT,
    WHOLE,
    BidRequest,
    Expected,
    Load,
    NodeTerms,
    Pricing,
    decode_properties,
    encode_properties,
    get_order_party,
    judge_bid,
    judge_request,
    make_bid,
    make_price,
    parse_request,
    read_pricing,
)
from freehold.services.compute.tasks import Resources

DOMAIN = Domain(1, Address(b"o" * 20))
CLIENT, NODE = Key(b"\x01" * 32), Key(b"\x02" * 32)
ME = CLIENT.address
PROPERTIES: dict[str, Any] = {
    "executor.wasm": True,
    "executor.wasm.engine": "wasmtime-50",
    "executor.sandbox": False,
    "cpu.cores": 4,
    "memory.bytes": 8 * 2**30,
    "disk.bytes": 100 * 10**9,
    "gpu.count": 0,
    "network": False,
    "features": ["avx2"],
    "place": "de",
}


def request(**changes: Any) -> BidRequest:
    return BidRequest(**({"client": str(CLIENT.address), "executor": "wasm", "kind": "module"} | changes))


def terms(rules: str = "", load: Load | None = None, **pricing: Any) -> NodeTerms:
    return NodeTerms("node", PROPERTIES, parse(rules), 1000, Pricing(**pricing), load or Load(2, 0, 0))


def test_a_request_travels_and_its_hash_with_it() -> None:
    sent = request(properties={"b": [], "a": 2**100, "c": "é"}, resources=Resources(processors=2), steps=3)
    came = parse_request(parse_json(canonical_json(msgspec.to_builtins(sent))))
    assert came == sent
    assert came.hash() == sent.hash()
    assert request(salt="x").hash() != request().hash()
    assert request(properties={"a": 1, "b": 2}).hash() == request(properties={"b": 2, "a": 1}).hash()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"client": CLIENT.address.hex()}, "begins with 0x"),  # else rules that name it could be evaded
        ({"client": str(CLIENT.address).upper().replace("0X", "0x")}, "begins with 0x"),
        ({"client": "0x12"}, "20 bytes"),
        ({"executor": "magic"}, "executor"),
        ({"constraint": "cpu.cores >"}, "line 1, column 12: expected a number"),
        ({"constraint": "a = 1 and " * 1000}, "characters"),
        ({"seconds": 0}, "from 1 to 60"),
        ({"seconds": 61}, "from 1 to 60"),
        ({"seconds": 2.5}, "seconds"),
        ({"orders": 0}, "at least 1"),
        ({"most": -1}, "at least 0"),
        ({"resources": {"processors": 0}}, "at least 1"),
        ({"resources": {"gpus": -1}}, "at least 0"),
        ({"resources": {"gpu_model": "\n"}}, "constraint"),
        ({"properties": {"a": 1.5}}, "properties"),
        ({"properties": {"a": None}}, "properties"),
        ({"properties": {"a": {"b": 1}}}, "properties"),
        ({"properties": {"a": NUMBER_LIMIT}}, "out of range"),
        ({"properties": {"a": "x" * (TEXT_LIMIT + 1)}}, "too long"),
        ({"properties": {"a": ["x"] * (NAMES_LIMIT + 1)}}, "too long"),
        ({"properties": {f"a{i}": 1 for i in range(NAMES_LIMIT + 1)}}, "at most 256"),
        ({"properties": {f"a{i}": "x" * TEXT_LIMIT for i in range(16)}}, f"at most {REQUEST_LIMIT}"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_what_is_wrong_with_a_request_is_named(changes: dict[str, Any], reason: str) -> None:
    value = msgspec.to_builtins(request()) | changes
    with pytest.raises(InvalidInput, match=reason):
        parse_request(value)


def test_a_request_at_its_bounds_is_taken() -> None:
    value = msgspec.to_builtins(request()) | {
        "seconds": 60,
        "properties": {"a": NUMBER_LIMIT - 1, "b": "x" * TEXT_LIMIT},
    }
    assert parse_request(value).seconds == 60


FIELDS = st.sampled_from(["client", "executor", "kind", "properties", "resources", "a"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner),
)


@given(JSON)
def test_whatever_comes_is_a_request_or_a_typed_error(value: Any) -> None:
    base = msgspec.to_builtins(request())
    for given_value in (value, base | value if isinstance(value, dict) else base | {"properties": value}):
        with suppress(InvalidInput):
            assert isinstance(parse_request(given_value), BidRequest)


@pytest.mark.parametrize(
    ("changes", "rules", "reasons"),
    [
        ({}, "", ()),
        ({"engine": "wasmtime-50"}, "", ()),
        ({"engine": "wasmtime-49"}, "", ('executor.wasm.engine is "wasmtime-50", wanted = "wasmtime-49"',)),
        ({"executor": "sandbox", "kind": "native"}, "", ("executor.sandbox is false, wanted = true",)),
        ({"executor": "container", "kind": "image"}, "", ("executor.container is not stated, wanted = true",)),
        ({"resources": Resources(processors=4, memory=8 * 2**30)}, "", ()),
        (
            {"resources": Resources(processors=5, memory=8 * 2**30 + 1)},
            "",
            ("cpu.cores is 4, wanted >= 5", "memory.bytes is 8589934592, wanted >= 8589934593"),
        ),
        ({"resources": Resources(memory=16 * 2**30)}, "", ("memory.bytes is 8 GiB, wanted >= 16 GiB",)),
        ({"resources": Resources(disk=2**40)}, "", ("disk.bytes is 93.13 GiB, wanted >= 1024 GiB",)),
        (
            {"resources": Resources(gpus=1, gpu_model="RTX*", gpu_memory=2**34)},
            "",
            (
                "gpu.count is 0, wanted >= 1",
                'gpu.model is not stated, wanted = "RTX*"',
                "gpu.memory is not stated, wanted >= 16 GiB",
            ),
        ),
        ({"network": True}, "", ("network is false, wanted = true",)),
        # its operator's rules, over what the order says
        ({}, "seconds <= 600 and not network = true", ()),
        ({}, "seconds <= 599", ("it takes no such order: seconds is 600, wanted <= 599",)),
        ({}, f'client != "{ME}"', (f'it takes no such order: client is "{ME}", wanted != "{ME}"',)),
        ({}, "purpose = 'science'", ('it takes no such order: purpose is not stated, wanted = "science"',)),
        ({"properties": {"purpose": "Science"}}, "purpose = 'science'", ()),
        ({"properties": {"seconds": 1}}, "seconds <= 599", ("it takes no such order: seconds is 600, wanted <= 599",)),
        # the order's own: false is no, unknown is for the client
        ({"constraint": 'place = "fr"'}, "", ('place is "de", wanted = "fr"',)),
        ({"constraint": 'place = "de" and reliability >= 900000'}, "", ()),
    ],
)  # fmt: skip
def test_a_node_bids_or_says_why_not(changes: dict[str, Any], rules: str, reasons: tuple[str, ...]) -> None:
    found = judge_request(request(**changes), terms(rules))
    assert found.reasons == reasons
    assert (found.price is None) is bool(reasons)


def test_a_long_queue_bids_for_nothing() -> None:
    assert judge_request(request(), terms(load=Load(2, 2, 3), queue=3)).price is not None
    found = judge_request(request(), terms(load=Load(2, 2, 4), queue=3))
    assert found.reasons == ("4 orders wait here, and it bids while at most 3 do",)


@pytest.mark.parametrize(
    ("load", "pricing", "resources", "price"),
    [
        (Load(2, 0, 0), {}, Resources(), 1000),
        (Load(2, 0, 0), {"discount": 2000}, Resources(), 800),
        (Load(2, 1, 0), {"discount": 2000}, Resources(), 900),
        (Load(3, 2, 0), {"discount": 2000}, Resources(), 934),  # 666 basis points off, rounded up
        (Load(2, 2, 0), {"discount": 2000}, Resources(), 1000),
        (Load(2, 2, 1), {"surcharge": 1000}, Resources(), 1050),
        (Load(2, 2, 2), {"surcharge": 1000}, Resources(), 1100),
        (Load(2, 2, 99), {"surcharge": 1000, "surcharge_most": 3000}, Resources(), 1300),
        (Load(2, 0, 0), {"discount": WHOLE}, Resources(), 0),
        (Load(2, 0, 0), {"memory_price": 10}, Resources(memory=2 * 2**30), 1000),
        (Load(2, 0, 0), {"memory_price": 10}, Resources(memory=2 * 2**30 + 1), 1010),
        (Load(2, 0, 0), {"memory_price": 10}, Resources(memory=7 * 2**30, processors=2), 1015),
        (Load(2, 0, 0), {"disk_price": 7}, Resources(disk=3 * 2**30, processors=2), 1011),
        (Load(2, 0, 0), {"gpu_price": 500, "discount": 1000}, Resources(gpus=2), 1800),
        (Load(0, 0, 0), {"discount": 2000}, Resources(), 800),
    ],
)
def test_prices_are_linear_and_exact(load: Load, pricing: dict[str, int], resources: Resources, price: int) -> None:
    assert make_price(request(resources=resources), terms(load=load, **pricing)) == price


@given(st.integers(1, 8), st.integers(0, 9), st.integers(0, 30), st.integers(0, WHOLE), st.integers(0, 20_000))
def test_a_busier_node_is_never_cheaper(slots: int, running: int, waiting: int, discount: int, surcharge: int) -> None:
    def price(load: Load) -> int:
        return make_price(request(), terms(load=load, discount=discount, surcharge=surcharge))

    now = price(Load(slots, min(running, slots), waiting))
    assert now <= price(Load(slots, min(running + 1, slots), waiting)) <= price(Load(slots, slots, waiting + 1))
    assert price(Load(slots, 0, 0)) >= 0


def test_pricing_is_read_with_its_faults_named() -> None:
    assert read_pricing({}) == Pricing()
    assert read_pricing({"discount": WHOLE}).discount == WHOLE
    for value, reason in [({"discount": WHOLE + 1}, "discount"), ({"gpu_price": -1}, "gpu_price"), ({"x": 1}, "`x`"),
                          ({"bid_seconds": 0}, "bid_seconds"), ({"surcharge": "a lot"}, "surcharge")]:  # fmt: skip
        with pytest.raises(InvalidInput, match=reason):
            read_pricing(value)
    with pytest.raises(Overflow):
        make_price(request(resources=Resources(gpus=2**60)), terms(gpu_price=2**60))


def bid(**changes: Any) -> Any:
    made = make_bid(request(), 900, terms(), 1000, NODE, DOMAIN)
    return msgspec.structs.replace(made, **changes)


EXPECTED = Expected(NODE.address, request(), DOMAIN, 1000)


def test_a_good_bid_counts_and_its_exact_bounds_too() -> None:
    assert judge_bid(bid(), EXPECTED) == ""
    assert bid().expiry == 1000 + 3 + 60
    assert judge_bid(bid(), EXPECTED._replace(now=1063, most_price=900)) == ""


@pytest.mark.parametrize(
    ("found", "expected", "reason"),
    [
        (bid(), EXPECTED._replace(now=1064), "its bid expired 1 s ago"),
        (bid(), EXPECTED._replace(most_price=899), "it asks 900, more than 899"),
        (bid(), EXPECTED._replace(node=CLIENT.address), f"its bid is another node's ({NODE.address})"),
        (bid(), EXPECTED._replace(request=request(salt="again")), "its bid is for another request"),
        (bid(client=NODE.address), EXPECTED, "its bid is for another request"),
        (bid(price=1), EXPECTED, "its bid is not signed by it"),
        (bid(properties=b"{}"), EXPECTED, "its bid is not signed by it"),
        (bid(), EXPECTED._replace(domain=Domain(2, DOMAIN.contract)), "its bid is not signed by it"),
    ],
)
def test_a_bid_that_does_not_count_says_why(found: Any, expected: Expected, reason: str) -> None:
    assert judge_bid(found, expected) == reason


@pytest.mark.parametrize("data", [b"", b"[]", b'{"a":1.5}', b'{"a":null}', b'{"a":' + b"9" * 50 + b"}", b"{" * 500])
def test_properties_that_do_not_decode_are_a_reason_or_an_error(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_properties(data)
    wrong = bid(properties=data)
    wrong = msgspec.structs.replace(wrong, node_signature=NODE.sign(wrong, DOMAIN))
    assert judge_bid(wrong, EXPECTED).startswith("its bid's properties: ")


def test_properties_travel_and_floats_do_not() -> None:
    assert decode_properties(encode_properties(PROPERTIES)) == PROPERTIES
    with pytest.raises(InvalidInput, match="'load'"):
        encode_properties({"load": 0.5})
    with pytest.raises(MalformedMessage):
        decode_properties(b'"' + b"x" * 2**17 + b'"')


def test_the_client_adds_what_it_knows_and_the_node_cannot_say_otherwise() -> None:
    asked = request(constraint="bond >= 10 and reliability >= 500000")
    claims = {"bond": 100, "reliability": 10**6, "measured.fuel": 1}
    found = msgspec.structs.replace(bid(), properties=encode_properties(PROPERTIES | claims))
    assert decode_properties(found.properties) == PROPERTIES

    def held_against(**known: int) -> Match:
        offer = Party("node", decode_properties(found.properties) | known, parse(""))
        return match(get_order_party(asked), offer)

    assert not held_against(bond=5, reliability=600_000).matched
    assert held_against(bond=10, reliability=500_000).matched
    reasons = held_against(bond=10).reasons
    assert [reason.text for reason in reasons] == ["reliability is not stated, wanted >= 500000"]


def test_an_orders_own_properties_cannot_say_otherwise_than_its_fields() -> None:
    said = get_order_party(request(properties={"client": "0x00", "network": True, "purpose": "x"})).properties
    assert (said["client"], said["network"], said["purpose"]) == (str(CLIENT.address), False, "x")


@given(st.binary(max_size=60))
def test_any_bytes_are_properties_or_a_typed_error(data: bytes) -> None:
    try:
        found = decode_properties(data)
    except FreeholdError:
        return
    assert decode_properties(encode_properties(found)) == found
