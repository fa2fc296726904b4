"""`tenants cleanup`: delete the rows that tenants have left on their former shards."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, Final

from simplu_worker.assembly.shards import Shards, open_shards
from simplu_worker.commands.command_line import parse_duration
from simplu_worker.commands.output.display import print_json, print_note, print_silent, print_table
from simplu_worker.commands.requirements import require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.errors import WorkerError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.shard_query import query_with_causes
from simplu_worker.transfers.moving.undoing import clean_up, count_left, list_left_behind

COUNTED_AT_ONCE: Final = 8  # tenants: each takes a read of the indexes of all its rows


async def clean_up_tenants(settings: Settings, older_than: str, *, apply: bool, as_json: bool) -> int:
    """Delete the rows that tenants have left on their former shards, or without *apply* count them.

    Return 1 if a shard does not answer, which leaves its tenants alone, or if a deletion fails.
    """
    require_settings(settings, routes=True)
    age = parse_duration("--older-than", older_than)
    async with open_shards(settings) as shards:

        async def ask(address: ShardAddress) -> Sequence[tuple[str, str]]:
            return await list_left_behind(shards.pools.ensure_pool(address), age)

        known = await shards.locator.list_shards()
        left, causes = await query_with_causes(known, ask)
        silent = sorted({one.shard_id for one in known} - left.keys())
        slots = asyncio.Semaphore(1 if apply else COUNTED_AT_ONCE)

        async def look(tenant_id: str, shard_id: str, home_id: str) -> dict[str, Any]:
            async with slots:
                found = await _clean_up_one(shards, tenant_id, shard_id, home_id, silent, apply=apply)
            return {"tenant": tenant_id, "left": shard_id, "home": home_id} | found

        found = await asyncio.gather(
            *(look(tenant_id, shard_id, home_id) for shard_id in sorted(left) for tenant_id, home_id in left[shard_id])
        )
    if as_json:
        print_json({"applied": apply, "tenants": found, "shardsWithoutAnswer": silent})
    else:
        print_table(("tenant", "left", "home", "rows deleted" if apply else "rows"), (_row(one) for one in found))
        for one in found:
            if "error" in one:
                print_note(f"{one['tenant']}: its rows stay on shard {one['left']}: {one['error']}")
        if found and not apply:
            count = sum(one.get("rows") or 0 for one in found)
            print_note(f"nothing was deleted; with --apply these {count} rows are")
        print_silent(silent, causes)
    return 1 if silent or any("error" in one for one in found) else 0


async def _clean_up_one(
    shards: Shards, tenant_id: str, shard_id: str, home_id: str, silent: Collection[str], *, apply: bool
) -> dict[str, Any]:
    """Delete or count what a tenant has left on a shard; return the number of rows, or the error."""
    if home_id in silent:  # each try would take as long as its deadline
        return {"error": f"no answer from shard {home_id}, where its home is"}
    try:
        if not apply:
            return {"rows": await count_left(shards.pools, tenant_id, shard_id, home_id)}
        return {"rows": await clean_up(shards.pools, shards.commits, tenant_id, shard_id, home_id)}
    except WorkerError as exc:
        return {"error": str(exc)}


def _row(one: dict[str, Any]) -> tuple[object, ...]:
    rows = one.get("rows", "none" if "error" in one else "")
    return one["tenant"], one["left"], one["home"], "its home is another one now" if rows is None else rows
