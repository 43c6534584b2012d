"""What the coverage and the members' pools paid an account, each reward with the arithmetic behind it.

Invariant: what is computed here from the schedule on equals what settlement says, or it is an error.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from freehold.protocol.bundle import Bundle
from freehold.protocol.columns import Coded, are_texts
from freehold.protocol.emission import compute_pools, compute_schedule
from freehold.protocol.epoch import Settlement
from freehold.protocol.errors import ReplayMismatch
from freehold.protocol.shares import MEMBERS_SERVICE
from freehold.protocol.units import Address, mul_div
from freehold.services.explaining import are_cells


def explain_rewards(bundle: Bundle, settlement: Settlement, account: Address) -> list[dict[str, Any]]:
    """Each reward of an account with the arithmetic behind it, from the schedule on."""
    rewards, parameters = settlement.rewards, bundle.anchor.parameters
    schedule = compute_schedule(parameters, bundle.anchor.epoch)
    pools = compute_pools(parameters, bundle.anchor.epoch)
    members = len(bundle.anchor.members)
    services = set(_texts(rewards.column("service"))) - {MEMBERS_SERVICE}
    told = []
    for row in rewards.filter(are_cells(rewards.column("account"), account)):
        facts: dict[str, Any] = {
            "service": row.service,
            "schedule": str(schedule),
            "measure": row.measure,
            "subsidy": str(row.subsidy),
        }
        if row.service == MEMBERS_SERVICE:
            computed = pools.members // members
            facts |= {"share_ppm": parameters.member_share, "pool": str(pools.members), "members": members}
        else:
            of_service = are_texts(rewards.column("service"), row.service)
            total = int(rewards.column("measure")[of_service].sum())
            share = pools.coverage // len(services)
            computed = mul_div(share, row.measure, total)
            facts |= {
                "share_ppm": parameters.coverage_share,
                "pool": str(pools.coverage),
                "services": len(services),
                "service_share": str(share),
                "total": total,
            }
        if computed != row.subsidy:
            raise ReplayMismatch(f"reward: computed {computed}, settled {row.subsidy}", first="reward")
        told.append(facts)
    return told


def _texts(column: Any) -> list[str]:
    coded = column if isinstance(column, Coded) else column.coded()
    used = set(np.unique(coded.codes).tolist())
    return [value.decode() for code, value in enumerate(coded.values.values()) if code in used]
