"""What an item of business-info is read as."""

from __future__ import annotations

from typing import Any

import pytest

from simplu_worker.business_info import Business, UnreadableBusinessError, business_of, refusal_reason

TYPE = {"S": "dental"}


def location(location_id: str, **more: Any) -> dict[str, Any]:
    return {"M": {"id": {"S": location_id}, "address": {"S": "Main Street 1"}, **more}}


def item(*locations: dict[str, Any], **members: Any) -> dict[str, Any]:
    return {"id": {"S": "b"}, "type": TYPE, "locations": {"L": list(locations)}} | members


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (item(), Business("b", "dental")),
        (item(locations={"NULL": True}), Business("b", "dental")),
        ({"id": {"S": "b"}, "businessType": {"S": "gym"}}, Business("b", "gym")),
        (item(businessType=TYPE), Business("b", "dental")),
        (item(businessType={"NULL": True}), Business("b", "dental")),
        (item(location("l"), location("l-2")), Business("b", "dental", frozenset({"l", "l-2"}))),
        (item(location("l", active={"BOOL": True})), Business("b", "dental", frozenset({"l"}))),
        (item(location("l", active={"NULL": True})), Business("b", "dental", frozenset({"l"}))),
        (
            item(location("l", active={"BOOL": False}), location("m", active={"S": "False"}), location("n")),
            Business("b", "dental", frozenset({"l", "m", "n"}), frozenset({"l", "m"})),
        ),
        (
            item({"S": "l"}, location(""), location("x" * 129), location("a\0"), location("m")),
            Business(
                "b",
                "dental",
                frozenset({"m"}),
                problems=tuple(f"location {n}: expected an id of 1 to 128 characters" for n in range(1, 5)),
            ),
        ),
    ],
)
def test_business_of_reads_an_item(given: dict[str, Any], expected: Business) -> None:
    assert business_of(given) == expected


@pytest.mark.parametrize(
    ("given", "error", "item_id"),
    [
        ({}, "id: expected a string", None),
        (item(id={"N": "1"}), "id: expected a string", None),
        (item(id={"S": "\ud800"}), "id: expected a string", None),
        ({"id": {"S": "b"}}, "type: expected the business's type, a string, got none", "b"),
        (item(type={"S": ""}), "got none", "b"),
        (item(type={"N": "1"}), "got none", "b"),
        (item(businessType={"S": "gym"}), "got two different ones", "b"),
        (item(businessType={"S": ""}), "got none", "b"),
        (item(locations={"S": "l"}), "locations: expected a list", "b"),
    ],
)
def test_business_of_says_what_is_wrong_with_an_item(given: dict[str, Any], error: str, item_id: str | None) -> None:
    with pytest.raises(UnreadableBusinessError, match=error) as caught:
        business_of(given)
    assert caught.value.id == item_id


@pytest.mark.parametrize(
    ("business", "location_id", "expected"),
    [
        (None, "l", "its business is not in business-info"),
        (Business("b", "dental"), "l", "its business in business-info has no such location"),
        (Business("b", "dental", frozenset({"l"}), frozenset({"l"})), "l", "its location is not active"),
        (Business("b", "dental", frozenset({"l", "m"}), frozenset({"m"})), "l", None),
    ],
)
def test_why_not_names_what_is_missing(business: Business | None, location_id: str, expected: str | None) -> None:
    found = refusal_reason(business, location_id)
    assert (found is None) if expected is None else (found or "").startswith(expected)
