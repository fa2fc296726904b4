"""Change a tenant's resources for control messages, and move those under another name to the one of their type.

Serialised against operations: the tenant's row is locked `FOR SHARE` and must be `active`, so that nothing is written
after a mover's fence or a destruction. Each change leaves a mark in the log, by which moves and the feed find it.

Names from before `types apply`, or from a backup, are moved page by page, each in a transaction; safe to run again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.cache.invalidations import OnChange, ResourceKey, ignore_changes
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.operations.json_record import BOUNDS_TEXT, exceeds_bounds
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter, note_server
from simplu_worker.shards.apply.judging import judge_change
from simplu_worker.shards.apply.wave_run import ResourceId, UnmergeableError, merge_into_row
from simplu_worker.shards.log import MarkOrigin, mark_changes, name_change
from simplu_worker.shards.postgres.pool import Connection, Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_query import fetch_from_all_shards, fetch_from_shard
from simplu_worker.shards.schema.schema_check import BUSINESS_TYPES, has_schema
from simplu_worker.shards.schema.type_files import TypeFile
from simplu_worker.shards.tenants.control_rules import (
    id_taken_error,
    is_row_of,
    refused_address_as_retryable,
    timestamp_text,
    unforeseen_with_shard,
)
from simplu_worker.shards.tenants.provisioning import SAFE_WITHIN_S, ShardSlots, check_business_type, find_missing_types
from simplu_worker.shards.types import AdminAccount, ChangeResult, ResourceRename, ShardUnavailableError
from simplu_worker.vocabulary import Absence, TenantState

Change: TypeAlias = "Callable[[Connection, str], Awaitable[ChangeResult]]"  # with the shard's id


class ResourceChanges:
    """Changes resources on the tenant's shard, and waits until that is safe. Idempotent.

    Raises `PermanentError` for a change that can never succeed, `RetryableError` without an answer, or during a move.
    """

    def __init__(
        self,
        directory: Directory,
        pools: Pools,
        *,
        on_change: OnChange = ignore_changes,
        commits: ReplicationWaiter | None = None,
    ) -> None:
        self._directory = directory
        self._pools = pools
        self._on_change = on_change
        self._commits = commits or ReplicationWaiter(pools)
        self._slots = ShardSlots()

    async def rename(self, rename: ResourceRename) -> ChangeResult:
        """Give a resource another id, and merge `additional_data` into it. Any name of its type may be sent.

        If only the new id exists, the rename was done before, and nothing is merged. Refused if both exist.
        """
        tenant_id = tenant_id_of(rename.business_id, rename.location_id)
        old_id, new_id = rename.old_resource_id, rename.new_resource_id
        keys: list[ResourceKey] = []

        async def change(connection: Connection, _shard_id: str) -> ChangeResult:
            name = await connection.fetchval(QUERIES["find_stored_name"], tenant_id, rename.resource_type)
            key = (tenant_id, name)
            types = dict.fromkeys((rename.resource_type, name))
            keys[:] = (ResourceKey(tenant_id, one, resource_id) for one in types for resource_id in (old_id, new_id))
            data = rename.additional_data
            has_excess = data is not None and exceeds_bounds(data.encode())
            status = "" if has_excess else await _rename(connection, (*key, old_id), rename)
            if status == "UPDATE 1":
                await mark_changes(connection, [(*key, old_id), (*key, new_id)], MarkOrigin.RENAME)
                return ChangeResult.APPLIED
            rows = await connection.fetch(QUERIES["find_resource_ids"], *key, [old_id, new_id])
            found = {row["resource_id"] for row in rows}
            if found == {old_id, new_id}:
                raise PermanentError(
                    "oldResourceId, newResourceId: expected one resource, got one of each id; "
                    "delete one of them, or send another newResourceId"
                )
            if old_id in found and has_excess:
                raise PermanentError(f"additionalData: expected {BOUNDS_TEXT}, got more; send less")
            if old_id in found:
                raise RetryableError("the resource was created during the rename")
            return ChangeResult.EXISTED if found else ChangeResult.MISSING

        return await self._change(rename.business_id, rename.location_id, change, keys)

    async def add_admin(self, admin: AdminAccount) -> ChangeResult:
        """Make the administrator's `role` and staff resource, each unless it is there.

        The staff's type follows the tenant's own business type. Raises `UnknownBusinessTypeError` while the shard lacks
        it.
        """
        check_business_type(admin.business_type)
        tenant_id, user_id = tenant_id_of(admin.business_id, admin.location_id), admin.admin_user_id
        keys: list[ResourceKey] = []

        async def change(connection: Connection, shard_id: str) -> ChangeResult:
            for error in (await find_missing_types(connection, shard_id, {admin.business_type})).values():
                raise error
            added = await connection.fetch(
                QUERIES["add_admin"], tenant_id, user_id, admin.admin_email, timestamp_text(admin.requested_at)
            )
            documents = {row["resource_type"]: row["data"] for row in added}
            await judge_change(connection, tenant_id, documents, member="adminEmail, adminUserId")
            types = ["role", await connection.fetchval(QUERIES["find_staff_type"], tenant_id)]
            keys[:] = (ResourceKey(tenant_id, resource_type, user_id) for resource_type in types)
            await mark_changes(connection, [(tenant_id, row["resource_type"], user_id) for row in added])
            return ChangeResult.APPLIED if added else ChangeResult.EXISTED

        return await self._change(admin.business_id, admin.location_id, change, keys)

    async def _change(
        self, business_id: str, location_id: str, change: Change, keys: Sequence[ResourceKey]
    ) -> ChangeResult:
        tenant_id = tenant_id_of(business_id, location_id)
        pool = await self._find_pool(tenant_id)
        if pool is None:
            return ChangeResult.UNKNOWN_TENANT
        shard_id = pool.address.shard_id
        with unforeseen_with_shard(shard_id, tenant_id):
            async with self._slots.take(shard_id), pool.transaction(budget=StatementBudget.PAUSE) as connection:
                if not await has_schema(connection, pool):
                    raise ShardUnavailableError(f"shard {shard_id}: its database is empty")
                result = await self._change_if_active(connection, business_id, location_id, change, shard_id)
                server = await note_server(connection)
            if result in {ChangeResult.APPLIED, ChangeResult.EXISTED}:
                self._on_change(keys)
            await self._commits.wait_for_transaction(shard_id, server, within_s=SAFE_WITHIN_S)
        return result

    async def _change_if_active(
        self, connection: Connection, business_id: str, location_id: str, change: Change, shard_id: str
    ) -> ChangeResult:
        tenant_id = tenant_id_of(business_id, location_id)
        row = await connection.fetchrow(QUERIES["lock_tenants"], [tenant_id])
        if row is None:
            self._directory.forget(tenant_id)
            raise RetryableError("the tenant has left the shard")
        if not is_row_of(row, business_id, location_id):
            raise id_taken_error(tenant_id)
        match TenantState(row["state"]):
            case TenantState.ACTIVE:
                await name_change(connection, MarkOrigin.CONTROL)
                return await change(connection, shard_id)
            case TenantState.DESTROYING | TenantState.DESTROYED:
                return ChangeResult.TENANT_DESTROYED
            case _:
                self._directory.forget(tenant_id)
                raise RetryableError("the tenant is being moved or imported")

    async def _find_pool(self, tenant_id: str) -> ShardPool | None:
        with refused_address_as_retryable():
            found = await self._directory.find(tenant_id)
        match found:
            case Absence.UNREGISTERED | Absence.NOT_HERE:
                return None
            case Absence.INACTIVE | Absence.MOVING:
                raise RetryableError("the tenant's shard is not active, or the tenant is being moved")
            case _:
                return self._pools.ensure_pool(found)


async def _rename(connection: Connection, key: ResourceId, rename: ResourceRename) -> str:
    patch = rename.additional_data
    try:
        merged = None if patch is None else await merge_into_row(connection, key, patch)
    except UnmergeableError as exc:
        raise PermanentError(f"additionalData: {exc}") from None
    if merged is not None:
        tenant_id, resource_type, _ = key
        await judge_change(connection, tenant_id, {resource_type: merged}, member="additionalData")
    requested_at = timestamp_text(rename.requested_at)
    status: str = await connection.execute(
        QUERIES["rename_resource"], *key, rename.new_resource_id, merged, requested_at
    )
    return status


READ_MAX: Final = 10_000  # of one shard


async def find_known_types(locator: Locator, pools: Pools) -> dict[str, Mapping[str, str]]:
    """Return the types that a shard which answers has, and those that an empty one gets, with their `stored_names`."""
    found = await fetch_from_all_shards(locator, pools, QUERIES["name_types"], READ_MAX)
    known = {name: file.type.stored_names for name, file in BUSINESS_TYPES.items()}
    known |= {row["name"]: msgspec.json.decode(row["stored_names"]) for _, row in found.rows}
    return dict(sorted(known.items()))


PAGE_ROWS: Final = 500  # operations of the tenant wait for one page


class OtherName(msgspec.Struct, frozen=True, rename="camel"):
    """Resources on a shard that are to be stored under another name; of *under_both* there is a document of each."""

    shard_id: str
    type: str
    resource_type: str
    stored_as: str
    resources: int
    tenants: int
    under_both: int


async def find_other_names(pool: ShardPool, files: Mapping[str, TypeFile]) -> list[OtherName]:
    """Return what a shard has by the types of *files*, and by its own others. Raises `RetryableError`."""
    found = groupby(await _find(pool, files), key=itemgetter("business_type", "name", "stored_as"))
    return [
        OtherName(
            pool.address.shard_id,
            kind,
            name,
            stored_as,
            resources=sum(row["resource_count"] for row in rows),
            tenants=len(rows),
            under_both=sum(row["both_count"] for row in rows),
        )
        for (kind, name, stored_as), group in found
        for rows in [list(group)]
    ]


async def store_under_names(pool: ShardPool, files: Mapping[str, TypeFile]) -> int:
    """Move what `find_other_names` finds to the names of the types; return the number of resources.

    An id under both names stays, as do resources of tenants that are not active.
    """
    rows = await _find(pool, files)
    return sum([await _store(pool, row["tenant_id"], row["name"], row["stored_as"]) for row in rows])


async def _find(pool: ShardPool, files: Mapping[str, TypeFile]) -> Sequence[Any]:
    rows = await fetch_from_shard(pool, QUERIES["name_types"], READ_MAX)
    known = {row["name"]: msgspec.json.decode(row["stored_names"]) for row in rows}
    known |= {name: file.type.stored_names for name, file in files.items()}
    wanted = [(kind, *names) for kind, stored_names in sorted(known.items()) for names in sorted(stored_names.items())]
    columns = [[one[index] for one in wanted] for index in range(3)]
    return await fetch_from_shard(pool, QUERIES["find_other_names"], *columns)


async def _store(pool: ShardPool, tenant_id: str, name: str, stored_as: str) -> int:
    count, last = 0, ""
    while True:
        async with pool.transaction(budget=StatementBudget.PAUSE) as connection:
            (tenant,) = await connection.fetch(QUERIES["lock_tenants_for_control"], [tenant_id]) or (None,)
            if tenant is None or tenant["state"] != TenantState.ACTIVE:
                return count
            await name_change(connection, MarkOrigin.RENAME)
            rows = await connection.fetch(QUERIES["store_under_name"], tenant_id, name, stored_as, last, PAGE_ROWS)
            ids = sorted(row["resource_id"] for row in rows)
            await mark_changes(connection, [(tenant_id, one, id_) for id_ in ids for one in (name, stored_as)])
        count += len(ids)
        if len(ids) < PAGE_ROWS:
            return count
        last = ids[-1]
