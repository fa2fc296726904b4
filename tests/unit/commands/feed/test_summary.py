"""Destinations over all shards, for people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from simplu_worker.commands.feed.destinations import SHOWN_MAX, describe
from simplu_worker.commands.output import Line, Table
from simplu_worker.feed.cursors import RefusedEvent, ShardDestination
from simplu_worker.feed.types import Arrival
from simplu_worker.vocabulary import FeedStop

ARRIVAL = Arrival("smile-berlin", 2, "c")
AT = datetime(2026, 1, 1, tzinfo=UTC)


def told(*found: ShardDestination) -> tuple[list[object], list[str]]:
    table, *lines = describe(found, None)
    assert isinstance(table, Table)
    return list(table.rows), [line.text for line in lines if isinstance(line, Line)]


def test_summary_has_each_destination_with_what_is_odd() -> None:
    subject = "smile-berlin/patient/p-1"
    refusals = (RefusedEvent("token-7-0", "simplu.resource.patched", subject, "422", AT),)
    stop: dict[str, Any] = {"stopped": FeedStop.REFUSED, "error": "why", "refused_event": "id-1"}
    rows, lines = told(
        ShardDestination("bus", "s0", 9.9, "one"),
        ShardDestination("crm", "s1", 10.0, "one", waits_for=ARRIVAL, refusal_count=2, refusals=refusals),
        ShardDestination("crm", "s2", 90.5, None, refusal_count=1, **stop),
    )
    assert rows == [("bus", "9.9 s", 1, 0, 0, 0, 0), ("crm", "90.5 s", 2, 1, 1, 1, 3)]
    event = "refused simplu.resource.patched of smile-berlin/patient/p-1 at 2026-01-01 00:00:00, token-7-0: 422"
    assert lines == [
        f"crm, s1: {event}",
        "crm, s2: stopped at the event id-1 (refused): why",
        "crm, s1: waits at the arrival of smile-berlin for the feed of its source, c",
    ]


def test_summary_counts_nothing_of_a_destination_of_no_publisher() -> None:
    rows, lines = told(*[ShardDestination("crm", "s0", is_in_file=False, refusal_count=2)] * 2)
    assert rows == [("crm", "0.0 s", 2, 0, 0, 0, 4)]
    assert lines == ["crm: no replica has it in FEED_FILE; `simplu-worker feed forget crm` deletes its places"]


def test_summary_has_no_more_lines_than_people_read() -> None:
    stopped = ShardDestination("crm", "s0", publisher="one", stopped=FeedStop.DISABLED, error="410")
    _, lines = told(*[stopped] * (SHOWN_MAX + 2))
    assert (len(lines), lines[-1]) == (SHOWN_MAX + 1, "and 2 more; --json has all")
