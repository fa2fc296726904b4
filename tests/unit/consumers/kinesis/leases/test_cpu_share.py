from __future__ import annotations

import pytest

from simplu_worker.consumers.kinesis.leases.kcl_leader_watch import CpuShare, usable_cores


@pytest.mark.parametrize(
    ("cores", "used_s", "passed_s", "expected"),
    [
        (1.0, 2.5, 10.0, 25.0),
        (0.5, 2.5, 10.0, 50.0),
        (1.0, 12.0, 10.0, 100.0),
        (1.0, 1.0, 0.0, 0.0),
        (1.0, 0.0, 5.0, 0.0),
    ],
)
def test_share_is_that_of_the_time_since_the_last_call(
    cores: float, used_s: float, passed_s: float, expected: float
) -> None:
    clocks = {"cpu": 100.0, "wall": 1000.0}
    share = CpuShare(cores=cores, cpu_s=lambda: clocks["cpu"], wall_s=lambda: clocks["wall"])
    clocks["cpu"] += used_s
    clocks["wall"] += passed_s

    assert share.read_percent() == pytest.approx(expected)
    clocks["wall"] += 1.0
    assert share.read_percent() == 0.0


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 1.0),
        ("50000 100000\n", 0.5),
        ("400000 100000", 1.0),
        ("0 100000", 0.01),
        ("", 1.0),
        ("50000", 1.0),
        ("50000 0", 1.0),
    ],
)
def test_cores_are_those_of_the_quota_and_at_most_one(quota: str, expected: float) -> None:
    assert usable_cores(quota) == expected
