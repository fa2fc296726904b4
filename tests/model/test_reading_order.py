from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model.reading_order import ROWS_MAX, BatchRef, LogCursor, Resumption, TenantEpochs, readable_below, resume

A, B, C = (BatchRef(number, f"token-{number}") for number in (3, 5, 9))


def read(*batches: BatchRef, position: int = ROWS_MAX) -> LogCursor:
    cursor = LogCursor(0)
    for batch in batches:
        cursor = cursor.advanced(batch, ROWS_MAX if batch != batches[-1] else position)
    return cursor


def test_horizon_is_an_id() -> None:
    assert readable_below(700, 0) == 700
    assert readable_below(700, 1_000_000) == 1_000_700


def test_cursor_goes_on_within_a_batch_and_behind_it() -> None:
    cursor = LogCursor(2)
    assert (cursor.batch_id, cursor.position) == (2, 0)
    cursor = cursor.advanced(A, 10).advanced(A, 20)
    assert cursor == LogCursor(2, (A,), 20)
    assert cursor.advanced(B, 1) == LogCursor(2, (A, B), 1)
    assert cursor.advanced(B, 1).batch_id == B.batch_id


@pytest.mark.parametrize("passed", [A, BatchRef(B.batch_id, "another"), BatchRef(4, "late")])
def test_cursor_refuses_a_batch_that_it_has_passed(passed: BatchRef) -> None:
    with pytest.raises(ValueError, match=f"expected a batch behind 5, got {passed.batch_id}"):
        read(A, B).advanced(passed, 1)


def test_batch_is_remembered_until_it_is_safe() -> None:
    assert read(A, B, C).settled({A}) == LogCursor(0, (A, B, C), ROWS_MAX)
    assert read(A, B, C).settled({A, B}) == LogCursor(0, (B, C), ROWS_MAX)
    assert read(A, B, C, position=7).settled({A, B, C}) == LogCursor(0, (C,), 7)
    assert read(A, B, C).settled({B}) == LogCursor(0, (A, B, C), ROWS_MAX)
    assert LogCursor(0).settled({A}) == LogCursor(0)


def test_reader_goes_on_where_all_is_there() -> None:
    for batches in ((A,), (A, B), (A, B, C)):
        cursor = read(*batches, position=7)
        assert resume(cursor, set(batches)) == Resumption(cursor)


def test_reader_goes_back_to_the_newest_batch_that_is_there() -> None:
    resumption = resume(read(A, B, C, position=7), {A, B})
    assert (resumption.cursor, resumption.undone) == (LogCursor(0, (A, B), ROWS_MAX), (C,))


def test_batch_below_the_newest_may_be_undone() -> None:
    resumption = resume(read(A, B, C, position=7), {A, C})
    assert (resumption.cursor, resumption.undone) == (LogCursor(0, (A, C), 7), (B,))


def test_reader_begins_anew_where_nothing_is_there() -> None:
    resumption = resume(read(A, B), {BatchRef(A.batch_id, "another")})
    assert (resumption.cursor, resumption.undone) == (LogCursor(0, (), ROWS_MAX), (A, B))
    assert resumption.cursor.batch_id == 0


@given(st.sets(st.integers(1, 20)), st.data())
def test_what_was_read_is_there_or_undone(numbers: set[int], data: st.DataObject) -> None:
    batches = [BatchRef(number, str(number)) for number in sorted(numbers)]
    there = {one for one in batches if data.draw(st.booleans())}
    resumption = resume(read(*batches), there)
    assert sorted([*resumption.cursor.remembered, *resumption.undone]) == batches
    assert there.isdisjoint(resumption.undone)
    assert resumption.cursor.batch_id == max((one.batch_id for one in there), default=0)


def test_tenant_is_followed_to_its_new_shard_behind_the_marker_on_the_former() -> None:
    epochs = TenantEpochs()
    assert epochs.may_read("a", 0)
    assert not epochs.may_read("a", 1)
    assert not epochs.with_left("a", 0).may_read("a", 1)
    moved = epochs.with_left("a", 2)
    assert moved.may_read("a", 2)
    assert not moved.may_read("a", 3)
    assert not moved.may_read("b", 2)
    assert moved.with_left("a", 3).with_left("a", 2).may_read("a", 3)
