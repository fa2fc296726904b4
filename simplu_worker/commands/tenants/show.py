"""`tenants list` and `tenants show`."""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import Any

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output import print_json, print_line, print_note, print_silent, print_table
from simplu_worker.commands.running import parse_tenant_id, require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.errors import WorkerError
from simplu_worker.operations.operation import control_request_id
from simplu_worker.shards.routing.shard_query import ShardRows
from simplu_worker.status.views import (
    refused_view,
    tenant_view,
)

COLUMNS = {
    "businessId": "business",
    "locationId": "location",
    "businessType": "type",
    "state": "state",
    "shardId": "shard",
    "createdAt": "created",
    "pausedUntil": "paused until",
    "weight": "weight",
}
COUNTS = {"resources": "resources", "operations": "operations"}


async def list_tenants(settings: Settings, *, as_json: bool) -> int:
    """Print every tenant of every shard. Return 1 if a shard did not answer."""
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        survey = await shards.gateway.lookups.survey("list_tenants")
    _print_tenants(_views(survey), survey.silent_shard_ids, as_json=as_json)
    return 1 if survey.silent_shard_ids else 0


async def show_tenant(settings: Settings, business_id: str, location_id: str, *, as_json: bool) -> int:
    """Print the rows that the shards have of one tenant, and its routing. Return 1 if no shard has it."""
    require_settings(settings, routes=True)
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
    routed = "not registered" if named is None else f"routed to shard {named.shard_id}"
    if found or as_json:
        named_id = None if named is None else named.shard_id
        _print_tenants(found, survey.silent_shard_ids, as_json=as_json, namedShardId=named_id, refused=refused)
    if not as_json:
        print_line(f"{business_id} {location_id}: {routed}")
        if refused is not None:
            at = _format_cell(refused["at"])
            print_line(f"its last refused control message, {at}: {refused['reason']}: {refused['error']}")
    if not found:
        print_note(f"no shard that answered has the tenant {business_id} {location_id}")
    for view in views:
        if view not in found:
            print_note(
                f"shard {view['shardId']}: its id {tenant_id} is taken by {view['businessId']} {view['locationId']}"
            )
    return 0 if found and not survey.silent_shard_ids else 1


def _views(survey: ShardRows) -> list[dict[str, Any]]:
    views = [tenant_view(shard_id, row) for shard_id, row in survey.rows]
    return sorted(views, key=lambda view: (view["businessId"], view["locationId"], view["shardId"]))


def _print_tenants(views: list[dict[str, Any]], silent: list[str], *, as_json: bool, **more: object) -> None:
    if as_json:
        shown = [{name: value for name, value in view.items() if value is not None} for view in views]
        print_json({"tenants": shown, **more, "shardsWithoutAnswer": silent})
        return
    columns = COLUMNS | (COUNTS if any(view["resources"] is not None for view in views) else {})
    print_table(list(columns.values()), [[_format_cell(view[name]) for name in columns] for view in views])
    print_silent(silent)


def _format_cell(value: object) -> object:
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else value
