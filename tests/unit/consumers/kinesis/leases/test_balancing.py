from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from simplu_worker.consumers.kinesis.leases.lease import Lease, Observation
from simplu_worker.consumers.kinesis.leases.lease_rules import (
    FIXED_KBPS,
    HEAVY,
    PATIENCE_S,
    STREAM_RETRY_S,
    Ability,
    Reach,
    assigned_leases,
    loads_of,
    plan_takes,
    takeable_leases,
)
from simplu_worker.consumers.kinesis.stream.positions import LATEST, SHARD_END, TRIM_HORIZON
from simplu_worker.vocabulary import Inability

ME, BAR, BAZ = "me", "bar", "baz"
STREAM, CITRUS = Inability.STREAM_UNAVAILABLE, Inability.CITRUS_UNREACHABLE
DURATION_S = 10.0
NOW = 100.0
FRESH, EXPIRED, VERY_OLD = NOW - 1.0, NOW - 10.5, NOW - 30.5


def seen(owners: str | Iterable[str | None], *, since: float = FRESH, first: int = 0) -> dict[str, Observation]:
    return {
        f"{number:03}": Observation(Lease(f"{number:03}", TRIM_HORIZON, counter=7, owner=owner), since)
        for number, owner in enumerate(owners, start=first)
    }


def takes(
    observations: Mapping[str, Observation],
    *,
    me: str = ME,
    draw: float = 0.0,
    now: float = NOW,
    reach: Reach = Reach.ALL,
) -> list[str]:
    held = [key for key, one in observations.items() if one.lease.owner == me]
    wanted = plan_takes(observations, held=held, now=now, lease_duration_s=DURATION_S, me=me, draw=draw, reach=reach)
    return [lease.lease_key for lease in wanted]


def test_simple_lease_take() -> None:
    assert takes(seen([None])) == ["000"]


def test_take_expired_lease() -> None:
    assert takes(seen([BAR], since=NOW - DURATION_S)) == []
    assert takes(seen([BAR], since=EXPIRED)) == ["000"]


def test_non_greedy_take() -> None:
    observations = seen([None] * 4) | seen([BAR, BAZ], first=4)

    assert takes(observations) == ["000", "001"]


def test_very_old_lease_taker() -> None:
    crashed = seen(["gone", "gone"], since=VERY_OLD, first=4)
    expired = seen(["gone", "gone"], since=EXPIRED, first=4)

    assert takes(seen([ME, ME, ME, BAR]) | crashed) == ["004", "005"]
    assert takes(seen([ME, ME, ME, BAR]) | expired) == []


def test_very_old_lease_is_taken_within_the_share_when_it_is_not_older_than_three_durations() -> None:
    exact = seen(["gone", "gone"], since=NOW - 3 * DURATION_S, first=4)
    unowned = seen([None, None], since=VERY_OLD, first=4)

    assert takes(seen([ME, ME, ME, BAR]) | exact) == []
    assert takes(seen([ME, ME, ME, BAR]) | unowned) == []


def test_no_steal_when_off_by_one() -> None:
    assert takes(seen([ME, BAR, BAR])) == []
    assert takes(seen([ME, ME, ME, BAR])) == []


def test_steal() -> None:
    assert takes(seen([BAR, BAZ, BAZ, BAZ, BAZ, BAZ])) == ["005"]


def test_replicas_that_start_together_try_different_leases_first() -> None:
    observations = seen([None] * 4) | seen([BAR], first=4)

    assert takes(observations, draw=0.0)[0] != takes(observations, draw=0.5)[0]


owners_of_leases = st.lists(st.sampled_from([None, "gone", "a", "b", "c", "d"]), min_size=1, max_size=40)
draws = st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=50)


@pytest.mark.slow
@settings(max_examples=100)
@given(owners=owners_of_leases, replicas=st.permutations("abcd"), count=st.integers(1, 4), chance=draws)
def test_counts_become_even_with_few_moves_and_stay_so(
    owners: list[str | None], replicas: list[str], count: int, chance: list[float]
) -> None:
    alive = replicas[:count]
    table = dict(enumerate(owners))
    moves = passes = 0
    while True:
        moves_before = moves
        for me in alive:
            passes += 1
            scan = _scan(table, alive)
            for key in takes(scan, me=me, draw=chance[passes % len(chance)]):
                table[int(key)] = me
                moves += 1
        if moves == moves_before:
            break
        assert moves <= len(owners) * 3, "it must come to rest"
    counts = Counter(table.values())

    assert set(table.values()) <= set(alive)
    assert max(counts[me] for me in alive) <= max(math.ceil(len(owners) / count), HEAVY * len(owners) / count)


def _scan(table: Mapping[int, str | None], alive: Iterable[str]) -> dict[str, Observation]:
    found: dict[str, Observation] = {}
    for number, owner in table.items():
        since = FRESH if owner is None or owner in alive else EXPIRED
        found |= seen([owner], since=since, first=number)
    return found


def test_own_lease_that_is_not_held_is_taken() -> None:
    wanted = plan_takes(seen([ME]), held=(), now=NOW, lease_duration_s=DURATION_S, me=ME, draw=0.0)
    assert [lease.lease_key for lease in wanted] == ["000"]


def test_steal_is_never_of_what_is_held() -> None:
    wanted = plan_takes(seen([BAZ] * 4), held=["003"], now=NOW, lease_duration_s=DURATION_S, me=ME, draw=0.0)
    assert [lease.lease_key for lease in wanted] == ["002"]


def test_replica_in_trouble_takes_only_what_nobody_else_takes() -> None:
    given_away = Observation(Lease("g", TRIM_HORIZON, owner=BAR, unable_of=BAR), FRESH)
    observations = {
        **seen([BAR, BAR, BAR]),
        **seen([None], first=3),
        **seen([BAZ], since=EXPIRED, first=4),
        **seen([None, BAZ], since=NOW - 20.5, first=5),
        "g": given_away,
        "h": replace(given_away, lease=replace(given_away.lease, lease_key="h"), unchanged_since=NOW - 20.5),
    }
    taken = {reach: takes(observations, reach=reach) for reach in Reach}
    assert taken[Reach.LEFT] == ["005", "h", "006"]
    assert takes(seen([BAR] * 4), reach=Reach.FREE) == []
    assert takes({**seen([ME, ME, BAR]), "g": given_away}) == ["g"]
    assert ("g" in taken[Reach.FREE], "003" in taken[Reach.FREE], "g" in taken[Reach.ALL]) == (False, True, True)


def test_no_steal_when_expired_leases() -> None:
    observations = seen([BAZ] * 4) | seen(["gone"], since=EXPIRED, first=4)

    assert takes(observations) == ["004"]


def test_finished_leases_count_for_nobody() -> None:
    finished = {
        key: Observation(replace(one.lease, checkpoint=SHARD_END), one.unchanged_since)
        for key, one in seen([None, BAR, BAR, BAR, ME], first=10).items()
    }

    assert takes(seen([ME, BAR]) | finished) == []
    assert takes(seen([None, None]) | finished) == ["000", "001"]


def test_takeable_leases_come_free_first_then_longest_unchanged() -> None:
    observations = {
        "young": Observation(Lease("young", LATEST, owner=BAR), 20.0),
        "old": Observation(Lease("old", LATEST, owner=BAR), 10.0),
        "free": Observation(Lease("free", LATEST), 50.0),
        "held": Observation(Lease("held", LATEST, owner=ME), 10.0),
        "mine": Observation(Lease("mine", LATEST, owner=ME), 60.0),  # the answer to its take was lost
    }
    taken = takeable_leases(observations, held=("held",), now=NOW, lease_duration_s=DURATION_S, me=ME)
    assert [lease.lease_key for lease in taken] == ["free", "mine", "old", "young"]


@pytest.mark.parametrize(
    ("owner", "checkpoint_owner", "takeable_at"),
    [(None, None, 5.0), (ME, None, 5.0), ("next", ME, 5.0), (ME, "last", 15.0), (None, "last", 15.0)],
)
def test_lease_in_a_hand_over_is_its_last_owners_until_it_expires(
    owner: str | None, checkpoint_owner: str | None, takeable_at: float
) -> None:
    seen = {"a": Observation(Lease("a", LATEST, owner=owner, checkpoint_owner=checkpoint_owner), 0.0)}
    found = [now for now in (5.0, 15.0) if takeable_leases(seen, held=(), now=now, lease_duration_s=DURATION_S, me=ME)]
    assert found[0] == takeable_at


def test_follower_begins_what_it_is_assigned_once_its_last_owner_has_left() -> None:
    leases = [
        Lease("assigned", LATEST, owner=ME),
        Lease("ended", SHARD_END, owner=ME),
        Lease("free", LATEST),
        Lease("other", LATEST, owner=BAR),
        Lease("read", LATEST, owner=ME, checkpoint_owner=BAR),
    ]
    assert [lease.lease_key for lease in assigned_leases(leases, me=ME)] == ["assigned"]


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
            FRESH,
        )
        for owner, loads in owned.items()
        for load in loads
        for key in [f"{owner}-{next(numbers):03}"]
    }


def test_lease_moves_from_the_heaviest_to_the_lightest_replica_whatever_their_counts() -> None:
    assert takes(fleet(me=[10] * 5, bar=[50, 30, 100], baz=[120])) == ["bar-005"]


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
    assert takes(fleet(me=mine, bar=theirs)) == []


def test_light_replica_takes_from_one_that_is_not_heavy() -> None:
    others = {f"bar{number}": [10.0] * 10 for number in range(20)}

    assert takes(fleet(**others))[0].startswith("bar0-")
    assert takes(fleet(me=[10.0] * 8, **others))[0].startswith("bar0-")
    assert takes(fleet(me=[10.0] * 9, **others)) == []


def test_replica_with_its_share_takes_nothing_though_others_are_heavy() -> None:
    assert takes(fleet(me=[110], bar=[150, 10], baz=[150, 10], light=[10])) == []


def test_replicas_that_see_the_same_take_from_different_owners() -> None:
    observations = fleet(me=[10], other=[20], third=[30], bar=[50, 50, 80], baz=[50, 50, 90])
    taken = [takes(observations, me=me) for me in ("me", "other", "third")]

    assert [key[0].partition("-")[0] if key else None for key in taken] == ["baz", "bar", None]
    assert takes(observations, me="new", draw=0.0)[0].startswith("baz")
    assert takes(observations, me="new", draw=0.99)[0].startswith("bar")


@pytest.mark.parametrize("metered_by", [None, "elsewhere"])
def test_counts_decide_beside_an_owner_that_does_not_measure(metered_by: str | None) -> None:
    observations = fleet(me=[10, 10], bar=[500, 500], baz=[10])
    other = {key: replace(one.lease, metered_by=metered_by) for key, one in observations.items() if key < "baz-0"}
    mixed = observations | {key: replace(observations[key], lease=lease) for key, lease in other.items()}

    assert set(loads_of(mixed).values()) == {1.0}
    assert takes(observations, me="baz") == ["bar-003"]
    assert takes(mixed, me="baz") == []


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

    assert len(takes(observations)) == 4
    assert takes(observations, me="bar") == []
    assert len(takes(fleet(me=[10], bar=[10], free=[20, 20, 20, 20]))) == 2


def test_replica_takes_all_leases_from_its_start_on() -> None:
    assert (Ability().reach(0.0), Ability().is_unable(1e9), Ability().trouble) == (Reach.ALL, False, None)


def test_trouble_that_lasts_gives_leases_away() -> None:
    ability = Ability()
    ability.note(CITRUS, now=100.0)
    ability.note(STREAM, now=110.0)  # another one: it is still unable
    assert [ability.is_unable(100.0 + PATIENCE_S + more) for more in (-0.1, 0.0, 50.0)] == [False, True, True]
    assert (ability.reach(100.0), ability.reach(1e6), ability.trouble) == (Reach.LEFT, Reach.LEFT, STREAM)


def test_replica_that_is_able_again_takes_only_free_leases_for_a_time() -> None:
    ability = Ability()
    ability.note(STREAM, now=100.0)
    ability.note(None, now=200.0)
    ability.note(None, now=220.0)
    assert [ability.reach(200.0 + PATIENCE_S + more) for more in (-0.1, 0.0)] == [Reach.FREE, Reach.ALL]
    assert not ability.is_unable(1e6)


@pytest.mark.parametrize(
    ("trouble", "then", "after_s", "expected"),
    [
        (STREAM, None, STREAM_RETRY_S - 0.1, STREAM),
        (STREAM, None, STREAM_RETRY_S, None),
        (STREAM, CITRUS, 1.0, CITRUS),
        (CITRUS, None, 1.0, None),
        (None, CITRUS, 1.0, CITRUS),
        (None, None, 1.0, None),
    ],
)
def test_replica_without_a_lease_does_not_see_whether_the_stream_answers(
    trouble: Inability | None, then: Inability | None, after_s: float, expected: Inability | None
) -> None:
    ability = Ability()
    ability.note(trouble, now=100.0)
    ability.note(then, is_reading=False, now=100.0 + after_s)
    assert ability.trouble is expected
    is_same = (trouble is None) is (expected is None)
    assert ability.is_unable(100.0 + PATIENCE_S) is (expected is not None and is_same)
