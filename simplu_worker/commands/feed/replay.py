"""`feed replay`: send a destination all events again from a time on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output.display import print_json, print_note, print_silent, print_table
from simplu_worker.commands.requirements import known_shard, require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.feed.steering import ReplayPlan, replay
from simplu_worker.shards.routing.shard_query import query_all_shards

COLUMNS: Final = ("shard", "changes to send again", "begins at", "stopped")


async def replay_feed(
    settings: Settings,
    destination: str,
    since: datetime,
    until: datetime | None,
    shard_ids: Sequence[str],
    *,
    apply: bool,
    as_json: bool,
) -> int:
    """Print what each shard sends again, or the shards that are named; with *apply* begin it.

    Returns 1 if a shard did not answer, or none has the destination.
    """
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        known = await shards.locator.list_shards()
        chosen = [known_shard(known, shard_id) for shard_id in dict.fromkeys(shard_ids)] or list(known)
        answers = await query_all_shards(
            chosen, lambda address: replay(shards.pools.ensure_pool(address), destination, since, until, apply=apply)
        )
    silent = sorted({address.shard_id for address in chosen} - answers.keys())
    plans = {shard_id: plan for shard_id, plan in sorted(answers.items()) if plan is not None}
    if as_json:
        members = {"applied": apply, "shards": [_members(*one) for one in plans.items()]}
        print_json(members | {"shardsWithoutAnswer": silent})
    else:
        _print(destination, plans, apply=apply)
        print_silent(silent)
    return 1 if silent or not plans else 0


def _print(destination: str, plans: Mapping[str, ReplayPlan], *, apply: bool) -> None:
    if not plans:
        print_note(f"no shard that answered has the destination {destination}; `simplu-worker feed show` lists them")
        return
    rows = [
        (
            shard_id,
            "none" if plan.change_count is None else f"about {plan.change_count}",
            "" if plan.begins_at is None else f"{plan.begins_at:%Y-%m-%d %H:%M:%S} (the log keeps nothing older)",
            plan.stopped or "",
        )
        for shard_id, plan in plans.items()
    ]
    print_table(COLUMNS, rows)
    if any(plan.stopped is not None for plan in plans.values()):
        print_note("a destination that has stopped goes on after `simplu-worker feed skip`")
    print_note(
        "begun: the events come within ten seconds, and the lag of the destination grows until they are sent"
        if apply
        else "nothing was changed; with --apply these events are sent again, under the same ids"
    )


def _members(shard_id: str, plan: ReplayPlan) -> dict[str, Any]:
    return {
        "shardId": shard_id,
        "changeCount": plan.change_count or 0,
        "beginsAt": plan.begins_at,
        "stopped": plan.stopped,
    }
