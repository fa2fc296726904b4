from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle, groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simplu_local.kinesis.quotas import MAX_REPLY_BYTES, ReadQuota
from simplu_worker.consumers.kinesis.fetch.pacing import (
    FIRST_CATCH_UP_S,
    IDLE_TOGETHER,
    NEVER,
    READ_INTERVAL_S,
    SHARED_INTERVAL_S,
    STEP_S,
    TIP_INTERVAL_S,
    WINDOW_S,
    Pacing,
    ReadSchedule,
)

MIB = 1024 * 1024
SLACK_S = 1e-6  # of floating point


def main_read(
    pacing: Pacing, now: float, *, record_count: int = 0, size_bytes: int = 0, millis_behind: int | None = 0
) -> None:
    pacing.note_start(now, is_main=True)
    pacing.note_reply(now, is_main=True, record_count=record_count, size_bytes=size_bytes, millis_behind=millis_behind)


def catch_up_read(pacing: Pacing, now: float, *, record_count: int = 0, size_bytes: int = 0) -> None:
    pacing.note_start(now, is_main=False)
    pacing.note_reply(now, is_main=False, record_count=record_count, size_bytes=size_bytes, millis_behind=None)


@pytest.mark.parametrize(
    ("reply", "now", "earliest", "latest"),
    [
        pytest.param((0, 0, 0), 100.02, 101.0, 101.05, id="idle: within 1.1 s with the time of a request"),
        pytest.param((1, 99, 0), 100.02, 100.2, 100.25, id="busy: within 300 ms"),
        pytest.param((1, 99, 0), 160.0, 160.0, 160.0, id="busy for a minute"),
        pytest.param((0, 0, 5), 100.02, 100.2, 100.25, id="behind, over a gap: busy"),
        pytest.param((0, 0, None), 100.02, 101.0, 101.05, id="tip unknown: idle"),
        pytest.param((9000, 10 * MIB, 5), 101.0, 105.0, 105.05, id="10 MiB are paid for before the next read"),
        pytest.param((1, 0, 0), 200.0, 200.0, 200.0, id="late: at once"),
    ],
)
def test_pacing_starts_the_next_read_in_time(
    reply: tuple[int, int, int | None], now: float, earliest: float, latest: float
) -> None:
    record_count, size_bytes, millis_behind = reply
    pacing = Pacing()
    main_read(pacing, 100.0, record_count=record_count, size_bytes=size_bytes, millis_behind=millis_behind)
    assert earliest <= now + pacing.delay_s(now, is_main=True) <= latest


def test_idle_stream_shards_are_read_together_whenever_each_was_read_first() -> None:
    schedule = ReadSchedule(0.3)
    starts = []
    for first in (100.0, 100.27, 100.3, 100.99):
        pacing, now = Pacing(schedule), first
        for turn in range(3):
            main_read(pacing, now)
            assert (0.0 if turn == 0 else 0.98) < pacing.delay_s(now, is_main=True) < 1.02
            now += pacing.delay_s(now, is_main=True)
        starts.append(now % 1)
    assert starts == pytest.approx([0.3] * 4, abs=1e-6)


def test_idle_stream_shards_of_a_large_replica_are_read_in_groups() -> None:
    schedule = ReadSchedule()
    moments = [schedule.open_slot().next_idle_start(100.0) for _ in range(5 * IDLE_TOGETHER)]
    assert [len(list(same)) for _, same in groupby(moments)] == [IDLE_TOGETHER] * 5
    assert len(set(moments)) == 5


def test_groups_start_at_shifts_that_are_spread_from_the_first_one() -> None:
    schedule = ReadSchedule(0.5)
    ended = Pacing(schedule)
    slots = [schedule.open_slot() for _ in range(2 * IDLE_TOGETHER)]
    assert [slots[number].idle_shift for number in (0, 62, 63, 127)] == pytest.approx(
        [0.5, 0.5, 0.118, 0.736], abs=1e-3
    )
    ended.note_end()
    assert slots[63].idle_shift == 0.5


def test_reader_behind_reads_as_often_as_it_may() -> None:
    pacing = Pacing(ReadSchedule(0.5))
    assert (pacing.is_busy(100.0), pacing.delay_s(100.0, is_main=True)) == (False, 0.0)
    pacing.note_failure(100.0, 1.0)
    assert pacing.delay_s(100.0, is_main=True) == pytest.approx(0.5)
    for millis_behind, delay_s in ((5, READ_INTERVAL_S), (0, TIP_INTERVAL_S + STEP_S)):
        pacing = Pacing(ReadSchedule(0.5))
        main_read(pacing, 100.0, record_count=1, size_bytes=1, millis_behind=millis_behind)
        assert pacing.delay_s(100.0, is_main=True) == pytest.approx(delay_s)


@pytest.mark.parametrize(
    ("failure_count", "longest_s"),
    [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 5.0), (60, 5.0)],
)
def test_pacing_backs_off_when_throttled_and_forgets_it_after_a_reply(failure_count: int, longest_s: float) -> None:
    pacing = Pacing()
    main_read(pacing, 100.0, millis_behind=1)
    for _ in range(failure_count - 1):
        pacing.note_failure(0.0, 0.0)
    pacing.note_failure(200.0, 1.0)
    assert pacing.delay_s(200.0, is_main=True) == pytest.approx(longest_s)
    main_read(pacing, 300.0, millis_behind=1)
    pacing.note_failure(400.0, 1.0)
    assert pacing.delay_s(400.0, is_main=True) == pytest.approx(0.5)


def assert_five_starts_a_second(starts: list[float]) -> None:
    assert all(later - earlier > 1.0 for earlier, later in zip(starts, starts[5:], strict=False))


@pytest.mark.parametrize(
    ("replies", "main_limit", "catch_up_limit"),
    [
        pytest.param([], 500, 500, id="unknown size: few"),
        pytest.param([(0, 0)], 500, 500, id="after an empty reply: still unknown"),
        pytest.param([(10, 10 * 1024)], 512, 1024, id="records of 1 KiB"),
        pytest.param([(1000, 1000 * 10)], 10_000, 10_000, id="small ones: the most there is"),
        pytest.param([(1, 8 * MIB)], 1, 1, id="large ones: one at a time"),
        pytest.param([(10, 10 * 1024), (10, 40 * 1024)], 128, 256, id="larger ones: at once"),
        pytest.param([(10, 40 * 1024), (10, 20 * 1024)], 170, 341, id="smaller ones: slowly"),
    ],
)
def test_limit_follows_the_size_of_records(
    replies: list[tuple[int, int]], main_limit: int, catch_up_limit: int
) -> None:
    pacing = Pacing()
    for record_count, size_bytes in replies:
        main_read(pacing, 0.0, record_count=record_count, size_bytes=size_bytes)
    assert pacing.limit(is_main=True) == 10_000
    with pacing.open_catch_up(0.0):
        with pacing.open_catch_up(0.0):
            pass
        assert (pacing.limit(is_main=True), pacing.limit(is_main=False)) == (main_limit, catch_up_limit)
    assert pacing.limit(is_main=False) == catch_up_limit


@pytest.mark.parametrize(("record_count", "size_bytes"), [(0, 0), (1, 0), (0, 10)])
def test_size_of_records_stays_when_a_reply_has_no_records_or_no_bytes(record_count: int, size_bytes: int) -> None:
    pacing = Pacing()
    for reply in ((10, 10 * 1024), (record_count, size_bytes)):
        main_read(pacing, 0.0, record_count=reply[0], size_bytes=reply[1])
    assert pacing.limit(MIB, is_main=True) == 1024


@pytest.mark.parametrize(
    ("record_count", "size_bytes", "opens_at"),
    [
        pytest.param(9999, 9 * MIB, 105.0, id="full: Kinesis refuses the next reads"),
        pytest.param(10_000, 9 * MIB, NEVER, id="as many records as a reply may have: cut off by their number"),
        pytest.param(9999, 9 * MIB - 1, NEVER, id="a record more would have fitted"),
    ],
)
def test_reads_pause_for_five_seconds_when_a_reply_was_cut_off_by_its_size(
    record_count: int, size_bytes: int, opens_at: float
) -> None:
    pacing = Pacing()
    main_read(pacing, 100.0, record_count=record_count, size_bytes=size_bytes)
    assert pacing.opens_at == opens_at


@pytest.mark.parametrize("reads", ["no more", "by push", "a busy stream shard", "an idle stream shard"])
def test_catch_up_has_every_fifth_start_beside_a_busy_main_reader(reads: str) -> None:
    pacing = Pacing()
    main_read(pacing, 100.0, record_count=1)
    now = 161.0 if reads == "an idle stream shard" else 100.0
    pacing.is_pushed = reads == "by push"
    if reads == "no more":
        pacing.note_end()
    with pacing.open_catch_up(now):
        first_s = pacing.delay_s(now, is_main=False)
        pacing.note_start(now + 1, is_main=False)
        second_s = pacing.delay_s(now + 1, is_main=False)
    is_busy = reads == "a busy stream shard"
    assert (first_s, second_s) == pytest.approx((FIRST_CATCH_UP_S, WINDOW_S) if is_busy else (0.0, SHARED_INTERVAL_S))


@pytest.mark.parametrize(("record_count", "expected_s"), [(0, 1.0), (1, 2.0)], ids=["idle", "busy"])
def test_catch_up_has_all_bytes_or_half_beside_a_busy_main_reader(record_count: int, expected_s: float) -> None:
    pacing = Pacing()
    main_read(pacing, 99.0, record_count=record_count)
    with pacing.open_catch_up(100.0):
        catch_up_read(pacing, 100.0, record_count=1, size_bytes=2 * MIB)
        assert pacing.delay_s(100.0, is_main=False) == pytest.approx(expected_s)


def test_limit_keeps_to_the_room_that_is_left() -> None:
    pacing = Pacing()
    main_read(pacing, 0.0, record_count=10, size_bytes=10 * 1024)
    with pacing.open_catch_up(0.0):
        assert [pacing.limit(room, is_main=False) for room in (64 * MIB, 100 * 1024, 0)] == [1024, 100, 1]
    assert [pacing.limit(room, is_main=True) for room in (64 * MIB, MIB, 100 * 1024, 0)] == [10_000, 1024, 100, 1]


def test_expected_reply_is_of_that_many_records_and_no_more_than_kinesis_gives() -> None:
    pacing = Pacing()
    assert (pacing.expected_bytes(500), pacing.expected_bytes(10_000)) == (500 * 2048, 10 * MIB)
    main_read(pacing, 0.0, record_count=10, size_bytes=1000)
    assert pacing.expected_bytes(10_000) == 1_000_000


@pytest.mark.parametrize(
    ("second_start", "expected"),
    [
        pytest.param(102.0, 102.8, id="all bytes have just been paid for"),
        pytest.param(103.0, 103.8, id="all bytes are paid for: what it had beyond its half no other reader wanted"),
        pytest.param(101.0, 103.0, id="bytes are not paid for yet: it had them at the cost of the others"),
    ],
)
def test_main_reader_may_start_early_when_it_had_no_more_than_its_half(second_start: float, expected: float) -> None:
    pacing = Pacing()
    main_read(pacing, 100.0, record_count=1, size_bytes=4 * MIB, millis_behind=1)
    main_read(pacing, second_start, millis_behind=1)
    now = second_start + 0.3
    with pacing.open_catch_up(second_start):
        catch_up_read(pacing, now, record_count=1, size_bytes=2 * MIB)
        assert now + pacing.delay_s(now, is_main=True) == pytest.approx(expected)
    assert now + pacing.delay_s(now, is_main=True) == pytest.approx(expected)  # the end of a catch-up changes nothing


def test_reader_is_busy_while_behind_and_a_minute_after_a_record() -> None:
    pacing, found = Pacing(), []
    for record_count, millis_behind in ((0, 5), (1, 0)):
        main_read(pacing, 100.0, record_count=record_count, millis_behind=millis_behind)
        found += [pacing.is_busy(now) for now in (160.0, 160.001)]
    assert found == [True, True, True, False]
    pacing.is_pushed = True
    assert not pacing.is_busy(100.0)  # it does not poll
    pacing.is_pushed = False
    pacing.note_end()
    assert not pacing.is_busy(100.0)


@dataclass
class Read:
    """A read: its reader, its start and end, and the size of its reply."""

    reader: int  # 0 = the main reader
    started_at: float
    replied_at: float
    size_bytes: int


@dataclass
class World:
    """A stream shard with its quota, read by the main reader and catch-ups as the shell has it: one read at a time.

    The catch-ups take turns. A reader that finds the stream shard taken queues, and goes back to waiting when at its
    turn it may not start any more.
    """

    duration_s: Callable[[], float]
    counted_at: Callable[[], float] = lambda: 0.5  # between start and reply
    record_bytes: Callable[[], int] = lambda: 1024
    main_bytes: Callable[[float], float] = lambda _: 0.0  # waiting for the main reader, by the time since its last read
    fails: Callable[[], bool] = lambda: False
    late_s: Callable[[], float] = lambda: 0.0  # of a timer
    quota: ReadQuota = field(default_factory=ReadQuota)
    refused: list[float] = field(default_factory=list)

    def run(self, until: float, catch_up_count: int) -> list[Read]:
        pacing, reads = Pacing(), list[Read]()
        with ExitStack() as stack:
            for _ in range(catch_up_count):
                stack.enter_context(pacing.open_catch_up(0.0))
            readers = cycle(range(1, catch_up_count + 1))
            turns = [(0.0, True), (0.0, False)][: 1 + bool(catch_up_count)]  # a heap, by time
            free_at = main_read_at = 0.0
            while turns[0][0] <= until:
                now, is_main = heapq.heappop(turns)
                delay_s = pacing.delay_s(now, is_main=is_main)
                if now < free_at:
                    heapq.heappush(turns, (free_at, is_main))
                elif delay_s > SLACK_S:
                    heapq.heappush(turns, (now + delay_s + self.late_s(), is_main))
                else:
                    waiting_bytes = self.main_bytes(now - main_read_at) if is_main else float("inf")
                    main_read_at = now if is_main else main_read_at
                    reads.append(self.read(pacing, 0 if is_main else next(readers), now, waiting_bytes))
                    free_at = reads[-1].replied_at
                    # A little later: a reader that waits for the stream shard goes before the one that releases it.
                    heapq.heappush(turns, (free_at + SLACK_S, is_main))
        return reads

    def read(self, pacing: Pacing, reader: int, now: float, waiting_bytes: float) -> Read:
        duration_s, is_main = self.duration_s(), reader == 0
        counted_ms = int((now + duration_s * self.counted_at()) * 1000)
        replied_at = now + duration_s
        limit = pacing.limit(is_main=is_main)
        pacing.note_start(now, is_main=is_main)
        if not self.quota.acquire(counted_ms):
            self.refused.append(now)
            pacing.note_failure(replied_at, 1.0)
            return Read(reader, now, replied_at, 0)
        if self.fails():
            pacing.note_failure(replied_at, 0.5)
            return Read(reader, now, replied_at, 0)
        one = self.record_bytes()
        wanted = min(limit, waiting_bytes // one)
        fitting = min(wanted, MAX_REPLY_BYTES // one)
        size_bytes = int(fitting * one)
        self.quota.count_read(size_bytes, counted_ms, was_full=fitting < wanted or size_bytes >= MAX_REPLY_BYTES)
        behind = 1000 if waiting_bytes > size_bytes + one else 0
        pacing.note_reply(
            replied_at, is_main=is_main, record_count=int(fitting), size_bytes=size_bytes, millis_behind=behind
        )
        return Read(reader, now, replied_at, size_bytes)


def gaps(starts: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(starts)]


def starts_of(reads: list[Read], reader: int | None = None) -> list[float]:
    return [read.started_at for read in reads if reader in {None, read.reader}]


LATENCIES = [0.005, 0.02, 0.05, 0.09]


@pytest.mark.parametrize("duration_s", LATENCIES)
@pytest.mark.parametrize("bytes_per_s", [20 * 1024, 800 * 1024])
@pytest.mark.parametrize("late_s", [0.0, 0.005])
def test_main_reader_in_use_starts_in_time_when_catch_ups_run(
    duration_s: float, bytes_per_s: int, late_s: float
) -> None:
    rng = random.Random(1)
    world = World(
        duration_s=lambda: rng.uniform(duration_s / 2, duration_s),
        main_bytes=lambda since_s: since_s * bytes_per_s,
        late_s=lambda: rng.uniform(0.0, late_s),
    )
    reads = world.run(60.0, catch_up_count=4)

    assert_five_starts_a_second(starts_of(reads))
    assert world.refused == []
    assert max(gaps([at for at in starts_of(reads, 0) if at > 5.0])) <= 0.27 + duration_s + late_s
    catch_up_bytes = [sum(read.size_bytes for read in reads if read.reader == one) for one in range(1, 5)]
    assert sum(catch_up_bytes) <= 60 * MIB + MIB
    assert sum(catch_up_bytes) >= 45 * MIB
    assert max(catch_up_bytes) - min(catch_up_bytes) <= 3 * MIB


@pytest.mark.parametrize("duration_s", [0.02, 0.2, 0.4])
def test_catch_ups_get_their_turn_however_long_a_read_takes(duration_s: float) -> None:
    world = World(duration_s=lambda: duration_s, main_bytes=lambda since_s: since_s * 10_000)
    reads = world.run(60.0, catch_up_count=4)

    assert world.refused == []
    assert max(gaps([at for at in starts_of(reads, 0) if at > 5.0])) <= 0.3 + 2 * duration_s
    assert min(Counter(read.reader for read in reads)[reader] for reader in range(1, 5)) >= 6


@pytest.mark.parametrize(("record_bytes", "catch_up_reads"), [(40, 180), (1024, 100)])
def test_catch_ups_have_nearly_all_when_the_main_reader_is_idle(record_bytes: int, catch_up_reads: int) -> None:
    world = World(duration_s=lambda: 0.02, record_bytes=lambda: record_bytes)
    reads = world.run(60.0, catch_up_count=4)

    assert_five_starts_a_second(starts_of(reads))
    assert world.refused == []
    assert max(gaps(starts_of(reads, 0))) <= 1.1
    assert len(reads) - len(starts_of(reads, 0)) >= catch_up_reads


def test_both_go_on_when_the_main_reader_is_behind() -> None:
    world = World(duration_s=lambda: 0.05, main_bytes=lambda _: float("inf"))
    reads = world.run(120.0, catch_up_count=4)
    main_bytes = sum(read.size_bytes for read in reads if not read.reader)
    catch_up_bytes = sum(read.size_bytes for read in reads if read.reader)

    assert world.refused == []
    assert catch_up_bytes <= 121 * MIB
    assert (main_bytes >= 100 * MIB, catch_up_bytes >= 60 * MIB) == (True, True)
    assert main_bytes + catch_up_bytes >= 210 * MIB


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    catch_up_count=st.integers(0, 4),
    duration_most_s=st.sampled_from([0.01, 0.1, 0.4, 2.0]),
    record_bytes=st.lists(st.sampled_from([60, 1000, 20_000, 200_000, MIB]), min_size=1, max_size=4),
    main_bytes_per_s=st.sampled_from([0.0, 100.0, 1e5, 1e6, 1e9]),
    failing=st.sampled_from([0.0, 0.1]),
)
def test_reads_are_never_throttled(
    *,
    seed: int,
    catch_up_count: int,
    duration_most_s: float,
    record_bytes: list[int],
    main_bytes_per_s: float,
    failing: float,
) -> None:
    rng = random.Random(seed)
    world = World(
        duration_s=lambda: rng.uniform(0.001, duration_most_s),
        counted_at=rng.random if duration_most_s <= 0.4 else lambda: 1.0,
        record_bytes=lambda: rng.choice(record_bytes),
        main_bytes=lambda since_s: since_s * main_bytes_per_s * rng.choice([0, 1, 1, 3]),
        late_s=lambda: rng.uniform(0.0, 0.02),
        fails=lambda: rng.random() < failing,
    )
    reads = world.run(120.0, catch_up_count)

    assert world.refused == []
    assert_five_starts_a_second(starts_of(reads))
    assert {read.reader for read in reads} == set(range(catch_up_count + 1))
