from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.leases.lease_rules import (
    HASH_KEY_LAST,
    InitialPosition,
    child_leases,
    first_hole,
    first_hole_in_leases,
    first_leases,
    is_torn,
    missing_leases,
    pending_at_parents,
    removable_leases,
    unfinished_parents,
)
from simplu_worker.consumers.kinesis.stream.client import ChildShard, StreamShard
from simplu_worker.consumers.kinesis.stream.positions import (
    AT_TIMESTAMP,
    LATEST,
    SHARD_END,
    TRIM_HORIZON,
    HashRange,
    Position,
)

INSTANT = datetime(2026, 1, 31, 9, tzinfo=UTC)


def name(number: int) -> str:
    return f"shardId-{number:012}"


def shard(number: int, parents: Iterable[int], hash_range: HashRange, *, is_open: bool) -> StreamShard:
    return StreamShard(
        name(number),
        frozenset(map(name, parents)),
        hash_range,
        starting_sequence_number=str(1000 + number),
        ending_sequence_number=None if is_open else str(2000 + number),
    )


def _tenth(first: int, last: int) -> HashRange:
    step = (HASH_KEY_LAST + 1) // 10
    return HashRange(first * step, HASH_KEY_LAST if last == 9 else (last + 1) * step - 1)


# The KCL's example (docs/lease-lifecycle.md), each line an epoch; 4, 8, 9 and 10 are open:
#   0 1 2 3 4   5
#   \\ / \\ / |   |
#    6   7  4   5
#     \\ /   |  / \\
#      8    4 9  10
TREE = [
    shard(0, (), _tenth(0, 0), is_open=False),
    shard(1, (), _tenth(1, 1), is_open=False),
    shard(2, (), _tenth(2, 2), is_open=False),
    shard(3, (), _tenth(3, 3), is_open=False),
    shard(4, (), _tenth(4, 5), is_open=True),
    shard(5, (), _tenth(6, 9), is_open=False),
    shard(6, (0, 1), _tenth(0, 1), is_open=False),
    shard(7, (2, 3), _tenth(2, 3), is_open=False),
    shard(8, (6, 7), _tenth(0, 3), is_open=True),
    shard(9, (5,), _tenth(6, 7), is_open=True),
    shard(10, (5,), _tenth(8, 9), is_open=True),
]
LATEST_POSITION, FIRST, THEN = "LATEST", "TRIM_HORIZON", "AT_TIMESTAMP"
INITIAL = {
    LATEST_POSITION: InitialPosition(LATEST, INSTANT),
    FIRST: InitialPosition(TRIM_HORIZON),
    THEN: InitialPosition(AT_TIMESTAMP, INSTANT),
}


def wanted(leases: Iterable[int], initial: str = FIRST, shards: Collection[StreamShard] = TREE) -> dict[int, str]:
    missing = missing_leases(shards, {name(number) for number in leases}, INITIAL[initial])
    return {int(lease.lease_key[-12:]): lease.checkpoint.checkpoint for lease in missing}


# First the leases that the KCL creates at once; then their descendants, which the KCL creates when the parents end. The
# worker creates all together, so that a child always has its lease, even if two replicas read its parents.
@pytest.mark.parametrize(
    ("leases", "initial", "expected"),
    [
        ((4, 5, 7), LATEST_POSITION, {6: LATEST_POSITION} | dict.fromkeys((8, 9, 10), FIRST)),
        ((4, 5, 7), FIRST, dict.fromkeys((0, 1), FIRST) | dict.fromkeys((6, 8, 9, 10), FIRST)),
        ((4, 5, 7), THEN, dict.fromkeys((0, 1), THEN) | dict.fromkeys((6, 8, 9, 10), THEN)),
        ((4, 8, 9, 10), LATEST_POSITION, {}),
        ((4, 8, 9, 10), FIRST, {}),
        ((4, 8, 9), LATEST_POSITION, {10: LATEST_POSITION}),
        ((4, 8, 9), FIRST, {5: FIRST, 10: FIRST}),
        ((0, 4, 9, 10), LATEST_POSITION, {1: LATEST_POSITION, 6: FIRST, 7: LATEST_POSITION, 8: FIRST}),
        ((0, 1, 2, 3, 4, 5), LATEST_POSITION, dict.fromkeys((6, 7, 8, 9, 10), FIRST)),
        ((), LATEST_POSITION, dict.fromkeys((4, 8, 9, 10), LATEST_POSITION)),
        ((), FIRST, dict.fromkeys(range(11), FIRST)),
        ((), THEN, dict.fromkeys(range(11), THEN)),
    ],
)
def test_missing_leases_are_those_that_close_the_gaps(
    leases: tuple[int, ...], initial: str, expected: dict[int, str]
) -> None:
    assert wanted(leases, initial) == expected


def test_missing_lease_carries_what_the_listing_says() -> None:
    lease = missing_leases(TREE, {name(n) for n in (4, 8, 9)}, INITIAL[THEN])[-1]

    assert lease == Lease(
        name(10), AT_TIMESTAMP, parents=frozenset({name(5)}), hash_range=_tenth(8, 9), started_at=INSTANT
    )


def test_first_leases_and_those_of_children_are_as_the_stream_lists_them() -> None:
    first = first_leases(TREE[:2][::-1], INITIAL[LATEST_POSITION])
    assert first == [Lease(name(n), LATEST, hash_range=_tenth(n, n), started_at=INSTANT) for n in (0, 1)]
    child = ChildShard(name(9), parents=frozenset({name(5)}), hash_range=_tenth(6, 7))
    assert child_leases([child]) == [
        Lease(name(9), TRIM_HORIZON, parents=frozenset({name(5)}), hash_range=_tenth(6, 7))
    ]


@st.composite
def trees(draw: st.DrawFn) -> list[StreamShard]:
    random = Random(draw(st.integers(0, 2**32)))
    edges = sorted(random.sample(range(1, 1000), draw(st.integers(0, 5))))
    keys = [(HASH_KEY_LAST + 1) // 1000 * edge for edge in edges]
    starts = [0, *keys]
    opened = [
        shard(number, (), HashRange(first, after - 1), is_open=True)
        for number, (first, after) in enumerate(zip(starts, [*keys, HASH_KEY_LAST + 1], strict=True))
    ]
    closed: list[StreamShard] = []
    number = len(opened)
    for _ in range(draw(st.integers(0, 12))):
        at = random.randrange(len(opened))
        if random.random() < 0.5 and at + 1 < len(opened):
            parents = opened[at : at + 2]
            ranges = [HashRange(parents[0].hash_range.first, parents[1].hash_range.last)]
        else:
            parents = opened[at : at + 1]
            whole = parents[0].hash_range
            middle = (whole.first + whole.last) // 2
            ranges = [HashRange(whole.first, middle), HashRange(middle + 1, whole.last)]
        closed += [StreamShard(**{**_fields(parent), "ending_sequence_number": "9"}) for parent in parents]
        children = [
            StreamShard(
                name(number + place), frozenset(p.stream_shard_id for p in parents), one, str(1000 + number + place)
            )
            for place, one in enumerate(ranges)
        ]
        number += len(children)
        opened[at : at + len(parents)] = children
    closed.sort(key=lambda one: one.stream_shard_id)
    return closed[draw(st.integers(0, len(closed))) :] + opened


def _fields(one: StreamShard) -> dict[str, Any]:
    return {field: getattr(one, field) for field in one.__struct_fields__}


@settings(max_examples=100)
@given(tree=trees(), initial=st.sampled_from(sorted(INITIAL)), leased=st.randoms(use_true_random=False))
def test_every_open_stream_shard_has_a_lease_when_the_missing_ones_are_created(
    tree: list[StreamShard], initial: str, leased: Random
) -> None:
    before = {one.stream_shard_id for one in tree if leased.random() < 0.3}

    missing = missing_leases(tree, before, INITIAL[initial])
    created = [lease.lease_key for lease in missing]
    after = before | set(created)

    assert {one.stream_shard_id for one in tree if one.is_open} <= after
    assert missing_leases(tree, after, INITIAL[initial]) == []
    assert before.isdisjoint(created)
    for place, lease in enumerate(missing):
        assert not lease.parents & set(created[place:])


READ = Position(17)
CHILD = Lease("child", TRIM_HORIZON, parents=frozenset({"left", "right"}))


A, B, C = "tenant:a-l", "tenant:b-l", "slots:eJw="
LISTS_A, LISTS_BC = frozenset({A}), frozenset({B, C})


@pytest.mark.parametrize(
    ("left", "right", "gone", "waits_for", "holds"),
    [
        pytest.param((READ, LISTS_A), (READ, LISTS_BC), (), [], {A, B, C}, id="both list"),
        pytest.param((READ, LISTS_A), (READ, LISTS_A), (), [], {A}, id="both list one tenant"),
        pytest.param((READ, LISTS_A), (READ, None), (), ["right"], {A}, id="one lists and one is read"),
        pytest.param((READ, LISTS_A), (SHARD_END, None), (), [], {A}, id="one lists and one is finished"),
        pytest.param((READ, LISTS_A), None, (), [], {A}, id="one lists and one has no lease"),
        pytest.param((TRIM_HORIZON, LISTS_A), (READ, LISTS_BC), (), [], {A, B, C}, id="nothing is done yet"),
        pytest.param((SHARD_END, LISTS_A), (READ, LISTS_BC), (), [], {B, C}, id="finished with its list left"),
        pytest.param((SHARD_END, LISTS_A), (SHARD_END, LISTS_BC), (), [], set(), id="both finished"),
        pytest.param((READ, LISTS_A), (READ, LISTS_BC), ("left",), [], {B, C}, id="past its retention"),
        pytest.param((READ, None), (READ, LISTS_BC), ("left",), [], {B, C}, id="past it without a list"),
        pytest.param((READ, None), (READ, None), (), ["left", "right"], set(), id="none lists"),
        pytest.param(None, None, (), [], set(), id="no leases"),
    ],
)
def test_child_waits_for_no_parent_that_lists_what_it_owes_and_holds_all_that_is_listed(
    left: tuple[Position, frozenset[str] | None] | None,
    right: tuple[Position, frozenset[str] | None] | None,
    gone: tuple[str, ...],
    waits_for: list[str],
    holds: set[str],
) -> None:
    parents = {"left": left, "right": right}
    leases = {key: Lease(key, at[0], pending_tenants=at[1]) for key, at in parents.items() if at is not None}

    assert unfinished_parents(CHILD, leases, gone) == waits_for
    assert pending_at_parents(CHILD, leases, gone) == holds


def test_listing_is_torn_when_a_parent_is_open() -> None:
    parent, child = shard(0, (), _tenth(0, 9), is_open=True), shard(1, (0,), _tenth(0, 4), is_open=True)
    ended = shard(0, (), _tenth(0, 9), is_open=False)

    assert is_torn([parent, child])
    assert not is_torn([ended, child])
    assert not is_torn([child])
    assert not is_torn(TREE)


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([_tenth(0, 9)], None),
        ([_tenth(5, 9), _tenth(0, 4)], None),
        ([_tenth(0, 6), _tenth(4, 9), _tenth(5, 5)], None),
        ([], _tenth(0, 9)),
        ([_tenth(1, 9)], _tenth(0, 0)),
        ([_tenth(0, 8)], _tenth(9, 9)),
        ([_tenth(0, 3), _tenth(6, 9)], _tenth(4, 5)),
        ([_tenth(0, 1), _tenth(3, 3), _tenth(5, 9)], _tenth(2, 2)),
        ([HashRange(0, HASH_KEY_LAST - 1)], HashRange(HASH_KEY_LAST, HASH_KEY_LAST)),
        ([HashRange(1, HASH_KEY_LAST)], HashRange(0, 0)),
    ],
)
def test_hole_is_the_first_hash_keys_that_nothing_covers(ranges: list[HashRange], expected: HashRange | None) -> None:
    assert first_hole(ranges) == expected


def lease(key: str, checkpoint: Position, *parents: str, hash_range: HashRange | None = None) -> Lease:
    return Lease(key, checkpoint, parents=frozenset(parents), hash_range=hash_range)


def lists(key: str, checkpoint: Position, *parents: str) -> Lease:
    return Lease(key, checkpoint, parents=frozenset(parents), pending_tenants=LISTS_A)


def test_hole_in_leases_is_what_no_unfinished_lease_covers() -> None:
    parent = lease("a", SHARD_END, hash_range=_tenth(0, 9))
    left, right = lease("b", READ, "a", hash_range=_tenth(0, 4)), lease("c", READ, "a", hash_range=_tenth(5, 9))

    assert first_hole_in_leases([parent, left]) == _tenth(5, 9)
    assert first_hole_in_leases([parent, left, right]) is None


# LeaseCleanupManagerTest, and here a lease stays until its stream shard is past its retention as well.
@pytest.mark.parametrize(
    ("leases", "gone", "expected"),
    [
        pytest.param([lease("p", SHARD_END), lease("c", READ, "p")], ["p"], ["p"], id="child was begun"),
        pytest.param([lease("p", SHARD_END), lease("c", SHARD_END, "p")], ["p"], ["p"], id="child is finished"),
        pytest.param([lease("p", SHARD_END), lease("c", READ, "p")], [], [], id="still in the stream"),
        pytest.param([lease("p", SHARD_END), lease("c", TRIM_HORIZON, "p")], ["p"], [], id="child at TRIM_HORIZON"),
        pytest.param([lease("p", SHARD_END), lease("c", AT_TIMESTAMP, "p")], ["p"], [], id="child at AT_TIMESTAMP"),
        pytest.param(
            [lease("p", SHARD_END), lease("c", READ, "p"), lease("d", TRIM_HORIZON, "p")], ["p"], [], id="one of two"
        ),
        pytest.param(
            [lease("g", SHARD_END), lease("p", SHARD_END, "g"), lease("c", READ, "p")],
            ["g", "p"],
            ["g"],
            id="parents are still there",
        ),
        pytest.param([lease("p", READ), lease("c", READ, "p")], ["p"], [], id="not finished"),
        pytest.param([lists("p", READ), lease("c", READ, "p")], ["p"], [], id="not finished but lists pending tenants"),
        pytest.param([lists("p", SHARD_END), lease("c", READ, "p")], ["p"], ["p"], id="finished with its list left"),
        pytest.param([lists("p", SHARD_END), lists("c", READ, "p")], ["p"], ["p"], id="child lists pending tenants"),
        pytest.param([lease("p", SHARD_END)], ["p"], ["p"], id="no child has a lease"),
        pytest.param([], ["p"], [], id="nothing there"),
    ],
)
def test_finished_lease_is_removable_when_nobody_needs_it(
    leases: list[Lease], gone: list[str], expected: list[str]
) -> None:
    found = removable_leases({one.lease_key: one for one in leases}, gone)

    assert [one.lease_key for one in found] == expected


def test_hole_in_leases_is_unknown_while_a_range_is() -> None:
    assert first_hole_in_leases([lease("a", READ), lease("b", READ, hash_range=_tenth(0, 1))]) is None
