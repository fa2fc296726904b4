"""Which events a destination gets."""

from __future__ import annotations

import pytest
from support.feed.events import feed_event

from simplu_worker.feed.events import lets_through
from simplu_worker.feed.types import FeedEvent, FeedFilter
from simplu_worker.vocabulary import FeedKind

OF_RESOURCE = feed_event(other_types=("patients",))
OF_TENANT = feed_event(kind=FeedKind.TENANT_MOVED, resource_type=None, resource_id=None)
UNDONE = feed_event(kind=FeedKind.UNDONE, undoes="t-0-0")
GAP = feed_event(kind=FeedKind.GAP, tenant=None, resource_type=None, resource_id=None)
ALL = (OF_RESOURCE, OF_TENANT, UNDONE, GAP)
CASES: list[tuple[FeedFilter, tuple[FeedEvent, ...]]] = [
    (FeedFilter(), ALL),
    (FeedFilter(tenants=frozenset({"smile-berlin", "other"})), ALL),
    (FeedFilter(tenants=frozenset({"other"})), (GAP,)),
    (FeedFilter(business_types=frozenset({"dental"})), ALL),
    (FeedFilter(business_types=frozenset({"gym"})), (GAP,)),
    (FeedFilter(resource_types=frozenset({"patient"})), ALL),
    (FeedFilter(resource_types=frozenset({"patients"})), (OF_RESOURCE, OF_TENANT, GAP)),
    (FeedFilter(resource_types=frozenset({"order"})), (OF_TENANT, GAP)),
    (FeedFilter(kinds=frozenset({FeedKind.RESOURCE_PATCHED})), (OF_RESOURCE, UNDONE, GAP)),
    (FeedFilter(kinds=frozenset({FeedKind.TENANT_MOVED})), (OF_TENANT, UNDONE, GAP)),
    (FeedFilter(tenants=frozenset({"other"}), kinds=frozenset({FeedKind.UNDONE})), (GAP,)),
]


@pytest.mark.parametrize(("chosen", "expected"), CASES)
def test_filter_lets_through_what_all_of_its_parts_do(chosen: FeedFilter, expected: tuple[FeedEvent, ...]) -> None:
    assert expected == tuple(one for one in ALL if lets_through(chosen, one))
