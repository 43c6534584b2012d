"""Every decoder that reads what others have sent, in one table: what it takes, what it gives back, and where it stands.

A decoder is a function of bytes. Those that take parsed JSON are given what the bytes parse to, so that one fuzzer does
for all. `covers` names the functions of src/freehold that it goes through (module.Class.function); `test_decoders.py`
finds every function that looks like a decoder and fails for one that nobody covers and EXEMPT does not explain.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import pkgutil
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import msgspec

import freehold
from freehold.chain import abi, reverts, transactor, wire
from freehold.chain.endpoint import parse_retry_after
from freehold.client import collect, grants, jobs_spec, keystore, money, object_records, root
from freehold.client import table_records as table
from freehold.market import constraints, view
from freehold.market.network import CONTRACTS, MemberRecord, Network
from freehold.net.auth import REQUEST_HEADER, SIGNATURE_HEADER, Guard, authorize
from freehold.node import api, committed
from freehold.oracle import price, server
from freehold.protocol.batches import decode_batch, decode_header, encode_batch, kinds_of
from freehold.protocol.bundle import decode_bundle, encode_bundle
from freehold.protocol.errors import FreeholdError, MalformedMessage, Refused
from freehold.protocol.messages import Lease, Manifest
from freehold.protocol.state import AccountState
from freehold.protocol.tables import Table
from freehold.protocol.typed import Message, canonical_json, fields_of, keccak, parse_json
from freehold.protocol.units import Address, Hash, Signature
from freehold.services.compute import bidding, tasks
from freehold.services.compute.node import gateway as provider_gateway
from freehold.services.compute.node import orders_checks
from freehold.services.compute.node import shown as provider_shown
from freehold.services.compute.ordering import checks as client_checks
from freehold.services.compute.terms import Order, Receipt, WorkState
from freehold.services.compute.verification import metrics
from freehold.services.judging import JUDGES
from freehold.services.seam import Standing
from freehold.services.storage import (
    client_objects,
    list_steps,
    listing,
    proof,
    provider,
    receiving,
    register_values,
    repair_key,
)
from freehold.services.storage.client_objects import StoredObject, StoredSegment
from freehold.services.storage.codec import REPAIR_KEY_BYTES, SegmentKeys
from freehold.services.storage.segment_record import SegmentRecord
from freehold.services.storage.terms import ShardEntry
from tests.fuzz.quote_decoders import quote_decoders
from tests.fuzz.wire_decoders import wire_decoders
from tests.protocol.world import ADDRESSES, DOMAIN, MEMBERS, PARAMETERS, World, busy_world, key

NOW = 1_000_000
KINDS = kinds_of(JUDGES)


class Decoder(NamedTuple):
    """`encode` gives back bytes that decode to the same; None where what is decoded does not travel back."""

    name: str
    decode: Callable[[bytes], Any]
    seeds: Callable[[], Sequence[bytes]]
    covers: tuple[str, ...]
    encode: Callable[[Any], bytes] | None = None


# Their libraries are installed for `make test-servers` only; they define no messages.
OPTIONAL = ("freehold.store.postgres", "freehold.store.bucket")


def message_kinds() -> list[type[Message]]:
    """Every message that the package defines."""
    for module in pkgutil.walk_packages(freehold.__path__, "freehold."):
        if module.name not in OPTIONAL:
            importlib.import_module(module.name)
    found: list[type[Message]] = []
    waiting: list[type[Message]] = [Message]
    while waiting:
        children = waiting.pop().__subclasses__()
        waiting += children
        found += [kind for kind in children if kind.__module__.startswith("freehold.")]
    return sorted(set(found), key=lambda kind: (kind.__module__, kind.__name__))


def sample(kind: type[Message], draw: random.Random) -> Message:
    """Some message of this type."""
    values: dict[str, Any] = {}
    for field in fields_of(kind):
        count = draw.randint(0, 3) if field.many else 1
        items = [_sample_field(field, draw) for _ in range(count)]
        values[field.name] = tuple(items) if field.many else items[0]
    return kind(**values)


def _sample_field(field: Any, draw: random.Random) -> Any:
    if field.item is not None:
        return sample(field.item, draw)
    if field.bits:
        return draw.choice([0, 1, 2**field.bits - 1, draw.getrandbits(field.bits)])
    makers: dict[str, Callable[[], Any]] = {
        "address": lambda: Address(draw.randbytes(20)),
        "bytes32": lambda: Hash(draw.randbytes(32)),
        "signature": lambda: Signature(draw.choice([b"", draw.randbytes(65)])),
        "bytes": lambda: draw.randbytes(draw.randint(0, 40)),
        "string": lambda: draw.choice(["", "storage", "é\U0001f600", "x" * 50]),
    }
    return makers[field.solidity]()


def samples(kind: type[Message], count: int = 4) -> list[Message]:
    draw = random.Random(kind.__name__)
    return [sample(kind, draw) for _ in range(count)]


def of_json(decode: Callable[[Any], Any]) -> Callable[[bytes], Any]:
    """A decoder of parsed JSON as one of bytes."""
    return lambda data: decode(parse_json(data))


@cache
def world() -> World:
    return busy_world()


@cache
def batches() -> tuple[bytes, ...]:
    return tuple(encode_batch(batch) for batch in (world().reserve(key(1), 1, {}), *world().deltas(key(1))))


def job_task() -> tasks.Task:
    data = tasks.Blob("ab" * 32, 5)
    given = (tasks.Input("a/b", data), tasks.Input("c", bucket="demo", key="x/y", etag="e"))
    return tasks.Task(executor="wasm", kind="module", program=data, arguments=("-v",), inputs=given, steps=2)


def order_body(value: Any) -> Any:
    """What comes with an order, as far as it is checked before the node looks at itself."""
    lease = Lease(
        client=key(1).address, node=key(2).address, service="compute", mode=1, price=1, number=1, deadline=NOW
    )
    standing = Standing(lease, 0, 0, None)
    if not isinstance(value, dict):
        raise MalformedMessage("the body must be a JSON object")
    if isinstance(value.get("order"), dict):
        value["order"]["lease"] = str(lease.struct_hash())
        with suppress(MalformedMessage):
            order = Order.from_json(value["order"])
            value["order"]["client_signature"] = str(key(1).sign(order, DOMAIN))
    asked = orders_checks.parse_asked(value, standing, DOMAIN)
    return asked, provider_gateway.parse_access(asked.access, asked.task, r"gateway(:\d+)?")


def order_bodies() -> list[bytes]:
    task, body = job_task(), b"five!"
    order = Order(lease=Hash(bytes(32)), number=1, task=task.hash(), most=7, until=9)
    access = {"url": "http://gateway:80", "read": {"demo/x/y": "token"}, "write": ""}
    blobs = {hashlib.sha256(body).hexdigest(): base64.b64encode(body).decode()}
    value = {"order": order.to_json(), "task": task.encode().decode(), "blobs": blobs, "access": access, "wait": 1}
    return [canonical_json(value), canonical_json(value | {"access": access | {"fingerprint": "0x" + "ab" * 32}})]


def case_answer(value: Any) -> Any:
    """What an accused node shows to a referee."""
    receipt = case_receipt()
    seat = sample(WorkState, random.Random(1))
    assert isinstance(seat, WorkState)
    facts = {"task": receipt.task, "first": receipt.node, "first_output": receipt.output, "step": 0}
    facts |= {"input": receipt.input, "first_order": receipt.order().struct_hash()}
    case = orders_checks.parse_key(str(seat.id))
    seat = msgspec.structs.replace(seat, id=case, **facts)
    return provider_shown.check_shown(value, seat, receipt.node, DOMAIN)


@cache
def case_receipt() -> Receipt:
    receipt = Receipt(
        node=key(2).address, lease=Hash(bytes(32)), number=1, task=job_task().hash(), most=7, until=9,
        input=tasks.input_root([("a/b", "ab" * 32), ("c", "cd" * 32)]), output=job_result().hash(),
        steps=Hash(bytes(32)), measure=3,
    )  # fmt: skip
    return msgspec.structs.replace(receipt, node_signature=key(2).sign(receipt, DOMAIN))


def case_answers() -> list[bytes]:
    value = {
        "task": job_task().encode().decode(),
        "inputs": [["a/b", "ab" * 32], ["c", "cd" * 32]],
        "state": None,
        "receipt": case_receipt().to_json(),
        "result": job_result().encode().decode(),
    }
    return [canonical_json(value)]


def job_result() -> tasks.Result:
    file = tasks.OutputFile("out", "cd" * 32, 7)
    return tasks.Result(ended="exited", status=0, stdout=file, files=(file,))


def job_standings() -> list[bytes]:
    """Jobs as nodes show them: one that waits, and one that is over."""
    short = {"job": str(Hash(bytes(32))), "phase": "queued", "position": 3, "measure": 0, "log": 10}
    data = b"result"
    over = short | {
        "phase": "finished",
        "receipt": samples(Receipt, 1)[0].to_json(),
        "result": job_result().encode().decode(),
        "steps": ["ab" * 32],
        "inline": {hashlib.sha256(data).hexdigest(): base64.b64encode(data).decode()},
        "delivered": True,
        "service": {"url": "/x", "healthy": True},
    }
    return [canonical_json(short), canonical_json(over)]


def guard(data: bytes) -> Address:
    """A request's headers as lines of text."""
    lines = [line.partition(": ") for line in data.decode("latin-1").split("\n")]
    headers = {name: value for name, _, value in lines}
    return Guard(ADDRESSES[0], DOMAIN, lambda: NOW).check(headers, "POST", "/v1/x", keccak(b""))


def signed_headers() -> list[bytes]:
    headers = authorize(MEMBERS[1], "POST", "/v1/x", keccak(b""), ADDRESSES[0], DOMAIN, NOW, keccak(b"nonce"))
    return ["\n".join(f"{name}: {headers[name]}" for name in (REQUEST_HEADER, SIGNATURE_HEADER)).encode()]


def network() -> Network:
    contracts = {name: Address(bytes([i]) * 20) for i, name in enumerate(CONTRACTS)}
    members = tuple(MemberRecord(m.address, m.public, "https://127.0.0.1:1", keccak(m.public)) for m in MEMBERS)
    return Network("test", 31337, "http://127.0.0.1:1", contracts, 1, keccak(b""), 1, members, PARAMETERS)


def manifest() -> Manifest:
    anchor = world().anchor(world().state.epoch.epoch + 1)
    return world().manifest(anchor, [], (1, 1, 1))


def member_messages() -> list[bytes]:
    said = [
        manifest(),
        *manifest().observations,
        *samples(server.MESSAGES["Vote"]),
        *samples(server.MESSAGES["ViewChange"]),
    ]
    return [canonical_json({"type": type(m).__name__, "message": m.to_json()}) for m in said]


def signed_message(data: bytes) -> Any:
    return server.parse_signed(data, keccak(data))


def node_rows() -> list[bytes]:
    from tests.node.world import rows_of

    return [canonical_json(rows_of(world().state, key(11).address))]


def committed_rows(value: Any) -> Any:
    report = world().report
    assert report is not None
    return committed.parse_rows(value, report)


def client_rows() -> list[bytes]:
    rows = collect.KeptState(world().state).rows_of(key(1).address)
    placed = {"clients": [rows.client], "leases": rows.leases.values(), "locks": rows.locks.values()}
    entries = {
        name: [
            {"row": one.row.to_json(), "index": one.position, "proof": [str(h) for h in one.proof]}
            for one in found
            if one is not None
        ]
        for name, found in placed.items()
    }
    return [canonical_json({"tables": [root.to_json() for root in rows.tables], "rows": entries})]


def collected_rows(value: Any) -> Any:
    return collect.parse_rows(value, world().state.root(), key(1).address)


def open_epochs() -> list[bytes]:
    report = world().report
    assert report is not None
    signatures = b"".join(m.sign(report, DOMAIN) for m in MEMBERS[:3])
    first = {"epoch": 1, "parameters": PARAMETERS.to_json()}
    signed = {"report": report.to_json(), "signers": 7, "signatures": f"0x{signatures.hex()}"}
    later = first | signed | {"epoch": report.epoch + 1, "beacon": str(keccak(b""))}
    return [canonical_json(value) for value in (first, later)]


def open_epoch(value: Any) -> Any:
    if not isinstance(value, dict) or type(value.get("epoch")) is not int:  # as read_open does
        raise MalformedMessage("no answer")
    return committed._parse_open(value, ADDRESSES, DOMAIN)


def record_seeds() -> list[bytes]:
    roots = tuple(bytes([i]) * 32 for i in range(4))
    return [SegmentRecord(1, 2, 4, 5000, roots).to_bytes(), SegmentRecord(1, 2, 4, 1, roots, (b"x" * 80,)).to_bytes()]


def shard_entries() -> list[ShardEntry]:
    return [ShardEntry.from_json(m.to_json()) for m in samples(ShardEntry)]


def list_step_seeds() -> list[bytes]:
    siblings = tuple(proof.LISTS.empty for _ in range(3))
    return [canonical_json(list_steps.Step(1, e, siblings).to_json()) for e in (None, *shard_entries())]


def changes() -> list[bytes]:
    return [canonical_json({"add": [e.to_json() for e in shard_entries()], "remove": [1, 5]})]


def stored() -> StoredObject:
    segment = StoredSegment(9, 2, 5, b"record", bytes(48), (bytes(32),) * 3, (bytes(20),) * 3, (0, 1, 7))
    return StoredObject(9, (segment,))


def table_frames() -> list[bytes]:
    value = table.Value(b"meta", b"payload")
    changes = [((1, b"key", b"sub"), value), ((2, b"key", b""), None)]
    return [table.encode(table.Frame(table.VERSION, bytes(16), 5, 2, changes))]


def table_entries() -> list[bytes]:
    values = [table.Value(b"meta", table.Packed(3, 0, 9)), None, table.Value(b"")]
    return [table.encode(table.Entries(table.VERSION, [(1, b"a", b""), (1, b"b", b""), (2, b"", b"")], values))]


def table_directories() -> list[bytes]:
    packs = {3: table.Pack(bytes(16), 30, stored(), ((0, 5), (9, 4)), ((0, 5),))}
    runs = (table.Run(bytes(16), 7, 9, stored(), (1, b"b", b"")),)
    pages = tuple(table.Page(bytes(16), key, 5, 9, stored()) for key in [(1, b"a", b""), (1, b"b", b"")])
    full = table.Directory(table.VERSION, 9, (bytes(16),), pages, runs, packs, 4)
    return [table.encode(directory) for directory in (table.Directory(table.VERSION), full)]


def account_seeds() -> list[bytes]:
    (row,) = samples(AccountState, 1)
    return [canonical_json({"epoch": 1, "account": row.to_json(), "proof": "0x" + "00" * 67}), b'{"account":null}']


def sealed_shares() -> list[bytes]:
    return list(repair_key.seal_repair_key(bytes(REPAIR_KEY_BYTES), [m.public for m in MEMBERS], 2, [bytes(32)]))


def headers_of_chain() -> list[bytes]:
    value = {"number": "0x5", "hash": str(keccak(b"")), "parentHash": str(keccak(b"")), "timestamp": "0x1"}
    return [canonical_json(value | {"logsBloom": "0x" + "00" * 256}), canonical_json(value), b"null"]


def chain_log() -> dict[str, Any]:
    text = str(keccak(b""))
    return {
        "address": f"0x{'11' * 20}",
        "topics": [text],
        "data": "0x" + "00" * 64,
        "blockNumber": "0x5",
        "blockHash": text,
        "transactionHash": text,
        "logIndex": "0x0",
    }


def receipts() -> list[bytes]:
    text = str(keccak(b""))
    value = {"transactionHash": text, "blockNumber": "0x5", "blockHash": text, "gasUsed": "0x5", "logs": [chain_log()]}
    return [canonical_json(value | {"contractAddress": None})]


TYPES = tuple(abi.Parameter(name) for name in ("uint256", "address", "bytes32", "bytes", "string", "uint96[]"))


def abi_values() -> list[bytes]:
    from eth_abi.abi import encode

    return [encode([t.type for t in TYPES], [5, "0x" + "11" * 20, bytes(32), b"xy", "text", [1, 2]])]


def reverts_seeds() -> list[bytes]:
    from eth_abi.abi import encode

    return [keccak(b"Error(string)")[:4] + encode(["string"], ["no"]), keccak(b"Panic(uint256)")[:4] + bytes(32), b""]


def keystores() -> list[bytes]:
    return [json.dumps(keystore.seal_secret(b"\x01" * 32, "pass", 2)).encode()]


def error_seeds() -> list[bytes]:
    return [canonical_json(kind("it did", hint="do", missing="5").to_json()) for kind in (FreeholdError, Refused)]


def parse_error(value: Any) -> FreeholdError:
    if not isinstance(value, dict):  # as the client does
        raise MalformedMessage("no error")
    return FreeholdError.from_json(value)


def grant(data: bytes) -> grants.Grant:
    """A token's bytes, as its text names them."""
    return grants.describe(grants.PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("="))


def grant_seeds() -> list[bytes]:
    token = grants.GrantKey(bytes(32)).issue(ADDRESSES[0], ["read", "list"], bucket="b-1", expires=NOW)
    bodies = [text.removeprefix(grants.PREFIX) for text in (token, grants.narrow(token, prefix="a"))]
    return [base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)) for body in bodies]


def messages() -> Iterator[Decoder]:
    """Each message, as JSON and as rows of a table."""
    for kind in message_kinds():
        yield Decoder(
            f"message.{kind.__name__}",
            kind.from_bytes,
            lambda kind=kind: [m.to_bytes() for m in samples(kind)],  # type: ignore[misc]
            ("protocol.typed.Message.from_json", "protocol.typed.Message.from_bytes", "protocol.typed.parse_json"),
            lambda message: message.to_bytes(),
        )
        yield Decoder(
            f"table.{kind.__name__}",
            lambda data, kind=kind: Table.decode(kind, data),  # type: ignore[misc]
            lambda kind=kind: [Table.of(kind, samples(kind, n)).encode() for n in (0, 1, 4)],  # type: ignore[misc]
            ("protocol.tables.Table.decode",),
            lambda table: table.encode(),
        )


def others() -> Iterator[Decoder]:
    """Everything that is not one message or one table."""

    def entry(
        name: str,
        decode: Callable[[bytes], Any],
        seeds: Callable[[], Sequence[bytes]],
        *covers: str,
        encode: Callable[[Any], bytes] | None = None,
    ) -> Decoder:
        return Decoder(name, decode, seeds, covers, encode)

    def as_json(value: Any) -> bytes:
        return canonical_json(value.to_json())

    # protocol
    yield entry(
        "batch",
        lambda data: decode_batch(data, KINDS, DOMAIN),
        batches,
        "protocol.batches.decode_batch",
        encode=encode_batch,
    )
    yield entry("batch_header", lambda data: decode_header(data, KINDS), batches, "protocol.batches.decode_header")
    yield entry(
        "bundle",
        lambda data: decode_bundle(data, JUDGES),
        lambda: [encode_bundle(bundle) for bundle in world().bundles],
        "protocol.bundle.decode_bundle",
        encode=encode_bundle,
    )
    yield entry("error", of_json(parse_error), error_seeds, "protocol.errors.FreeholdError.from_json")
    # members
    yield entry("member_message", server.parse_message, member_messages, "oracle.server.parse_message")
    yield entry("signed_message", signed_message, member_messages, "oracle.server.parse_signed")
    yield entry("price", price.parse_price, lambda: [b'{"price":"5"}'], "oracle.price.parse_price")
    # requests
    yield entry("request", guard, signed_headers)
    yield entry(
        "hash_in_path",
        lambda data: receiving.parse_hash(data.decode("latin-1")),
        lambda: [str(keccak(b"")).encode()],
        "services.storage.receiving.parse_hash",
    )
    # what members answer
    yield entry(
        "client_view",
        of_json(lambda value: view.parse_view(1, key(1).address, value)),
        node_rows,
        "market.view.parse_view",
    )
    yield entry("committed_epoch", of_json(view._epoch), lambda: [b'{"last_report":{"epoch":"5"}}'])
    yield entry("node_rows", of_json(committed_rows), node_rows, "node.committed.parse_rows")
    yield entry("client_rows", of_json(collected_rows), client_rows, "client.collect.parse_rows")
    yield entry(
        "ended_leases",
        of_json(lambda value: api._parse_ended({"ended": value})),
        lambda: [canonical_json([str(Hash(bytes(32)))]), b"null"],
        "node.api._parse_ended",
    )
    yield entry("open_epoch", of_json(open_epoch), open_epochs, "node.committed._parse_open")
    yield entry("grant", grant, grant_seeds)
    yield entry("account", of_json(money._parse_account), account_seeds, "client.money._parse_account")
    yield entry(
        "network",
        of_json(Network.from_json),
        lambda: [as_json(network())],
        "market.network.Network.from_json",
        "market.network.MemberRecord.from_json",
        encode=as_json,
    )
    # the compute market
    yield entry(
        "constraint",
        lambda data: constraints.parse(data.decode("latin-1")),
        lambda: [b'cpu.cores >= 4 and not (place in ["de-*", "us"] or gpu = true)', b'exists a.b and c has "d\\*"'],
        "market.constraints.parse",
        "market.constraints._Parser.parse",
        encode=lambda constraint: str(constraint).encode("latin-1"),
    )
    yield entry(
        "job_spec",
        lambda data: jobs_spec.parse(data, "job.yaml"),
        lambda: [b"python: a.py\narguments: [1]\ndeadline: 10 min\nmost: 0.05 credits\nresources: {memory: 64 MiB}\n"],
        "client.jobs_spec.parse",
        "client.jobs_units.parse_size",
        "client.jobs_units.parse_duration",
        "client.jobs_units.parse_credits",
        "client.jobs_units._parse",
        "client.jobs_contents.decode_base64",
    )
    request = bidding.BidRequest(client=str(key(1).address), executor="wasm", kind="module", constraint="cpu.cores > 1")
    yield entry(
        "bid_request",
        of_json(bidding.parse_request),
        lambda: [request.encode()],
        "services.compute.bidding.parse_request",
        encode=lambda found: bytes(found.encode()),
    )
    yield entry(
        "node_properties",
        bidding.decode_properties,
        lambda: [b'{"cpu.cores":4,"executor.wasm":true,"features":["avx2"],"place":"de"}'],
        "services.compute.bidding.decode_properties",
        encode=bidding.encode_properties,
    )
    yield entry(
        "job_standing",
        of_json(client_checks.parse_standing),
        job_standings,
        "services.compute.ordering.checks.parse_standing",
    )
    yield entry(
        "task",
        tasks.decode_task,
        lambda: [job_task().encode()],
        "services.compute.tasks.decode_task",
        encode=lambda task: bytes(task.encode()),
    )
    yield entry(
        "result",
        tasks.decode_result,
        lambda: [job_result().encode()],
        "services.compute.tasks.decode_result",
        encode=lambda result: bytes(result.encode()),
    )
    yield entry(
        "order_body",
        of_json(order_body),
        order_bodies,
        "services.compute.node.orders_checks.parse_asked",
        "services.compute.node.orders_checks.parse_inline",
        "services.compute.node.orders_checks.parse_wait",
        "services.compute.node.gateway.parse_access",
    )
    yield entry("case_answer", of_json(case_answer), case_answers, "services.compute.node.orders_checks.parse_key")
    # storage
    yield entry(
        "segment_record",
        SegmentRecord.from_bytes,
        record_seeds,
        "services.storage.segment_record.SegmentRecord.from_bytes",
        encode=lambda record: record.to_bytes(),
    )
    yield entry(
        "segment_keys",
        SegmentKeys.from_bytes,
        lambda: [SegmentKeys.random().to_bytes()],
        "services.storage.codec.SegmentKeys.from_bytes",
        encode=lambda keys: keys.to_bytes(),
    )
    yield entry(
        "sealed_share",
        lambda data: repair_key.open_share(data, MEMBERS[0].secret, [bytes(32)]),
        sealed_shares,
        "services.storage.repair_key.open_share",
    )
    yield entry(
        "list_path",
        proof.unpack_list_path,
        lambda: [proof.pack_list_path([proof.LISTS.empty] * 2)],
        "services.storage.proof.unpack_list_path",
        "protocol.merkle.SumScheme.unpack",
    )
    yield entry(
        "list_step",
        of_json(list_steps.Step.from_json),
        list_step_seeds,
        "services.storage.list_steps.Step.from_json",
        encode=as_json,
    )
    yield entry("list_change", of_json(parse_change), changes, "services.storage.provider._parse_change")
    yield entry(
        "stored_object",
        client_objects.decode_object,
        lambda: [msgspec.msgpack.encode(stored())],
        "services.storage.client_objects.decode_object",
        encode=msgspec.msgpack.encode,
    )
    page = {"data": {"entries": [[0, "00" * 32, 9, NOW], [7, "11" * 32, 9, NOW]], "next": 8}}
    yield entry(
        "list_page",
        lambda data: listing.parse_page(data, 0),
        lambda: [canonical_json(page)],
        "services.storage.listing.parse_page",
    )
    yield entry(
        "register_proposal",
        lambda data: register_values.decode(data, register_values.Accepted),
        lambda: [
            msgspec.msgpack.encode(
                register_values.Accepted(
                    1, bytes(8), 1, False, bytes(8), bytes(32), bytes(65), register_values.Part(b"", 0, b"base", [b"f"])
                )
            )
        ],
        "services.storage.register_values.decode",
        encode=msgspec.msgpack.encode,
    )
    yield entry(
        "register_group",
        register_values.Group.decode,
        lambda: [register_values.Group(2, 1, [bytes(20)]).encode()],
        "services.storage.register_values.Group.decode",
        "services.storage.register_values.decode",
        encode=lambda group: group.encode(),
    )
    # a client's own, as others keep it
    yield entry(
        "object_version",
        object_records.decode_version,
        lambda: [object_records.encode(object_records.Version(0, 9, NOW, "e", object_records.encode(stored())))],
        "client.object_records.decode_version",
        encode=object_records.encode,
    )
    buckets = {"demo": root.BucketRecord(id=bytes(16), created=NOW, code=client_objects.Code(2, 3))}
    yield entry(
        "account_root",
        root.decode_root,
        lambda: [root.encode_root(root.Root(buckets=buckets))],
        "client.root.decode_root",
        encode=root.encode_root,
    )
    yield entry(
        "table_frame", table.decode_frame, table_frames, "client.table_records.decode_frame", encode=table.encode
    )
    yield entry(
        "table_entries", table.decode_entries, table_entries, "client.table_records.decode_entries", encode=table.encode
    )
    yield entry(
        "table_directory",
        table.decode_directory,
        table_directories,
        "client.table_records.decode_directory",
        encode=table.encode,
    )
    yield entry(
        "table_base",
        table.decode_base,
        lambda: [table.encode(table.Base(table.VERSION, found)) for found in (b"directory", stored())],
        "client.table_records.decode_base",
        encode=table.encode,
    )
    yield entry("keystore", of_json(open_keystore), keystores, "client.keystore.open_secret")
    # the chain
    yield entry("chain_header", of_json(wire.parse_header), headers_of_chain, "chain.wire.parse_header")
    yield entry(
        "chain_logs",
        of_json(wire.parse_logs),
        lambda: [canonical_json([chain_log(), chain_log() | {"logIndex": "0x1"}])],
        "chain.wire.parse_logs",
        "chain.wire.parse_log",
    )
    yield entry("receipt", of_json(transactor.parse_receipt), receipts, "chain.transactor.parse_receipt")
    yield entry(
        "abi",
        lambda data: abi.decode_values(TYPES, data, "a call"),
        abi_values,
        "chain.abi.decode_values",
        "chain.abi.decode_event",
    )
    yield entry("revert", reverts.decode_revert, reverts_seeds, "chain.reverts.decode_revert")
    yield entry(
        "retry_after",
        lambda data: parse_retry_after(data.decode("latin-1")),
        lambda: [b"5", b"Wed, 21 Oct 2015 07:28:00 GMT"],
        "chain.endpoint.parse_retry_after",
    )
    # what nodes have computed
    yield from quote_decoders(entry)
    for metric in metrics.METRICS:
        yield entry(f"metric_{metric}", halves_apart(metric), result_pairs)
    # the gateway
    yield from wire_decoders(entry)


def halves_apart(metric: str) -> Callable[[bytes], int]:
    """The distance of the two parts of what comes; it must be the same both ways."""

    def decode(data: bytes) -> int:
        first, _, second = data.partition(b"\0\0")
        apart = metrics.distance(metric, first, second)
        assert apart == metrics.distance(metric, second, first)
        return apart

    return decode


def result_pairs() -> list[bytes]:
    pictures = [b"P6 4 2 255\n" + bytes(range(n, n + 24)) for n in (1, 9)]
    return [b"\0\0".join(pair) for pair in (pictures, (b"1.5 nan\n2", b"1.4 nan\n2"), (b"P5 1 1 65535 ab", b""))]


def parse_change(value: Any) -> Any:
    if not isinstance(value, dict):  # as the provider does
        raise MalformedMessage("no change")
    return provider._parse_change(value)


def open_keystore(value: Any) -> bytes:
    if isinstance(value, dict) and isinstance(value.get("crypto"), dict):
        cost = value["crypto"].get("kdfparams")
        if isinstance(cost, dict) and str(cost.get("n")) not in ("2", "3", "0", "-1"):
            raise MalformedMessage("scrypt takes as long as its file says: not here")
    return keystore.open_secret(value, "pass")


# What looks like a decoder and does not read what others have sent, or is read through another.
EXEMPT: Mapping[str, str] = {
    "chain.abi.Contract.decode": "picks the event; abi.decode_event",
    "chain.follower.Follower._decode": "picks the contract; abi.decode_event",
    "client.book._unpack_held": "this process's own database",
    "client.bucket_store.BucketStore.unpack": "client_objects.decode_object, of what this account sealed",
    "client.checksums_combine._decode": "what gateway.wire.checksums.decode_digest took",
    "client.object_records.decode": "what this account sealed; decode_version is its kind that lists go through",
    "client.object_uploads.unpack_parts": "what this account sealed",
    "gateway.bodies.Body._decode": "streaming.ChunkDecoder.feed",
    "gateway.call.Call.parse": "names.split_target and request.decode_query",
    "gateway.config.GatewayConfig.from_json": "the operator's own file",
    "gateway.config._parse": "the operator's own file",
    "gateway.config._parse_wallet": "the operator's own file",
    "local.chain.LocalChain._unpack_state": "this process's own file",
    "protocol.bundle._unpack": "a step of decode_bundle",
    "protocol.typed._from_json": "a step of Message.from_json",
    "chain.deploy.Deployment.from_json": "the artifacts that come with the package",
    "chain.journal.Sent.from_json": "this process's own file",
    "client.sdk._parse": "what the user typed",
    "client.paths.parse_path": "what the user typed",
    "local.parameters.LocalSettings.from_json": "the operator's own file",
    "node.book._parse": "this process's own database",
    "services.compute.node.orders._parse": "this process's own database",
    "services.sensing.provider._parse_fleet": "a word of the path, which units.Hash reads",
    "node.config.NodeConfig.from_json": "the operator's own file",
    "node.config._parse": "the operator's own file",
    "node.config._parse_amount": "the operator's own file",
    "node.config._parse_service": "the operator's own file",
    "store.configuration.parse_configuration": "the operator's own file",
    "oracle.config.MemberConfig.from_json": "the operator's own file",
    "oracle.config._parse": "the operator's own file",
    "oracle.chain_view.ChainView.from_bytes": "this process's own record",
    "oracle.store.decode_state": "this process's own blob; its tables are fuzzed one by one",
    "protocol.typed._parse_integer": "a step of Message.from_json",
    "services.storage.codec.decode_segment": "shards whose trees were checked; test_codec.py",
    "services.storage.codec.decode_verified": "shards whose trees were checked; test_codec.py",
}


def all_decoders() -> dict[str, Decoder]:
    """Every decoder by name."""
    return {decoder.name: decoder for decoder in (*messages(), *others())}
