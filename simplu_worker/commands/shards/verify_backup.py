"""`shards verify-backup`: whether a restored backup is that shard's, and whether the stream reaches back to it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from simplu_worker.commands.backups.position_rules import JudgedPosition, longest_gap
from simplu_worker.commands.backups.stream_reach import backup_address, judge_reach
from simplu_worker.commands.output.display import print_json, print_members, print_note, print_table
from simplu_worker.config.settings import Settings
from simplu_worker.errors import WorkerError
from simplu_worker.shards.health.backup_content import BackupContent, read_backup
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.schema.migrations import refusal_of
from simplu_worker.shards.schema.sql_files import SCHEMA_VERSION
from simplu_worker.timing.clock import utc_now

COLUMNS = ("stream shard", "position", "lacks records since", "state")


class BackupReport(msgspec.Struct):
    """The result: the content of the backup, its positions, and every problem; *notes* name what else is to be done."""

    place: str
    checked_at: datetime
    problems: list[str]
    notes: list[str] = []
    content: BackupContent | None = None
    retention_s: float | None = None
    positions: list[JudgedPosition] = []

    @property
    def gap_s(self) -> float:
        """The age of the oldest record that would be read again, in seconds."""
        return longest_gap(self.positions, self.checked_at).total_seconds()


async def verify_backup(settings: Settings, shard_id: str, *, as_json: bool) -> int:
    """Print the content of the database at BACKUP_URL, a restored backup of *shard_id*; only reads.

    Returns 1 if it cannot take the shard's place without a loss.
    """
    address = backup_address(settings, shard_id)
    report = BackupReport(address.place, utc_now(), [])
    try:
        await _read_content(settings, address, report)
    except WorkerError as exc:
        report.problems.append(address.without_name(str(exc)))
    if report.content is not None and settings.kinesis_stream_name is not None:
        await _judge_positions(settings, report.content, report)
    if as_json:
        print_json(_members(shard_id, report))
    else:
        _print(shard_id, report)
    return 1 if report.problems else 0


async def _read_content(settings: Settings, address: ShardAddress, report: BackupReport) -> None:
    stream_name = settings.kinesis_stream_name
    async with Pools(size=1) as pools:
        pool = pools.ensure_pool(address)
        report.content = await read_backup(pool, stream_name and stream_name.rpartition("/")[2])
    if report.content is None:
        report.problems.append("expected a shard, got an empty database; check BACKUP_URL, or restore again")
        return
    if (refusal := refusal_of(report.content.schema, worker_version=SCHEMA_VERSION)) is not None:
        report.problems.append(refusal)
    if report.content.schema.is_behind:
        report.notes.append(
            "its log is ahead of its server's transaction numbers, as after a dump: once it has the shard's place, "
            f"workers hold the shard until you run simplu-worker shards raise-numbers {address.shard_id} --apply"
        )


async def _judge_positions(settings: Settings, content: BackupContent, report: BackupReport) -> None:
    reach = await judge_reach(settings, content)
    report.retention_s = reach.retention.total_seconds()
    report.checked_at, report.positions = reach.checked_at, reach.positions
    if reach.lost:
        report.problems.append(
            f"expected positions that the stream still has, with its retention of {report.retention_s / 3600:g}"
            f" h, got older ones of {', '.join(reach.lost)}; take a newer backup: records may be lost, "
            "and workers hold the shard until a person accepts that"
        )


def _members(shard_id: str, report: BackupReport) -> dict[str, Any]:
    members: dict[str, Any] = {"shardId": shard_id, "place": report.place, "checkedAt": report.checked_at}
    if (content := report.content) is not None:
        members |= {
            "schemaVersion": content.schema.version,
            "tenants": content.tenant_count,
            "lastAppliedAt": content.last_applied_at,
        }
    if report.retention_s is not None:
        members |= {"retentionSeconds": report.retention_s, "gapSeconds": round(report.gap_s, 1)}
    members["positions"] = [
        {"streamShard": one.stream_shard_id, "position": one.position, "since": one.since, "state": one.state}
        for one in report.positions
    ]
    return members | {"problems": report.problems, "notes": report.notes}


def _print(shard_id: str, report: BackupReport) -> None:
    facts: dict[str, object] = {"shard": shard_id, "place": report.place}
    if (content := report.content) is not None:
        facts |= {"schema": content.schema.version, "tenants": content.tenant_count}
        facts |= {"last operation": _format_time(content.last_applied_at)}
    if report.retention_s is not None:
        facts |= {"read again": f"{report.gap_s:.0f} s", "stream keeps": f"{report.retention_s:.0f} s"}
    print_members(facts)
    if report.positions:
        rows = [(one.stream_shard_id, one.position, _format_time(one.since), one.state) for one in report.positions]
        print_table(COLUMNS, rows)
    for remark in (*report.problems, *report.notes):
        print_note(remark)


def _format_time(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="seconds")
