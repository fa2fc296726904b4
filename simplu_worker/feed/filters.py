"""Which events a destination gets (docs/feed.md). Pure."""

from __future__ import annotations

from simplu_worker.feed.types import FeedEvent, FeedFilter
from simplu_worker.vocabulary import FeedKind

# What became of events that were sent before: a receiver needs them for all that it got.
ALWAYS_SENT = frozenset({FeedKind.UNDONE, FeedKind.GAP})


def lets_through(chosen: FeedFilter, event: FeedEvent) -> bool:
    """Return whether a destination with the filter *chosen* gets *event*.

    A filter of kinds lets each `undone` and `gap` through, and no filter holds a shard-wide event back. One of resource
    types, by any of their names, lets events of a whole tenant through: they are about its resources of every type.
    """
    tenant = event.tenant
    if tenant is None:
        return True
    return (
        (chosen.tenants is None or tenant.tenant_id in chosen.tenants)
        and (chosen.business_types is None or tenant.business_type in chosen.business_types)
        and (
            chosen.resource_types is None
            or event.resource_type is None
            or not chosen.resource_types.isdisjoint((event.resource_type, *event.other_types))
        )
        and (chosen.kinds is None or event.kind in chosen.kinds or event.kind in ALWAYS_SENT)
    )
