"""Destinations over all shards."""

from __future__ import annotations

from simplu_worker.commands.feed.summary import DestinationSummary, StoppedShard, WaitingTenant, summarise
from simplu_worker.feed.places import HeldTenant
from simplu_worker.feed.steering import ShardDestination
from simplu_worker.vocabulary import FeedStop

HELD = HeldTenant(1, "smile-berlin", 2, "c", 5, 0)


def test_summary_has_each_destination_with_its_shards_and_what_is_odd() -> None:
    """The lag is that of the shard that is the furthest behind, which others do not hide."""
    answers = {
        "b": [
            ShardDestination("crm", (HELD,), "one", lag_s=10.0, refusal_count=2),
            ShardDestination("bus", (), None),
        ],
        "a": [
            ShardDestination("crm", (), "two", FeedStop.REFUSED, "why", "id-1", lag_s=90.5, refusal_count=1),
            ShardDestination("bus", (), "two", lag_s=9.9),
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
    assert (bus.has_problem, crm.has_problem) == (True, True)
    assert summarise({}) == []
