"""Which documents are read for events, and how many rows they are enough for."""

from __future__ import annotations

from typing import Any

from support.feed.events import feed_event

from simplu_worker.feed.events import ReadRow, WantedDocuments
from simplu_worker.feed.types import DestinationTerms, Place
from simplu_worker.vocabulary import FeedData, FeedKind

TERMS = [
    DestinationTerms("one", data=FeedData.CURRENT, resource_types=frozenset({"patient"})),
    DestinationTerms("two", data=FeedData.CURRENT, tenants=frozenset({"another"})),
    DestinationTerms("three"),
]


def row(number: int, resource_id: str, **members: Any) -> ReadRow:
    event = feed_event(id=f"e{number}", resource_id=resource_id, **members)
    return ReadRow(Place(number, 0), (event,))


ROWS = [
    row(1, "a", kind=FeedKind.RESOURCE_DELETED),
    ReadRow(Place(2, 0)),
    row(3, "a"),
    row(4, "o", resource_type="order"),
    row(5, "b"),
    row(6, "a"),
    row(7, "c"),
]


def test_each_document_is_read_once_where_a_destination_wants_it() -> None:
    wanted = WantedDocuments(ROWS, TERMS)
    assert [resource_id for _, _, resource_id in wanted.resources] == ["a", "b", "c"]
    assert wanted.by_event({0: b"A", 2: b""}) == {"e3": b"A", "e6": b"A", "e7": b""}
    assert not WantedDocuments(ROWS, TERMS[1:]).resources
    odd = [feed_event(tenant=None), feed_event(resource_type=None), feed_event(resource_id=None)]
    deleted, last = feed_event(kind=FeedKind.RESOURCE_DELETED), feed_event(resource_id="last")
    several = ReadRow(Place(1, 0), (*odd, deleted, last))
    assert WantedDocuments([several], TERMS[:1]).resources == [("smile-berlin", "patient", "last")]


def test_rows_before_the_first_that_wants_a_document_that_is_left_need_no_other() -> None:
    wanted = WantedDocuments(ROWS, TERMS)
    assert [wanted.row_count(left_at) for left_at in (1, 2)] == [4, 6]
