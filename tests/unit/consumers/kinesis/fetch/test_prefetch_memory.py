from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from simplu_worker.consumers.kinesis.fetch.pacing import MemoryQuota, PrefetchMemory

MAX = 1000


def quotas_holding(prefetch: PrefetchMemory, *held: int) -> list[MemoryQuota]:
    quotas = [prefetch.open_quota() for _ in held]
    for quota, size_bytes in zip(quotas, held, strict=True):
        quota.reserve(size_bytes)
    return quotas


@pytest.mark.parametrize(
    ("held", "rooms"),
    [
        pytest.param([0], [1000], id="alone: all of it"),
        pytest.param([600], [400], id="alone: up to all of it"),
        pytest.param([1000], [0], id="full"),
        pytest.param([1400], [0], id="over: a record was larger than expected"),
        pytest.param([0, 0], [750, 750], id="two: a quarter is the other's"),
        pytest.param([499, 0], [251, 501], id="less than half is used: all may go on"),
        pytest.param([500, 0], [0, 500], id="half is used: one has its fair share, the other has not"),
        pytest.param([200, 300], [300, 200], id="half is used: up to a fair share"),
        pytest.param([750, 0], [0, 250], id="one has all it may: the other's part is there"),
        pytest.param([125, 125, 125, 125], [125] * 4, id="four with the same: the rest for any, up to a fair share"),
        pytest.param([625, 0, 0, 0], [0, 125, 125, 125], id="one has all it may: the others share the rest"),
        pytest.param([1001, 0], [0, 250], id="over: the other's part is there"),
        pytest.param([1300, 60, 0], [0, 106, 166], id="over: what is left of each one's part"),
    ],
)
def test_prefetch_leaves_room(held: list[int], rooms: list[int]) -> None:
    quotas = quotas_holding(PrefetchMemory(MAX), *held)

    assert [quota.room_bytes for quota in quotas] == rooms


@pytest.mark.parametrize(
    ("held", "short"),
    [
        pytest.param([0], [False], id="alone: nothing to wait for"),
        pytest.param([250], [False], id="alone: three quarters are free"),
        pytest.param([251], [True], id="alone: a read would be small"),
        pytest.param([375, 0], [False, False], id="two: three quarters of a half are enough"),
        pytest.param([376, 0], [True, False], id="two: a read would be small for one of them"),
        pytest.param([400, 100], [True, False], id="two: half is used, and one has more than a quarter of its half"),
        pytest.param([0, 1000], [False, True], id="two: one holds nothing, and has its part"),
        pytest.param([249, 1000], [True, True], id="two: next to nothing is left of its part"),
    ],
)
def test_quota_is_short_when_a_read_would_be_a_small_one(held: list[int], short: list[bool]) -> None:
    quotas = quotas_holding(PrefetchMemory(MAX), *held)

    assert [quota.is_short for quota in quotas] == short


def test_quota_may_take_a_record_larger_than_everything_when_it_holds_nothing() -> None:
    prefetch = PrefetchMemory(MAX)
    first, second = quotas_holding(prefetch, 0, 0)
    assert first.room_bytes > 0
    first.reserve(10 * MAX)
    assert (first.room_bytes, second.room_bytes) == (0, 250)
    first.release(10 * MAX)
    assert (first.room_bytes, second.room_bytes) == (750, 750)


def test_closed_quota_holds_nothing_and_leaves_its_part() -> None:
    first, second = quotas_holding(PrefetchMemory(MAX), 400, 0)
    with pytest.raises(ValueError, match="at most 400 bytes, got 401"):
        first.release(401)
    for _ in range(2):
        first.close()
        first.reserve(100)
        first.release(100)
        assert (first.room_bytes, first.is_short, first.held_bytes) == (0, True, 0)
        assert second.room_bytes == MAX


class PrefetchMachine(RuleBasedStateMachine):
    """Readers open a quota, reserve within their room, get a reply of at most that, apply it, and close."""

    def __init__(self) -> None:
        super().__init__()
        self.prefetch = PrefetchMemory(MAX)
        self.quotas: list[MemoryQuota] = []
        self.reserved: list[tuple[MemoryQuota, int]] = []

    @rule()
    def open(self) -> None:
        self.quotas.append(self.prefetch.open_quota())

    @precondition(lambda self: self.quotas)
    @rule(data=st.data(), wanted=st.integers(1, 400))
    def reserve(self, data: st.DataObject, wanted: int) -> None:
        quota = data.draw(st.sampled_from(self.quotas))
        room_bytes = quota.room_bytes
        if room_bytes:
            record = data.draw(st.integers(1, 300))
            expected = max(record, min(wanted, room_bytes))
            quota.reserve(expected)
            self.reserved.append((quota, expected))

    @precondition(lambda self: self.reserved)
    @rule(data=st.data())
    def reply(self, data: st.DataObject) -> None:
        quota, expected = self.reserved.pop(data.draw(st.integers(0, len(self.reserved) - 1)))
        quota.release(data.draw(st.integers(0, expected)))

    @precondition(lambda self: self.quotas)
    @rule(data=st.data())
    def apply(self, data: st.DataObject) -> None:
        quota = data.draw(st.sampled_from(self.quotas))
        reserved = sum(size for one, size in self.reserved if one is quota)
        quota.release(data.draw(st.integers(0, quota.held_bytes - reserved)))

    @precondition(lambda self: self.quotas)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        quota = self.quotas.pop(data.draw(st.integers(0, len(self.quotas) - 1)))
        self.reserved = [(one, size) for one, size in self.reserved if one is not quota]
        quota.close()

    @invariant()
    def quotas_add_up(self) -> None:
        assert self.prefetch.used_bytes == sum(quota.held_bytes for quota in self.quotas)
        assert all(quota.held_bytes >= 0 for quota in self.quotas)

    @invariant()
    def total_is_bounded(self) -> None:
        late = sum(MAX // (2 * number) for number in range(2, len(self.quotas) + 1))
        assert self.prefetch.used_bytes <= MAX + late + 300 * len(self.quotas)

    @invariant()
    def a_reader_may_read(self) -> None:
        rooms = [quota.room_bytes for quota in self.quotas]
        assert all(quota.room_bytes for quota in self.quotas if not quota.held_bytes)
        if 2 * self.prefetch.used_bytes < MAX:
            assert any(rooms) or not rooms


TestPrefetch = PrefetchMachine.TestCase
TestPrefetch.settings = settings(max_examples=50, stateful_step_count=40)
