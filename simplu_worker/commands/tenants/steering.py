"""`tenants pause`, `resume` and `weight`."""

from __future__ import annotations

import socket

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output import print_json, print_note
from simplu_worker.commands.running import parse_tenant_id, require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError
from simplu_worker.shards.types import Lever
from simplu_worker.status.guard import COMMAND, Actor, logged_action
from simplu_worker.status.views import (
    lever_action,
    lever_members,
    levers_view,
    not_steered_error,
)


async def steer_tenant(settings: Settings, business_id: str, location_id: str, lever: Lever, *, as_json: bool) -> int:
    """Pause or resume a tenant, or give it a weight; print what it has. Raises `PermanentError` without its row."""
    require_settings(settings, routes=True)
    parse_tenant_id(business_id, location_id)
    actor = Actor(COMMAND, socket.gethostname())
    asked = {"businessId": business_id, "locationId": location_id} | lever_members(lever)
    async with open_shards(settings) as shards:
        with logged_action(lever_action(lever), actor, asked) as acted:
            found = await shards.gateway.lookups.steer_tenant(business_id, location_id, lever)
            if not isinstance(found, tuple):
                raise PermanentError(not_steered_error(found))
            acted.answer = view = levers_view(*found)
    if as_json:
        print_json({"businessId": business_id, "locationId": location_id} | view)
        return 0
    until = view["pausedUntil"]
    paused = "not paused" if until is None else f"paused until {until.isoformat(timespec='seconds')}"
    print_note(f"{business_id} {location_id} on shard {view['shardId']}: {paused}, weight {view['weight']:g}")
    return 0
