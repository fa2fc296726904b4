from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from simplu_worker.consumers.kinesis.leases.lease import Lease, Observation
from simplu_worker.consumers.kinesis.leases.lease_rules import (
    HEAVY,
    Reach,
    assigned_leases,
    plan_takes,
    takeable_leases,
)
from simplu_worker.consumers.kinesis.stream.positions import LATEST, SHARD_END, TRIM_HORIZON

ME, BAR, BAZ = "foo", "bar", "baz"
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
