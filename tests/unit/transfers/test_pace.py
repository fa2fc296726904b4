"""The size of the next chunk of a copy."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.postgres.errors import StatementFailedError
from simplu_worker.shards.settling import FIRST, RowKey
from simplu_worker.transfers.engine import (
    CHUNK_S,
    REST_MAX_S,
    ROWS_MAX,
    ROWS_MIN,
    SMALL_ROUND,
    Chunk,
    ChunkPace,
    Walker,
    is_last_round,
    next_pace,
    run_in_pages,
    slower_after,
)


@pytest.mark.parametrize(
    ("took_s", "answer_s", "row_count", "rest_s"),
    [
        (0.01, 0.001, 8_000, 0.005),  # quick: four times as many, no more
        (0.2, 0.001, 1_000, 0.1),  # slow: as many as fit
        (0.2, 0.1, 1_000, 0.2),  # the shard answers later than usual
        (3.0, 0.1, 1_000, REST_MAX_S),
    ],
)
def test_chunk_follows_both_shards(took_s: float, answer_s: float, row_count: int, rest_s: float) -> None:
    pace = next_pace(ChunkPace(2_000, usual_answer_s=0.001), row_count=2_000, took_s=took_s, answer_s=answer_s)
    assert (pace.row_count, pace.rest_s) == (row_count, rest_s)


def test_chunks_may_be_shorter_and_without_rests() -> None:
    quick = next_pace(
        ChunkPace(2_000, usual_answer_s=0.001, chunk_s=0.02, rest_share=0.0),
        row_count=2_000,
        took_s=0.04,
        answer_s=0.001,
    )
    assert (quick.row_count, quick.rest_s) == (1_000, 0.0)
    busy = next_pace(quick, row_count=1_000, took_s=0.02, answer_s=0.1)
    assert (busy.row_count, busy.rest_s) == (500, 0.02)


@given(
    st.integers(ROWS_MIN, ROWS_MAX),
    st.integers(0, ROWS_MAX),
    st.floats(0, 100),
    st.floats(0, 10),
    st.floats(0, REST_MAX_S),
)
def test_chunk_is_bounded(size: int, copied: int, took_s: float, answer_s: float, rest_s: float) -> None:
    pace = next_pace(ChunkPace(size, rest_s, 0.001), row_count=copied, took_s=took_s, answer_s=answer_s)
    assert ROWS_MIN <= pace.row_count <= ROWS_MAX
    assert 0 <= pace.rest_s <= REST_MAX_S


def test_chunk_that_took_too_long_is_tried_with_fewer_rows_until_some_fit() -> None:
    pace, sizes = ChunkPace(100_000), []
    timeout = StatementFailedError("took too long", error="57014", is_timeout=True)
    while pace.row_count not in sizes:
        sizes.append(pace.row_count)
        with contextlib.suppress(StatementFailedError):  # of one row
            pace = slower_after(timeout, pace)
    assert sizes == [100_000, 10_000, 1_000, 100, 10, 1]
    with pytest.raises(StatementFailedError):
        slower_after(timeout, pace)

    slow = next_pace(pace, row_count=1, took_s=CHUNK_S * 2, answer_s=0.001)
    assert slow.row_count == 1
    quick = next_pace(slow, row_count=1, took_s=CHUNK_S / 10, answer_s=0.001)
    assert quick.row_count == 4


@given(st.integers(1, ROWS_MAX), st.integers(1, ROWS_MAX), st.floats(0, 100), st.floats(0, 10))
def test_chunk_stays_below_the_one_that_took_too_long(most: int, copied: int, took_s: float, answer_s: float) -> None:
    pace = next_pace(ChunkPace(most, most=most), row_count=copied, took_s=took_s, answer_s=answer_s)
    assert 1 <= pace.row_count <= (most if took_s > CHUNK_S else min(ROWS_MAX, 4 * most))


@pytest.mark.parametrize(
    ("row_count", "took_s", "expected"),
    [
        (10_000, 0.1, True),  # short
        (10_000, 0.2, False),  # the next one will have fewer rows
        (SMALL_ROUND, 0.2, True),  # the next one will have as many
        (SMALL_ROUND + 1, 0.2, False),
        (0, 0.5, True),
        (0, 1.2, False),  # a shard was slow for a moment: the tenant would wait as long
    ],
)
def test_catch_up_ends_with_a_short_round(row_count: int, took_s: float, expected: bool) -> None:  # noqa: FBT001
    assert is_last_round(row_count, took_s, max_pause_s=0.5) is expected


async def test_walk_and_pages_go_on_with_fewer_rows_after_a_timeout() -> None:
    timeout = StatementFailedError("took too long", error="57014", is_timeout=True)
    tried: list[tuple[RowKey, int]] = []

    async def handle(after: RowKey, row_count: int) -> Chunk:
        tried.append((after, row_count))
        if row_count > 20:
            raise timeout
        return Chunk(None if after != FIRST else ("b", ""), row_count, 0.0)

    await Walker(ChunkPace(rest_share=0.0)).walk(handle)
    assert [(after, count > 20) for after, count in tried] == [
        (FIRST, True),
        (FIRST, False),
        (("b", ""), True),
        (("b", ""), False),
    ]

    left = 45

    async def run(limit: int) -> int:
        nonlocal left
        if limit > 20:
            raise timeout
        done, left = min(limit, left), left - min(limit, left)
        return done

    assert (await run_in_pages(run, limit=200), left) == (45, 0)
