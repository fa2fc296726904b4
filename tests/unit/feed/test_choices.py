"""What a person's word does to a cursor."""

from __future__ import annotations

import pytest

from simplu_worker.feed.events import skip_problem
from simplu_worker.vocabulary import FeedStop


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
