"""Token: two sources of supply, a cap, no owner, and permits that work once, here, in time."""

from __future__ import annotations

from typing import Any

import boa
import pytest

from freehold.protocol.units import Hash
from tests.contracts.typed_data import PERMIT, digest_of
from tests.contracts.world import NEVER, World, deployer_of, flip_s, forked, hexed, key_of, logs_of

ZERO = "0x" + "00" * 20


def deploy(emission: str, cap: int, supply: int, treasury: str) -> Any:
    return deployer_of("Token").deploy("Freehold", "FHD", emission, cap, treasury, supply)


def test_the_treasury_has_the_initial_supply_and_emission_alone_mints(world: World) -> None:
    assert world.token.totalSupply() == world.settings.initial_supply == world.token.balanceOf(world.treasury)
    assert world.token.minter() == world.emission.address
    for sender in (boa.env.eoa, world.treasury, world.ledger.address, world.credits.address):
        with boa.reverts("token: only emission"):
            world.token.mint(world.treasury, 1, sender=sender)


def test_nobody_can_become_owner_or_minter(world: World) -> None:
    token = deploy(world.slasher, 1_000, 0, world.treasury)
    assert logs_of(token, "OwnershipTransferred")[-1].new_owner == ZERO
    roles = {event.minter: event.status for event in logs_of(token, "RoleMinterChanged")}
    assert roles == {boa.env.eoa: False, world.slasher: True}
    for name in ("owner", "set_minter", "transfer_ownership", "renounce_ownership", "is_minter"):
        assert not hasattr(world.token, name)


@pytest.mark.parametrize(("amount", "reverts"), [(99, False), (100, False), (101, True)])
def test_supply_reaches_the_cap_and_never_passes_it(world: World, amount: int, reverts: bool) -> None:
    emission = boa.env.generate_address()
    token = deploy(emission, 1_000, 900, world.treasury)
    if reverts:
        with boa.reverts("token: over cap"):
            token.mint(world.treasury, amount, sender=emission)
    else:
        token.mint(world.treasury, amount, sender=emission)
        assert token.totalSupply() == 900 + amount


def test_construction_refuses_what_cannot_hold(world: World) -> None:
    deploy(world.treasury, 1_000, 1_000, world.treasury)
    with boa.reverts("token: over cap"):
        deploy(world.treasury, 1_000, 1_001, world.treasury)
    with boa.reverts("token: no emission"):
        deploy(ZERO, 1_000, 1_000, world.treasury)


def test_burning_lowers_supply(world: World) -> None:
    world.token.burn(5, sender=world.treasury)
    world.token.approve(boa.env.eoa, 7, sender=world.treasury)
    world.token.burn_from(world.treasury, 7)
    assert world.token.totalSupply() == world.settings.initial_supply - 12
    with boa.reverts("erc20: insufficient allowance"):
        world.token.burn_from(world.treasury, 1)


def permit(world: World, amount: int, deadline: int, signature: tuple[int, bytes, bytes]) -> None:
    owner = hexed(key_of("owner").address)
    world.token.permit(owner, world.credits, amount, deadline, *signature)


def test_permit_digest_equals_eth_accounts(world: World) -> None:
    owner = key_of("owner")
    message = {
        "owner": hexed(owner.address),
        "spender": world.credits.address,
        "value": 5,
        "nonce": 0,
        "deadline": 99,
    }
    digest = digest_of("Permit", PERMIT, message, "Freehold", boa.env.evm.patch.chain_id, world.token.address)
    signature = owner.sign_digest(Hash(digest))
    assert world.sign_permit(owner, world.credits, 5, 99) == (signature[64], signature[:32], signature[32:64])


def test_a_permit_works_once(world: World) -> None:
    signature = world.sign_permit(key_of("owner"), world.credits, 5)
    permit(world, 5, NEVER, signature)
    assert world.token.allowance(hexed(key_of("owner").address), world.credits) == 5
    with boa.reverts("erc20: invalid signature"):
        permit(world, 5, NEVER, signature)


@pytest.mark.parametrize(("late", "reverts"), [(0, False), (1, True)])
def test_a_permit_ends_at_its_deadline(world: World, late: int, reverts: bool) -> None:
    deadline = boa.env.timestamp - late
    signature = world.sign_permit(key_of("owner"), world.credits, 5, deadline)
    if reverts:
        with boa.reverts("erc20: expired deadline"):
            permit(world, 5, deadline, signature)
    else:
        permit(world, 5, deadline, signature)


def test_a_permit_counts_on_one_chain_and_in_one_spelling(world: World) -> None:
    v, r, s = signature = world.sign_permit(key_of("owner"), world.credits, 5)
    other = flip_s(r + s + bytes([v]))
    with boa.reverts("ecdsa: invalid signature `s` value"):
        permit(world, 5, NEVER, (other[64], other[:32], other[32:64]))
    with boa.reverts("erc20: invalid signature"):
        permit(world, 6, NEVER, signature)
    with forked(), boa.reverts("erc20: invalid signature"):
        permit(world, 5, NEVER, signature)
    permit(world, 5, NEVER, signature)
