"""Compare the shards with plans of order events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import asyncpg
from support.load.order_plan import OrderPlan, OrderStep
from support.rows import fetch, fetch_value

OPERATIONS_SQL = """
SELECT tenant_id, request_id, operation, resource_id, status, error, source, xid::text::bigint AS xid, position,
       completed_at
FROM operations WHERE resource_type = 'order' AND tenant_id = ANY ($1)
"""
ROWS_SQL = """
SELECT id, "resourceId" AS order_id, data::text FROM resources WHERE "resourceName" = 'order' AND id = ANY ($1)
"""
COUNT_SQL = """
SELECT count(*) FROM operations WHERE resource_type = 'order' AND tenant_id = ANY ($1)
"""
FIRST_SQL = """
SELECT min(completed_at) FROM operations WHERE resource_type = 'order' AND starts_with(request_id, $1 || '-')
"""


async def count_orders(urls: Sequence[str], plan: OrderPlan) -> int:
    """Return how many events of the plan's tenants are in the log; a shard that does not answer counts as 0."""
    count = 0
    for url in urls:
        try:
            connection = await asyncpg.connect(url, timeout=2, command_timeout=5)
        except (OSError, TimeoutError, asyncpg.PostgresError):
            continue
        try:
            count += await connection.fetchval(COUNT_SQL, _tenant_ids(plan))
        except (OSError, TimeoutError, asyncpg.PostgresError):
            continue
        finally:
            connection.terminate()
    return count


async def read_first_commit_time(urls: Sequence[str], plan: OrderPlan) -> datetime | None:
    times = [await fetch_value(url, FIRST_SQL, plan.name) for url in urls]
    return min((time for time in times if time is not None), default=None)


async def compare_orders(urls: Sequence[str], plans: Sequence[OrderPlan], *, has_moved: bool = False) -> list[str]:
    """Compare every order and every log entry; return a line for each kind of difference, with an example.

    *plans* must be all plans of their tenants. The log of a tenant that *has_moved* has no numbers of transactions
    that compare: its times are compared instead.
    """
    operations, rows = [], []
    tenant_ids = sorted({tenant_id for plan in plans for tenant_id in _tenant_ids(plan)})
    for url in urls:
        operations += await fetch(url, OPERATIONS_SQL, tenant_ids)
        rows += await fetch(url, ROWS_SQL, tenant_ids)
    lines = _Differences()
    _compare_log(
        lines, [step for plan in plans for step in plan.steps], operations, "completed_at" if has_moved else "xid"
    )
    _compare_rows(lines, {key: row for plan in plans for key, row in plan.rows().items()}, rows)
    return list(lines)


class _Differences:
    """Differences by kind, each with its first example."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, str]] = {}

    def note(self, kind: str, example: object) -> None:
        count, first = self._kinds.get(kind, (0, str(example)))
        self._kinds[kind] = (count + 1, first)

    def __iter__(self) -> Iterator[str]:
        for kind, (count, example) in self._kinds.items():
            yield f"{kind} ({count}), such as {example}"


def _compare_log(
    lines: _Differences, steps: Sequence[OrderStep], operations: Sequence[asyncpg.Record], moment: str
) -> None:
    wanted = {(step.tenant_id, step.request_id): step for step in steps}
    found: dict[tuple[str, str], asyncpg.Record] = {}
    for row in operations:
        key = (row["tenant_id"], row["request_id"])
        if key in found:
            lines.note("events applied on two shards", key)
        found[key] = row
        step = wanted.get(key)
        if step is None:
            lines.note("operations that no plan has", row)
            continue
        expected = (step.kind, step.order_id, "succeeded", None, "sqs")
        got = (row["operation"], row["resource_id"], row["status"], row["error"], row["source"])
        if got != expected:
            lines.note("events with another outcome than in the order sent", f"{key}: {got}, expected {expected}")
    for key in wanted.keys() - found.keys():
        lines.note("events lost", key)
    _compare_order(lines, [(step, found[key]) for key, step in wanted.items() if key in found], moment)


def _compare_order(lines: _Differences, pairs: Sequence[tuple[OrderStep, asyncpg.Record]], moment: str) -> None:
    last: dict[str, tuple[OrderStep, asyncpg.Record]] = {}
    for step, row in pairs:  # in the order of the plan
        if (before := last.get(step.group_id)) is not None:
            earlier = before[1]
            if row[moment] < earlier[moment]:
                lines.note("events committed before an earlier one of their group", (before[0], step))
            is_one_batch = row["xid"] is not None and row["xid"] == earlier["xid"]
            if is_one_batch and row["position"] < earlier["position"]:
                lines.note("events applied before an earlier one of their group", (before[0], step))
        last[step.group_id] = (step, row)


def _compare_rows(lines: _Differences, wanted: dict[tuple[str, str], Any], rows: Sequence[asyncpg.Record]) -> None:
    for row in rows:
        key = (row["id"], row["order_id"])
        expected, got = wanted.pop(key, None), json.loads(row["data"])
        if expected is None:
            lines.note("orders that should not be there", key)
        elif got != expected:
            lines.note("orders with other content", f"{key}: {got}, expected {expected}")
    for key in wanted:
        lines.note("orders missing", key)


def _tenant_ids(plan: OrderPlan) -> list[str]:
    return [tenant.tenant_id for tenant in plan.tenants]
