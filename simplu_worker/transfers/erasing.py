"""Erase a resource on one shard: its row, and what results in the log have of it.

Safe to kill and to run again: each transaction ends with less of the resource. The first one locks the tenant's row,
which waits for the batches in flight, so that no later result has the resource. Each finds the row as it was read, or
ends the erasure: a mover or a restorer that begins meanwhile may have read what is erased after that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from simplu_worker.errors import RetryableError
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter, note_server
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.health.assessment import RUNNING_S
from simplu_worker.shards.log import MarkOrigin, key_of_id, mark_changes, name_change
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import affected_count
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.shards.settling import read_tenant, read_transfer
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.engine import run_in_pages, run_until_won
from simplu_worker.vocabulary import TenantState, TransferKind

AT_REST: Final = frozenset({TenantState.ACTIVE, TenantState.MOVED, TenantState.DESTROYING, TenantState.DESTROYED})


class Erasure(msgspec.Struct, frozen=True):
    """The resource to erase."""

    business_id: str
    location_id: str
    resource_type: str
    resource_id: str

    @property
    def tenant_id(self) -> str:
        """The id of the tenant."""
        return tenant_id_of(self.business_id, self.location_id)


class Standing(msgspec.Struct, frozen=True):
    """The tenant's row on one shard, and what the shard has of the resource.

    *is_leaving*: a mover from here runs. *export* is the file of the last restore. *other_ids* are by renames, *names*
    of its type.
    """

    business_id: str
    location_id: str
    state: TenantState
    epoch: int
    move_token: int
    other_ids: list[str]
    is_leaving: bool
    export: str | None
    names: list[str]


def obstacle_to(erasure: Erasure, standings: Mapping[str, Standing]) -> str | None:
    """Return why nothing may be erased now; None if it may. *standings* are by shard id.

    A mover or a restorer may write elsewhere what is erased after it was read.
    """
    for shard_id, standing in sorted(standings.items()):
        if (standing.business_id, standing.location_id) != (erasure.business_id, erasure.location_id):
            return (
                f"{erasure.tenant_id}: shard {shard_id} has this id for another business or location than "
                f"{erasure.business_id} and {erasure.location_id}; see docs/runbook/tenant-split.md"
            )
        if standing.is_leaving or standing.state not in AT_REST:
            what = "a mover runs" if standing.is_leaving else f"its row is {standing.state}"
            return (
                f"{erasure.tenant_id}: a move, an import or a restore has started: {what} on shard {shard_id}; nothing "
                "was erased; let it end, or take it back (simplu-worker tenants rollback --stay --apply), and run this "
                "command again"
            )
    return None


PAGE_ROWS: Final = 1000  # of the log, by one statement
LOCK_TRIES: Final = 10


class ErasedOnShard(msgspec.Struct, frozen=True):
    """The number of rows, of results in the log with the resource, and of versions whose documents are kept.

    Without `--apply` of versions a page at most.
    """

    shard: str
    state: TenantState
    resources: int
    results: int
    versions: int


async def find_standing(shard: ShardPool, erasure: Erasure) -> Standing | None:
    """Return what *shard* has of the tenant; None without a row. Raises `RetryableError`."""
    tenant_id = erasure.tenant_id
    async with shard.connection() as connection:
        if not await has_schema(connection, shard):
            return None
        names = await connection.fetchval(QUERIES["find_type_names"], tenant_id, erasure.resource_type)
        row = await connection.fetchrow(QUERIES["find_standing"], tenant_id, names, key_of_id(erasure.resource_id))
        departure = await read_transfer(connection, tenant_id, TransferKind.DEPARTURE)
        restore = await read_transfer(connection, tenant_id, TransferKind.RESTORE)
    if row is None:
        return None
    silent_s = None if departure is None else departure.silent_s
    return Standing(
        **dict(row) | {"state": TenantState(row["state"])},
        is_leaving=silent_s is not None and silent_s < RUNNING_S,
        export=None if restore is None else restore.export,
        names=names,
    )


async def has_old_table(shard: ShardPool) -> bool:
    """Return whether *shard* was adopted, and still has the table of before. Raises `RetryableError`."""
    async with shard.connection() as connection:
        return await has_schema(connection, shard) and bool(await connection.fetchval(QUERIES["has_old_table"]))


async def erase_on_shard(
    shard: ShardPool, commits: ReplicationWaiter, erasure: Erasure, standing: Standing, *, apply: bool
) -> ErasedOnShard:
    """Erase the resource, and wait until that is as safe as the shard can make it; without *apply* all is rolled back.

    Raises `RetryableError` without an answer, or if the tenant's row has changed.
    """
    ids = [erasure.resource_id] * len(standing.names)
    results, versions, after = 0, 0, ""

    async def delete_row() -> tuple[int, Server]:
        nonlocal versions
        versions = 0
        async with shard.transaction(budget=StatementBudget.PAUSE, is_rehearsal=not apply) as connection:
            tenant = await read_tenant(connection, erasure.tenant_id, locked=True)
            found = None if tenant is None else (tenant.state, tenant.epoch, tenant.move_token)
            if found != (standing.state, standing.epoch, standing.move_token):
                raise _changed_error(shard, erasure)
            await name_change(connection, MarkOrigin.ERASURE)
            deleted = await connection.fetch(QUERIES["delete_resources_named"], erasure.tenant_id, standing.names, ids)
            keys = [(erasure.tenant_id, row["resource_type"], erasure.resource_id) for row in deleted]
            await erase_versions_in(connection, PAGE_ROWS)  # with the one that the deletion has made
            await mark_changes(connection, keys, MarkOrigin.ERASURE)
            return len(keys), await note_server(connection)

    async def erase_page(limit: int) -> int:
        """Erase from the results; a row that gets another key meanwhile moves to the end, where it is found again."""
        nonlocal results, after
        async with shard.transaction(budget=StatementBudget.KEY_RANGE, is_rehearsal=not apply) as connection:
            locked = await connection.fetchrow(
                QUERIES["lock_tenant_for"], erasure.tenant_id, standing.state, standing.move_token
            )
            if locked is None or locked["epoch"] != standing.epoch:
                raise _changed_error(shard, erasure)
            page = await connection.fetchrow(
                QUERIES["erase_results"], erasure.tenant_id, standing.names, erasure.resource_id, after, limit
            )
        results += int(page["result_count"])
        after = page["last_key"]
        return int(page["row_count"])

    async def erase_versions_in(connection: Connection, limit: int) -> int:
        nonlocal versions
        key = key_of_id(erasure.resource_id)
        status = await connection.execute(QUERIES["erase_versions"], erasure.tenant_id, standing.names, key, limit)
        versions += affected_count(status)
        return affected_count(status)

    async def erase_versions(limit: int) -> int:
        async with shard.transaction() as connection:
            return await erase_versions_in(connection, limit)

    resources, server = await run_until_won(delete_row, tries=LOCK_TRIES)
    await run_in_pages(erase_page, limit=PAGE_ROWS)
    if apply:
        await run_in_pages(erase_versions, limit=PAGE_ROWS)
        await commits.wait_for_transaction(shard.address.shard_id, server)
    return ErasedOnShard(shard.address.shard_id, standing.state, resources, results, versions)


def _changed_error(shard: ShardPool, erasure: Erasure) -> RetryableError:
    return RetryableError(
        f"{erasure.tenant_id}: its row on shard {shard.address.shard_id} has changed: a move, a restore or a "
        "destruction has started; run the command again once it has ended"
    )
