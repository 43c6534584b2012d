"""Messages: one definition gives JSON, EIP-712 type and row schema; eth-account agrees on every digest."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from eth_account.messages import _hash_eip191_message, encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

from freehold.protocol import messages, state
from freehold.protocol.errors import MalformedMessage
from freehold.protocol.keys import HALF_ORDER, Key, WrongSignature, recover
from freehold.protocol.merkle import RowTree, row_root, verify_row
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain, Field, Message, eip712_type, fields_of, keccak, parse_json, type_hash
from freehold.protocol.units import Address, Hash, Signature
from freehold.services.storage import terms
from tests.protocol.world import DOMAIN, key


def _subclasses(module: Any) -> list[type[Message]]:
    found = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Message) and v is not Message]
    return [kind for kind in found if kind.__module__ == module.__name__]


KINDS = _subclasses(messages) + _subclasses(state) + _subclasses(terms)
SIZES = {"address": (Address, 20), "bytes32": (Hash, 32), "signature": (Signature, 65)}


def value_of(field: Field) -> st.SearchStrategy[Any]:
    if field.many:
        return st.lists(value_of(field._replace(many=False)), max_size=2).map(tuple)
    if field.item is not None:
        return message_of(field.item)
    if field.bits:
        return st.integers(0, 2**field.bits - 1)
    if field.solidity in SIZES:
        kind, size = SIZES[field.solidity]
        return st.binary(min_size=size, max_size=size).map(kind)
    if field.solidity == "string":
        return st.text(st.characters(codec="utf-8"), max_size=8)
    return st.binary(max_size=40)


def message_of(kind: type[Message]) -> st.SearchStrategy[Message]:
    return st.builds(kind, **{field.name: value_of(field) for field in fields_of(kind)})


def as_typed_data(message: Message) -> dict[str, Any]:
    """The same message the way wallets are given it."""
    types: dict[str, Any] = {}

    def plain(value: Any, field: Field) -> Any:
        if field.rooted:
            return row_root([item.struct_hash() for item in value])
        if field.many:
            return [plain(item, field._replace(many=False)) for item in value]
        return collect(value) if field.item is not None else value

    def collect(part: Message) -> dict[str, Any]:
        fields = [f for f in fields_of(type(part)) if f.solidity != "signature"]
        types[type(part).__name__] = [{"name": f.name, "type": f.signed_type} for f in fields]
        for f in fields:
            if f.item is not None and not f.rooted:
                declare(f.item)
        return {f.name: plain(getattr(part, f.name), f) for f in fields}

    def declare(kind: type[Message]) -> None:
        fields = [f for f in fields_of(kind) if f.solidity != "signature"]
        types[kind.__name__] = [{"name": f.name, "type": f.signed_type} for f in fields]
        for f in fields:
            if f.item is not None and not f.rooted:
                declare(f.item)

    body = collect(message)
    domain = {
        "name": "Freehold",
        "version": "1",
        "chainId": DOMAIN.chain_id,
        "verifyingContract": f"0x{DOMAIN.contract.hex()}",
    }
    types["EIP712Domain"] = [
        {"name": "name", "type": "string"},
        {"name": "version", "type": "string"},
        {"name": "chainId", "type": "uint256"},
        {"name": "verifyingContract", "type": "address"},
    ]
    return {"types": types, "primaryType": type(message).__name__, "domain": domain, "message": body}


@given(st.sampled_from(KINDS).flatmap(message_of))
def test_eth_account_computes_the_same_digest(message: Message) -> None:
    signable = encode_typed_data(full_message=as_typed_data(message))
    assert bytes(_hash_eip191_message(signable)) == message.digest(DOMAIN)


@given(st.sampled_from(KINDS).flatmap(message_of))
def test_json_and_tables_give_the_message_back(message: Message) -> None:
    assert type(message).from_bytes(message.to_bytes()) == message
    table = Table.of(type(message), [message, message])
    copy = Table.decode(type(message), table.encode())
    assert copy == table
    assert copy.root == table.root


def test_the_report_is_the_contracts_type() -> None:
    assert eip712_type(messages.Report).startswith(
        "Report(uint64 epoch,uint32 attempt,uint32 view,uint64 anchor_block,bytes32 anchor_hash,bytes32 beacon,"
        "bytes32 previous,bytes32 manifest,bytes32 verdicts_root,bytes32 state_root,bytes32 accounts_root,"
        "uint64 accounts,uint96 tokens_earned,uint96 credits_earned,uint96 credits_spent,bytes32 slashes_root,"
        "uint96 subsidy,uint96 revenue,uint96 price,bytes32 collected,bytes32 parameters)"
    )


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_a_rooted_tuple_travels_whole_and_is_signed_by_its_root(count: int) -> None:
    kind = "Observation(uint64 epoch,bytes32 anchor,uint96 price,bytes32 commitment,bytes32 reveal,"
    assert eip712_type(messages.Observation) == f"{kind}bytes32 certificates,address member)"
    none = Hash(bytes(32))
    certificates = tuple(
        messages.Certificate(epoch=i, subject=none, signers=i, signatures=bytes([i])) for i in range(count)
    )
    observation = messages.Observation(
        epoch=1,
        anchor=none,
        price=1,
        commitment=none,
        reveal=none,
        certificates=certificates,
        member=Address(bytes(20)),
    )
    tree = RowTree([certificate.struct_hash() for certificate in certificates])
    words = [(1).to_bytes(32), none, (1).to_bytes(32), none, none, tree.root, bytes(32)]
    assert observation.struct_hash() == keccak(type_hash(messages.Observation) + b"".join(words))
    for index, certificate in enumerate(certificates):
        assert verify_row(tree.root, count, index, certificate.struct_hash(), tree.proof(index))
    assert messages.Observation.from_json(observation.to_json()).certificates == certificates


VOUCHER = messages.Voucher(lease=Hash(bytes(32)), amount=5)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"amount": 5}, "Voucher.amount"),
        ({"amount": "-1"}, "Voucher.amount"),
        ({"amount": "5.0"}, "Voucher.amount"),
        ({"amount": str(2**96)}, "Voucher.amount"),
        ({"amount": "٣"}, "Voucher.amount"),
        ({"lease": "0x00"}, "Voucher.lease"),
        ({"lease": "00" * 32}, "Voucher.lease"),
        ({"lease": "0x" + "zz" * 32}, "Voucher.lease"),
        ({"lease": None}, "Voucher.lease"),
        ({"client_signature": "0x" + "00" * 64}, "Voucher.client_signature"),
        ({"extra": 1}, "'extra'"),
    ],
)
def test_json_of_the_wrong_form_names_the_field(change: dict[str, Any], names: str) -> None:
    with pytest.raises(MalformedMessage, match=names):
        messages.Voucher.from_json(VOUCHER.to_json() | change)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b'"x"', b"\xff", b"[" * 5000])
def test_bytes_that_are_no_object_are_malformed(body: bytes) -> None:
    with pytest.raises(MalformedMessage):
        messages.Voucher.from_bytes(body)


@pytest.mark.parametrize("amount", [-1, 2**96, 1.0, True, "5", None])
def test_a_message_with_a_value_out_of_range_cannot_be_made(amount: Any) -> None:
    with pytest.raises(MalformedMessage, match="amount"):
        messages.Voucher(lease=Hash(bytes(32)), amount=amount)


def test_a_signature_counts_on_one_chain_and_contract() -> None:
    signature = key(1).sign(VOUCHER, DOMAIN)
    assert recover(VOUCHER.digest(DOMAIN), signature) == key(1).address
    for domain in (Domain(1, DOMAIN.contract), Domain(DOMAIN.chain_id, Address(bytes(20)))):
        assert recover(VOUCHER.digest(domain), signature) != key(1).address


def test_a_malleated_signature_is_refused() -> None:
    order = 2 * HALF_ORDER + 1
    good = key(1).sign(VOUCHER, DOMAIN)
    high = (order - int.from_bytes(good[32:64])).to_bytes(32)
    twin = Signature(good[:32] + high + bytes([55 - good[64]]))
    for signature in (twin, Signature(good[:64] + b"\x00"), Signature(), Signature(bytes(64) + b"\x1b")):
        with pytest.raises(WrongSignature):
            recover(VOUCHER.digest(DOMAIN), signature)


def test_an_address_is_the_one_that_eth_account_derives() -> None:
    from eth_account import Account

    secret = bytes(range(1, 33))
    assert str(Key(secret).address) == Account.from_key(secret).address.lower()


def test_json_is_read_to_a_depth_that_no_stack_minds() -> None:
    assert parse_json(b"[" * 100 + b"]" * 100) is not None
    assert parse_json(b'["' + b"[" * 90 + b'"]') == ["[" * 90]
    assert len(parse_json(b"[" + b"[]," * 1000 + b"[]]")) == 1001
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)  # as eth_account's libraries do
    try:
        for deep in (b"[" * 101 + b"]" * 101, b"[" * 10**6, b'{"a":' * 10**5):
            with pytest.raises(MalformedMessage):
                parse_json(deep)
    finally:
        sys.setrecursionlimit(limit)


def test_a_row_commits_to_the_signatures_of_the_messages_within() -> None:
    def reservation(signature: Signature) -> messages.Reservation:
        lock = messages.Lock(lease=Hash(bytes(32)), amount=1, node_signature=signature)
        return messages.Reservation(client=key(1).address, number=1, locks=(lock,), deadline=1)

    rows = [reservation(Signature(bytes([number]) * 65)) for number in (1, 2)]
    assert rows[0].struct_hash() == rows[1].struct_hash()
    roots = [Table.decode(messages.Reservation, Table.of(messages.Reservation, [row]).encode()).root for row in rows]
    assert roots == [row_root([row.row_hash()]) for row in rows]
    assert roots[0] != roots[1]
