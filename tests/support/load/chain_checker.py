"""Compare the shards with plans of chains, row by row while reading."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg
from support.load.operation_chains import ChainPlan, Numbers
from support.rows import fetch, fetch_row, fetch_value

QUERY_TIMEOUT_S = 120.0
FETCH_COUNT = 5000
OPERATIONS_SQL = """
SELECT tenant_id, request_id, operation, resource_id, status, error,
       (result->'data'->>'n')::int AS n, (result->'data'->>'made')::int AS made
FROM operations WHERE source = 'kinesis' AND tenant_id <> ALL($1::text[])
"""
ROWS_SQL = """
SELECT id, "resourceName" AS type, "resourceId" AS name, (data->>'n')::int AS n, (data->>'made')::int AS made
FROM resources WHERE "resourceName" <> 'settings' AND "resourceName" <> ALL($2::text[]) AND id <> ALL($1::text[])
"""
LATENCIES_SQL = """
SELECT extract(epoch FROM completed_at - received_at)::float8 FROM operations
WHERE completed_at >= $1 AND received_at >= $1 AND received_at < $2 AND starts_with(request_id, $3 || '-')
"""  # by the index of completed_at
COMPLETED_SQL = """
SELECT count(*) FROM operations
WHERE completed_at >= $1 AND completed_at < $2 AND starts_with(request_id, $3 || '-')
"""
HELD_SQL = """
SELECT count(*) AS count, max(completed_at) AS last_at FROM operations WHERE received_at < $1 AND completed_at >= $1
"""


@dataclass(frozen=True, slots=True)
class PutPlan:
    """The first *count* operations of a plan were put; *homes* are the shards' URLs by tenant id."""

    plan: ChainPlan
    count: int
    homes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class HeldOperations:
    """Operations that were held at some time. *seconds*: until the last of them was committed; none without any."""

    count: int
    seconds: float | None


async def find_differences(
    urls: Sequence[str], puts: Sequence[PutPlan], ignored: Collection[str] = (), other_types: Collection[str] = ()
) -> list[str]:
    """Compare every row of every shard that comes from the stream; one line for each kind of difference.

    Except those of the tenants *ignored*; *other_types* are the resource types of messages.
    """
    found = _Found(puts)
    for url in urls:
        connection = await asyncpg.connect(url, timeout=10, command_timeout=QUERY_TIMEOUT_S)
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                async for row in connection.cursor(OPERATIONS_SQL, list(ignored), prefetch=FETCH_COUNT):
                    found.check_operation(url, row)
                async for row in connection.cursor(ROWS_SQL, list(ignored), list(other_types), prefetch=FETCH_COUNT):
                    found.check_resource(url, row)
        finally:
            await connection.close()
    return list(found.lines())


class _Found:
    def __init__(self, puts: Sequence[PutPlan]) -> None:
        self._puts = puts
        self._seen = [bytearray(put.count) for put in puts]
        self._remaining = [put.plan.remaining_rows(put.count) for put in puts]
        self._kinds: dict[str, tuple[int, str]] = {}

    def _note(self, kind: str, example: object) -> None:
        count, first = self._kinds.get(kind, (0, str(example)))
        self._kinds[kind] = (count + 1, first)

    def check_operation(self, url: str, row: asyncpg.Record) -> None:
        for put, seen in zip(self._puts, self._seen, strict=True):
            number = put.plan.number_of(row["request_id"])
            if number is None:
                continue
            if number >= put.count:
                self._note("operations that were never put", row)
                return
            if seen[number]:
                self._note("operations done twice", row)
            seen[number] = 1
            wanted = put.plan.row(number)
            if put.homes[wanted.tenant_id] != url:
                self._note("operations on another shard than their tenant's", row)
            got_result = None if row["operation"] != "read" else (row["n"], row["made"])
            got = (row["tenant_id"], row["operation"], row["resource_id"], row["status"], row["error"], got_result)
            expected = (wanted.tenant_id, wanted.kind, wanted.resource_id, "succeeded", None, wanted.result)
            if got != expected:
                self._note("operations with another outcome than in the order put", f"{row}, expected {expected}")
            return
        self._note("operations that no plan has", row)

    def check_resource(self, url: str, row: asyncpg.Record) -> None:
        key = (row["id"], row["type"], row["name"])
        numbers: Numbers = (row["n"], row["made"])
        for put, remaining in zip(self._puts, self._remaining, strict=True):
            if key in remaining:
                if put.homes[row["id"]] != url:
                    self._note("resources on another shard than their tenant's", key)
                if (wanted := remaining.pop(key)) != numbers:
                    self._note("resources with other content", f"{key}: {numbers}, expected {wanted}")
                return
        self._note("resources that should not be there", key)

    def lines(self) -> Iterator[str]:
        for put, seen, remaining in zip(self._puts, self._seen, self._remaining, strict=True):
            if missing := seen.count(0):
                self._note(f"{missing} operations of {put.plan.name!r} lost", put.plan.row(seen.index(0)))
            if remaining:
                self._note(f"{len(remaining)} resources of {put.plan.name!r} missing", next(iter(remaining)))
        for kind, (count, example) in self._kinds.items():
            yield f"{kind} ({count}), such as {example}"


async def count_operations(url: str) -> int:
    """Return the number of operations of the stream on a shard; 0 before it has tables."""
    try:
        return int(await fetch_value(url, "SELECT count(*) FROM operations WHERE source = 'kinesis'"))
    except asyncpg.UndefinedTableError:
        return 0


async def read_latencies_s(urls: Sequence[str], plan: ChainPlan, begin: datetime, end: datetime) -> list[float]:
    found: list[float] = []
    for url in urls:
        found += [row[0] for row in await fetch(url, LATENCIES_SQL, begin, end, plan.name)]
    return sorted(found)


async def count_completed(urls: Sequence[str], plan: ChainPlan, begin: datetime, end: datetime) -> int:
    return sum([int(await fetch_value(url, COMPLETED_SQL, begin, end, plan.name)) for url in urls])


async def count_held(url: str, at: datetime) -> HeldOperations:
    """Count the operations of a shard that had arrived and were not committed *at* that time."""
    count, last_at = await fetch_row(url, HELD_SQL, at)
    return HeldOperations(count, None if last_at is None else (last_at - at).total_seconds())
