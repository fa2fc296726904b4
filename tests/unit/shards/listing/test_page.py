from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from simplu_worker.shards.listing import (
    INSTANT,
    NEWEST,
    OLDEST,
    ListedOperation,
    ListRequest,
    PageSearch,
    SearchChunk,
    SearchLimits,
    SearchPosition,
    decode_cursor,
)

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
LIMITS = SearchLimits(chunk_rows=10, rows=30, few=5, seconds=2.0)


def found(count: int, *, first: int = 0) -> list[ListedOperation]:
    return [
        ListedOperation(f"r{n}", "succeeded", "update", "patient", AT, AT - timedelta(seconds=n))
        for n in range(first, first + count)
    ]


def chunk(
    operations: list[ListedOperation] | None = None, *, row_count: int = 10, seconds: int = 9, is_last: bool = False
) -> SearchChunk:
    return SearchChunk(operations or [], row_count, AT - timedelta(seconds=seconds), is_last)


def search_of(*, limit: int = 3) -> PageSearch:
    return PageSearch(ListRequest(limit=limit, after=SearchPosition(AT)), LIMITS)


def test_search_begins_with_a_chunk_of_the_newest_rows() -> None:
    search = PageSearch(ListRequest(limit=3))
    assert (search.position, search.since, search.missing_count) == (SearchPosition(NEWEST), OLDEST, 4)
    assert PageSearch(ListRequest(since=AT)).since == AT
    assert not search.is_complete(0.0)
    assert not search.is_complete(1e9)  # each page gets further than the one before


@pytest.mark.parametrize(("row_count", "oldest"), [(9, AT), (10, AT - timedelta(seconds=9)), (0, None)])
def test_last_chunk_ends_the_search(row_count: int, oldest: datetime | None) -> None:
    search = search_of()
    search.add_chunk(SearchChunk(found(2), row_count, oldest, is_last=True))

    page = search.result("shard-1")

    assert search.is_complete(0.0)
    assert (page.operations, page.next, page.searched_to, page.shard_id) == (found(2), None, None, "shard-1")


def test_full_page_ends_after_its_last_operation() -> None:
    for is_last in (False, True):
        search = search_of()
        search.add_chunk(chunk(found(4), is_last=is_last))
        page = search.result("shard-1")

        assert search.is_complete(0.0)
        assert page.operations == found(3)
        assert decode_cursor(page.next or "") == SearchPosition(AT - timedelta(seconds=2), "r2")
        assert page.searched_to == AT - timedelta(seconds=2)


def test_page_that_is_just_full_is_searched_on() -> None:
    search = search_of()
    search.add_chunk(chunk(found(3)))
    assert (search.is_complete(0.0), search.missing_count) == (False, 1)
    search.add_chunk(chunk(is_last=True))
    assert (search.is_complete(0.0), search.result("shard-1").next) == (True, None)


def test_chunk_moves_the_search_to_its_oldest_row() -> None:
    search = search_of()
    search.add_chunk(chunk(found(1), row_count=1))
    assert search.position == SearchPosition(AT - timedelta(seconds=9) - INSTANT)
    assert search.missing_count == 3


@pytest.mark.parametrize(("chunks", "spent_s", "expected"), [(2, 1.9, False), (3, 0.0, True), (1, 2.0, True)])
def test_search_ends_at_a_bound(chunks: int, spent_s: float, *, expected: bool) -> None:
    search = search_of()
    for number in range(chunks):
        search.add_chunk(chunk(seconds=9 * (number + 1)))

    assert search.is_complete(spent_s) is expected
    page = search.result("shard-1")
    assert (page.operations, page.searched_to) == ([], AT - timedelta(seconds=9 * chunks) - INSTANT)
    assert decode_cursor(page.next or "") == search.position
