from __future__ import annotations

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.consumers.sqs.receive.failure_counts import FailureCounts

NO_GATEWAY = cast("Any", None)


def test_full_memory_forgets_the_oldest_failure() -> None:
    counts = FailureCounts(NO_GATEWAY, remembered_max=2)
    assert [counts.remember(message_id) for message_id in ("a", "b", "a", "c", "a", "b")] == [1, 1, 2, 1, 3, 1]


@given(st.lists(st.integers(0, 6)), st.integers(1, 5))
def test_count_is_never_more_than_the_failures(failed: list[int], most: int) -> None:
    counts = FailureCounts(NO_GATEWAY, remembered_max=most)
    for place, number in enumerate(failed, start=1):
        assert 1 <= counts.remember(str(number)) <= failed[:place].count(number)
        assert len(counts._remembered) <= most
