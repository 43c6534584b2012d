"""Money: sums are conserved from credits to tokens, and paying oneself always loses."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from freehold.protocol.emission import compute_schedule
from freehold.protocol.parameters import MILLION, Parameters
from freehold.protocol.shares import compute_release, compute_shares
from freehold.protocol.state import ClientState
from freehold.protocol.units import Address, Hash
from freehold.protocol.verdicts import Payment
from tests.protocol.world import PARAMETERS

CLIENTS = [Address(bytes(19) + bytes([i])) for i in range(1, 4)]
NODES = [Address(bytes(19) + bytes([i])) for i in range(11, 15)]
AMOUNT = st.integers(0, 2**80)


def payment(client: Address, node: Address, credits: int) -> Payment:
    return Payment(
        lease=Hash(bytes(12) + client), client=client, node=node, operator=node, service="storage", measure=0,
        price=0, owed=credits, credits=credits, released=0, earned=0, burned=0, subsidy=0,
    )  # fmt: skip


@st.composite
def epochs(draw: st.DrawFn) -> tuple[list[Payment], dict[Address, ClientState], Parameters, int]:
    payments, clients = [], {}
    for address in CLIENTS:
        credits = draw(st.lists(AMOUNT, max_size=4))
        payments += [payment(address, draw(st.sampled_from(NODES)), c) for c in credits]
        spent, released = draw(AMOUNT), draw(AMOUNT)
        clients[address] = ClientState(
            client=address,
            reservation=1,
            spent=spent,
            paid_in=spent + sum(credits) + draw(st.sampled_from([0, 1, 2**70])),
            released=released,
            burned=released + draw(AMOUNT),
        )
    parameters = msgspec.structs.replace(
        PARAMETERS, tau=draw(st.integers(0, MILLION - 1)), beta=draw(st.integers(1, MILLION - 1))
    )
    return payments, clients, parameters, draw(st.sampled_from([0, 1, 10**6, 2**90]))


@given(epochs())
def test_every_token_released_is_earned_or_burned(
    epoch: tuple[list[Payment], dict[Address, ClientState], Parameters, int],
) -> None:
    payments, clients, parameters, pool = epoch
    shares = compute_shares(payments, clients, frozenset(NODES[:3]), pool, parameters)
    for address, before in clients.items():
        after = shares.clients[address]
        own = [p for p in shares.payments if p.client == address]
        released = after.released - before.released
        assert after.spent - before.spent == sum(p.credits for p in own)
        assert all(p.released == p.earned + p.burned for p in own)
        dust = released - sum(p.released for p in own)
        assert 0 <= dust <= len(own)
        assert after.released <= after.burned
        assert after.spent <= after.paid_in
        if own and after.spent == after.paid_in:
            assert after.released == after.burned
    assert shares.revenue == sum(p.earned for p in shares.payments)
    assert shares.subsidy == sum(p.subsidy for p in shares.payments) <= pool
    assert all(p.subsidy == 0 for p in shares.payments if p.node == NODES[3])


@given(epochs())
def test_paying_oneself_always_loses(
    epoch: tuple[list[Payment], dict[Address, ClientState], Parameters, int],
) -> None:
    payments, clients, parameters, pool = epoch
    for paid in compute_shares(payments, clients, frozenset(NODES), pool, parameters).payments:
        assert paid.earned + paid.subsidy <= paid.released
        if paid.burned:
            assert paid.earned + paid.subsidy < paid.released


def test_the_cost_basis_is_released_in_proportion_and_the_last_credit_takes_the_rest() -> None:
    client = ClientState(client=CLIENTS[0], reservation=0, paid_in=3, burned=10, spent=0, released=0)
    released = 0
    for expected in (3, 3, 4):
        part = compute_release(client, 1)
        assert part == expected
        released += part
        client = msgspec.structs.replace(client, spent=client.spent + 1, released=released)
    assert released == 10


def test_the_schedule_halves() -> None:
    at = [compute_schedule(PARAMETERS, epoch) for epoch in (1, 1000, 1001, 2000, 2001, 10**9)]
    assert at == [10**21, 10**21, 5 * 10**20, 5 * 10**20, 25 * 10**19, 0]
