"""What a receiver has to hold in the end: which order is allowed where a shard has lost commits."""

from __future__ import annotations

import pytest
from support.feed.expected_events import Change, find_differences
from support.feed.follower import Event, Follower

KEY, OTHER = "smile-berlin/patient/p-1", "smile-berlin/patient/p-2"
CREATED, UPDATED = Change("a", 8, 0, "", "", KEY, "1"), Change("b", 5, 0, "", "", KEY, "2")
LATER = Change("a", 9, 0, "", "", OTHER, "3")


def event(change: Change, incarnation: str = "i1") -> Event:
    """Return the event of *change*; the incarnation `i2` of the shard `a` began behind batch 7."""
    behind = (("i2", 7),) if incarnation == "i2" else ()
    position = f"{change.batch}-{change.place}"
    return Event(
        position, change.type, change.key, change.shard, incarnation, behind, position, change.request, None, None
    )


@pytest.mark.parametrize("is_late", [False, True])
def test_event_that_a_shard_has_taken_back_may_come_again_behind_those_of_the_next_shard(*, is_late: bool) -> None:
    follower = Follower()
    promotion = event(LATER, "i2")
    for one in [promotion, event(CREATED)] if is_late else [event(CREATED), promotion]:
        follower.take(one)
    for one in (event(UPDATED), event(CREATED, "i2")):
        follower.take(one)
    changes = [CREATED, UPDATED, LATER]
    assert find_differences("x", follower, changes, int, {"a"}) == []
    (difference, in_another_order) = find_differences("x", follower, changes, int)
    assert difference.startswith("x: 1 out of order")
    assert in_another_order.startswith("x: 1 in another order than put")
