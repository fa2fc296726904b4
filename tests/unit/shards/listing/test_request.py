from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.listing import (
    CURSOR_MAX,
    INSTANT,
    LIMIT_MAX,
    NEWEST,
    OLDEST,
    TEXT_MAX,
    InvalidRequestError,
    ListRequest,
    SearchPosition,
    check_request,
    decode_cursor,
)
from simplu_worker.vocabulary import Failure, OperationStatus

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def cursor_of(value: Any) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


@given(
    st.builds(
        SearchPosition,
        st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.just(UTC)),  # noqa: DTZ001
        st.none() | st.text(max_size=256, alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    )
)
def test_cursor_comes_back_as_the_position_it_was(position: SearchPosition) -> None:
    cursor = position.encode()
    assert set(cursor) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert decode_cursor(cursor) == position


def test_cursor_has_room_for_the_longest_request_id() -> None:
    position = SearchPosition(AT, "é" * 1352)
    assert decode_cursor(position.encode()) == position


GOOD = SearchPosition(AT, "r-1").encode()
ODD: list[Any] = [b"", b"\xff", b"[1,0,null] ", b"[" * 2000, b'[1,0,"\\u0041"]', {}, 1, None]


@pytest.mark.parametrize(
    "text",
    [
        *("", "next", "ä", " " + GOOD, GOOD + "=", GOOD[1:], GOOD + "A", "A" * (CURSOR_MAX + 1)),
        *map(cursor_of, ODD),
        *(cursor_of([version, 0, None]) for version in (0, 2, True, "1")),
        *(cursor_of([1, micros, None]) for micros in (0.5, "0", None, True, 10**18, 10**40, -(10**18))),
        cursor_of([1, (OLDEST - datetime(1970, 1, 1, tzinfo=UTC)) // INSTANT, None]),
        cursor_of([1, (NEWEST - datetime(1970, 1, 1, tzinfo=UTC)) // INSTANT + 1, None]),
        *(cursor_of([1, 0, request_id]) for request_id in (1, ["a"], "a\0")),
        cursor_of([1, 0, None, 0]),
    ],
)
def test_cursor_is_refused_when_no_page_had_it(text: str) -> None:
    with pytest.raises(ValueError, match="expected the `next` of a page, unchanged"):
        decode_cursor(text)


@given(st.text() | st.binary().map(cursor_of) | st.recursive(st.none() | st.integers(), st.lists).map(cursor_of))
def test_any_text_is_a_position_or_an_error(text: str) -> None:
    try:
        position = decode_cursor(text)
    except ValueError as exc:
        assert str(exc).startswith("expected the `next`")  # noqa: PT017  # of any text, most are none
    else:
        assert position.encode() == text


@pytest.mark.parametrize(
    ("until", "after", "expected"),
    [
        (None, SearchPosition(), SearchPosition(NEWEST)),
        (None, SearchPosition(AT, "r"), SearchPosition(AT, "r")),
        (AT, SearchPosition(), SearchPosition(AT - INSTANT)),
        (AT, SearchPosition(AT, "r"), SearchPosition(AT - INSTANT)),
        (AT + INSTANT, SearchPosition(AT, "r"), SearchPosition(AT, "r")),
        (AT, SearchPosition(AT - timedelta(days=1), "r"), SearchPosition(AT - timedelta(days=1), "r")),
        (OLDEST, SearchPosition(), SearchPosition(OLDEST)),
    ],
)
def test_page_begins_after_the_cursor_and_before_until(
    until: datetime | None, after: SearchPosition, expected: SearchPosition
) -> None:
    assert ListRequest(until=until, after=after).start == expected


@pytest.mark.parametrize(
    "request_",
    [
        ListRequest(),
        ListRequest(limit=1),
        ListRequest(limit=LIMIT_MAX),
        ListRequest(resource_type="t" * TEXT_MAX, resource_id="é"),
        ListRequest(since=AT, until=AT + INSTANT),
        ListRequest(error=Failure.NOT_FOUND),
        ListRequest(error=Failure.NOT_FOUND, status=OperationStatus.FAILED),
        ListRequest(status=OperationStatus.SUCCEEDED),
    ],
)
def test_request_is_taken_when_it_can_be_meant(request_: ListRequest) -> None:
    assert check_request(request_) is request_


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (ListRequest(limit=0), "limit: expected 1 to 500, got 0"),
        (ListRequest(limit=LIMIT_MAX + 1), "limit: expected 1 to 500, got 501"),
        (ListRequest(resource_type=""), "resource_type: expected 1 to 256 characters"),
        (ListRequest(resource_id="i" * (TEXT_MAX + 1)), "resource_id: expected 1 to 256 characters"),
        (ListRequest(resource_type="\0"), "resource_type: expected 1 to 256 characters of UTF-8, without U+0000"),
        (ListRequest(resource_id="\ud800"), "resource_id: expected 1 to 256 characters"),
        (ListRequest(since=AT, until=AT), "since: expected a time before `until`"),
        (ListRequest(since=AT, until=AT - INSTANT), "since: expected a time before `until`"),
        (
            ListRequest(error=Failure.NOT_FOUND, status=OperationStatus.SUCCEEDED),
            "error: expected the status `failed` with it, got `succeeded`",
        ),
    ],
)
def test_request_is_refused_when_it_cannot_be_meant(request_: ListRequest, problem: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check_request(request_)
    assert str(refused.value).startswith(problem)
    assert refused.value.member == problem.partition(":")[0]
