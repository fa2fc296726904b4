"""Which tenant has more than its share of a lane, so that others wait for it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

OVER_SHARE_S: Final = 0.2  # that a tenant's queued entries keep the shard busy, from which on others wait for them
SHARE_S: Final = 0.1  # of these, what stays in the lane: it is never idle before the others are read again
WAITS_MAX: Final = 3  # batches before it that count: of many full lanes a single list would be over its share
OVER_SHARE_RATIO: Final = 2.0  # to what the others have queued on average


def find_over_share(
    costs_s: Mapping[str, float], weights: Mapping[str, float], *, active_count: int, waiting_count: int
) -> str | None:
    """Return the tenant that is furthest beyond its share of a lane; None if nobody is.

    *costs_s* are the seconds that the queued entries of each tenant are expected to take, *weights* those of tenants
    with another one than 1, *active_count* is the number of tenants that sent to the lane lately. Where *waiting_count*
    batches wait for a connection to the shard, each entry waits for these too; WAITS_MAX of them count.
    """
    if active_count < 2 or not costs_s:
        return None
    weighted_s = {one: cost_s / weights.get(one, 1.0) for one, cost_s in costs_s.items()}
    tenant_id = max(weighted_s, key=weighted_s.__getitem__)
    own_s = weighted_s[tenant_id]
    others_s = (sum(weighted_s.values()) - own_s) / (active_count - 1)
    is_late = costs_s[tenant_id] * turns_of(waiting_count) >= OVER_SHARE_S
    return tenant_id if is_late and own_s >= OVER_SHARE_RATIO * others_s else None


def turns_of(waiting_count: int) -> int:
    """Return how many batches an entry counts as waiting for, its own included."""
    return 1 + min(waiting_count, WAITS_MAX)
