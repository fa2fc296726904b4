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
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.shard_query import query_with_causes
from simplu_worker.transfers.moving.planning.places import find_places
from simplu_worker.transfers.moving.situation import GONE
from simplu_worker.transfers.moving.undoing import LeftBehind, clean_up, count_left, list_left_behind

DIFFERS: Final = (
    "its move ended with rows that differ, and these may be the better ones; run: simplu-worker tenants verify "
    "--repair --apply, then tenants move again; or with --differing they are deleted too"
)
COUNTED_AT_ONCE: Final = 8  # tenants: each takes a read of the indexes of all its rows


async def clean_up_tenants(
    settings: Settings, older_than: str, *, differing: bool = False, apply: bool, as_json: bool
) -> int:
    """Delete the rows that tenants have left on their former shards, or without *apply* count them.

    Those of moves that ended with rows that differ stay, but with *differing*. Return 1 if some stay, also as a shard
    does not answer or a deletion fails.
    """
    require_settings(settings, routes=True)
    age = parse_duration("--older-than", older_than)
    async with open_shards(settings) as shards:

        async def ask(address: ShardAddress) -> Sequence[LeftBehind]:
            return await list_left_behind(shards.pools.ensure_pool(address), age)

        known = await shards.locator.list_shards()
        left, causes = await query_with_causes(known, ask)
        known_ids = {one.shard_id for one in known}
        silent = sorted(known_ids - left.keys())
        slots = asyncio.Semaphore(1 if apply else COUNTED_AT_ONCE)

        async def look(one: LeftBehind, shard_id: str) -> dict[str, Any]:
            home_id = one.target_id
            async with slots:
                try:
                    if one.differs and not differing:
                        raise PermanentError(DIFFERS)
                    if home_id not in known_ids:  # it has left the map or Citrus since
                        home_id = await _find_home(shards, one.tenant_id)
                    found = await _clean_up_one(shards, one, shard_id, home_id, silent, apply=apply)
                except WorkerError as exc:
                    found = {"error": str(exc)}
            return {"tenant": one.tenant_id, "left": shard_id, "home": home_id} | found

        found = await asyncio.gather(*(look(one, shard_id) for shard_id in sorted(left) for one in left[shard_id]))
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


async def _find_home(shards: Shards, tenant_id: str) -> str:
    """Return the shard with the home of a tenant, or on which it was destroyed."""
    places = await find_places(shards.locator, shards.pools, tenant_id)
    if (home_id := places.home()) is not None:
        return home_id
    gone = [shard_id for shard_id, state in places.states.items() if state in GONE]
    if len(gone) != 1:
        raise RetryableError("expected a home, got a tenant on its way; run: simplu-worker tenants show")
    return gone[0]


async def _clean_up_one(
    shards: Shards, one: LeftBehind, shard_id: str, home_id: str, silent: Collection[str], *, apply: bool
) -> dict[str, Any]:
    """Delete or count what a tenant has left on a shard, and return the number of rows. Raises `WorkerError`."""
    if home_id in silent:  # each try would take as long as its deadline
        raise RetryableError(f"no answer from shard {home_id}, where its home is")
    way = one.tenant_id, shard_id, one.target_id
    if not apply:
        return {"rows": await count_left(shards.pools, *way, home_id=home_id)}
    return {"rows": await clean_up(shards.pools, shards.commits, *way, home_id=home_id)}


def _row(one: dict[str, Any]) -> tuple[object, ...]:
    rows = one.get("rows", "none" if "error" in one else "")
    return one["tenant"], one["left"], one["home"], "its home is another one now" if rows is None else rows
