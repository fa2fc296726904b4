"""Judge the positions in a backup of a shard: whether the stream still has all that came after them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

import msgspec

from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.recovery.recovery_plan import parse_position
from simplu_worker.consumers.kinesis.stream.client import StreamShard
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, TRIM_HORIZON
from simplu_worker.shards.types import StreamPosition

RETENTION_MARGIN: Final = timedelta(minutes=1)
NO_ROW: Final = "no row"


class PositionState(StrEnum):
    """What a restore would find in the stream behind a position."""

    LEVEL = "level"  # no worker is ahead of it: nothing was applied since
    READABLE = "readable"  # the stream has everything since
    LOST = "lost"  # records since then may have left the stream


class JudgedPosition(msgspec.Struct, frozen=True):
    """The position of a stream shard in a backup; *since* is about the time of the first missing record."""

    stream_shard_id: str
    position: str
    state: PositionState
    since: datetime | None = None


class BackupFacts(msgspec.Struct, frozen=True):
    """The rows of a backup, and the stream with its leases as they are now."""

    rows: Mapping[str, StreamPosition]
    first_tenant_at: datetime | None
    stream_shards: Iterable[StreamShard]
    leases: Mapping[str, Lease]
    retention: timedelta
    tenant_wait: timedelta
    now: datetime


def judge_positions(facts: BackupFacts) -> list[JudgedPosition]:
    """Return the positions of the stream shards in the backup, and of those that are read for it without a row.

    Without a row a stream shard is read from about the first tenant on; one with parents has records since their rows
    only.
    """
    judged = [_judge_row(facts, name, row) for name, row in sorted(facts.rows.items())]
    if facts.first_tenant_at is None:
        return judged
    rootless = [one.stream_shard_id for one in facts.stream_shards if not one.parents]
    return judged + [
        _judge_time(facts, name, NO_ROW, facts.first_tenant_at - facts.tenant_wait)
        for name in sorted(rootless)
        if name not in facts.rows
    ]


def _judge_row(facts: BackupFacts, name: str, row: StreamPosition) -> JudgedPosition:
    if row.pending_from == SHARD_END.checkpoint or _is_level(facts.leases.get(name), row, facts.now):
        return JudgedPosition(name, row.pending_from, PositionState.LEVEL, row.pending_since)
    began_at = facts.first_tenant_at and facts.first_tenant_at - facts.tenant_wait
    return _judge_time(facts, name, row.pending_from, row.pending_since or began_at)


def _is_level(lease: Lease | None, row: StreamPosition, now: datetime) -> bool:
    if lease is None:
        return False
    if row.pending_from == TRIM_HORIZON.checkpoint:
        return lease.checkpoint <= TRIM_HORIZON
    return lease.checkpoint <= parse_position(row.pending_from, now).position


def _judge_time(facts: BackupFacts, name: str, position: str, since: datetime | None) -> JudgedPosition:
    is_lost = since is not None and facts.now - since >= facts.retention - RETENTION_MARGIN
    return JudgedPosition(name, position, PositionState.LOST if is_lost else PositionState.READABLE, since)


def record_to_confirm(judged: JudgedPosition) -> str | None:
    """Return the sequence number that the stream must still have, if the position is readable."""
    is_record = judged.position not in {NO_ROW, TRIM_HORIZON.checkpoint}
    return judged.position.partition("/")[0] if is_record and judged.state is PositionState.READABLE else None


def longest_gap(judged: Iterable[JudgedPosition], now: datetime) -> timedelta:
    """Return the age of the oldest record that would be read again; zero if none would."""
    ages = [now - one.since for one in judged if one.since is not None and one.state is not PositionState.LEVEL]
    return max(ages, default=timedelta())
