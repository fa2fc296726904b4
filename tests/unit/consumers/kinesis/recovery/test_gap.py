from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest

from simplu_worker.consumers.kinesis.holding.tenant_set import HORIZON
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.recovery.recovery_plan import (
    CLOCKS_MARGIN,
    Lineage,
    has_left_stream,
    is_older_than_stream,
    rows_of_ancestors_behind,
    went_back,
)
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, Position, RecordPosition
from simplu_worker.shards.positions import timed_token
from simplu_worker.shards.types import StoredPositions, StreamPosition

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
RETENTION = timedelta(hours=24)
EDGE = NOW - RETENTION + CLOCKS_MARGIN


def row(
    pending_from: str = "5/0",
    *,
    written_at: datetime | None = None,
    read_to: str | None = None,
    gap_from: str | None = None,
    is_accepted: bool = False,
    parents_done: bool = False,
) -> StreamPosition:
    token = timed_token(uuid.uuid4(), written_at)
    return StreamPosition(
        pending_from, HORIZON, parents_done, token, read_to=read_to, gap_from=gap_from, is_gap_accepted=is_accepted
    )


def at(number: int, part: int = 0) -> RecordPosition:
    return RecordPosition(str(number), part, NOW)


@pytest.mark.parametrize(
    ("found", "retention", "expected"),
    [
        pytest.param(row(written_at=EDGE), RETENTION, True, id="as old as the stream, less what clocks differ"),
        pytest.param(row(written_at=EDGE + timedelta(seconds=1)), RETENTION, False, id="younger"),
        pytest.param(row(written_at=NOW + timedelta(hours=1)), RETENTION, False, id="by a clock that is fast"),
        pytest.param(row(), RETENTION, True, id="at an unknown time"),
        pytest.param(row("TRIM_HORIZON"), RETENTION, False, id="at the beginning, as every new row"),
        pytest.param(row("TRIM_HORIZON", written_at=EDGE), RETENTION, True, id="at the beginning for so long"),
        pytest.param(row(written_at=NOW), None, True, id="the retention is unknown"),
        pytest.param(row("TRIM_HORIZON", written_at=EDGE), None, False, id="the same, at the beginning"),
    ],
)
def test_row_is_older_than_the_stream(found: StreamPosition, retention: timedelta | None, *, expected: bool) -> None:
    assert is_older_than_stream(found, now=NOW, retention=retention) is expected


@pytest.mark.parametrize(
    ("found", "behind", "checkpoint", "expected"),
    [
        pytest.param(row(), at(5), at(6), True, id="the checkpoint is after it"),
        pytest.param(row(), at(5), at(5), False, id="the checkpoint is there too: something is held since"),
        pytest.param(row(), at(5), at(4), False, id="the checkpoint is before it"),
        pytest.param(row(), at(5), None, False, id="nothing was ever finished"),
        pytest.param(row(read_to="8/2"), at(8, 2), at(5), True, id="only held tenants are at the checkpoint"),
        pytest.param(row(read_to="8/2"), at(5), at(5), False, id="the reader does not hold those tenants"),
        pytest.param(row("TRIM_HORIZON"), HORIZON, at(1), True, id="at the beginning"),
        pytest.param(row("TRIM_HORIZON"), HORIZON, None, False, id="all is at the beginning"),
    ],
)
def test_shard_went_back_only_behind_the_checkpoint(
    found: StreamPosition, behind: RecordPosition | datetime, checkpoint: RecordPosition | None, *, expected: bool
) -> None:
    assert went_back(found, behind, checkpoint) is expected


@pytest.mark.parametrize(
    ("behind", "oldest", "expected"),
    [
        (at(5), at(5, -1), False),
        (at(5, 3), at(5, -1), False),
        (at(5, -1), at(5, -1), False),
        (at(5), at(4, -1), False),
        (at(5), at(6, -1), True),
        (at(5), at(10, -1), True),
        (at(5), None, True),
        (HORIZON, at(1, -1), True),
    ],
)
def test_record_has_left_the_stream(
    behind: RecordPosition | datetime, oldest: RecordPosition | None, *, expected: bool
) -> None:
    assert has_left_stream(behind, oldest) is expected


FAMILY = {
    "left": Lease("left", SHARD_END, parents=frozenset(["old"])),
    "right": Lease("right", Position(7), parents=frozenset(["old"])),
    "old": Lease("old", SHARD_END, parents=frozenset(["gone"])),
}


def behind(rows: Mapping[str, StreamPosition], *, first_tenant_at: datetime | None = NOW) -> list[str]:
    lineage = Lineage(frozenset(["left", "right"]), FAMILY, unreadable_parents=frozenset(["lost"]))
    stored = StoredPositions(dict(rows), first_tenant_at)
    found = rows_of_ancestors_behind(lineage, stored, "child", is_old=lambda one: one.written_at == EDGE)
    assert all(rows[key] is one for key, one in found)
    return [key for key, _ in found]


OLD = row(written_at=EDGE)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param({}, [], id="no rows: a first contact, or an adopted shard"),
        pytest.param({"left": OLD, "old": OLD, "gone": OLD}, ["gone", "old", "left"], id="older ones first"),
        pytest.param({"left": OLD, "child": row(parents_done=True)}, [], id="nothing of the parents is missing"),
        pytest.param(
            {"left": row(parents_done=True, written_at=EDGE), "right": row("SHARD_END", parents_done=True), "old": OLD},
            ["left"],
            id="nor of theirs",
        ),
        pytest.param({"left": row("SHARD_END", written_at=EDGE)}, [], id="the end"),
        pytest.param({"left": row(written_at=NOW)}, [], id="a young row"),
        pytest.param({"right": row("7/0", written_at=EDGE)}, [], id="at the checkpoint of its lease"),
        pytest.param({"right": row("6/0", written_at=EDGE)}, ["right"], id="before it"),
        pytest.param({"left": row("TRIM_HORIZON", written_at=EDGE)}, ["left"], id="at the beginning for long"),
        pytest.param({"lost": OLD}, ["lost"], id="a parent that has left the stream"),
        pytest.param({"lost": row("SHARD_END", written_at=EDGE)}, [], id="the same, at its end"),
        pytest.param({"left": row(gap_from="5/0", written_at=NOW)}, ["left"], id="a mark"),
        pytest.param({"left": row(gap_from="5/0", is_accepted=True, written_at=EDGE)}, [], id="an accepted one"),
        pytest.param({"left": row(gap_from="4/0", is_accepted=True, written_at=EDGE)}, ["left"], id="a void one"),
    ],
)
def test_ancestors_that_went_back(rows: Mapping[str, StreamPosition], expected: list[str]) -> None:
    assert behind(rows) == expected


def test_mark_is_void_once_the_row_has_another_position() -> None:
    marked = row(gap_from="5/0")
    assert (marked.has_gap, marked.has_open_gap) == (True, True)
    accepted = row(gap_from="5/0", is_accepted=True)
    assert (accepted.has_gap, accepted.has_open_gap) == (True, False)
    void = row("6/0", gap_from="5/0")
    assert (void.has_gap, void.has_open_gap) == (False, False)
    assert not row().has_gap
