from __future__ import annotations

import math

import pytest

from simplu_worker.consumers.kinesis.leases.lease import TIME_CONSTANT_S, ThroughputMeter


def test_throughput_is_unknown_until_some_time_has_passed() -> None:
    meter = ThroughputMeter(None, now=10.0)
    meter.note(500, now=10.0)
    before = meter.kbps
    meter.note(4096, now=12.0)

    assert (before, meter.kbps) == (None, 2.0)


def test_throughput_begins_with_the_estimate_of_the_last_owner_and_follows_in_the_time_constant() -> None:
    once, often = (ThroughputMeter(100.0, now=0.0) for _ in range(2))
    once.note(0, now=TIME_CONSTANT_S)
    for step in range(1, 11):
        often.note(0, now=TIME_CONSTANT_S * step / 10)

    assert once.kbps == pytest.approx(100 / math.e)
    assert often.kbps == pytest.approx(100 / math.e)


def test_throughput_is_of_the_bytes_since_the_last_note() -> None:
    meter = ThroughputMeter(None, now=0.0)
    meter.note(1024, now=0.5)
    assert meter.kbps == 2.0
    meter.note(2048, now=1e6)  # so late that the mean is the new rate
    assert meter.kbps == pytest.approx(1 / (1e6 - 0.5))
    meter = ThroughputMeter(0.0, now=0.0)
    meter.note(0, now=1.0)
    assert meter.kbps == 0.0
    meter.note(1024, now=1.0 + TIME_CONSTANT_S)
    assert meter.kbps == pytest.approx((1 - 1 / math.e) / TIME_CONSTANT_S)
