"""List the operations of a tenant from its shard's log, with little work for the shard (sql/queries/listing.sql)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from simplu_worker.errors import RetryableError
from simplu_worker.operations.operation import is_id, tenant_id_of
from simplu_worker.shards.listing.page import (
    SEARCH_LIMITS,
    ListedOperation,
    OperationPage,
    PageSearch,
    SearchChunk,
    SearchLimits,
    SearchStep,
    listed_members,
)
from simplu_worker.shards.listing.request import ListRequest
from simplu_worker.shards.postgres.errors import StatementFailedError
from simplu_worker.shards.postgres.pool import Connection, Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.routing.directory import HOME_STATES, Directory
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import Absence


class OperationLister:
    """Lists operations. Of all lists one at a time uses a connection to a shard, so that batches find one free."""

    def __init__(
        self,
        directory: Directory,
        pools: Pools,
        *,
        limits: SearchLimits = SEARCH_LIMITS,
        clock: Callable[[], float] = loop_time,
    ) -> None:
        self._directory = directory
        self._pools = pools
        self._limits = limits
        self._clock = clock
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def __repr__(self) -> str:
        return f"OperationLister({self._limits})"

    async def list_page(self, business_id: str, location_id: str, request: ListRequest) -> OperationPage | Absence:
        """Return a page of the operations of a tenant, or why no shard has the tenant.

        Raises `RetryableError` if Citrus or the shard does not answer, or takes too long; `PermanentError` if the
        shard's address may not be used.
        """
        if not (is_id(business_id) and is_id(location_id)):
            return Absence.UNREGISTERED
        return await self._directory.ask_home(
            tenant_id_of(business_id, location_id),
            lambda shard: self._search(self._pools.ensure_pool(shard), (business_id, location_id), request),
        )

    async def _search(
        self, pool: ShardPool, tenant: tuple[str, str], request: ListRequest
    ) -> OperationPage | Absence | None:
        """Return a page, or that another pair of ids has the row; None if the tenant does not live on the shard."""
        search = PageSearch(request, self._limits)
        tenant_id, shard_id = tenant_id_of(*tenant), pool.address.shard_id
        started_at = self._clock()
        while not search.is_complete(self._clock() - started_at):
            try:
                async with (
                    self._turns[shard_id],
                    # Rolled back at its end: a transaction that only reads is no proof that the shard takes commits.
                    pool.transaction(is_rehearsal=True, budget=StatementBudget.SEARCH) as connection,
                ):
                    await self._read_next(connection, tenant_id, request, search)
                    # After the rows: a tenant that lives here now has lived here when they were read.
                    row = await connection.fetchrow(QUERIES["find_tenants"], [tenant_id])
                    if row is None or row["state"] not in HOME_STATES:
                        return None
                    if (row["business_id"], row["location_id"]) != tenant:  # another pair's id
                        return Absence.UNREGISTERED
            except StatementFailedError as exc:
                if not exc.is_timeout:
                    raise
                if search.step is SearchStep.FEW:  # its rows are on many cold pages
                    search.note_large()
                    continue
                raise RetryableError(
                    f"shard {shard_id}: expected a part of its log within "
                    f"{pool.seconds_of(StatementBudget.SEARCH):g} s, got no answer; ask again, or narrow the time"
                ) from exc
        return search.result(shard_id)

    async def _read_next(
        self, connection: Connection, tenant_id: str, request: ListRequest, search: PageSearch
    ) -> None:
        """Read the next part of the log for *search*."""
        types = None
        if request.resource_type is not None:  # operations have the names that were sent
            types = await connection.fetchval(QUERIES["find_type_names"], tenant_id, request.resource_type)
        arguments = [
            tenant_id,
            search.position.at,
            search.position.request_id,
            search.since,
            types,
            request.resource_id,
            request.status,
            request.error,
            search.missing_count,
        ]
        match search.step:
            case SearchStep.CHUNK:
                rows = await connection.fetch(QUERIES["search_operations"], *arguments, self._limits.chunk_rows)
                found = _operations_of(row for row in rows if row["request_id"] is not None)
                search.add_chunk(SearchChunk(found, rows[0]["row_count"], rows[0]["oldest"], rows[0]["is_last"]))
            case SearchStep.INSTANT:
                rows = await connection.fetch(QUERIES["search_operations_of_instant"], *arguments)
                search.add_instant(_operations_of(rows))
            case SearchStep.FEW:
                if await connection.fetchval(QUERIES["has_few_operations"], tenant_id, self._limits.few):
                    rows = await connection.fetch(QUERIES["list_few_operations"], *arguments, self._limits.few)
                    search.add_few(_operations_of(rows))
                else:
                    search.note_large()


def _operations_of(rows: Iterable[Mapping[str, Any]]) -> list[ListedOperation]:
    return [ListedOperation(**listed_members(row)) for row in rows]
