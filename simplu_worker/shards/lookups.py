"""What people ask of the shards: operations, rejected records, tenants and resources. Notes of rejected records."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from simplu_worker.bulkheads import of_shard, of_tenant
from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.operations.operation import ABSENCE_MAX_AGE_S, is_storable, tenant_id_of
from simplu_worker.shards.listing import ListedOperation, OperationLister, listed_members
from simplu_worker.shards.log import key_of_id, note_rejections
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.directory import DESTROYED_STATES, Directory
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_query import (
    ShardRows,
    fetch_from_all_shards,
    fetch_from_shard,
    query_all_shards,
)
from simplu_worker.shards.tenants.control_rules import is_row_of
from simplu_worker.shards.types import (
    HOMELESS,
    Rejection,
    ShardPositionRows,
    StreamPosition,
    StreamShards,
    TenantControls,
)
from simplu_worker.timing.sharing import Coalescer
from simplu_worker.vocabulary import Absence, TenantState

RESOURCE_SHOWN_MAX_BYTES: Final = 256 * 1024  # of a document for a person to look at
UNPLACED_SHARDS: Final = 3  # few, as each question about a tenant without a home goes to all of them
NO_STREAM_SHARDS: Final = StreamShards("", ())


class LoggedOperation(ListedOperation, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """One operation as its row in the shard's log; *result* is JSON text as Postgres wrote it."""

    shard_id: str
    result: msgspec.Raw | None = None


class FoundOperation(NamedTuple):
    """The answer of the shards about one operation, or why its tenant has no home.

    *silent_shard_ids* are the asked shards that did not answer, *positions* the rows of those that did.
    """

    operation: LoggedOperation | Absence | None
    silent_shard_ids: Sequence[str] = ()
    positions: Sequence[ShardPositionRows] = ()


class RejectedRequest(
    msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, tag_field="status", tag="rejected"
):
    """A record that was rejected, as its row on the shard of its tenant."""

    request_id: str
    reason: str
    error: str
    dead_letter_queue: str
    source: str
    rejected_at: datetime
    shard_id: str
    sequence_number: str | None = None
    message_id: str | None = None


class ShardLookups:
    """The questions to the shards of *pools*, each to the tenant's home or to all shards."""

    def __init__(self, directory: Directory, locator: Locator, pools: Pools) -> None:
        self._directory = directory
        self._locator = locator
        self._pools = pools
        self.list_operations = OperationLister(directory, pools).list_page
        self._decisions: Coalescer[ShardAddress, tuple[str, str, str], bool | None] = Coalescer(self._fetch_decisions)

    async def find_operation(
        self,
        request_id: str,
        tenant_id: str | None,
        *,
        names: tuple[str, str] | None = None,
        stream: StreamShards = NO_STREAM_SHARDS,
    ) -> FoundOperation:
        """Return one operation from the log, with the shards' rows of the stream shards in *stream*.

        *names*, business id and location id, tell tenants with one id apart. Without the tenant all shards are asked,
        and the newest is returned.
        """
        if not is_storable(request_id):
            return FoundOperation(None)
        if tenant_id is not None:
            return await self._find_operation_of(tenant_id, names, request_id, stream)
        survey = await self.survey(
            "find_operation_of_any_tenant", stream.stream, list(stream.ids), key_of_id(request_id)
        )
        rows = {shard_id: _positions_in(row["positions"]) for shard_id, row in survey.rows}
        found = [(shard_id, row) for shard_id, row in survey.rows if row["request_id"] is not None]
        operation: LoggedOperation | Absence | None = None
        if found:
            shard_id, row = max(found, key=lambda one: one[1]["completed_at"])
            if row["lives_here"]:
                operation = _operation_of(shard_id, row)
            else:
                operation = (await self._find_operation_of(row["tenant_id"], None, request_id, stream)).operation
        return FoundOperation(operation, survey.silent_shard_ids, list(rows.values()))

    async def _find_operation_of(
        self, tenant_id: str, names: tuple[str, str] | None, request_id: str, stream: StreamShards
    ) -> FoundOperation:
        async def find(shard: ShardAddress) -> FoundOperation | None:
            asked = stream.stream, list(stream.ids)
            row = await self._fetch_one(shard, "find_operation", *asked, tenant_id, key_of_id(request_id))
            if row is None:
                return None
            if names not in {None, (row["business_id"], row["location_id"])}:
                return FoundOperation(Absence.UNREGISTERED)
            operation = None if row["request_id"] is None else _operation_of(shard.shard_id, row)
            return FoundOperation(operation, [], [_positions_in(row["positions"])])

        if not is_storable(tenant_id):
            return FoundOperation(None)
        found = await self._directory.ask_home(tenant_id, find)
        return FoundOperation(self.absence_of(names, found)) if isinstance(found, Absence) else found

    def absence_of(self, names: tuple[str, str] | None, found: Absence) -> Absence:
        """Return *found*, why the tenant has no home now, as those with the ids *names* see it."""
        is_other = names is not None and self._directory.routes.is_tenant(*names) is False
        return Absence.UNREGISTERED if is_other else found

    @of_tenant
    async def is_decided(self, tenant_id: str, business_id: str, request_id: str) -> bool:
        """Return whether an operation has an outcome, a rejection too; False of a tenant without a home."""
        if not (is_storable(tenant_id) and is_storable(request_id)):
            return False
        found = await self._directory.find(tenant_id, absence_max_age_s=ABSENCE_MAX_AGE_S)
        if not isinstance(found, ShardAddress):
            return False
        (has_left,) = await self._decisions.submit(found, [(tenant_id, business_id, request_id)])
        if has_left:
            self._directory.forget(tenant_id)
        return has_left is False

    async def _fetch_decisions(self, shard: ShardAddress, keys: Sequence[tuple[str, str, str]]) -> list[bool | None]:
        tenant_ids, business_ids, request_ids = zip(*keys, strict=True)
        requests = [key_of_id(request_id) for request_id in request_ids]
        async with self._pools.ensure_pool(shard).connection() as connection:
            rows = await connection.fetch(QUERIES["find_decided"], tenant_ids, business_ids, requests, request_ids)
        found = {row["number"] - 1: row["has_left"] for row in rows}
        return [found.get(number) for number in range(len(keys))]

    async def find_rejection(
        self, request_id: str, tenant_id: str | None, *, names: tuple[str, str] | None = None
    ) -> RejectedRequest | Absence | None:
        """Return the last record that was rejected with a request id, where `find_operation` finds none."""
        if not (is_storable(request_id) and is_storable(tenant_id or "")):
            return None
        if tenant_id is None:
            known = await self._locator.list_shards()
            return await self._newest_rejection(known, "find_rejection_of_any_tenant", request_id)
        business_id = None if names is None else names[0]

        async def find(shard: ShardAddress) -> tuple[RejectedRequest | None] | Absence | None:
            rows = await fetch_from_shard(
                self._pools.ensure_pool(shard), QUERIES["find_rejections"], tenant_id, request_id
            )
            if not rows:
                return None
            if business_id not in {None, rows[0].pop("business_id")}:
                return Absence.UNREGISTERED
            return (RejectedRequest(**rows[0], shard_id=shard.shard_id) if rows[0]["request_id"] else None,)

        # Mostly asked for what `find_operation` has not found: without another look for a tenant that is unknown.
        at_home: tuple[RejectedRequest | None] | Absence
        at_home = await self._directory.ask_home(tenant_id, find, absence_max_age_s=ABSENCE_MAX_AGE_S)
        if isinstance(at_home, tuple):
            return at_home[0]
        absence = self.absence_of(names, at_home)
        if absence not in HOMELESS:
            return absence
        shards = await self._unplaced_shards()
        unplaced = await self._newest_rejection(shards, "find_unplaced_rejections", request_id, tenant_id, business_id)
        return unplaced or absence

    async def _newest_rejection(
        self, shards: Sequence[ShardAddress], query: str, *arguments: object
    ) -> RejectedRequest | None:

        async def fetch(shard: ShardAddress) -> list[dict[str, Any]]:
            return await fetch_from_shard(self._pools.ensure_pool(shard), QUERIES[query], *arguments)

        answers = await query_all_shards(shards, fetch)
        found = [RejectedRequest(**row, shard_id=shard_id) for shard_id, rows in answers.items() for row in rows]
        return max(found, key=lambda one: one.rejected_at, default=None)

    async def _unplaced_shards(self) -> Sequence[ShardAddress]:
        return sorted(await self._locator.list_shards(), key=lambda shard: shard.shard_id)[:UNPLACED_SHARDS]

    async def note_unplaced_rejections(self, dead_letter_queue: str, rejections: Sequence[Rejection]) -> bool:
        """Write *rejections* of tenants without a home on the first shard that answers; False without room."""
        error: WorkerError = RetryableError("no shard is known")
        for shard in await self._unplaced_shards():
            try:
                pool = self._pools.ensure_pool(shard)
                return bool(await note_rejections(pool, dead_letter_queue, rejections, are_homeless=True))
            except WorkerError as exc:
                error = exc
        raise RetryableError(str(error))

    @of_shard
    async def note_rejections(
        self, shard_id: str, dead_letter_queue: str, rejections: Sequence[Rejection]
    ) -> dict[str, str]:
        """Write *rejections* of a shard's tenants; return the businesses of those that live there, by id."""
        homes = await note_rejections(self._pools.pool_of(shard_id), dead_letter_queue, rejections)
        for tenant_id in {one.tenant_id for one in rejections} - homes.keys():
            self._directory.forget(tenant_id)
        return homes

    @of_tenant
    async def find_tenant(self, tenant_id: str) -> tuple[str, dict[str, Any]] | Absence:
        """Return the shard of a tenant and its row, with counts of resources and operations."""

        async def show(shard: ShardAddress) -> tuple[str, dict[str, Any]] | None:
            row = await self._fetch_one(shard, "show_tenant", tenant_id)
            return (shard.shard_id, row) if row is not None and row["lives_here"] else None

        return await self._directory.ask_home(tenant_id, show) if is_storable(tenant_id) else Absence.UNREGISTERED

    async def find_resource(
        self, business_id: str, location_id: str, resource_type: str, resource_id: str
    ) -> tuple[str, dict[str, Any]] | Absence:
        """Return a tenant's shard, and the row of a resource: `is_there`, and columns or nulls."""
        tenant_id = tenant_id_of(business_id, location_id)

        async def show(shard: ShardAddress) -> tuple[str, dict[str, Any]] | None:
            row = await self._fetch_one(shard, "show_resource", *key, RESOURCE_SHOWN_MAX_BYTES)
            return None if row is None else (shard.shard_id, row)

        key = (tenant_id, resource_type, resource_id)
        return await self._directory.ask_home(tenant_id, show) if all(map(is_storable, key)) else Absence.UNREGISTERED

    async def find_versions(
        self, query: str, business_id: str, location_id: str, resource_type: str, key: str, *arguments: object
    ) -> list[dict[str, Any]] | Absence:
        """Return the rows of a query of `history.sql` at a tenant's home."""
        names = (tenant_id_of(business_id, location_id), resource_type, key)

        async def fetch(shard: ShardAddress) -> list[dict[str, Any]] | None:
            pool = self._pools.ensure_pool(shard)
            return await fetch_from_shard(pool, QUERIES[query], *names, *arguments) or None

        return await self._directory.ask_home(names[0], fetch) if all(map(is_storable, names)) else Absence.UNREGISTERED

    async def set_controls(
        self, business_id: str, location_id: str, controls: TenantControls
    ) -> tuple[str, dict[str, Any]] | TenantState | Absence:
        """Set what a person wants for a tenant; return its shard and row, its end as state, or why it has no shard."""
        tenant_id = tenant_id_of(business_id, location_id)

        async def write(shard: ShardAddress) -> tuple[str, dict[str, Any]] | TenantState | Absence | None:
            ids = (tenant_id, business_id, location_id)
            row = await self._fetch_one(shard, "set_controls", *ids, *msgspec.structs.astuple(controls))
            if row is not None:
                return shard.shard_id, row
            if (row := await self._fetch_one(shard, "find_tenants", [tenant_id])) is None:
                return None
            if not is_row_of(row, business_id, location_id):
                return Absence.UNREGISTERED
            return TenantState(row["state"]) if row["state"] in DESTROYED_STATES else None

        return await self._directory.ask_home(tenant_id, write) if is_storable(tenant_id) else Absence.UNREGISTERED

    async def set_business_controls(self, business_id: str, controls: TenantControls) -> ShardRows:
        """Set what a person wants for all locations of a business, on each shard with any; return the rows of these."""
        return await self.survey("set_business_controls", business_id, *msgspec.structs.astuple(controls))

    async def survey(self, query: str, *arguments: object) -> ShardRows:
        """Run a query on every known shard, each for at most a few seconds."""
        return await fetch_from_all_shards(self._locator, self._pools, QUERIES[query], *arguments)

    async def _fetch_one(self, shard: ShardAddress, query: str, *arguments: object) -> dict[str, Any] | None:
        async with self._pools.ensure_pool(shard).connection() as connection:
            row = await connection.fetchrow(QUERIES[query], *arguments)
        return None if row is None else dict(row)


def _operation_of(shard_id: str, row: dict[str, Any]) -> LoggedOperation:
    result = None if row["result"] is None else msgspec.Raw(row["result"].encode())
    return LoggedOperation(**listed_members(row), shard_id=shard_id, result=result)


def _positions_in(document: str | None) -> ShardPositionRows:
    return {} if document is None else msgspec.json.decode(document, type=dict[str, StreamPosition])
