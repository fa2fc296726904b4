from __future__ import annotations

from datetime import UTC, datetime

import pytest

from simplu_worker.consumers.operation_taps import TapFilter
from simplu_worker.shards.listing import ListRequest, SearchPosition
from simplu_worker.status.request_bodies import ListQuery, OperationQuery, PurgeQuery, TapQuery, read_query
from simplu_worker.status.words import BadRequestError
from simplu_worker.vocabulary import Failure, OperationStatus

Pairs = list[tuple[str, str]]
TENANT = [("businessId", "b"), ("locationId", "l")]
AFTER = SearchPosition(datetime(2026, 3, 1, tzinfo=UTC), "r")


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], ListRequest()),
        ([("resourceType", ""), ("limit", ""), ("businessId", ""), ("businessId", "b")], ListRequest()),
        ([("resourceType", "t"), ("resourceId", "i")], ListRequest(resource_type="t", resource_id="i")),
        (
            [("since", "2026-01-31T10:00:00+01:00"), ("until", "2026-02-01T00:00:00Z")],
            ListRequest(since=datetime(2026, 1, 31, 9, tzinfo=UTC), until=datetime(2026, 2, 1, tzinfo=UTC)),
        ),
        ([("status", "failed")], ListRequest(status=OperationStatus.FAILED)),
        ([("error", "not_found")], ListRequest(error=Failure.NOT_FOUND)),
        ([("limit", "7")], ListRequest(limit=7)),
        ([("after", AFTER.encode())], ListRequest(after=AFTER)),
    ],
)
def test_list_asks_for_its_members(pairs: Pairs, expected: ListRequest) -> None:
    assert read_query([*TENANT, *pairs], ListQuery).request() == expected


@pytest.mark.parametrize(
    "pairs",
    [
        [("businessId", "b")],
        [("businessId", "b"), ("locationId", "\0")],
        [*TENANT, ("resource_type", "t")],
        [*TENANT, ("x\ud800", "t")],
        [*TENANT, ("locationId", "m")],
        *(
            [*TENANT, pair]
            for pair in [
                *[("resourceType", "\0"), ("resourceId", "\ud800"), ("since", "2026-01-02"), ("status", "pending")],
                *[("until", "2026-01-02T00:00:00"), ("limit", "501"), ("after", "r")],
            ]
        ),
        [*TENANT, ("since", "2026-01-02T00:00:00Z"), ("until", "2026-01-01T00:00:00Z")],
        [*TENANT, ("error", "not_found"), ("status", "succeeded")],
    ],
)
def test_list_is_refused_when_it_cannot_be_meant(pairs: Pairs) -> None:
    with pytest.raises(BadRequestError):
        read_query(pairs, ListQuery).request()


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], TapFilter()),
        ([*TENANT, ("outcome", "")], TapFilter(business_id="b", location_id="l")),
        ([("operation", "create"), ("outcome", "dead_letter")], TapFilter(kind="create", outcome="dead_letter")),
        ([("resourceType", "t"), ("content", "true")], TapFilter(resource_type="t", shows_content=True)),
        ([("content", "false")], TapFilter()),
    ],
)
def test_tap_is_a_filter(pairs: Pairs, expected: TapFilter) -> None:
    assert read_query(pairs, TapQuery).chosen == expected


@pytest.mark.parametrize(
    ("kind", "pairs"),
    [
        *((TapQuery, [pair]) for pair in [("businessId", "b"), ("operation", "upsert"), ("content", "yes")]),
        (TapQuery, [("outcome", "succeeded"), ("outcome", "duplicate")]),
        *((OperationQuery, [pair]) for pair in [*TENANT, ("wait", "1")]),
        *((OperationQuery, [*TENANT, ("wait", text)]) for text in ("nan", "-1", "20.1", "soon")),
        (PurgeQuery, [("name", "orders")]),
    ],
)
def test_query_that_cannot_be_meant_is_refused(kind: type[TapQuery], pairs: Pairs) -> None:
    with pytest.raises(BadRequestError):
        read_query(pairs, kind)
