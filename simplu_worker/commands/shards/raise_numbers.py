"""`shards raise-numbers`: let a shard go on whose database has come to a server with lower numbers of transactions."""

from __future__ import annotations

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output.display import print_json, print_members, print_note
from simplu_worker.commands.requirements import known_shard, require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.shards.schema.schema_check import raise_numbers as raise_numbers_of_shard


async def raise_numbers(settings: Settings, shard_id: str, *, apply: bool, as_json: bool) -> int:
    """Raise the numbers of a shard's batches above those in its log, and print what they were; 1 if they are not.

    Raises `PermanentError` for a shard that is not known, `RetryableError` if it does not answer.
    """
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
