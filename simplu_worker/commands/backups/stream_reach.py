"""Where a restored backup is, and whether the stream reaches back to its positions."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from simplu_worker.assembly.aws import open_lease_table, open_stream
from simplu_worker.commands.backups.position_rules import (
    BackupFacts,
    JudgedPosition,
    PositionState,
    judge_positions,
    record_to_confirm,
)
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.stream.client import Stream, StreamGoneError, find_first_record
from simplu_worker.consumers.kinesis.stream.positions import AtSequenceNumber
from simplu_worker.errors import ConfigurationError
from simplu_worker.shards.health.backup_content import BackupContent
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.timing.clock import utc_now


def backup_address(settings: Settings, shard_id: str) -> ShardAddress:
    """Return the address at BACKUP_URL. Raises `ConfigurationError` without one."""
    if settings.backup_url is None:
        raise ConfigurationError(
            "BACKUP_URL: expected the connection string of a restored backup, got nothing; set it, or BACKUP_URL_FILE"
        )
    url = settings.backup_url.get_secret_value()
    return ShardAddress(shard_id, url).validate(settings.database_allowed_hosts)


class StreamReach(msgspec.Struct, frozen=True):
    """The positions in a backup as the stream is at *checked_at*, and for how long it keeps records."""

    positions: list[JudgedPosition]
    retention: timedelta
    checked_at: datetime

    @property
    def lost(self) -> list[str]:
        """The stream shards whose records since the backup may have left the stream."""
        return [one.stream_shard_id for one in self.positions if one.state is PositionState.LOST]


async def judge_reach(settings: Settings, content: BackupContent) -> StreamReach:
    """Return whether the stream reaches back to a backup."""
    async with open_stream(settings) as stream, open_lease_table(settings) as table:
        retention = (await stream.describe()).retention
        checked_at = utc_now()
        facts = BackupFacts(
            rows=content.rows,
            first_tenant_at=content.first_tenant_at,
            stream_shards=await stream.list_stream_shards(),
            leases={lease.lease_key: lease for lease in await table.scan()},
            retention=retention,
            tenant_wait=timedelta(seconds=settings.tenant_wait_seconds),
            now=checked_at,
        )
        positions = [await _confirm(stream, judged) for judged in judge_positions(facts)]
    return StreamReach(positions, retention, checked_at)


async def _confirm(stream: Stream, judged: JudgedPosition) -> JudgedPosition:
    wanted = record_to_confirm(judged)
    if wanted is None:
        return judged
    try:
        found = await find_first_record(stream, judged.stream_shard_id, AtSequenceNumber(wanted))
    except StreamGoneError:
        found = None
    is_there = found is not None and found.sequence_number == wanted
    return judged if is_there else msgspec.structs.replace(judged, state=PositionState.LOST)
