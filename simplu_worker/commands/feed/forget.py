"""`feed forget`: delete the cursors and refusals of a destination that has left `FEED_FILE`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output.display import print_json, print_note, print_silent, print_table
from simplu_worker.commands.requirements import require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError
from simplu_worker.feed.steering import ForgetPlan, forget
from simplu_worker.shards.routing.shard_query import query_all_shards

COLUMNS: Final = ("shard", "cursor of", "refused events")


async def forget_destination(settings: Settings, destination: str, *, apply: bool, as_json: bool) -> int:
    """Print what the shards have of a destination; with *apply* delete it.

    Returns 1 if a shard did not answer, or none has the destination. Raises `PermanentError` where a replica has the
    destination in its file.
    """
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        known = await shards.locator.list_shards()
        answers = await query_all_shards(
            known, lambda address: forget(shards.pools.ensure_pool(address), destination, apply=False)
        )
        plans = _unused(destination, answers)
        if apply:
            concerned = [address for address in known if address.shard_id in plans]
            answers = {shard_id: plan for shard_id, plan in answers.items() if plan is None}
            answers |= await query_all_shards(
                concerned, lambda address: forget(shards.pools.ensure_pool(address), destination, apply=True)
            )
            plans = _unused(destination, answers)
    silent = sorted({address.shard_id for address in known} - answers.keys())
    if as_json:
        found = [
            {"shardId": shard_id, "updatedAt": plan.updated_at, "refusalCount": plan.refusal_count}
            for shard_id, plan in plans.items()
        ]
        print_json({"applied": apply, "shards": found, "shardsWithoutAnswer": silent})
    else:
        _print(destination, plans, apply=apply)
        print_silent(silent)
    return 1 if silent or not plans else 0


def _unused(destination: str, answers: Mapping[str, ForgetPlan | None]) -> dict[str, ForgetPlan]:
    """Return the plans, by shard id. Raises `PermanentError` where a replica has the destination in its file."""
    plans = {shard_id: plan for shard_id, plan in sorted(answers.items()) if plan is not None}
    for shard_id, plan in plans.items():
        if plan.user is not None:
            raise PermanentError(
                f"expected a destination that no replica has in FEED_FILE, got {destination}, which {plan.user} has on "
                f"{shard_id}; take it out of the file of every replica, and send SIGHUP"
            )
    return plans


def _print(destination: str, plans: Mapping[str, ForgetPlan], *, apply: bool) -> None:
    if not plans:
        print_note(f"no shard that answered has the destination {destination}; `simplu-worker feed show` lists them")
        return
    rows = [(shard_id, f"{plan.updated_at:%Y-%m-%d %H:%M:%S}", plan.refusal_count) for shard_id, plan in plans.items()]
    print_table(COLUMNS, rows)
    print_note(
        "done: the destination begins anew if a file has it again"
        if apply
        else "nothing was changed; with --apply this is deleted, and the destination begins anew if a file has it again"
    )
