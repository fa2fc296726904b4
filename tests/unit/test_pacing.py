"""When to read a stream shard next: early enough, and never more than Kinesis allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.consumers.kinesis.pacing import READ_BYTES_PER_S, Pacing, ReadBudget

MIB = 1024 * 1024
SLACK_S = 1e-6  # of floating point


def after_reply(
    *,
    record_count: int = 0,
    size_bytes: int = 0,
    millis_behind: int | None = 0,
) -> Pacing:
    """Return the pacing of a reader whose first read started at 100 s and was answered within 20 ms."""
    pacing = Pacing(ReadBudget())
    pacing.started(100.0)
    pacing.replied(100.02, record_count=record_count, size_bytes=size_bytes, millis_behind=millis_behind)
    return pacing


def test_pacing_reads_at_once_when_nothing_was_read_yet() -> None:
    """The first read does not wait."""
    assert Pacing(ReadBudget()).delay_s(100.0) == 0.0


@pytest.mark.parametrize(
    ("pacing", "now", "earliest", "latest"),
    [
        pytest.param(after_reply(), 100.02, 101.0, 101.05, id="idle: within 1.1 s with the time of a request"),
        pytest.param(after_reply(record_count=1, size_bytes=99), 100.02, 100.2, 100.25, id="busy: within 300 ms"),
        pytest.param(after_reply(record_count=1, size_bytes=99), 160.0, 160.0, 160.0, id="busy for a minute"),
        pytest.param(after_reply(millis_behind=5), 100.02, 100.2, 100.25, id="behind, over a gap: in a hurry"),
        pytest.param(after_reply(millis_behind=None), 100.02, 101.0, 101.05, id="no word of the tip: idle"),
        pytest.param(
            after_reply(record_count=9000, size_bytes=10 * MIB, millis_behind=5),
            101.0,
            105.0,
            105.05,
            id="10 MiB are paid for before the next read",
        ),
        pytest.param(after_reply(record_count=1), 200.0, 200.0, 200.0, id="late: at once"),
    ],
)
def test_pacing_starts_the_next_read_in_time(pacing: Pacing, now: float, earliest: float, latest: float) -> None:
    """A record is seen within 300 ms on a busy stream shard and within 1.1 s on an idle one."""
    assert earliest <= now + pacing.delay_s(now) <= latest


def test_pacing_falls_idle_when_no_record_came_for_a_minute() -> None:
    """A stream shard is busy for a minute after its last record."""
    pacing = after_reply(record_count=1)
    delays = []
    for now in (159.0, 161.0):
        pacing.started(now)
        pacing.replied(now, record_count=0, size_bytes=0, millis_behind=0)
        delays.append(round(pacing.delay_s(now), 3))

    assert delays == [0.205, 1.0]


@pytest.mark.parametrize(
    ("failure_count", "longest_s"),
    [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 5.0), (60, 5.0)],
)
def test_pacing_backs_off_with_full_jitter_when_throttled(failure_count: int, longest_s: float) -> None:
    """Each throttled read in a row doubles the wait up to 5 s; the draw says how much of it is waited."""
    waits = []
    for draw in (1.0, 0.5):
        pacing = after_reply(millis_behind=1)
        for _ in range(failure_count - 1):
            pacing.failed(0.0, 0.0)
        pacing.failed(200.0, draw)
        waits.append(pacing.delay_s(200.0))

    assert waits == pytest.approx([longest_s, longest_s / 2])


def test_pacing_forgets_failures_when_a_read_succeeds() -> None:
    """The next trouble starts with the short wait again."""
    pacing = after_reply(millis_behind=1)
    for _ in range(5):
        pacing.failed(200.0, 1.0)
    pacing.started(300.0)
    pacing.replied(300.0, record_count=0, size_bytes=0, millis_behind=1)
    pacing.failed(400.0, 1.0)

    assert pacing.delay_s(400.0) == pytest.approx(0.5)


def test_pacing_of_one_reader_leaves_the_interval_to_the_other_when_they_share_a_budget() -> None:
    """Two readers of a stream shard together keep to its five reads a second."""
    budget = ReadBudget()
    main, catch_up = Pacing(budget), Pacing(budget)
    main.started(100.0)
    main.replied(100.0, record_count=0, size_bytes=0, millis_behind=0)

    assert catch_up.delay_s(100.0) == pytest.approx(0.205)
    assert main.delay_s(100.0) == pytest.approx(1.0)


steps = st.tuples(
    st.integers(0, 1),  # which reader
    st.floats(0.0, 1.5),  # how long the read takes
    st.floats(0.0, 0.5),  # how late the reader comes
    st.one_of(st.none(), st.integers(0, 10 * MIB)),  # what it brings; None = throttled
    st.booleans(),  # behind
    st.floats(0.0, 1.0),  # the draw
)


@given(st.lists(steps, max_size=60))
def test_pacing_never_exceeds_the_quotas_whatever_is_answered(
    schedule: list[tuple[int, float, float, int | None, bool, float]],
) -> None:
    """No second holds more than 5 starts, and replies average to 2 MiB/s, for two readers in turns on one budget."""
    budget = ReadBudget()
    readers = [Pacing(budget), Pacing(budget)]
    now = 0.0
    starts: list[float] = []
    sizes: list[int] = []
    for reader, duration_s, late_s, size_bytes, behind, draw in schedule:
        pacing = readers[reader]
        now += pacing.delay_s(now) + late_s
        starts.append(now)
        pacing.started(now)
        now += duration_s
        sizes.append(size_bytes or 0)
        if size_bytes is None:
            pacing.failed(now, draw)
        else:
            pacing.replied(now, record_count=size_bytes, size_bytes=size_bytes, millis_behind=int(behind))

    assert all(later - earlier > 1.0 for earlier, later in zip(starts, starts[5:], strict=False))
    for first in range(len(starts)):
        total = 0
        for size_bytes, next_start in zip(sizes[first:], starts[first + 1 :], strict=False):
            total += size_bytes
            assert total <= READ_BYTES_PER_S * (next_start - starts[first] + SLACK_S)
