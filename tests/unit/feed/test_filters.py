"""Which events a destination gets."""

from __future__ import annotations

import pytest
from support.feed.events import feed_event

from simplu_worker.feed.events import lets_through
from simplu_worker.feed.types import DestinationTerms, FeedEvent
from simplu_worker.vocabulary import FeedKind

OF_RESOURCE = feed_event(other_types=("patients",))
OF_TENANT = feed_event(kind=FeedKind.TENANT_MOVED, resource_type=None, resource_id=None)
OF_SHARD = tuple(
    feed_event(kind=kind, tenant=None, resource_type=None, resource_id=None) for kind in (FeedKind.RESET, FeedKind.GAP)
)
ALL = (OF_RESOURCE, OF_TENANT, *OF_SHARD)
CASES: list[tuple[DestinationTerms, tuple[FeedEvent, ...]]] = [
    (DestinationTerms("d"), ALL),
    (DestinationTerms("d", tenants=frozenset({"smile-berlin", "other"})), ALL),
    (DestinationTerms("d", tenants=frozenset({"other"})), OF_SHARD),
    (DestinationTerms("d", business_types=frozenset({"dental"})), ALL),
    (DestinationTerms("d", business_types=frozenset({"gym"})), OF_SHARD),
    (DestinationTerms("d", resource_types=frozenset({"patient"})), ALL),
    (DestinationTerms("d", resource_types=frozenset({"patients"})), ALL),
    (DestinationTerms("d", resource_types=frozenset({"order"})), ALL[1:]),
    (DestinationTerms("d", kinds=frozenset({FeedKind.RESOURCE_PATCHED})), (OF_RESOURCE, *OF_SHARD)),
    (DestinationTerms("d", kinds=frozenset({FeedKind.TENANT_MOVED})), ALL[1:]),
    (DestinationTerms("d", tenants=frozenset({"other"}), kinds=frozenset({FeedKind.RESET})), OF_SHARD),
]


@pytest.mark.parametrize(("chosen", "expected"), CASES)
def test_filter_lets_through_what_all_of_its_parts_do(
    chosen: DestinationTerms, expected: tuple[FeedEvent, ...]
) -> None:
    assert expected == tuple(one for one in ALL if lets_through(chosen, one))
