"""Find out why operations are in no log: whether their tenants are held, and how far the stream is read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from typing import Final

from simplu_worker.assembly.aws import open_lease_table
from simplu_worker.commands.output.display import print_note
from simplu_worker.commands.stream.send_status import Undecided
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.fleet.read_status import ReadStatus, hold_reason, read_status
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.errors import WorkerError
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.types import ShardPositionRows, StreamShards
from simplu_worker.vocabulary import Absence

LOOK_UP_S: Final = 10.0  # for all tenants together


async def find_undecided(
    settings: Settings, gateway: ShardGateway, tenant_ids: Collection[str], *, is_stream: bool = True
) -> dict[str, Undecided]:
    """Return the state of each tenant; less of it where a service does not answer.

    Operations that came by a queue (*is_stream* False) have no time up to which all is read.
    """
    if not tenant_ids:
        return {}
    leases = await _scan_leases(settings) if is_stream else []
    statuses = {tenant_id: read_status(leases, tenant_id) for tenant_id in tenant_ids}
    known = dict.fromkeys(tenant_ids, Undecided())
    # The survey of the shards has named every server without an answer.
    with contextlib.suppress(WorkerError, TimeoutError):
        async with asyncio.timeout(LOOK_UP_S):
            for tenant_id, status in statuses.items():
                found = await gateway.read_positions_at_home(tenant_id, stream_shards_of(settings, status))
                known[tenant_id] = undecided_of(status, found, is_paused=gateway.paused_s(tenant_id) > 0)
    return known


def undecided_of(status: ReadStatus, found: ShardPositionRows | Absence, *, is_paused: bool) -> Undecided:
    """Return the state of a tenant by the lease table, and by the rows on its shard or why it has none."""
    if reason := hold_reason(found if isinstance(found, Absence) else None, status, is_paused=is_paused):
        return Undecided(reason)
    return Undecided(read_up_to=None if isinstance(found, Absence) else status.up_to([found]))


def stream_shards_of(settings: Settings, status: ReadStatus) -> StreamShards:
    """Return the stream shards whose rows decide how far the stream is read."""
    return StreamShards((settings.kinesis_stream_name or "").rpartition("/")[2], status.stream_shard_ids)


async def read_tenant_status(settings: Settings, tenant_id: str) -> ReadStatus:
    """Return how far the stream is read for a tenant, by the lease table."""
    return read_status(await _scan_leases(settings), tenant_id)


async def _scan_leases(settings: Settings) -> list[Lease]:
    if settings.kinesis_stream_name is None:
        return []
    try:
        async with open_lease_table(settings) as table:
            return await table.scan()
    except WorkerError as exc:
        print_note(f"how far the stream is read is not known: {exc}")
        return []
