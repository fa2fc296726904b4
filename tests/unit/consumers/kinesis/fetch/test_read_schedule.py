from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.consumers.kinesis.fetch.pacing import (
    EARLY_S,
    READERS_TOGETHER,
    STEP_S,
    TIP_INTERVAL_S,
    ReadSchedule,
    ReadSlot,
)

TURNS_UNTIL_TOGETHER = 12  # the interval has ten steps
MILLISECOND_S = 0.001


def late_start_of(slot: ReadSlot, first: float) -> float:
    start = first
    for _ in range(TURNS_UNTIL_TOGETHER):
        start = slot.next_start(start)
    return start


@given(firsts=st.lists(st.floats(100.0, 1e6), min_size=2, max_size=READERS_TOGETHER))
def test_readers_of_a_group_read_at_the_same_times_whenever_each_read_first(firsts: list[float]) -> None:
    schedule = ReadSchedule()
    for first in firsts:
        last = late_start_of(schedule.open_slot(), first)
        assert last == pytest.approx(round(last / TIP_INTERVAL_S) * TIP_INTERVAL_S, abs=MILLISECOND_S)


@given(first=st.floats(100.0, 1e6), first_shift=st.floats(0.0, 0.99), group=st.integers(0, 5))
def test_readers_of_a_group_read_its_shift_after_the_multiples_of_the_interval(
    first: float, first_shift: float, group: int
) -> None:
    schedule = ReadSchedule(first_shift)
    slot = [schedule.open_slot() for _ in range(1 + group * READERS_TOGETHER)][-1]
    intervals = late_start_of(slot, first) / TIP_INTERVAL_S - slot.shift
    assert intervals == pytest.approx(round(intervals), abs=MILLISECOND_S)


def test_late_start_does_not_move_the_next_one() -> None:
    schedule = ReadSchedule()
    late = 10 * TIP_INTERVAL_S + 0.9 * EARLY_S
    assert schedule.open_slot().next_start(late) == pytest.approx(11 * TIP_INTERVAL_S)


@given(since=st.floats(0.0, 1e6), group=st.integers(0, 20))
def test_no_read_is_much_earlier_or_later_than_usual(since: float, group: int) -> None:
    schedule = ReadSchedule()
    slot = [schedule.open_slot() for _ in range(1 + group * READERS_TOGETHER)][-1]
    off_s = slot.next_start(since) - since - TIP_INTERVAL_S
    assert -EARLY_S - MILLISECOND_S <= off_s <= STEP_S + MILLISECOND_S


@pytest.mark.parametrize("first_shift", [0.0, 0.3, 0.9])
def test_groups_read_at_times_far_from_each_other(first_shift: float) -> None:
    schedule = ReadSchedule(first_shift)
    slots = [schedule.open_slot() for _ in range(4 * READERS_TOGETHER)]
    shifts = sorted({slot.shift for slot in slots})

    assert len(shifts) == 4
    assert min(later - earlier for earlier, later in pairwise([*shifts, 1.0 + shifts[0]])) > 0.14


def test_groups_are_full_again_after_readers_have_left() -> None:
    schedule = ReadSchedule()
    slots = [schedule.open_slot() for _ in range(2 * READERS_TOGETHER)]
    for slot in slots[::2]:
        schedule.close_slot(slot)
        schedule.close_slot(slot)

    assert {slot.shift for slot in slots[1::2]} == {0.0}
