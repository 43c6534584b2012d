"""What a client asks of nodes, what a node answers, who is chosen: a sealed first-price auction without its clocks.

    client    BidRequest to every node; whoever has answered after `seconds` is in, the others are not
    node      judge_request: its own rules, and what it has, say no with reasons, or `make_price` says for how much
              -> a Bid, signed for this client and this request
    client    judge_bid: is it the node's, for this request, does it stand; then match both ways, with what the client
              knows itself; `market/matching.py` ranks those who suit: price / (measured speed x reliability)

Sealed: a bid is an answer to the one who asked, over that connection alone, and no bid depends on another. The choice
is a function of the set of bids, so arriving first is worth nothing. First price: the chosen node is paid what it bid.
A second-price rule would make the true cost the best bid, but nodes would have to take the client's word for the second
price. The limits: a client can show a bid to a friend, who then bids just below it; nodes can agree among themselves;
and a node that knows that it is alone asks for more. Because of the last a request says nothing of what the client
would pay: that bound is applied at home (`judge_bid`).

All pure: no clock, no chance, no I/O. Prices are credits (base units) for UNITS_PER_PRICE of the measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from freehold.market.constraint_terms import LIST, NUMBER, get_kind, quote
from freehold.market.constraints import Constraint, join, parse
from freehold.market.matching import Party, match
from freehold.protocol.errors import InvalidInput, MalformedMessage
from freehold.protocol.keys import Key, is_signed_by
from freehold.protocol.typed import Domain, canonical_json, keccak, parse_json
from freehold.protocol.units import AMOUNT_LIMIT, Address, Hash, check_amount
from freehold.services.compute.tasks import ExecutorName, ProgramKind, Resources
from freehold.services.compute.terms import Bid

REQUEST_LIMIT = 64 * 2**10  # bytes of a request
PROPERTIES_LIMIT = 64 * 2**10  # bytes of a node's properties
NAMES_LIMIT = 256  # properties of a party
TEXT_LIMIT = 4096  # characters of one of them, or of a list's item
NUMBER_LIMIT = 2**128
SECONDS_LIMIT = 60  # that bids are waited for
WHOLE = 10_000  # basis points

Value = str | int | bool | list[str]

# What a client knows of a node, by the chain and by what it has measured; a node cannot say it of itself.
CLIENTS = frozenset({"node", "operator", "bond", "reliability"})
MEASURED = "measured."


class BidRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a client would have run. `client` is its address, `salt` something of its own that tells its requests apart,
    `properties` what it says of the order beyond the fields, `constraint` what it wants of a node's properties, `most`
    the largest measure of one order, `orders` how many of them there are, `seconds` how long bids are waited for."""

    client: str
    executor: ExecutorName
    kind: ProgramKind
    engine: str = ""
    resources: Resources = Resources()
    properties: dict[str, Value] = {}
    constraint: str = ""
    network: bool = False
    steps: int = 0
    most: int = 0
    orders: int = 1
    seconds: int = 3
    salt: str = ""

    def encode(self) -> bytes:
        """Its canonical bytes."""
        return msgspec.json.encode(self, order="sorted")

    def hash(self) -> Hash:
        """What a bid names."""
        return keccak(b"freehold bid request" + self.encode())


def parse_request(value: object) -> BidRequest:
    """The request behind `msgspec.to_builtins`'s form. MalformedMessage, InvalidInput naming what is wrong."""
    try:
        request = msgspec.convert(value, BidRequest)
        size = len(request.encode())
    except (msgspec.ValidationError, msgspec.EncodeError, OverflowError, RecursionError, UnicodeError) as error:
        raise MalformedMessage(f"that is no request for bids: {error}") from None
    if size > REQUEST_LIMIT:
        raise MalformedMessage(f"a request has at most {REQUEST_LIMIT} bytes")
    check_request(request)
    return request


def check_request(request: BidRequest) -> None:
    """InvalidInput unless the request makes sense by itself; its constraint says where it does not."""
    if str(Address(request.client)) != request.client:
        raise InvalidInput("a request's client is an address in lower-case hexadecimal that begins with 0x")
    limits = request.resources
    if min(limits.processors, limits.memory, limits.disk, limits.seconds, limits.processes, request.orders) < 1:
        raise InvalidInput("a request's orders, processors, memory, disk, seconds and processes are at least 1")
    if min(limits.gpus, limits.gpu_memory, request.most, request.steps) < 0:
        raise InvalidInput("a request's most, steps, gpus and gpu_memory are at least 0")
    if not 0 < request.seconds <= SECONDS_LIMIT:
        raise InvalidInput(f"bids are waited for from 1 to {SECONDS_LIMIT} seconds")
    check_properties(request.properties)
    get_wanted(request)


def check_properties(properties: Mapping[str, Any]) -> None:
    """InvalidInput, naming the property, unless all are text, integers, true or false, or lists of text, in bounds."""
    if len(properties) > NAMES_LIMIT:
        raise InvalidInput(f"there are at most {NAMES_LIMIT} properties")
    for name, value in properties.items():
        texts = value if get_kind(value) == LIST else [value] if isinstance(value, str) else []
        if len(texts) > NAMES_LIMIT or max(map(len, (name, *texts)), default=0) > TEXT_LIMIT:
            raise InvalidInput(f"the property {name[:80]!r} is too long")
        if not isinstance(value, str | int) and get_kind(value) != LIST:
            raise InvalidInput(f"the property {name!r} is no text, integer, true or false, or list of text")
        if get_kind(value) == NUMBER and not -NUMBER_LIMIT < value < NUMBER_LIMIT:
            raise InvalidInput(f"the property {name!r} is out of range")


def encode_properties(properties: Mapping[str, Any]) -> bytes:
    """A node's properties as a Bid carries them: canonical JSON. InvalidInput naming the one that cannot be."""
    check_properties(properties)
    data = canonical_json(dict(properties))
    if len(data) > PROPERTIES_LIMIT:
        raise InvalidInput(f"properties have at most {PROPERTIES_LIMIT} bytes, not {len(data)}")
    return data


def decode_properties(data: bytes) -> dict[str, Any]:
    """The properties behind `encode_properties`' form, without those that a node cannot say of itself.

    MalformedMessage, InvalidInput."""
    if len(data) > PROPERTIES_LIMIT:
        raise MalformedMessage(f"properties have at most {PROPERTIES_LIMIT} bytes")
    value = parse_json(data)
    if not isinstance(value, dict):
        raise MalformedMessage("properties are an object")
    check_properties(value)
    return {name: one for name, one in value.items() if name not in CLIENTS and not name.startswith(MEASURED)}


def get_wanted(request: BidRequest) -> Constraint:
    """What the request wants of a node's properties: what follows from its fields, and its own constraint.

    InvalidInput where the constraint does not parse."""
    return join([_get_needs(request), parse(request.constraint)])


def _get_needs(request: BidRequest) -> Constraint:
    """What follows from the request's fields alone."""
    limits = request.resources
    memory = limits.memory + (limits.disk if request.executor != "wasm" else 0)  # native programs' files are in memory
    wanted = [
        f"executor.{request.executor} = true",
        f"cpu.cores >= {limits.processors}",
        f"memory.bytes >= {_spell_bytes(memory)}",
        f"disk.bytes >= {_spell_bytes(limits.disk)}",
    ]
    if request.kind == "module" and request.engine:
        wanted.append(f"executor.{request.executor}.engine = {quote(request.engine)}")
    if request.network:
        wanted.append("network = true")
    if limits.gpus:
        wanted.append(f"gpu.count >= {limits.gpus}")
    if limits.gpu_model:
        wanted.append(f"gpu.model = {quote(limits.gpu_model, wildcards=True)}")
    if limits.gpu_memory:
        wanted.append(f"gpu.memory >= {_spell_bytes(limits.gpu_memory)}")
    return parse(" and ".join(wanted))


def _spell_bytes(size: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size % scale == 0:
            return f"{size // scale} {unit}"
    return str(size)


def get_order_party(request: BidRequest) -> Party:
    """The request as one side of a match. What the fields say cannot be said otherwise by its own properties."""
    limits = request.resources
    said: dict[str, Value] = {
        "client": request.client,
        "executor": request.executor,
        "kind": request.kind,
        "engine": request.engine,
        "network": request.network,
        "steps": request.steps,
        "processors": limits.processors,
        "memory": limits.memory,
        "disk": limits.disk,
        "seconds": limits.seconds,
        "gpus": limits.gpus,
        "most": request.most,
        "orders": request.orders,
    }
    return Party("order", request.properties | said, get_wanted(request))


class Pricing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an operator prices, beside the list price (`pricing` in the settings of compute). Linear, as Akash's
    providers do it: so much for each GiB of memory beyond `memory_included` for each processor, each GiB of disk, each
    GPU, all in credits (base units) an hour. `discount`: basis points off while all slots are free, less as they fill.
    `surcharge`: basis points for as many waiting orders as there are slots, to `surcharge_most`. `bid_seconds`: how
    long a bid stands. `queue`: with more waiting orders it bids for nothing."""

    memory_price: int = 0
    memory_included: int = 2  # GiB for each processor
    disk_price: int = 0
    gpu_price: int = 0
    discount: int = 0
    surcharge: int = 0
    surcharge_most: int = WHOLE
    bid_seconds: int = 60
    queue: int = 1024


def read_pricing(value: Mapping[str, Any]) -> Pricing:
    """The operator's pricing. InvalidInput naming what is wrong."""
    try:
        pricing = msgspec.convert(dict(value), Pricing)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the pricing of compute: {error}") from None
    for name in pricing.__struct_fields__:
        if not 0 <= getattr(pricing, name) < AMOUNT_LIMIT:
            raise InvalidInput(f"the pricing of compute: {name!r} is not from 0 to 2**96")
    if pricing.discount > WHOLE or pricing.bid_seconds < 1:
        raise InvalidInput("the pricing of compute: 'discount' is at most 10000, 'bid_seconds' at least 1")
    return pricing


class Load(NamedTuple):
    """How busy a node is: orders that run at once at most, that run now, and that wait."""

    slots: int
    running: int
    waiting: int


class NodeTerms(NamedTuple):
    """A node as `judge_request` sees it: what it advertises, its operator's constraint over orders, its list price and
    pricing, and its load."""

    name: str
    properties: Mapping[str, Any]
    rules: Constraint
    list_price: int
    pricing: Pricing
    load: Load


def make_price(request: BidRequest, terms: NodeTerms) -> int:
    """What the node asks for an hour of one processor.

    With p processors, m GiB of memory, d of disk and g GPUs, each rounded up, L the list price:
        base  = L + ceil((max(0, m - included x p) x memory_price + d x disk_price + g x gpu_price) / p)
        price = ceil(base x (10000 - discount x free / slots + min(surcharge x waiting / slots, most)) / 10000)
    with both fractions rounded down. Overflow from 2**96 on.
    """
    limits, pricing, load = request.resources, terms.pricing, terms.load
    memory, disk = -(-limits.memory // 2**30), -(-limits.disk // 2**30)
    beyond = max(0, memory - pricing.memory_included * limits.processors)
    extra = beyond * pricing.memory_price + disk * pricing.disk_price + limits.gpus * pricing.gpu_price
    base = terms.list_price - (-extra // limits.processors)
    slots = max(1, load.slots)
    less = pricing.discount * max(0, slots - load.running) // slots
    more = min(pricing.surcharge * load.waiting // slots, pricing.surcharge_most)
    return check_amount(-(-base * (WHOLE - less + more) // WHOLE), "a bid's price")


class Answer(NamedTuple):
    """What a node says to a request: a price, or reasons why it does not bid (in sentences)."""

    price: int | None
    reasons: tuple[str, ...]


def judge_request(request: BidRequest, terms: NodeTerms) -> Answer:
    """Whether this node would take what is asked, and for how much.

    Its operator's rules must be true of the order, and what follows from the request's fields true of the node. The
    request's own constraint must not be false: it may ask for what only the client knows of the node ("operator",
    "reliability"), so what is unknown here is for the client to decide.
    """
    order = get_order_party(request)._replace(constraint=_get_needs(request))
    found = match(order, Party(terms.name, terms.properties, terms.rules))
    reasons = [reason.text for reason in found.reasons]
    for clause in parse(request.constraint).clauses:
        if clause.test(terms.properties) is False:
            reasons.append(clause.evaluate(terms.properties).reason)
    if terms.load.waiting > terms.pricing.queue:
        reasons.append(f"{terms.load.waiting} orders wait here, and it bids while at most {terms.pricing.queue} do")
    if reasons:
        return Answer(None, tuple(reasons))
    return Answer(make_price(request, terms), ())


def make_bid(request: BidRequest, price: int, terms: NodeTerms, now: int, key: Key, domain: Domain) -> Bid:
    """The node's signed answer; `now` is unix time in seconds."""
    bid = Bid(
        node=key.address,
        client=Address(request.client),
        request=request.hash(),
        price=price,
        properties=encode_properties(terms.properties),
        expiry=now + request.seconds + terms.pricing.bid_seconds,
    )
    return msgspec.structs.replace(bid, node_signature=key.sign(bid, domain))


class Expected(NamedTuple):
    """What a client holds a bid against. `most_price`: above it no bid counts; None: any."""

    node: Address
    request: BidRequest
    domain: Domain
    now: int
    most_price: int | None = None


def judge_bid(bid: Bid, expected: Expected) -> str:
    """Why a bid does not count; empty if it does."""
    if bid.node != expected.node:
        return f"its bid is another node's ({bid.node})"
    if bid.client != Address(expected.request.client) or bid.request != expected.request.hash():
        return "its bid is for another request"
    if bid.expiry < expected.now:
        return f"its bid expired {expected.now - bid.expiry} s ago"
    if expected.most_price is not None and bid.price > expected.most_price:
        return f"it asks {bid.price}, more than {expected.most_price}"
    if not is_signed_by(bid, bid.node_signature, expected.node, expected.domain):
        return "its bid is not signed by it"
    try:
        decode_properties(bid.properties)
    except InvalidInput as error:
        return f"its bid's properties: {error.message}"
    return ""
