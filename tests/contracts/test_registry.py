"""Registry: a node's key says once and in full who operates it; retired keys stay retired."""

from __future__ import annotations

from typing import Any

import boa
import pytest
from boa.util.abi import Address

from freehold.protocol.units import Hash
from tests.contracts.typed_data import REGISTER, digest_of
from tests.contracts.world import NEVER, World, flip_s, forked, hexed, key_of

ZERO = "0x" + "00" * 20
NODE = key_of("node")
AT = str(Address(hexed(NODE.address)))
URL = "https://node.example:1"
OPERATOR, STRANGER, PAYOUT = (str(boa.env.generate_address()) for _ in range(3))


def register(world: World, signature: bytes, **changes: Any) -> None:
    fields = {"node": AT, "endpoint": URL, "payout": PAYOUT, "deadline": NEVER, "sender": OPERATOR} | changes
    sender = fields.pop("sender")
    world.registry.register(*fields.values(), signature, sender=sender)


def sign(world: World, **changes: Any) -> bytes:
    return world.sign_registration(OPERATOR, NODE, URL, PAYOUT, **changes)


def test_a_node_registers_with_everything_in_the_event(world: World) -> None:
    register(world, sign(world))
    payout_set, registered = world.registry.get_logs()
    assert (payout_set.operator, payout_set.payout) == (OPERATOR, PAYOUT)
    assert (registered.operator, registered.node, registered.endpoint, registered.payout) == (OPERATOR, AT, URL, PAYOUT)
    assert world.registry.operator_of(AT) == OPERATOR
    assert world.registry.is_live(OPERATOR, AT)
    assert not world.registry.is_live(STRANGER, AT)
    assert world.registry.nonces(AT) == 1


def test_registration_digest_equals_eth_accounts(world: World) -> None:
    message = {"operator": OPERATOR, "node": AT, "endpoint": URL, "payout": PAYOUT, "nonce": 0, "deadline": 9}
    chain_id = boa.env.evm.patch.chain_id
    digest = digest_of("RegisterNode", REGISTER, message, "Freehold Registry", chain_id, world.registry.address)
    assert sign(world, deadline=9) == bytes(NODE.sign_digest(Hash(digest)))


@pytest.mark.parametrize(
    "changes",
    [
        {"sender": STRANGER},
        {"node": STRANGER},
        {"endpoint": URL + "/"},
        {"payout": STRANGER},
        {"payout": ZERO},
        {"deadline": NEVER - 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_nothing_around_the_signature_can_be_changed(world: World, changes: dict[str, Any]) -> None:
    with boa.reverts("registry: not signed by node"):
        register(world, sign(world), **changes)


@pytest.mark.parametrize("changes", [{"nonce": 1}, {"contract": STRANGER}, {"chain_id": 5}, {"about": STRANGER}])
def test_a_signature_for_elsewhere_counts_for_nothing(world: World, changes: dict[str, Any]) -> None:
    with boa.reverts("registry: not signed by node"):
        register(world, sign(world, **changes))


def test_a_signature_dies_with_a_fork(world: World) -> None:
    signature = sign(world)
    with forked() as chain_id:
        with boa.reverts("registry: not signed by node"):
            register(world, signature)
        register(world, sign(world, chain_id=chain_id))


def test_another_action_of_the_same_fields_is_no_registration(world: World) -> None:
    message = {"operator": OPERATOR, "node": AT, "endpoint": URL, "payout": PAYOUT, "nonce": 0, "deadline": NEVER}
    chain_id = boa.env.evm.patch.chain_id
    for kind, name in (("RetireNode", "Freehold Registry"), ("RegisterNode", "Freehold")):
        digest = digest_of(kind, REGISTER, message, name, chain_id, world.registry.address)
        with boa.reverts("registry: not signed by node"):
            register(world, bytes(NODE.sign_digest(Hash(digest))))


def test_a_key_cannot_be_squatted_by_its_name(world: World) -> None:
    signature = world.sign_registration(STRANGER, key_of("squatter"), URL, PAYOUT, about=AT)
    with boa.reverts("registry: not signed by node"):
        register(world, signature, sender=STRANGER)


def test_signatures_have_one_spelling(world: World) -> None:
    signature = sign(world)
    with boa.reverts("ecdsa: invalid signature `s` value"):
        register(world, flip_s(signature))
    compact = signature[:32] + (int.from_bytes(signature[32:64]) | (signature[64] - 27) << 255).to_bytes(32)
    for wrong in (compact, b"", signature[:64]):
        with boa.reverts("registry: signature length"):
            register(world, wrong)
    for v in (0, 1, 26, 29):
        with boa.reverts("ecdsa: invalid signature"):
            register(world, signature[:64] + bytes([v]))
    register(world, signature)


@pytest.mark.parametrize("sender", [OPERATOR, STRANGER])
def test_a_clone_of_a_registered_key_is_refused(world: World, sender: str) -> None:
    register(world, sign(world))
    with boa.reverts("registry: key in use"):
        register(world, sign(world), sender=sender)
    again = world.sign_registration(sender, NODE, URL, PAYOUT, nonce=1)
    with boa.reverts("registry: key in use"):
        register(world, again, sender=sender)


@pytest.mark.parametrize("sender", [OPERATOR, STRANGER])
def test_a_retired_key_never_lives_again(world: World, sender: str) -> None:
    register(world, sign(world))
    world.registry.retire(AT, sender=OPERATOR)
    assert not world.registry.is_live(OPERATOR, AT)
    for nonce in (0, 1):
        with boa.reverts("registry: key in use"):
            register(world, world.sign_registration(sender, NODE, URL, PAYOUT, nonce=nonce), sender=sender)
    with boa.reverts("registry: retired"):
        world.registry.update_endpoint(AT, URL, sender=OPERATOR)
    with boa.reverts("registry: retired"):
        world.registry.retire(AT, sender=OPERATOR)


@pytest.mark.parametrize("sender", [STRANGER, AT, PAYOUT])
def test_only_its_operator_changes_a_node(world: World, sender: str) -> None:
    register(world, sign(world))
    with boa.reverts("registry: not the operator"):
        world.registry.update_endpoint(AT, "http://elsewhere", sender=sender)
    with boa.reverts("registry: not the operator"):
        world.registry.retire(AT, sender=sender)
    world.registry.update_endpoint(AT, "http://elsewhere", sender=OPERATOR)
    event = world.registry.get_logs()[-1]
    assert (event.operator, event.node, event.endpoint, event.payout) == (OPERATOR, AT, "http://elsewhere", PAYOUT)


def test_an_unregistered_key_has_no_operator(world: World) -> None:
    with boa.reverts("registry: not the operator"):
        world.registry.retire(AT, sender=OPERATOR)
    assert not world.registry.is_live(ZERO, AT)


@pytest.mark.parametrize(("late", "reverts"), [(0, False), (1, True)])
def test_a_registration_ends_at_its_deadline(world: World, late: int, reverts: bool) -> None:
    deadline = boa.env.timestamp - late
    signature = sign(world, deadline=deadline)
    if reverts:
        with boa.reverts("registry: expired"):
            register(world, signature, deadline=deadline)
    else:
        register(world, signature, deadline=deadline)


@pytest.mark.parametrize(("length", "reverts"), [(0, True), (1, False), (200, False), (201, True)])
def test_endpoints_have_one_to_200_bytes(world: World, length: int, reverts: bool) -> None:
    endpoint = "x" * length
    signature = world.sign_registration(OPERATOR, NODE, endpoint, PAYOUT)
    if reverts:
        with boa.reverts():
            register(world, signature, endpoint=endpoint)
    else:
        register(world, signature, endpoint=endpoint)


def test_payout_is_the_operators_own_choice(world: World) -> None:
    assert world.registry.payout_of(OPERATOR) == OPERATOR
    world.registry.set_payout(PAYOUT, sender=OPERATOR)
    assert world.registry.payout_of(OPERATOR) == PAYOUT
    world.register(OPERATOR, NODE)
    assert world.registry.payout_of(OPERATOR) == PAYOUT
    world.registry.set_payout(OPERATOR, sender=OPERATOR)
    assert world.registry.payout_of(OPERATOR) == OPERATOR
    with boa.reverts("registry: no payout"):
        world.registry.set_payout(ZERO, sender=OPERATOR)


def test_the_domain_is_published(world: World) -> None:
    _, name, version, chain_id, contract, _, _ = world.registry.eip712Domain()
    assert (name, version, contract) == ("Freehold Registry", "1", world.registry.address)
    assert chain_id == boa.env.evm.patch.chain_id
