"""`shards accept-gap` and `shards raise-numbers`, which let a shard go on that waits for a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output import print_json, print_members, print_note, print_silent, print_table
from simplu_worker.commands.running import known_shard, require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.errors import WorkerError
from simplu_worker.shards.positions import accept_gaps as accept_gaps_of_shard
from simplu_worker.shards.positions import list_gaps
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.shard_query import query_all_shards
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.shards.schema.schema_check import raise_numbers as raise_numbers_of_shard
from simplu_worker.telemetry.log import scrub_text

COLUMNS: Final = ("shard", "stream shard", "lacks records after", "found at")


async def accept_gaps(settings: Settings, shard_id: str | None, *, apply: bool, as_json: bool) -> int:
    """Print all gaps of *shard_id*, or of every shard; with *apply* accept them.

    Returns 1 if a shard did not answer or refused, or if the named shard has no gap.
    """
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        known = await shards.locator.list_shards()
        chosen = known if shard_id is None else [known_shard(known, shard_id)]
        refusals: dict[str, str] = {}

        async def ask(address: ShardAddress) -> list[dict[str, Any]]:
            try:
                return await _find(shards.pools, address, apply=apply)
            except WorkerError as exc:
                refusals[address.shard_id] = address.without_name(scrub_text(str(exc)))
                return []

        answers = await query_all_shards(chosen, ask)
    silent = sorted({address.shard_id for address in chosen} - answers.keys())
    gaps = [gap for _, found in sorted(answers.items()) for gap in found]
    _print(gaps, dict(sorted(refusals.items())), silent, apply=apply, as_json=as_json)
    return 1 if silent or refusals or (shard_id is not None and not gaps) else 0


async def _find(pools: Pools, address: ShardAddress, *, apply: bool) -> list[dict[str, Any]]:
    pool = pools.ensure_pool(address)
    async with pool.connection() as connection:
        if not await has_schema(connection, pool):
            return []
        rows = await (accept_gaps_of_shard if apply else list_gaps)(connection)
    return [
        {
            "shardId": address.shard_id,
            "stream": row["stream"],
            "streamShard": row["stream_shard_id"],
            "position": row["gap_from"],
            "foundAt": row["gap_found_at"],
        }
        for row in rows
    ]


def _print(
    gaps: Sequence[dict[str, Any]], refusals: dict[str, str], silent: Sequence[str], *, apply: bool, as_json: bool
) -> None:
    if as_json:
        members = {"applied": apply, "gaps": gaps}
        print_json(members | {"errors": refusals, "shardsWithoutAnswer": silent})
        return
    if gaps:
        rows = ((*map(gap.get, ("shardId", "streamShard", "position")), f"{gap['foundAt']:%F %T}") for gap in gaps)
        print_table(COLUMNS, rows)
        print_note(
            "accepted: workers go on within seconds, with the oldest record that the stream has"
            if apply
            else "nothing was changed; with --apply the records after these positions count as lost, and workers go on"
        )
    elif not refusals and not silent:
        print_note("expected a shard that is held for a gap, got none; `simplu-worker shards list` shows the problems")
    for shard_id, error in refusals.items():
        print_note(f"{shard_id}: {error}")
    print_silent(silent)


async def raise_numbers(settings: Settings, shard_id: str, *, apply: bool, as_json: bool) -> int:
    """Raise the numbers of a shard's batches above those in its log; return 1 if they are not."""
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        address = known_shard(await shards.locator.list_shards(), shard_id)
        raised = await raise_numbers_of_shard(shards.pools.ensure_pool(address), apply=apply)
    if as_json:
        print_json({"shardId": shard_id, "isBehind": raised.is_behind, "offset": raised.offset, "applied": apply})
    else:
        print_members({"shard": shard_id, "offset of its numbers": raised.offset})
        if not raised.is_behind:
            print_note("the shard's numbers are above those in its log: there is nothing to raise")
        elif not apply:
            print_note("the log is ahead of the server: workers hold the shard; run this again with --apply")
        else:
            print_note("raised: workers go on within seconds")
    return 1 if raised.is_behind and not apply else 0
