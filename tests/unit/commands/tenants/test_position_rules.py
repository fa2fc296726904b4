"""Whether the stream still has what came after the positions in a backup."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from simplu_worker.commands.tenants.rules import (
    BackupFacts,
    JudgedPosition,
    PositionState,
    judge_positions,
    longest_gap,
)
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.stream.client import StreamShard
from simplu_worker.consumers.kinesis.stream.positions import TRIM_HORIZON, HashRange, Position
from simplu_worker.shards.types import StreamPosition

NOW = datetime(2026, 3, 10, tzinfo=UTC)
RETENTION = timedelta(hours=24)
LEVEL, READABLE, LOST = PositionState.LEVEL, PositionState.READABLE, PositionState.LOST


def row(pending_from: str, hours: float | None = None) -> StreamPosition:
    since = None if hours is None else NOW - timedelta(hours=hours)
    return StreamPosition(pending_from=pending_from, pending_since=since, parents_done=True, fencing_token="t")


def facts(
    rows: dict[str, StreamPosition],
    *,
    checkpoints: dict[str, Position] | None = None,
    shards: dict[str, tuple[str, ...]] | None = None,
    first_tenant_hours: float | None = 1.0,
) -> BackupFacts:
    return BackupFacts(
        rows=rows,
        first_tenant_at=None if first_tenant_hours is None else NOW - timedelta(hours=first_tenant_hours),
        stream_shards=[
            StreamShard(name, frozenset(parents), HashRange(0, 1), "1") for name, parents in (shards or {}).items()
        ],
        leases={name: Lease(name, position) for name, position in (checkpoints or {}).items()},
        retention=RETENTION,
        tenant_wait=timedelta(minutes=5),
        now=NOW,
    )


@pytest.mark.parametrize(
    ("found", "checkpoint", "state"),
    [
        (row("100/0", 2), Position(200), READABLE),
        (row("100/0", 2), None, READABLE),
        (row("100/0", 24), Position(200), LOST),
        (row("100/0", 23.98), Position(200), READABLE),  # a minute of margin
        (row("100/0", 23.99), Position(200), LOST),
        (row("100/0", 240), Position(100), LEVEL),  # the stream was idle since
        (row("100/0", 240), Position(99), LEVEL),
        (row("100/0", 240), Position(100, 1), LOST),
        (row("100/0", 240), None, LOST),
        (row("SHARD_END", 240), Position(200), LEVEL),
        (row("TRIM_HORIZON"), TRIM_HORIZON, LEVEL),
        (row("TRIM_HORIZON"), Position(200), READABLE),
    ],
)
def test_position_is_judged_by_age_unless_no_worker_is_ahead(
    found: StreamPosition, checkpoint: Position | None, state: PositionState
) -> None:
    checkpoints = {} if checkpoint is None else {"a": checkpoint}
    (judged,) = judge_positions(facts({"a": found}, checkpoints=checkpoints))
    assert (judged.stream_shard_id, judged.position, judged.state) == ("a", found.pending_from, state)


def test_beginning_of_the_stream_counts_from_the_first_tenant() -> None:
    begun = facts({"a": row("TRIM_HORIZON")}, checkpoints={"a": Position(9)}, first_tenant_hours=48)
    (judged,) = judge_positions(begun)
    assert (judged.state, judged.since) == (LOST, NOW - timedelta(hours=48, minutes=5))


def test_stream_shard_without_a_row_is_judged_without_parents() -> None:
    shards: dict[str, tuple[str, ...]] = {"b": (), "a": (), "child": ("a",)}
    judged = judge_positions(facts({"a": row("5/0", 2)}, shards=shards, first_tenant_hours=30))
    since = NOW - timedelta(hours=30, minutes=5)
    assert judged == [
        JudgedPosition("a", "5/0", READABLE, NOW - timedelta(hours=2)),
        JudgedPosition("b", "no row", LOST, since),
    ]
    assert judge_positions(facts({}, shards=shards, first_tenant_hours=None)) == []


def test_longest_gap_is_of_the_oldest_position_to_read_from() -> None:
    old, young = NOW - timedelta(hours=9), NOW - timedelta(hours=2)
    level = JudgedPosition("a", "1/0", LEVEL, old)
    readable = JudgedPosition("b", "1/0", READABLE, young)
    assert longest_gap([level, readable], NOW) == timedelta(hours=2)
    assert longest_gap([level], NOW) == timedelta()
