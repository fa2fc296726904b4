"""Destinations over all shards."""

from __future__ import annotations

from datetime import UTC, datetime

from support.feed.events import feed_event

from simplu_worker.commands.feed.destinations import DestinationSummary, StoppedShard, WaitingTenant, summarise
from simplu_worker.feed.cursors import RefusedEvent, ShardDestination
from simplu_worker.feed.types import Arrival
from simplu_worker.vocabulary import FeedStop

ARRIVAL = Arrival("smile-berlin", 2, "c")


def test_summary_has_each_destination_with_what_is_odd() -> None:
    answers = {
        "b": [
            ShardDestination("crm", ARRIVAL, "one", lag_s=10.0, refusal_count=2),
            ShardDestination("bus"),
        ],
        "a": [
            ShardDestination("crm", None, "two", FeedStop.REFUSED, "why", "id-1", lag_s=90.5, refusal_count=1),
            ShardDestination("bus", None, "two", lag_s=9.9),
        ],
        "empty": [],
    }
    bus, crm = summarise(answers)
    assert bus == DestinationSummary("bus", 9.9, 2, (), ("b",), (), (), 0)
    assert crm == DestinationSummary(
        "crm",
        90.5,
        2,
        ("a", "b"),
        (),
        (StoppedShard("a", FeedStop.REFUSED, "why", "id-1"),),
        (WaitingTenant("smile-berlin", "b", "c"),),
        3,
    )
    assert summarise({}) == []


def test_summary_counts_nothing_of_a_destination_of_no_publisher() -> None:
    late = ShardDestination("crm", ARRIVAL, None, FeedStop.REFUSED, lag_s=90.5, refusal_count=2, is_in_file=False)
    (left,) = summarise({"a": [late], "b": [late]})
    assert left == DestinationSummary("crm", 0.0, 2, (), (), (), (), 4, is_in_file=False)
    (crm,) = summarise({"a": [late], "b": [ShardDestination("crm", None, "one")]})
    assert (crm.is_in_file, crm.shards_behind, crm.shards_without_publisher) == (True, ("a",), ("a",))


def test_summary_has_the_latest_refusals_of_all_shards() -> None:
    def refused(*days: int) -> ShardDestination:
        found = tuple(RefusedEvent(feed_event(day), f"{day}", datetime(2026, 1, day, tzinfo=UTC)) for day in days)
        return ShardDestination("crm", refusals=found)

    (crm,) = summarise({"a": [refused(9, 4, 3, 2, 1)], "b": [refused(8, 7, 6, 5)]})
    assert [(one.shard_id, one.error) for one in crm.refusals] == [("a", "9"), *(("b", day) for day in "8765")]
