"""Find out why operations are in no log: whether their tenants are held, and how far the stream is read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from simplu_worker.assembly.aws import open_lease_table
from simplu_worker.assembly.shards import Shards
from simplu_worker.commands.output.display import print_note
from simplu_worker.commands.stream.send_status import Undecided
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.fleet.read_status import ReadStatus, hold_reason, read_status
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.errors import WorkerError
from simplu_worker.shards.types import ShardPositionRows, StreamShards
from simplu_worker.timing.clock import utc_now
from simplu_worker.vocabulary import Absence

LOOK_UP_S: Final = 10.0  # for all tenants together


async def find_undecided(
    settings: Settings, shards: Shards, tenant_ids: Collection[str], *, is_stream: bool = True
) -> dict[str, Undecided]:
    """Return the state of each tenant; less of it where a service does not answer.

    Operations that came by a queue (*is_stream* False) have no time up to which all is read.
    """
    if not tenant_ids:
        return {}
    leases = await read_leases(settings) if is_stream else []
    known = dict.fromkeys(tenant_ids, Undecided())
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LOOK_UP_S):
            for tenant_id in tenant_ids:
                known[tenant_id] = await _find_one(settings, shards, leases, tenant_id)
    return known


async def _find_one(settings: Settings, shards: Shards, leases: Sequence[Lease], tenant_id: str) -> Undecided:
    status = read_status(leases, tenant_id)
    try:
        found = await shards.gateway.read_positions_at_home(tenant_id, stream_shards_of(settings, status))
    except WorkerError:  # the survey of the shards has named every server without an answer
        shard_id = None
        with contextlib.suppress(WorkerError):
            address = await shards.locator.locate(tenant_id)
            shard_id = None if address is None else address.shard_id
        return with_report(Undecided(), leases, tenant_id, shard_id, now=utc_now())
    undecided = undecided_of(status, found, is_paused=shards.gateway.paused_s(tenant_id) > 0)
    shard_id = shards.gateway.cached_shard_id(tenant_id)
    return with_report(undecided, leases, tenant_id, shard_id, now=utc_now())


def with_report(
    undecided: Undecided, leases: Iterable[Lease], tenant_id: str, shard_id: str | None, *, now: datetime
) -> Undecided:
    """Return *undecided* with what the replicas have reported of the tenant, or of its shard: the oldest of that.

    A report is as old as the last renewal of its lease, some seconds, and has the oldest held targets alone. Pure.
    """
    names = {f"tenant {tenant_id}", *(() if shard_id is None else (f"shard {shard_id}",))}
    held = [one for lease in leases if lease.report is not None for one in lease.report.held if one.target in names]
    if not held:
        return undecided
    oldest = max(held, key=lambda one: one.age_s)
    since = now - timedelta(seconds=oldest.age_s)
    return Undecided(oldest.reason, since=since, target=oldest.target)


def undecided_of(status: ReadStatus, found: ShardPositionRows | Absence, *, is_paused: bool) -> Undecided:
    """Return the state of a tenant by the lease table, and by the rows on its shard or why it has none."""
    if reason := hold_reason(found if isinstance(found, Absence) else None, status, is_paused=is_paused):
        return Undecided(reason)
    return Undecided(read_up_to=None if isinstance(found, Absence) else status.up_to([found]))


def stream_shards_of(settings: Settings, status: ReadStatus) -> StreamShards:
    """Return the stream shards whose rows decide how far the stream is read."""
    return StreamShards((settings.kinesis_stream_name or "").rpartition("/")[2], status.stream_shard_ids)


async def read_leases(settings: Settings) -> list[Lease]:
    """Return the lease table; nothing if it does not answer, which is noted, and without a stream."""
    if settings.kinesis_stream_name is None:
        return []
    try:
        async with open_lease_table(settings) as table:
            return await table.scan()
    except WorkerError as exc:
        print_note(f"how far the stream is read is not known: {exc}")
        return []
