"""`feed skip`: let a destination go on that has stopped; or pass the lost source of a moved tenant, or an event."""

from __future__ import annotations

from typing import Any, assert_never

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output.display import print_json, print_members, print_note
from simplu_worker.commands.requirements import known_shard, parse_tenant_id, require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.feed.choices import PassEvent, PassSource, Resume
from simplu_worker.feed.steering import skip
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.vocabulary import FeedStop


async def skip_feed(
    settings: Settings,
    destination: str,
    shard_id: str,
    tenant: tuple[str, str] | None,
    event_id: str | None = None,
    *,
    apply: bool,
    as_json: bool,
) -> int:
    """Print what is passed; with *apply* pass it.

    Raises `PermanentError` where there is nothing to pass, `RetryableError` if the shard does not answer.
    """
    require_settings(settings, routes=True)
    tenant_id = None if tenant is None else parse_tenant_id(*tenant)
    async with open_shards(settings) as shards:
        address = known_shard(await shards.locator.list_shards(), shard_id)
        choice = await skip(shards.pools.ensure_pool(address), destination, tenant_id, event_id, apply=apply)
    members = {"destination": destination, "shardId": shard_id} | _members(choice)
    if as_json:
        print_json(members | {"applied": apply})
        return 0
    print_members({name: value for name, value in members.items() if value is not None})
    print_note(f"{'done' if apply else 'nothing was changed; with --apply'}: {_effect(choice)}")
    return 0


def _members(choice: Resume | PassSource | PassEvent) -> dict[str, Any]:
    match choice:
        case Resume(stopped, error, refused_event):
            return {
                "stopped": stopped,
                "error": None if error is None else scrub_text(error),
                "refusedEvent": refused_event,
            }
        case PassSource(tenant_id, source):
            return {"tenantId": tenant_id, "sourceShardId": source}
        case PassEvent(event_id):
            return {"eventId": event_id}
        case _:
            assert_never(choice)


def _effect(choice: Resume | PassSource | PassEvent) -> str:
    match choice:
        case Resume(FeedStop.REFUSED):
            return "the event is tried once more, kept as refused if it is refused again, and the feed goes on"
        case Resume(FeedStop.DISABLED):
            return "the feed goes on where it was"
        case PassSource(_, source):
            return f"the tenant's events are sent; those that {source} has not sent by then may come later, or never"
        case PassEvent():
            return "the event is tried once more, kept as refused if that fails for any reason, and the feed goes on"
        case _:
            raise AssertionError(choice)
