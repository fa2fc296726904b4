"""Which shard has a tenant's row: asked of the shards themselves, who have the last word."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.operations.admission import TenantState
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.schema.schema_check import SchemaState, check_schema
from simplu_worker.shards.types import ShardUnavailableError

MOVES_MAX: Final = 8  # forward pointers followed for one tenant
QUERIES_AT_ONCE: Final = 16


class EarlierHomeUnavailableError(ShardUnavailableError):
    """A tenant may live on a shard that does not answer; the one that is named was asked, and has no row."""


class TenantHome(msgspec.Struct, frozen=True):
    """The shard that says a tenant is its own, and the row in which it says so."""

    address: ShardAddress
    tenant: dict[str, Any]


class TenantHomes:
    """Asks the shards that *locator* names."""

    def __init__(self, locator: Locator, pools: Pools) -> None:
        self._locator = locator
        self._pools = pools

    async def find_homes(self, named: Mapping[str, ShardAddress]) -> dict[str, TenantHome | WorkerError | None]:
        """Return the shard that has each tenant's row: the named one, an earlier home, or where it moved from there.

        A destroyed row is nobody's home, but on the named shard it is found when no other has a better one. None means
        that every shard where it may live or have lived was asked. An error is told while one of them does not answer:
        `EarlierHomeUnavailableError` where it is not the named one. Each shard is asked once for all, and those that
        `Locator.list_fallback_homes` names after the others; nobody waits for the silent ones of them.
        """
        answers = await self._query_shards({tenant_id: [address] for tenant_id, address in named.items()})
        ended = {tenant_id: found for tenant_id, found in answers.items() if found and not _may_be_home(found[0])}
        missing = [tenant_id for tenant_id in named if tenant_id in ended or not answers[tenant_id]]
        try:
            earlier = await self._locator.list_possible_homes(missing) if missing else {}
        except (RetryableError, PermanentError) as exc:
            return {
                tenant_id: exc if tenant_id in missing else await self._follow_answer(tenant_id, answers[tenant_id])
                for tenant_id in named
            }
        others = {
            tenant_id: [shard for shard in shards if shard.shard_id != named[tenant_id].shard_id]
            for tenant_id, shards in earlier.items()
        }
        for tenant_id, found in (await self._query_shards(others)).items():
            answers[tenant_id] = [_of_earlier(answer) for answer in found if _may_be_home(answer)] or ended.get(
                tenant_id, []
            )
        unfound = [tenant_id for tenant_id in missing if answers[tenant_id] == ended.get(tenant_id, [])]
        for tenant_id, found in (await self._query_shards(await self._locator.list_fallback_homes(unfound))).items():
            homes = [answer for answer in found if isinstance(answer, TenantHome) and _may_be_home(answer)]
            answers[tenant_id] = [*homes, *answers[tenant_id]]
        return {tenant_id: await self._follow_answer(tenant_id, answers[tenant_id]) for tenant_id in named}

    async def _query_shards(
        self, places: Mapping[str, Sequence[ShardAddress]]
    ) -> dict[str, list[TenantHome | RetryableError]]:
        """Ask for each tenant the shards where it may be, all at once; homes come first, "no row" is left out."""
        found: dict[str, list[TenantHome | RetryableError]] = {tenant_id: [] for tenant_id in places}
        asked: dict[str, tuple[ShardAddress, list[str]]] = {}
        for tenant_id, shards in places.items():
            for shard in shards:
                asked.setdefault(shard.shard_id, (shard, []))[1].append(tenant_id)
        at_once = asyncio.Semaphore(QUERIES_AT_ONCE)

        async def ask(shard: ShardAddress, tenant_ids: Sequence[str]) -> None:
            try:
                async with at_once:
                    rows = await self.fetch_rows(shard, tenant_ids)
            except RetryableError as exc:
                for tenant_id in tenant_ids:
                    found[tenant_id].append(exc)
            else:
                for tenant_id, row in rows.items():
                    found[tenant_id].insert(0, TenantHome(shard, row))

        async with asyncio.TaskGroup() as tasks:
            for shard, tenant_ids in asked.values():
                tasks.create_task(ask(shard, tenant_ids), name=f"home:{shard.shard_id}")
        return found

    async def fetch_rows(
        self, address: ShardAddress, tenant_ids: Sequence[str], *, query: str = "find_tenants"
    ) -> dict[str, dict[str, Any]]:
        """Return what a query says of the tenants' rows on one shard, by id; without those it does not have."""
        async with self._pools.ensure_pool(address).connection() as connection:
            if await check_schema(connection, address.shard_id) is SchemaState.EMPTY:
                return {}
            rows = await connection.fetch(QUERIES[query], tenant_ids)
        self._locator.address_book.mark_proven(address)
        return {row["id"]: dict(row) for row in rows}

    async def _follow_answer(
        self, tenant_id: str, found: Sequence[TenantHome | RetryableError]
    ) -> TenantHome | WorkerError | None:
        match found:
            case [TenantHome() as home, *_]:
                try:
                    return await self.follow_moves(home, tenant_id)
                except (RetryableError, PermanentError) as exc:
                    return exc
            case [RetryableError() as trouble, *_]:
                return trouble
            case _:
                return None

    async def follow_moves(self, home: TenantHome, tenant_id: str) -> TenantHome:
        """Return where a tenant is that moved from *home*; raise `RetryableError` when it is not there."""
        hops = 0
        while home.tenant["state"] == TenantState.MOVED and hops < MOVES_MAX:
            hops += 1
            target = await self.find_address(home.tenant["moved_to"])
            row = (await self.fetch_rows(target, [tenant_id])).get(tenant_id) if target else None
            if target is None or row is None:
                raise ShardUnavailableError(
                    f"a tenant moved from shard {home.address.shard_id} to {home.tenant['moved_to']}, "
                    "which has no row of it"
                )
            home = TenantHome(target, row)
        return home

    async def find_address(self, shard_id: str | None) -> ShardAddress | None:
        """Return where a shard is; None when nobody knows it. Raises as the locator does."""
        known = self._locator.address_book.known_address(shard_id or "")
        return known or next((shard for shard in await self._locator.list_shards() if shard.shard_id == shard_id), None)


def _may_be_home(answer: TenantHome | RetryableError) -> bool:
    """Tell whether an answer says, or may yet say, where a tenant lives: a destroyed row does not."""
    return not isinstance(answer, TenantHome) or answer.tenant["state"] != TenantState.DESTROYED


def _of_earlier(answer: TenantHome | RetryableError) -> TenantHome | RetryableError:
    if isinstance(answer, TenantHome):
        return answer
    silent = EarlierHomeUnavailableError(str(answer), shard_id=getattr(answer, "shard_id", None))
    silent.__cause__ = answer
    return silent
