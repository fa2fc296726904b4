from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from simplu_worker.consumers.kinesis.fetch.cursor import Cursor
from simplu_worker.consumers.kinesis.holding.ownership import CheckpointTracker
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import ReaderView
from simplu_worker.consumers.kinesis.stream.positions import Latest, RecordPosition
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import StreamReader

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
NOT_USED = cast("Any", None)  # a part that the lag of a pending record does not need


def make_view(
    tracker: CheckpointTracker[RecordPosition], cursor: Cursor, *, retention: timedelta | None = None
) -> ReaderView:
    progress = cast("Any", SimpleNamespace(tracker=tracker, cursor=cursor, retention=retention))
    return ReaderView(progress, NOT_USED, NOT_USED, utc=lambda: NOON)


def view_of(*pending_since: timedelta, retention: timedelta | None = None) -> ReaderView:
    tracker = CheckpointTracker[RecordPosition]()
    tracker.start_all([RecordPosition(str(number), 0, NOON - age) for number, age in enumerate(pending_since, 1)])
    return make_view(tracker, NOT_USED, retention=retention)


@pytest.mark.parametrize(
    ("retention", "expected"),
    [(timedelta(hours=24), 0.5), (timedelta(days=365), 12 / 24 / 365), (timedelta(hours=6), 2.0), (None, 0.0)],
)
def test_lag_is_a_share_of_the_streams_own_retention(retention: timedelta | None, expected: float) -> None:
    view = view_of(timedelta(hours=12), timedelta(hours=1), retention=retention)
    assert view.lag_retention_ratio == pytest.approx(expected)


async def test_lag_grows_while_no_reply_comes() -> None:
    cursor = Cursor(cast("Any", SimpleNamespace(pacing=None)), Latest(), kind=StreamReader.MAIN)
    view = make_view(CheckpointTracker(), cursor)
    cursor.millis_behind, cursor.replied_at = 0, loop_time() - 5
    assert view.lag_s == 0
    cursor.replied_at = loop_time() - 30
    assert view.lag_s == pytest.approx(30, abs=5)
    cursor.is_closed = True
    assert view.lag_s == 0


def test_lag_of_a_record_ahead_of_our_clock_is_none() -> None:
    assert view_of(timedelta(seconds=-5), retention=timedelta(hours=24)).lag_retention_ratio == 0
