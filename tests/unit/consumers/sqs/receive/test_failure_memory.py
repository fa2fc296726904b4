from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.consumers.sqs.receive.verdicts import FailureMemory


def test_full_memory_forgets_the_oldest_failure() -> None:
    memory = FailureMemory(max_count=2)
    assert [memory.add(message_id) for message_id in ("a", "b", "a", "c", "a", "b")] == [1, 1, 2, 1, 3, 1]


@given(st.lists(st.integers(0, 6)), st.integers(1, 5))
def test_count_is_never_more_than_the_failures(failed: list[int], max_count: int) -> None:
    memory = FailureMemory(max_count)
    for place, number in enumerate(failed, start=1):
        assert 1 <= memory.add(str(number)) <= failed[:place].count(number)
        assert len(memory._counts) <= max_count
