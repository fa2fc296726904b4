"""The same question to every shard that is known: asked at once, under a deadline; who gave no answer is named."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from simplu_worker.errors import RetryableError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.schema.schema_check import SchemaState, check_schema

ANSWER_TIMEOUT_S: Final = 5.0  # for one shard
ALL_TIMEOUT_S: Final = 15.0  # for all of them
QUERIES_AT_ONCE: Final = 64  # each is a connection, and a database of the same few servers perhaps


Result = TypeVar("Result")


class QueryLimits(msgspec.Struct, frozen=True):
    """How long to wait for one shard and for all of them, and how many are asked at once."""

    answer_s: float = ANSWER_TIMEOUT_S
    all_s: float = ALL_TIMEOUT_S
    at_once: int = QUERIES_AT_ONCE


LIMITS: Final = QueryLimits()


class ShardRows(msgspec.Struct, frozen=True):
    """What all shards answered to one question, and the ids of those that did not."""

    rows: list[tuple[str, dict[str, Any]]]  # (shard id, row)
    silent_shard_ids: list[str]


async def fetch_from_all_shards(
    locator: Locator, pools: Pools, query: str, *arguments: object, limits: QueryLimits = LIMITS
) -> ShardRows:
    """Ask every known shard *query*; one whose database is empty has no rows.

    Raises what *locator* raises when it does not name the shards.
    """

    async def ask(shard: ShardAddress) -> list[dict[str, Any]]:
        async with pools.ensure_pool(shard).connection() as connection:
            if await check_schema(connection, shard.shard_id) is SchemaState.EMPTY:
                return []
            return [dict(row) for row in await connection.fetch(QUERIES[query], *arguments)]

    known = await locator.list_shards()
    answers = await query_all_shards(known, ask, limits=limits)
    rows = [(shard_id, row) for shard_id, found in answers.items() for row in found]
    return ShardRows(rows, sorted({shard.shard_id for shard in known} - answers.keys()))


async def query_all_shards(
    shards: Sequence[ShardAddress], query: Callable[[ShardAddress], Awaitable[Result]], *, limits: QueryLimits = LIMITS
) -> dict[str, Result]:
    """Return the answers by shard id, without those of shards that gave none.

    A silent shard delays others only where more are asked than *limits* have at once; one whose turn has not come
    when the time is up gave no answer either.
    """
    answers: dict[str, Result] = {}
    turns = asyncio.Semaphore(limits.at_once)

    async def ask_one(shard: ShardAddress) -> None:
        async with turns:
            with contextlib.suppress(RetryableError, TimeoutError):
                async with asyncio.timeout(limits.answer_s):
                    answers[shard.shard_id] = await query(shard)

    with contextlib.suppress(TimeoutError):  # of all of it
        async with asyncio.timeout(limits.all_s), asyncio.TaskGroup() as tasks:
            for shard in shards:
                tasks.create_task(ask_one(shard), name=f"survey:{shard.shard_id}")
    return answers
