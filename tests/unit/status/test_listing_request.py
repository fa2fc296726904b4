from __future__ import annotations

from datetime import UTC, datetime

import pytest

from simplu_worker.shards.listing import ListRequest, SearchPosition
from simplu_worker.status.views import OperationListQuery, parse_listing_request
from simplu_worker.vocabulary import Failure, OperationStatus

TENANT = [("businessId", "b"), ("locationId", "l")]
AFTER = SearchPosition(datetime(2026, 3, 1, tzinfo=UTC), "r")


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], ListRequest()),
        ([("resourceType", ""), ("limit", ""), ("businessId", ""), ("businessId", "b")], ListRequest()),
        ([("resourceType", "t"), ("resourceId", "i")], ListRequest(resource_type="t", resource_id="i")),
        (
            [("since", "2026-01-31T10:00:00+01:00"), ("until", "2026-02-01")],
            ListRequest(since=datetime(2026, 1, 31, 9, tzinfo=UTC), until=datetime(2026, 2, 1, tzinfo=UTC)),
        ),
        ([("status", "failed")], ListRequest(status=OperationStatus.FAILED)),
        ([("error", "not_found")], ListRequest(error=Failure.NOT_FOUND)),
        ([("limit", "007")], ListRequest(limit=7)),
        ([("after", AFTER.encode())], ListRequest(after=AFTER)),
    ],
)
def test_query_asks_for_its_members(pairs: list[tuple[str, str]], expected: ListRequest) -> None:
    assert parse_listing_request([*TENANT, *pairs]) == OperationListQuery("b", "l", expected)


@pytest.mark.parametrize(
    ("pairs", "problem"),
    [
        ([], "businessId: expected 1 to 128 characters"),
        ([("businessId", "b")], "locationId: expected 1 to 128 characters"),
        ([("businessId", "b" * 129), ("locationId", "l")], "businessId: expected 1 to 128 characters"),
        ([("businessId", "b"), ("locationId", "\0")], "locationId: expected 1 to 128 characters"),
        ([*TENANT, ("resource_type", "t")], "expected the parameters businessId, locationId, resourceType, "),
        ([*TENANT, ("locationId", "m")], "locationId: expected one value, got several"),
        ([*TENANT, ("resourceType", "\0")], "resourceType: expected 1 to 256 characters"),
        ([*TENANT, ("since", "yesterday")], "since: expected a time of RFC 3339"),
        ([*TENANT, ("since", "2026-01-02"), ("until", "2026-01-01")], "since: expected a time before `until`"),
        ([*TENANT, ("status", "pending")], "status: expected succeeded or failed"),
        ([*TENANT, ("error", "oops")], "error: expected already_exists or not_found or "),
        ([*TENANT, ("error", "not_found"), ("status", "succeeded")], "error: expected the status `failed`"),
        ([*TENANT, ("limit", "0")], "limit: expected 1 to 500, got 0"),
        ([*TENANT, ("limit", "٣")], "limit: expected a number"),
        ([*TENANT, ("limit", "9" * 5000)], "limit: expected a number"),
        ([*TENANT, ("after", "r")], "after: expected the `next` of a page, unchanged"),
    ],
)
def test_query_is_refused_when_it_cannot_be_meant(pairs: list[tuple[str, str]], problem: str) -> None:
    with pytest.raises(ValueError, match="expected") as refused:
        parse_listing_request(pairs)
    assert str(refused.value).startswith(problem)
