"""Places in a shard's log."""

from __future__ import annotations

from simplu_worker.feed.types import Place


def test_label_has_no_negative_number_when_the_place_is_before_the_first_row() -> None:
    assert Place(7, 3).label == "7-3"
    assert Place(7, 0).before.label == "7-0"
