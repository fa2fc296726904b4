"""The home of a tenant: the shard that has its row, as the shards themselves report.

Three passes, each for tenants not found yet: the shard that the locator names; shards on which the tenant may have
lived before; every other shard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_query import group_by_shard
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.shards.types import HomeUnknownError, ShardUnavailableError
from simplu_worker.timing.sharing import Coalescer
from simplu_worker.vocabulary import TenantState

MOVES_MAX: Final = 8  # forward pointers followed for one tenant
QUERIES_AT_ONCE: Final = 16
ANSWER_S: Final = 0.5  # a row takes milliseconds: behind a read without an answer for so long, no other one waits
ARRIVING_STATES: Final = frozenset({TenantState.INCOMING, TenantState.READY})


class TenantHome(msgspec.Struct, frozen=True):
    """A shard with a row of a tenant, the row, and the shard *left* for this one."""

    address: ShardAddress
    tenant: dict[str, Any]
    left: ShardAddress | None = None


Answer: TypeAlias = "TenantHome | WorkerError"
"""Of one shard about one tenant; a shard without a row gives none."""


class TenantHomes:
    """Finds homes on the shards that *locator* names."""

    def __init__(self, locator: Locator, pools: Pools) -> None:
        self._locator = locator
        self._pools = pools
        self._row_reads: Coalescer[ShardAddress, str, dict[str, Any] | None] = Coalescer(self._read_rows)

    async def find_homes(self, named: Mapping[str, ShardAddress]) -> dict[str, Answer | None]:
        """Return the home of each tenant, at the end of its moves; *named* are the shards that the locator names.

        None: every shard on which the tenant may live answered that it has no row. A destroyed row counts only on the
        named shard, and only without another row; one of a tenant that is moving to a shard, only without a row that it
        has not left. An error stands while a shard that may have the tenant does not answer: `HomeUnknownError` if that
        is not the named one.
        """
        on_named = await self._query_shards({tenant_id: [address] for tenant_id, address in named.items()})
        destroyed = {
            tenant_id: answers[0] for tenant_id, answers in on_named.items() if answers and not _may_be_home(answers[0])
        }
        found = _first_possible(on_named)
        _add_better(found, await self._find_elsewhere(_without(found, named)))
        return {
            tenant_id: await self._follow_answer(tenant_id, found.get(tenant_id, destroyed.get(tenant_id)))
            for tenant_id in named
        }

    async def _find_elsewhere(self, named: Mapping[str, ShardAddress]) -> dict[str, Answer]:
        if not named:
            return {}
        try:
            possible = await self._locator.list_possible_homes(named)
        except (RetryableError, PermanentError) as exc:
            return dict.fromkeys(named, exc)
        asked = {
            tenant_id: {named[tenant_id].shard_id, *(shard.shard_id for shard in shards)}
            for tenant_id, shards in possible.items()
        }
        answers = await self._query_shards(
            {
                tenant_id: [shard for shard in shards if shard.shard_id != named[tenant_id].shard_id]
                for tenant_id, shards in possible.items()
            }
        )
        found = {tenant_id: _of_earlier_home(answer) for tenant_id, answer in _first_possible(answers).items()}
        # An earlier map, with other pins, may have placed it on any other shard; one that does not answer is ignored.
        others = await self._query_shards(
            {
                tenant_id: [shard for shard in self._locator.known_shards() if shard.shard_id not in asked[tenant_id]]
                for tenant_id in _without(found, named)
            }
        )
        homes = {one: [answer for answer in some if isinstance(answer, TenantHome)] for one, some in others.items()}
        _add_better(found, _first_possible(homes))
        return found

    async def _query_shards(self, shards_by_tenant: Mapping[str, Sequence[ShardAddress]]) -> dict[str, list[Answer]]:
        answers: dict[str, list[Answer]] = {tenant_id: [] for tenant_id in shards_by_tenant}
        slots = asyncio.Semaphore(QUERIES_AT_ONCE)

        async def query(shard: ShardAddress, tenant_ids: Sequence[str]) -> None:
            try:
                async with slots:
                    rows = await self.fetch_rows(shard, tenant_ids)
            except RetryableError as exc:
                for tenant_id in tenant_ids:
                    answers[tenant_id].append(exc)
            else:
                for tenant_id, row in rows.items():
                    answers[tenant_id].insert(0, TenantHome(shard, row))

        pairs = ((shard, tenant_id) for tenant_id, shards in shards_by_tenant.items() for shard in shards)
        async with asyncio.TaskGroup() as tasks:
            for shard, tenant_ids in group_by_shard(pairs):
                tasks.create_task(query(shard, tenant_ids), name=f"home:{shard.shard_id}")
        return answers

    async def fetch_rows(
        self, address: ShardAddress, tenant_ids: Sequence[str], *, query: str = "find_tenants"
    ) -> dict[str, dict[str, Any]]:
        """Return the tenants' rows on one shard by id."""
        pool = self._pools.ensure_pool(address)
        async with pool.connection() as connection:
            if not await has_schema(connection, pool):
                return {}
            rows = await connection.fetch(QUERIES[query], tenant_ids)
        return {row["id"]: dict(row) for row in rows}

    async def fetch_row(self, address: ShardAddress, tenant_id: str) -> dict[str, Any] | None:
        """Return a tenant's row on one shard, or None. Concurrent callers share queries."""
        pool = self._pools.ensure_pool(address)
        try:  # the first connection takes longer, while a worker that starts has most to decode
            patience_s = ANSWER_S if pool.was_found else None
            (row,) = await self._row_reads.submit(address, [tenant_id], patience_s=patience_s)
        except TimeoutError:
            raise pool.unavailable_error("no answer to the read before") from None
        return row

    async def _read_rows(self, address: ShardAddress, tenant_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        rows = await self.fetch_rows(address, tenant_ids)
        return [rows.get(tenant_id) for tenant_id in tenant_ids]

    async def _follow_answer(self, tenant_id: str, answer: Answer | None) -> Answer | None:
        if not isinstance(answer, TenantHome):
            return answer
        try:
            return await self.follow_moves(answer, tenant_id)
        except (RetryableError, PermanentError) as exc:
            return exc

    async def follow_moves(self, home: TenantHome, tenant_id: str) -> TenantHome:
        """Return the home of a tenant that moved from *home*. Raises `RetryableError`."""
        move_count = 0
        while home.tenant["state"] == TenantState.MOVED and move_count < MOVES_MAX:
            move_count += 1
            target = await self.find_address(home.tenant["moved_to"])
            row = await self.fetch_row(target, tenant_id) if target else None
            if target is None or row is None:
                raise ShardUnavailableError(
                    f"a tenant moved from shard {home.address.shard_id} to {home.tenant['moved_to']}: "
                    "expected its row there, got none"
                )
            home = TenantHome(target, row, left=home.address)
        return home

    async def find_address(self, shard_id: str | None) -> ShardAddress | None:
        """Return the address of a shard; None if the locator does not know it."""
        known = self._locator.known_address(shard_id or "")
        return known or next((shard for shard in await self._locator.list_shards() if shard.shard_id == shard_id), None)


def _may_be_home(answer: Answer) -> bool:
    return not isinstance(answer, TenantHome) or answer.tenant["state"] != TenantState.DESTROYED


def _is_arriving(answer: Answer) -> bool:
    return isinstance(answer, TenantHome) and answer.tenant["state"] in ARRIVING_STATES


def _first_possible(answers: Mapping[str, Sequence[Answer]]) -> dict[str, Answer]:
    firsts = {
        tenant_id: min(filter(_may_be_home, some), key=_is_arriving, default=None)
        for tenant_id, some in answers.items()
    }
    return {tenant_id: answer for tenant_id, answer in firsts.items() if answer is not None}


def _add_better(found: dict[str, Answer], later: Mapping[str, Answer]) -> None:
    found |= {one: answer for one, answer in later.items() if one not in found or not _is_arriving(answer)}


def _without(found: Mapping[str, Answer], named: Mapping[str, ShardAddress]) -> dict[str, ShardAddress]:
    return {one: address for one, address in named.items() if one not in found or _is_arriving(found[one])}


def _of_earlier_home(answer: Answer) -> Answer:
    if isinstance(answer, TenantHome):
        return answer
    error = HomeUnknownError(f"the shards that answer do not have the tenant, and another one may: {answer}")
    error.__cause__ = answer
    return error
