"""What a person's word does to a cursor."""

from __future__ import annotations

import pytest

from simplu_worker.errors import PermanentError
from simplu_worker.feed.events import PassEvent, Resume, choose_skip
from simplu_worker.vocabulary import FeedStop


@pytest.mark.parametrize(
    ("stopped", "event_id", "expected"),
    [
        (FeedStop.REFUSED, None, Resume(FeedStop.REFUSED, "why", "id-1")),
        (FeedStop.DISABLED, None, Resume(FeedStop.DISABLED, "why", "id-1")),
        (None, "id-2", PassEvent("id-2")),
        (None, None, "the destination has not stopped"),
        (FeedStop.REFUSED, "id-2", "leave out --event"),
    ],
)
def test_skip_passes_what_is_named_and_nothing_else(
    stopped: FeedStop | None, event_id: str | None, expected: Resume | PassEvent | str
) -> None:
    if isinstance(expected, str):
        with pytest.raises(PermanentError, match=expected):
            choose_skip(stopped, "why", "id-1", event_id)
    else:
        assert choose_skip(stopped, "why", "id-1", event_id) == expected
