"""Find out why operations are in no log: whether their tenants are held, and how far the stream is read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from typing import Final

from simplu_worker.assembly.aws import open_lease_table
from simplu_worker.commands.output.display import print_note
from simplu_worker.commands.stream.show import Undecided
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.fleet.read_status import hold_reason, read_status
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.errors import WorkerError
from simplu_worker.shards.gateway import ShardGateway

LOOK_UP_S: Final = 10.0  # for all tenants together


async def find_undecided(
    settings: Settings, gateway: ShardGateway, tenant_ids: Collection[str], *, is_stream: bool = True
) -> dict[str, Undecided]:
    """Return the state of each tenant; less of it where a service does not answer.

    Operations that came by a queue (*is_stream* False) have no time up to which all is read.
    """
    if not tenant_ids:
        return {}
    leases = await _scan_leases(settings) if is_stream and settings.kinesis_stream_name is not None else []
    statuses = {tenant_id: read_status(leases, tenant_id) for tenant_id in tenant_ids}
    known = {tenant_id: Undecided(read_up_to=status.up_to) for tenant_id, status in statuses.items()}
    # The survey of the shards has named every server without an answer.
    with contextlib.suppress(WorkerError, TimeoutError):
        async with asyncio.timeout(LOOK_UP_S):
            for tenant_id, status in statuses.items():
                if reason := hold_reason(await gateway.find(tenant_id), status):
                    known[tenant_id] = Undecided(reason)
    return known


async def _scan_leases(settings: Settings) -> list[Lease]:
    try:
        async with open_lease_table(settings) as table:
            return await table.scan()
    except WorkerError as exc:
        print_note(f"how far the stream is read is not known: {exc}")
        return []
