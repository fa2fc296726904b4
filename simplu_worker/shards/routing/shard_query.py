"""Query one shard, or all known shards concurrently and under a deadline, with the ids of those that did not answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from simplu_worker.bulkheads import translate
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.timing.waits import run_at_once
from simplu_worker.vocabulary import TargetKind

Item = TypeVar("Item")
Result = TypeVar("Result")


class QueryLimits(msgspec.Struct, frozen=True):
    """The time for one shard's answer and for all of them, and the number of concurrent queries."""

    answer_s: float = 5.0
    all_s: float = 15.0
    at_once: int = 64  # each takes a connection, and many shards may be databases of a few servers


LIMITS: Final = QueryLimits()


class ShardRows(msgspec.Struct, frozen=True):
    """The rows of all shards for one query, and the ids of the shards that did not answer."""

    rows: list[tuple[str, dict[str, Any]]]  # (shard id, row)
    silent_shard_ids: list[str]


async def fetch_from_shard(pool: ShardPool, query: str, *arguments: object) -> list[dict[str, Any]]:
    """Return the rows of the SQL *query* on one shard; none if its database is empty. Raises `RetryableError`."""
    async with pool.connection() as connection:
        if not await has_schema(connection, pool):
            return []
        return [dict(row) for row in await connection.fetch(query, *arguments)]


async def fetch_from_all_shards(
    locator: Locator, pools: Pools, query: str, *arguments: object, limits: QueryLimits = LIMITS
) -> ShardRows:
    """Return the rows of the SQL *query* on every known shard. Raises as `Locator.list_shards`."""

    async def fetch(shard: ShardAddress) -> list[dict[str, Any]]:
        return await fetch_from_shard(pools.ensure_pool(shard), query, *arguments)

    known = await locator.list_shards()
    answers = await query_all_shards(known, fetch, limits=limits)
    rows = [(shard_id, row) for shard_id, found in answers.items() for row in found]
    return ShardRows(rows, sorted({shard.shard_id for shard in known} - answers.keys()))


async def query_all_shards(
    shards: Sequence[ShardAddress], query: Callable[[ShardAddress], Awaitable[Result]], *, limits: QueryLimits = LIMITS
) -> dict[str, Result]:
    """Return the answers by shard id, without the shards that did not answer before the deadline."""
    answers, _ = await query_with_causes(shards, query, limits=limits)
    return answers


async def query_with_causes(
    shards: Sequence[ShardAddress], query: Callable[[ShardAddress], Awaitable[Result]], *, limits: QueryLimits = LIMITS
) -> tuple[dict[str, Result], dict[str, str]]:
    """Return what `query_all_shards` does, and the shards without an answer, with the cause where there is one."""
    answers: dict[str, Result] = {}
    causes = dict.fromkeys(sorted(shard.shard_id for shard in shards), "")
    slots = asyncio.Semaphore(limits.at_once)

    async def ask(shard: ShardAddress) -> None:
        async with slots:
            with contextlib.suppress(TimeoutError):
                try:
                    async with asyncio.timeout(limits.answer_s):
                        with translate(TargetKind.SHARD, shard.shard_id, "query", WorkerError):
                            answers[shard.shard_id] = await query(shard)
                except WorkerError as exc:
                    causes[shard.shard_id] = shard.without_name(scrub_text(str(exc)))

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limits.all_s), asyncio.TaskGroup() as tasks:
            for shard in shards:
                tasks.create_task(ask(shard), name=f"query:{shard.shard_id}")
    return answers, {shard_id: cause for shard_id, cause in causes.items() if shard_id not in answers}


def group_by_shard(pairs: Iterable[tuple[ShardAddress, Item]]) -> list[tuple[ShardAddress, list[Item]]]:
    """Return each shard once, with its items in their order."""
    groups: dict[str, tuple[ShardAddress, list[Item]]] = {}
    for shard, item in pairs:
        groups.setdefault(shard.shard_id, (shard, []))[1].append(item)
    return list(groups.values())


LOCATED_AT_ONCE: Final = 16


async def locate_all(
    locator: Locator, tenant_ids: Iterable[str]
) -> tuple[dict[str, ShardAddress | None], dict[str, str]]:
    """Return the shards that the locator names by tenant, and the errors of those for which it names none."""
    named: dict[str, ShardAddress | None] = {}
    errors: dict[str, str] = {}

    async def locate(tenant_id: str) -> None:
        try:
            named[tenant_id] = await locator.locate(tenant_id)
        except (RetryableError, PermanentError) as exc:
            errors[tenant_id] = str(exc)

    await run_at_once(locate, tenant_ids, most=LOCATED_AT_ONCE)
    return named, errors
