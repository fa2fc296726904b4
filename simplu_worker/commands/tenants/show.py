"""`tenants list` and `tenants show`."""

from __future__ import annotations

import contextlib
from typing import Any

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output import Answer, Line, Part, Table, table_of
from simplu_worker.commands.running import parse_tenant_id
from simplu_worker.config.settings import Settings
from simplu_worker.errors import WorkerError
from simplu_worker.operations.operation import control_request_id
from simplu_worker.shards.routing.shard_query import ShardRows
from simplu_worker.status.views import limit_text, refused_view, tenant_view

COLUMNS = {
    "businessId": "business",
    "locationId": "location",
    "businessType": "type",
    "state": "state",
    "shardId": "shard",
    "createdAt": "created",
    "pausedUntil": "paused until",
    "weight": "weight",
    "limit": "limit",
}
COUNTS = {"resources": "resources", "operations": "operations"}


async def list_tenants(settings: Settings) -> Answer:
    """Return every tenant of every shard."""
    async with open_shards(settings) as shards:
        survey = await shards.gateway.lookups.survey("list_tenants")
    views = _views(survey)
    return Answer({"tenants": list(map(_members, views))}, [_table(views)], survey.silent_shard_ids)


async def show_tenant(settings: Settings, business_id: str, location_id: str) -> Answer:
    """Return the rows that the shards have of one tenant, and its routing; it fails if no shard has it."""
    tenant_id = parse_tenant_id(business_id, location_id)
    async with open_shards(settings) as shards:
        named = await shards.locator.locate(tenant_id)
        survey = await shards.gateway.lookups.survey("show_tenant", tenant_id)
        refused = None
        with contextlib.suppress(WorkerError):  # the survey has named the shard that does not answer
            refused = refused_view(
                await shards.gateway.lookups.find_rejection(control_request_id(business_id, location_id), tenant_id)
            )
    views = _views(survey)
    found = [view for view in views if (view["businessId"], view["locationId"]) == (business_id, location_id)]
    named_id = None if named is None else named.shard_id
    routed = "not registered" if named is None else f"routed to shard {named.shard_id}"
    parts: list[Part] = [_table(found) if found else None, Line(f"{business_id} {location_id}: {routed}")]
    if refused is not None:
        at = refused["at"].isoformat(timespec="seconds")
        parts.append(Line(f"its last refused control message, {at}: {refused['reason']}: {refused['error']}"))
    parts.append(None if found else f"no shard that answered has the tenant {business_id} {location_id}")
    parts += [
        f"shard {view['shardId']}: its id {tenant_id} is taken by {view['businessId']} {view['locationId']}"
        for view in views
        if view not in found
    ]
    members = {"tenants": list(map(_members, found)), "namedShardId": named_id, "refused": refused}
    return Answer(members, parts, survey.silent_shard_ids, is_failed=not found)


def _views(survey: ShardRows) -> list[dict[str, Any]]:
    views = [tenant_view(shard_id, row) for shard_id, row in survey.rows]
    return sorted(views, key=lambda view: (view["businessId"], view["locationId"], view["shardId"]))


def _members(view: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in view.items() if value is not None}


def _table(views: list[dict[str, Any]]) -> Table:
    columns = COLUMNS | (COUNTS if any(view["resources"] is not None for view in views) else {})
    return table_of(columns, [view | {"limit": limit_text(view)} for view in views])
