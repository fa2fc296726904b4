"""How many tenants more a shard takes, by an answer of Citrus."""

from __future__ import annotations

import pytest

from simplu_worker.errors import PermanentError
from simplu_worker.shards.routing.locator import Capacity
from simplu_worker.transfers.moving.places import check_room, room_of


@pytest.mark.parametrize(
    ("capacity", "room"),
    [
        (Capacity(1, 4, accepts_new=True), 3),
        (Capacity(1, 4, accepts_new=None), 3),
        (Capacity(1, 4, accepts_new=False), 0),
        (Capacity(5, 4, accepts_new=None), 0),
        (Capacity(5, 4, accepts_new=True), 1),  # what Citrus says counts
        (Capacity(None, 4, accepts_new=True), None),
        (Capacity(5, None, accepts_new=True), None),
        (Capacity(None, None, accepts_new=False), 0),
    ],
)
def test_room_is_by_the_answer_and_else_by_the_numbers(capacity: Capacity, room: int | None) -> None:
    assert room_of(capacity) == room


def test_tenants_that_are_to_come_take_room() -> None:
    check_room("b", None, coming_count=9)
    check_room("b", Capacity(1, 4, accepts_new=True), coming_count=2)
    with pytest.raises(PermanentError, match=r"b is full \(1 of 4, and 3 are to move there before\); raise"):
        check_room("b", Capacity(1, 4, accepts_new=True), coming_count=3)
    with pytest.raises(PermanentError, match=r"b is full \(4 of 4\); raise"):
        check_room("b", Capacity(4, 4, accepts_new=False))
