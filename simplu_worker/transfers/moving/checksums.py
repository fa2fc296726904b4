"""Compare a tenant's rows on two shards by checksums that no order changes."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from simplu_worker.errors import PermanentError
from simplu_worker.shards.postgres.errors import StatementFailedError
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.statement_timeouts import Isolation, StatementBudget
from simplu_worker.shards.settling import RowKey, Transfer, read_tenant
from simplu_worker.timing.clock import loop_time
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.engine import Chunk, ChunkPace, Walker
from simplu_worker.transfers.moving.copying import (
    CLOCK_MARGIN,
    OPERATIONS,
    RESOURCES,
    VERSIONS,
    CopiedTable,
    ResourceKey,
    find_end,
    read_changed_keys,
)
from simplu_worker.vocabulary import TenantState

AnswerT = TypeVar("AnswerT")
Pair: TypeAlias = tuple[Connection, Connection]  # of the source and of the target

RANGE_S: Final = 0.02  # of both servers at once, for the rows that are compared by one statement
DIFFERENCES_MAX: Final = 1000  # that are named
LOG: Final = "operations"  # in place of a resource type, for the rows of the log
HISTORY: Final = "versions"  # the same for those of histories


class TypeSum(msgspec.Struct, frozen=True, rename="camel"):
    """The rows of one resource type on one shard: number, bytes, and sum of their hashes."""

    row_count: int = 0
    byte_count: int = 0
    checksum: int = 0

    @property
    def digest(self) -> str:
        """The checksum as people see it."""
        return f"{self.checksum & 0xFFFF_FFFF_FFFF_FFFF:016x}"

    def __add__(self, other: TypeSum) -> TypeSum:
        return TypeSum(
            self.row_count + other.row_count, self.byte_count + other.byte_count, self.checksum + other.checksum
        )


Sums: TypeAlias = dict[str, TypeSum]  # by resource type


class Comparison(msgspec.Struct, frozen=True, rename="camel"):
    """The sums of both shards by resource type, and the resources that differ."""

    source: Mapping[str, TypeSum]
    target: Mapping[str, TypeSum]
    differing: Sequence[ResourceKey] = ()
    excluded: int = 0  # resources that changed since, and are not compared

    @property
    def is_equal(self) -> bool:
        """Whether all sums are the same."""
        return self.source == self.target

    @property
    def verdict(self) -> str:
        """The same for people, and for the journal."""
        return "equal" if self.is_equal else "differs"

    @property
    def row_count(self) -> int:
        """The number of resources compared on the source."""
        return sum(one.row_count for name, one in self.source.items() if name not in {LOG, HISTORY})

    @property
    def byte_count(self) -> int:
        """The bytes of their data."""
        return sum(one.byte_count for one in self.source.values())


async def compare_shards(
    source: ShardPool, target: ShardPool, tenant_id: str, since: datetime, *, live_on_source: bool, log_kept: timedelta
) -> Comparison:
    """Compare a tenant's rows on two shards, without those that changed at its home since *since*, by its clock.

    The log from *log_kept* before that on: older rows may be deleted at different times.
    """
    live, other = (source, target) if live_on_source else (target, source)
    walker = Walker(ChunkPace(chunk_s=RANGE_S))
    while True:
        try:
            async with (
                live.transaction(budget=StatementBudget.KEY_RANGE, isolation=Isolation.ONE_MOMENT) as live_connection,
                other.transaction(budget=StatementBudget.KEY_RANGE) as other_connection,
            ):
                keys, requests = await read_changed_keys(live_connection, tenant_id, since)
                pair = (live_connection, other_connection) if live_on_source else (other_connection, live_connection)
                sums, differing = await _compare_resources(pair, tenant_id, keys, walker)
                logs = await _sum_logs(pair, tenant_id, (since - log_kept, since), requests, walker)
                versions = await _sum_versions(pair, tenant_id, since - CLOCK_MARGIN, walker)
        except StatementFailedError:
            continue  # in smaller ranges
        of_both = [
            {name: one for name, one in {**resources, HISTORY: history}.items() if one.row_count} | {LOG: log}
            for resources, log, history in zip(sums, logs, versions, strict=True)
        ]
        return Comparison(of_both[0], of_both[1], differing[:DIFFERENCES_MAX], len(keys))


async def _compare_resources(
    pair: Pair, tenant_id: str, changed: Collection[ResourceKey], walker: Walker
) -> tuple[tuple[Sums, Sums], list[ResourceKey]]:
    sums: tuple[Sums, Sums] = ({}, {})
    differing: list[ResourceKey] = []

    async def add(after: RowKey, end: RowKey | None, left_out: Sequence[RowKey]) -> None:
        parts = await _of_both([sum_range(one, tenant_id, after, end, left_out) for one in pair])
        for total, part in zip(sums, parts, strict=True):
            for name, one in part.items():
                total[name] = total.get(name, TypeSum()) + one
        if parts[0] != parts[1] and len(differing) < DIFFERENCES_MAX:
            hashes = await _of_both([_hash_range(one, tenant_id, after, end, left_out) for one in pair])
            differing.extend(sorted({key for key, _ in hashes[0] ^ hashes[1]}))

    await _walk_both(walker, RESOURCES, pair, tenant_id, changed, add)
    return sums, differing


async def _walk_both(
    walker: Walker,
    table: CopiedTable,
    pair: Pair,
    tenant_id: str,
    excluded: Collection[RowKey],
    add: Callable[[RowKey, RowKey | None, Sequence[RowKey]], Awaitable[None]],
) -> None:
    """Call *add* with ranges of as many rows as both shards compare in `RANGE_S`, and what is *excluded* of each.

    A range has the keys before it and at its end.
    """
    keys, passed = sorted(excluded), 0

    async def handle(after: RowKey, row_count: int) -> Chunk:
        nonlocal passed
        began_at = loop_time()
        end, _ = await _of_both(
            [find_end(pair[0], table, tenant_id, after, row_count), pair[1].fetchval(QUERIES["read_clock"])]
        )
        answer_s = loop_time() - began_at
        before, passed = passed, len(keys) if end is None else bisect_right(keys, end)
        await add(after, end, keys[before:passed])
        return Chunk(end, row_count, answer_s)

    await walker.walk(handle, within_transaction=True)


async def _sum_logs(
    pair: Pair, tenant_id: str, period: tuple[datetime, datetime], requests: Collection[str], walker: Walker
) -> list[TypeSum]:
    sums = [TypeSum(), TypeSum()]

    async def add(after: RowKey, end: RowKey | None, left_out: Sequence[RowKey]) -> None:
        nonlocal sums
        parts = await _of_both([_sum_log(one, tenant_id, after, end, period, left_out) for one in pair])
        sums = [total + part for total, part in zip(sums, parts, strict=True)]

    await _walk_both(walker, OPERATIONS, pair, tenant_id, [(key, "") for key in requests], add)
    return sums


async def _sum_versions(pair: Pair, tenant_id: str, until: datetime, walker: Walker) -> list[TypeSum]:
    """Return the sums of the versions applied before *until*: a version that is written changes no more."""
    sums = [TypeSum(), TypeSum()]

    async def add(after: RowKey, end: RowKey | None, _: Sequence[RowKey]) -> None:
        nonlocal sums
        keys = (tenant_id, *after, *(end or (None, None)), until)
        rows = await _of_both([one.fetchrow(QUERIES["checksum_versions"], *keys) for one in pair])
        parts = [TypeSum(row["row_count"], 0, int(row["checksum"])) for row in rows]
        sums = [total + part for total, part in zip(sums, parts, strict=True)]

    await _walk_both(walker, VERSIONS, pair, tenant_id, (), add)
    return sums


async def _of_both(statements: Iterable[Coroutine[Any, Any, AnswerT]]) -> list[AnswerT]:
    """Wait for both shards; an error of one ends the statement on the other, too."""
    try:
        async with asyncio.TaskGroup() as tasks:
            both = [tasks.create_task(one) for one in statements]
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return [one.result() for one in both]


async def sum_range(
    connection: Connection, tenant_id: str, after: RowKey, end: RowKey | None, left_out: Sequence[ResourceKey] = ()
) -> Sums:
    """Return the sums of the resources behind *after* up to *end*, by type, without *left_out*."""
    keys = (*after, *(end or (None, None)), *_columns(left_out))
    rows = await connection.fetch(QUERIES["checksum_resources"], tenant_id, *keys)
    return {row["resource_type"]: TypeSum(row["row_count"], row["byte_count"], int(row["checksum"])) for row in rows}


async def _hash_range(
    connection: Connection, tenant_id: str, after: RowKey, end: RowKey | None, left_out: Sequence[ResourceKey]
) -> set[tuple[ResourceKey, str]]:
    keys = (*after, *(end or (None, None)), *_columns(left_out))
    rows = await connection.fetch(QUERIES["hash_resources"], tenant_id, *keys)
    return {((row["resource_type"], row["resource_id"]), row["checksum"]) for row in rows}


async def _sum_log(
    connection: Connection,
    tenant_id: str,
    after: RowKey,
    end: RowKey | None,
    period: tuple[datetime, datetime],
    left_out: Sequence[RowKey],
) -> TypeSum:
    keys = (*after, *(end or (None, None)))
    requests = [key for key, _ in left_out]
    row = await connection.fetchrow(QUERIES["checksum_log"], tenant_id, *keys, *period, requests)
    return TypeSum(row["row_count"], 0, int(row["checksum"]))


def _columns(keys: Sequence[ResourceKey]) -> tuple[list[str], list[str]]:
    return [one for one, _ in keys], [one for _, one in keys]


def describe_difference(comparison: Comparison) -> str:
    """Return the resource types that differ, for people."""
    names = Counter(name for name, _ in comparison.differing)
    source, target = comparison.source, comparison.target
    types = sorted(name for name in {**source, **target} if source.get(name) != target.get(name))
    return ", ".join(f"{name} ({names[name]} named)" if names[name] else name for name in types)


async def check_former_rows(source: ShardPool, target: ShardPool, tenant_id: str, arrival: Transfer) -> None:
    """Raise `PermanentError` unless *source*, which the tenant has left, has its rows as of the move."""
    async with target.connection() as connection:
        home = await read_tenant(connection, tenant_id)
    async with source.connection() as connection:
        left = await read_tenant(connection, tenant_id)
    is_left = left is not None and (left.state, left.move_token) == (TenantState.MOVED, arrival.move_token)
    if not is_left or left is None or home is None or left.epoch != home.epoch:
        raise PermanentError(
            f"{tenant_id}: shard {arrival.place} does not have its rows as of the move any more: a cleanup "
            "or a move back has started, or the tenant was made again since; compare with a backup"
        )
