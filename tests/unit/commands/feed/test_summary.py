"""Destinations over all shards, for people."""

from __future__ import annotations

from datetime import UTC, datetime

from support.feed.events import feed_event

from simplu_worker.commands.feed.destinations import SHOWN_MAX, describe, shown_shard
from simplu_worker.commands.output import Line, Table
from simplu_worker.feed.cursors import RefusedEvent, ShardDestination
from simplu_worker.feed.types import Arrival
from simplu_worker.vocabulary import FeedStop

ARRIVAL = Arrival("smile-berlin", 2, "c")
AT = datetime(2026, 1, 1, tzinfo=UTC)


def told(*found: ShardDestination) -> tuple[list[object], list[str]]:
    table, *lines = describe([shown_shard(f"s{number}", one) for number, one in enumerate(found)], None)
    assert isinstance(table, Table)
    return list(table.rows), [line.text for line in lines if isinstance(line, Line)]


def test_summary_has_each_destination_with_what_is_odd() -> None:
    refusals = (RefusedEvent(feed_event(), "422", AT),)
    rows, lines = told(
        ShardDestination("bus", publisher="one", lag_s=9.9),
        ShardDestination("crm", ARRIVAL, "one", lag_s=10.0, refusal_count=2, refusals=refusals),
        ShardDestination("crm", None, None, FeedStop.REFUSED, "why", "id-1", lag_s=90.5, refusal_count=1),
    )
    assert rows == [("bus", "9.9 s", 1, 0, 0, 0, 0), ("crm", "90.5 s", 2, 1, 1, 1, 3)]
    event = "refused simplu.resource.patched of smile-berlin/patient/p-1 at 2026-01-01 00:00:00, token-7-0: 422"
    assert lines == [
        f"crm, s1: {event}",
        "crm, s2: stopped at the event id-1 (refused): why",
        "crm, s1: waits at the arrival of smile-berlin for the feed of its source, c",
    ]


def test_summary_counts_nothing_of_a_destination_of_no_publisher() -> None:
    late = ShardDestination("crm", ARRIVAL, None, FeedStop.REFUSED, lag_s=90.5, refusal_count=2, is_in_file=False)
    rows, lines = told(late, late)
    assert rows == [("crm", "0.0 s", 2, 0, 0, 0, 4)]
    assert lines == ["crm: no replica has it in FEED_FILE; `simplu-worker feed forget crm` deletes its places"]


def test_summary_has_no_more_lines_than_people_read() -> None:
    stopped = ShardDestination("crm", publisher="one", stopped=FeedStop.DISABLED, error="410")
    _, lines = told(*[stopped] * (SHOWN_MAX + 2))
    assert (len(lines), lines[-1]) == (SHOWN_MAX + 1, "and 2 more; --json has all")
