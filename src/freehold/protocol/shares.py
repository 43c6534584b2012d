"""From credits spent to tokens: revenue out of the client's cost basis, less tau, and matched subsidy; and the two
pools that no client's payment feeds.

For each client, with S credits spent in the epoch out of C left, and B tokens of cost basis left:

    R            = B if S = C else floor(B x S / C)              tokens that this spending releases
    released_i   = floor(R x credits_i / S)                      for payment i; the dust R - sum stays burned
    earned_i     = floor(released_i x (1 - tau))                 minted to the operator: revenue
    burned_i     = released_i - earned_i                         burned for good (the residual)

    R = sum earned_i + sum burned_i + dust

Subsidy, policy `matched`, out of the pool P (`emission.compute_pools`):

    cap_i        = floor(beta x burned_i)
    subsidy_i    = cap_i if sum cap <= P else floor(P x cap_i / sum cap)

    P = sum subsidy_i + unminted                                 (unminted is the named residual)

Subsidy, policy `coverage`, out of the pool C, split evenly between the s services with a measure M > 0, each account's
measures m_i added up:

    share        = floor(C / s)
    subsidy_i    = floor(share x m_i / M)            C = sum subsidy_i + unminted

Members, out of the pool O, for each of the Q observers of the manifest among n members:

    subsidy      = floor(O / n)                      O = Q x subsidy + unminted: who did not observe is not paid

Since beta < 1, earned_i + subsidy_i < released_i wherever tau > 0 burned anything: an operator that pays itself
always loses. Integer money; every floor's remainder goes to the burned or unminted residual.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from freehold.protocol.amounts import AMOUNT_BYTES
from freehold.protocol.column_values import cells_of
from freehold.protocol.columns import Coded
from freehold.protocol.lookup import sum_by_address
from freehold.protocol.parameters import MILLION, Parameters
from freehold.protocol.state import ClientState
from freehold.protocol.tables import Table
from freehold.protocol.units import Address, check_amount, mul_div
from freehold.protocol.verdicts import Contribution, Payment, Reward

MEMBERS_SERVICE = "oracle"  # a reward's service where a member is paid for its observation


class Shares(NamedTuple):
    """Payments with their arithmetic filled in, clients after them, and the epoch's sums."""

    payments: tuple[Payment, ...]
    clients: dict[Address, ClientState]
    revenue: int
    subsidy: int


def compute_shares(
    payments: Sequence[Payment],
    clients: Mapping[Address, ClientState],
    bonded: frozenset[Address],
    pool: int,
    parameters: Parameters,
) -> Shares:
    """Fill in released, earned, burned and subsidy of each payment. `bonded` are the nodes that may get subsidy.

    Requires: the payments' credits of a client do not exceed its credits left.
    """
    after = dict(clients)
    spent: defaultdict[Address, int] = defaultdict(int)
    for payment in payments:
        spent[payment.client] += payment.credits
    releases: dict[Address, int] = {}
    for address, credits in spent.items():
        if not credits:
            continue
        client = after[address]
        releases[address] = compute_release(client, credits)
        after[address] = msgspec.structs.replace(
            client, spent=client.spent + credits, released=client.released + releases[address]
        )
    split = [_split(p, releases.get(p.client, 0), spent[p.client], parameters) for p in payments]
    caps = [mul_div(p.burned, parameters.beta, MILLION) if p.node in bonded else 0 for p in split]
    wanted = sum(caps)
    subsidies = caps if wanted <= pool else [mul_div(pool, cap, wanted) for cap in caps]
    final = tuple(msgspec.structs.replace(p, subsidy=s) for p, s in zip(split, subsidies, strict=True))
    return Shares(final, after, check_amount(sum(p.earned for p in final)), check_amount(sum(subsidies)))


def compute_coverage(contributions: Mapping[str, Table[Contribution]], pool: int) -> Table[Reward]:
    """What the coverage pool pays for contributions to nobody's lease, by service: a reward a service and account, in
    their order. A service's measures add up to less than 2**63."""
    measured = {}
    for service, rows in sorted(contributions.items()):
        worked = rows.filter(rows.column("measure") > 0)
        if len(worked):
            measured[service] = sum_by_address(worked.column("account"), worked.column("measure"))
    rewards = []
    for service, (accounts, measures) in measured.items():
        share, total = pool // len(measured), int(measures.sum())
        # Many accounts have few different measures between them.
        values, codes = np.unique(measures, return_inverse=True)
        subsidies = cells_of([mul_div(share, value, total) for value in values.tolist()], AMOUNT_BYTES)
        columns = {"service": Coded.constant(service, len(accounts)), "account": accounts, "measure": measures}
        rewards.append(Table.from_columns(Reward, columns | {"subsidy": subsidies[codes.reshape(-1)]}, len(accounts)))
    return Table.concat(Reward, rewards)


def compute_member_rewards(observers: Iterable[Address], members: int, pool: int) -> Table[Reward]:
    """What each observer of the manifest gets, of `members` in all."""
    share = pool // members
    chosen = sorted(observers) if share else []
    return Table.of(Reward, (Reward(service=MEMBERS_SERVICE, account=m, measure=1, subsidy=share) for m in chosen))


def compute_release(client: ClientState, credits: int) -> int:
    """R: tokens of cost basis that spending `credits` releases."""
    left, basis = client.paid_in - client.spent, client.burned - client.released
    if credits == left:
        return basis
    return mul_div(basis, credits, left)


def _split(payment: Payment, release: int, spent: int, parameters: Parameters) -> Payment:
    released = mul_div(release, payment.credits, spent) if spent else 0
    earned = mul_div(released, MILLION - parameters.tau, MILLION)
    return msgspec.structs.replace(payment, released=released, earned=earned, burned=released - earned)
