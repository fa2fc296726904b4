"""`shards accept-gap` and `shards raise-numbers`, which let a shard go on that waits for a person."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from simplu_worker.commands.output import Answer, Facts, table_of
from simplu_worker.commands.running import ask_shards, open_shard
from simplu_worker.config.settings import Settings
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.shard_query import fetch_from_shard
from simplu_worker.shards.schema import schema_check

COLUMNS: Final = {
    "shardId": "shard",
    "streamShard": "stream shard",
    "position": "lacks records after",
    "foundAt": "found at",
}
ACCEPTED: Final = "accepted: workers continue within seconds, with the oldest record that the stream has"
PLANNED: Final = (
    "nothing was changed; with --apply the records after these positions count as lost, and workers continue"
)
NONE_FOUND: Final = "expected a shard that is held for a gap, got none; `simplu-worker shards list` shows the problems"


async def accept_gaps(settings: Settings, shard_id: str | None, *, apply: bool) -> Answer:
    """Return all gaps of *shard_id*, or of every shard; with *apply* accept them.

    It fails if a shard did not answer or refused, or if the named shard has no gap.
    """
    chosen = [] if shard_id is None else [shard_id]
    answers, silent = await ask_shards(settings, partial(_find, apply=apply), chosen)
    gaps = [gap for found in answers.values() for gap in found]
    parts = [
        table_of(COLUMNS, gaps) if gaps else None,
        (ACCEPTED if apply else PLANNED) if gaps else None if silent else NONE_FOUND,
    ]
    return Answer({"applied": apply, "gaps": gaps}, parts, silent, is_failed=shard_id is not None and not gaps)


async def _find(pool: ShardPool, *, apply: bool) -> list[dict[str, Any]]:
    rows = await fetch_from_shard(pool, QUERIES["accept_gaps" if apply else "list_gaps"])
    return [
        {
            "shardId": pool.address.shard_id,
            "stream": row["stream"],
            "streamShard": row["stream_shard_id"],
            "position": row["gap_from"],
            "foundAt": row["gap_found_at"],
        }
        for row in rows
    ]


async def raise_numbers(settings: Settings, shard_id: str, *, apply: bool) -> Answer:
    """Raise the numbers of a shard's batches above those in its log; it fails if they are not."""
    async with open_shard(settings, shard_id) as pool:
        raised = await schema_check.raise_numbers(pool, apply=apply)
    members = {"shardId": shard_id, "isBehind": raised.is_behind, "offset": raised.offset, "applied": apply}
    if not raised.is_behind:
        note = "the shard's numbers are above those in its log: there is nothing to raise"
    elif apply:
        note = "raised: workers continue within seconds"
    else:
        note = "the log is ahead of the server: workers hold the shard; run this again with --apply"
    facts = Facts({"shard": shard_id, "offset of its numbers": raised.offset})
    return Answer(members, [facts, note], is_failed=raised.is_behind and not apply)
