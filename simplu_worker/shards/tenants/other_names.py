"""Resources under another name than the one under which their type stores them: found, and moved to that one.

They are from before their type got the name (`types apply`), or from a backup of that time. Safe to kill and to run
again: each page is a transaction, with the tenant's row locked against batches and movers, and with marks of both keys
in the log, by which a move in progress and the feed find it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import msgspec

from simplu_worker.shards.log.marks import mark_changes
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.routing.shard_query import fetch_from_shard
from simplu_worker.shards.schema.type_files import TypeFile
from simplu_worker.shards.tenants.known_types import READ_MAX
from simplu_worker.vocabulary import TenantState

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

    An id under both names stays, as do resources of tenants that are not active. Raises `RetryableError`.
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
            rows = await connection.fetch(QUERIES["store_under_name"], tenant_id, name, stored_as, last, PAGE_ROWS)
            ids = sorted(row["resource_id"] for row in rows)
            await mark_changes(connection, [(tenant_id, one, id_) for id_ in ids for one in (name, stored_as)])
        count += len(ids)
        if len(ids) < PAGE_ROWS:
            return count
        last = ids[-1]
