"""Which tenant has more than its share of a lane, so that others wait for it. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Final

OVER_SHARE_S: Final = 0.2  # that queued entries of loud tenants keep the shard busy, from which on others wait for them
SHARE_S: Final = 0.1  # of these, what stays in the lane: it is never idle before the others are read again
WAITS_MAX: Final = 3  # batches before it that count: of many full lanes a single list would be over its share
LOUD_MAX: Final = 4  # loud tenants; where there are more, it is a backlog of many
OVER_SHARE_RATIO: Final = 2.0  # of a loud tenant, to what those with less have queued on average
LOUD_PART: Final = 0.8  # of what is queued, from which on the others gain by a hold; in a plain backlog nobody does


def find_over_share(
    costs_s: Mapping[str, float], weights: Mapping[str, float], *, active_count: int, turns: int
) -> str | None:
    """Return the tenant that is furthest beyond its share of a lane; None if nobody is.

    *costs_s* are the seconds that the queued entries of each tenant are expected to take, *weights* those of tenants
    with another one than 1, *active_count* is the number of tenants that sent to the lane lately, *turns* that of
    `turns_of`.
    """
    weighted_s = {one: cost_s / weights.get(one, 1.0) for one, cost_s in costs_s.items()}
    rest_s = all_s = sum(weighted_s.values())
    loud: list[str] = []
    for tenant_id in heapq.nlargest(LOUD_MAX, weighted_s, key=weighted_s.__getitem__):
        own_s, quieter_count = weighted_s[tenant_id], active_count - len(loud) - 1
        if own_s * quieter_count < OVER_SHARE_RATIO * (rest_s - own_s) or quieter_count < 1:
            break
        loud.append(tenant_id)
        rest_s -= own_s
    is_late = sum([costs_s[one] for one in loud]) * turns >= OVER_SHARE_S
    return loud[0] if is_late and sum([weighted_s[one] for one in loud]) >= LOUD_PART * all_s else None


def turns_of(between_count: int) -> int:
    """Return how many batches an entry counts as waiting for: its own, and those of other lanes in between."""
    return 1 + min(between_count, WAITS_MAX)
