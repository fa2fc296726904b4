from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count

import pytest
from msgspec.structs import replace

from simplu_worker.consumers.kinesis.leases.lease import Lease, Observation
from simplu_worker.consumers.kinesis.leases.lease_rules import FIXED_KBPS, loads_of, plan_takes
from simplu_worker.consumers.kinesis.stream.positions import TRIM_HORIZON

ME = "me"
NOW = 1000.0
DURATION_S = 10.0


def fleet(**owned: Sequence[float]) -> dict[str, Observation]:
    numbers = count()
    return {
        key: Observation(
            Lease(
                key,
                TRIM_HORIZON,
                counter=7,
                owner=None if owner == "free" else owner,
                throughput_kbps=load - FIXED_KBPS,
                metered_by=owner,
            ),
            NOW - 1.0,
        )
        for owner, loads in owned.items()
        for load in loads
        for key in [f"{owner}-{next(numbers):03}"]
    }


def moved(observations: Mapping[str, Observation], *, me: str = ME, draw: float = 0.0) -> list[str]:
    held = [key for key, one in observations.items() if one.lease.owner == me]
    wanted = plan_takes(observations, held=held, now=NOW, lease_duration_s=DURATION_S, me=me, draw=draw)
    return [lease.lease_key for lease in wanted]


def test_lease_moves_from_the_heaviest_to_the_lightest_replica_whatever_their_counts() -> None:
    assert moved(fleet(me=[10] * 5, bar=[50, 30, 100], baz=[120])) == ["bar-005"]


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        pytest.param([100.0, 100.0], [105.0, 105.0], id="within the bounds"),
        pytest.param([10.0], [400.0], id="one lease alone cannot be divided"),
        pytest.param([100.0], [98.0, 2.0], id="no lease to gain from"),
        pytest.param([200.0], [100.0, 50.0], id="mine is heavier"),
        pytest.param([95.0], [101.0, 4.0], id="neither is heavy or light"),
        pytest.param([90.0], [93.0, 18.0], id="a gain that is too small"),
    ],
)
def test_nothing_moves_when_nothing_is_gained(mine: list[float], theirs: list[float]) -> None:
    assert moved(fleet(me=mine, bar=theirs)) == []


def test_light_replica_takes_from_one_that_is_not_heavy() -> None:
    others = {f"bar{number}": [10.0] * 10 for number in range(20)}

    assert moved(fleet(**others))[0].startswith("bar0-")
    assert moved(fleet(me=[10.0] * 8, **others))[0].startswith("bar0-")
    assert moved(fleet(me=[10.0] * 9, **others)) == []


def test_replica_with_its_share_takes_nothing_though_others_are_heavy() -> None:
    assert moved(fleet(me=[110], bar=[150, 10], baz=[150, 10], light=[10])) == []


def test_replicas_that_see_the_same_take_from_different_owners() -> None:
    observations = fleet(me=[10], other=[20], third=[30], bar=[50, 50, 80], baz=[50, 50, 90])
    taken = [moved(observations, me=me) for me in ("me", "other", "third")]

    assert [key[0].partition("-")[0] if key else None for key in taken] == ["baz", "bar", None]
    assert moved(observations, me="new", draw=0.0)[0].startswith("baz")
    assert moved(observations, me="new", draw=0.99)[0].startswith("bar")


@pytest.mark.parametrize("metered_by", [None, "elsewhere"])
def test_counts_decide_beside_an_owner_that_does_not_measure(metered_by: str | None) -> None:
    observations = fleet(me=[10, 10], bar=[500, 500], baz=[10])
    other = {key: replace(one.lease, metered_by=metered_by) for key, one in observations.items() if key < "baz-0"}
    mixed = observations | {key: replace(observations[key], lease=lease) for key, lease in other.items()}

    assert set(loads_of(mixed).values()) == {1.0}
    assert moved(observations, me="baz") == ["bar-003"]
    assert moved(mixed, me="baz") == []


def test_lease_without_a_measurement_has_the_mean_load() -> None:
    observations = fleet(bar=[20, 40], free=[1])
    unknown = {
        key: replace(one, lease=replace(one.lease, throughput_kbps=None)) if key.startswith("free") else one
        for key, one in observations.items()
    }
    none_known = {
        key: replace(one, lease=replace(one.lease, throughput_kbps=None)) for key, one in observations.items()
    }

    assert sorted(loads_of(unknown).values()) == [20, 30, 40]
    assert set(loads_of(none_known).values()) == {FIXED_KBPS}


def test_free_leases_are_taken_up_to_an_even_share_of_the_load() -> None:
    observations = fleet(me=[10], bar=[100], free=[20, 20, 20, 20])

    assert len(moved(observations)) == 4
    assert moved(observations, me="bar") == []
    assert len(moved(fleet(me=[10], bar=[10], free=[20, 20, 20, 20]))) == 2
