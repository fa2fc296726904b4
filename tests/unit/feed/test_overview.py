"""Destinations over all shards, their places, and what a person's word does to a cursor."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from simplu_worker.feed.events import skip_problem
from simplu_worker.feed.types import DestinationTerms, DestinationView, Place, ShardView, destination_views
from simplu_worker.vocabulary import FeedStop

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_views_add_up_the_shards_of_each_destination_of_the_file() -> None:
    shards = [
        ShardView("b", "crm", NOW - timedelta(seconds=5), True, "refused", "400"),
        ShardView("a", "crm", NOW - timedelta(seconds=90), True, None, "busy"),
        ShardView("a", "bus", None),
        ShardView("a", "gone", NOW - timedelta(days=1)),
        ShardView("b", "early", stopped="refused"),
        ShardView("c", "early", NOW + timedelta(seconds=1), error="busy"),
    ]
    assert destination_views(["crm", "bus", "new", "early"], shards, NOW) == [
        DestinationView("crm", 90.0, 2, 2, ("b",), "400"),
        DestinationView("bus", 0.0, 1),
        DestinationView("new"),
        DestinationView("early", 0.0, 2, 0, ("b",), "busy"),
    ]


@pytest.mark.parametrize(
    ("tries", "delays_s"),
    [(1, []), (2, [1.0]), (4, [1.0, 2.0, 4.0]), (12, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, *[60.0] * 5])],
)
def test_event_is_tried_again_twice_as_late_each_time(tries: int, delays_s: list[float]) -> None:
    rules = DestinationTerms("crm", tries=tries).rules
    assert (rules.delays_s, rules.tenant_wait) == (delays_s, timedelta())


def test_label_has_no_negative_number_when_the_place_is_before_the_first_row() -> None:
    assert Place(7, 3).label == "7-3"
    assert Place(7, 0).before.label == "7-0"


@pytest.mark.parametrize(
    ("stopped", "event_id", "problem"),
    [
        (FeedStop.REFUSED, None, None),
        (FeedStop.DISABLED, None, None),
        (None, "id-2", None),
        (None, None, "the destination has not stopped: nothing is to be passed"),
        (FeedStop.REFUSED, "id-2", "the destination has stopped: leave out --event"),
    ],
)
def test_skip_passes_what_is_named_and_nothing_else(
    stopped: FeedStop | None, event_id: str | None, problem: str | None
) -> None:
    assert skip_problem(stopped, event_id) == problem
