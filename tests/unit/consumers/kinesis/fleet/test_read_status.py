from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import structs

from simplu_worker.consumers.kinesis.fleet.fleet_report import hold_reason, read_status
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases.lease import Lease, ReadAhead
from simplu_worker.consumers.kinesis.leases.lease_rules import HASH_KEY_LAST
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, TRIM_HORIZON, HashRange, Position
from simplu_worker.shards.types import StreamPosition
from simplu_worker.vocabulary import Absence

EARLY, LATE = datetime(2026, 1, 1, 8, tzinfo=UTC), datetime(2026, 1, 1, 9, tzinfo=UTC)
HELD = TenantSet(["held-main"]).encode()
OTHER = tuple(TenantSet(["other-main"]).encode())
LOW, HIGH = HashRange(0, 9), HashRange(10, HASH_KEY_LAST)
ROWS = {
    "early": Lease("early", Position(1), hash_range=LOW, read_up_to=EARLY),
    "late": Lease("late", Position(1), hash_range=HashRange(0, HASH_KEY_LAST), read_up_to=LATE),
    "low": Lease("low", Position(1), hash_range=LOW, read_up_to=LATE),
    "high": Lease("high", Position(1), hash_range=HIGH, read_up_to=LATE),
    "kcl": Lease("kcl", Position(1), read_up_to=LATE),
    "new": Lease("new", Position(1), hash_range=LOW),
    "done": Lease("done", SHARD_END),
    "holding": Lease("holding", Position(1), hash_range=LOW, ahead=ReadAhead(Position(9), HELD), read_up_to=LATE),
    "ended": Lease("ended", Position(1), hash_range=LOW, pending_tenants=HELD, read_up_to=EARLY),
    "unreadable": Lease(
        "unreadable", Position(1), hash_range=LOW, ahead=ReadAhead(Position(9), frozenset({"slots:?"})), read_up_to=LATE
    ),
}
CHILD = Lease(
    "child", Position(5, 3), parents=frozenset({"parent"}), hash_range=HashRange(0, HASH_KEY_LAST), read_up_to=LATE
)


def shard_with(rows: str, **changes: Any) -> dict[str, StreamPosition]:
    return {name: StreamPosition("9/0", parents_done=True, **changes) for name in rows.split()}


@pytest.mark.parametrize(
    ("rows", "tenant_id", "expected", "held_in"),
    [
        ("", "other-main", None, ()),
        ("done", "other-main", None, ()),
        ("late early", "other-main", EARLY, ()),
        ("low high", "other-main", LATE, ()),
        ("low", "other-main", None, ()),
        ("low ended", "other-main", None, ()),
        ("low done", "other-main", None, ()),
        ("late kcl", "other-main", None, ()),
        ("late early", None, EARLY, ()),
        ("late new", "other-main", None, ()),
        ("late done", "other-main", LATE, ()),
        ("late holding", "other-main", LATE, ()),
        ("late holding", "held-main", None, ("holding",)),
        ("late holding", None, None, ("holding",)),
        ("late ended", "other-main", LATE, ()),
        ("late ended", "held-main", None, ("ended",)),
        ("late unreadable", "other-main", None, ("unreadable",)),
    ],
)
def test_stream_is_read_as_far_as_its_last_stream_shard(
    rows: str, tenant_id: str | None, expected: datetime | None, held_in: tuple[str, ...]
) -> None:
    status = read_status([ROWS[name] for name in rows.split()], tenant_id)
    assert (status.up_to([shard_with(rows)]), status.held_in) == (expected, held_in)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (StreamPosition("5/3", parents_done=True), LATE),
        (StreamPosition("6/-1", parents_done=True), LATE),
        (StreamPosition("SHARD_END", parents_done=True), LATE),
        (StreamPosition("5/2", parents_done=True, read_up_to=EARLY), EARLY),
        (StreamPosition("4/9", parents_done=True), None),
        (StreamPosition("TRIM_HORIZON", parents_done=True), None),
        (StreamPosition("1/0", read_to="5/3", held=tuple(HELD), parents_done=True), LATE),
        (StreamPosition("1/0", read_to="5/2", held=tuple(HELD), parents_done=True, read_up_to=EARLY), EARLY),
        (StreamPosition("1/0", read_to="9/0", held=OTHER, parents_done=True, read_up_to=EARLY), None),
        (StreamPosition("5/3"), None),
        (None, None),
    ],
)
def test_shard_has_what_the_stream_has_where_its_row_reaches_the_lease(
    row: StreamPosition | None, expected: datetime | None
) -> None:
    lease = structs.replace(CHILD, read_up_to=LATE)
    rows = {} if row is None else {"child": row}
    assert read_status([lease], "other-main").up_to([rows]) == expected
    assert read_status([lease], "other-main").up_to([{"child": StreamPosition("9/0", parents_done=True)}, rows]) == (
        expected
    )


@pytest.mark.parametrize(
    ("parent", "expected"),
    [
        (StreamPosition("SHARD_END"), LATE),
        (StreamPosition("2/0", read_to="SHARD_END", held=tuple(HELD)), LATE),
        (StreamPosition("2/0", read_to="SHARD_END", held=OTHER), None),
        (StreamPosition("2/0", read_to="7/0", held=tuple(HELD)), None),
        (StreamPosition("2/0"), None),
        (None, None),
    ],
)
def test_shard_has_what_the_stream_has_once_it_has_all_of_the_parents(
    parent: StreamPosition | None, expected: datetime | None
) -> None:
    rows = {"child": StreamPosition("5/3")} | ({} if parent is None else {"parent": parent})
    status = read_status([CHILD], "other-main")
    assert status.stream_shard_ids == ("child", "parent")
    assert status.up_to([rows]) == expected


def test_time_in_the_row_counts_where_the_lease_has_none() -> None:
    row = StreamPosition("9/0", parents_done=True, read_up_to=EARLY)
    assert read_status([structs.replace(CHILD, read_up_to=None)], "t").up_to([{"child": row}]) == EARLY
    fresh = structs.replace(CHILD, checkpoint=TRIM_HORIZON)
    assert read_status([fresh], "t").up_to([{"child": StreamPosition("TRIM_HORIZON", parents_done=True)}]) == LATE


def test_stream_that_is_not_known_whole_has_no_stream_shards() -> None:
    assert read_status([ROWS["low"]], "t").stream_shard_ids == ()


def test_what_is_held_counts_only_where_the_row_is_read_ahead() -> None:
    shards = [{"child": StreamPosition("5/3", held=tuple(HELD), parents_done=True, read_up_to=EARLY)}]
    assert read_status([structs.replace(CHILD, read_up_to=None)], "other-main").up_to(shards) == EARLY
    ahead = structs.replace(CHILD, ahead=ReadAhead(Position(7), HELD))
    assert read_status([ahead], "other-main").up_to(shards) == EARLY
    two = structs.replace(CHILD, parents=frozenset({"parent", "other"}))
    rows = {"child": StreamPosition("5/3"), "parent": StreamPosition("SHARD_END")}
    assert read_status([two], "other-main").up_to([rows]) is None
    assert read_status([two], "other-main").up_to([rows | {"other": StreamPosition("SHARD_END")}]) == LATE


@pytest.mark.parametrize(
    ("home", "rows", "is_paused", "expected"),
    [
        (Absence.MOVING, "late holding", True, "moving"),
        ("shard-1", "late holding", True, "paused"),
        ("shard-1", "late holding", False, "other_replica"),
        (None, "late holding", False, "other_replica"),
        ("shard-1", "late", False, None),
        ("shard-1", None, False, None),
    ],
)
def test_reason_of_a_hold(
    home: str | Absence | None, rows: str | None, expected: str | None, *, is_paused: bool
) -> None:
    status = None if rows is None else read_status([ROWS[name] for name in rows.split()], "held-main")
    assert hold_reason(home, status, is_paused=is_paused) == expected
