"""`tenants pause`, `resume` and `weight`."""

from __future__ import annotations

import socket

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output import Answer
from simplu_worker.commands.running import parse_tenant_id
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError
from simplu_worker.shards.types import TenantControls
from simplu_worker.status.guard import COMMAND, Actor, logged_action
from simplu_worker.status.views import controls_error, controls_view


async def set_controls(settings: Settings, business_id: str, location_id: str, controls: TenantControls) -> Answer:
    """Pause or resume a tenant, or give it a weight; return what it has. Raises `PermanentError` without its row."""
    parse_tenant_id(business_id, location_id)
    actor = Actor(COMMAND, socket.gethostname())
    asked = {
        "businessId": business_id,
        "locationId": location_id,
        "seconds": controls.pause_s,
        "weight": controls.weight,
    }
    action = "weigh_tenant" if controls.pause_s is None else "pause_tenant" if controls.pause_s else "resume_tenant"
    async with open_shards(settings) as shards:
        with logged_action(action, actor, asked) as acted:
            found = await shards.gateway.lookups.set_controls(business_id, location_id, controls)
            if not isinstance(found, tuple):
                raise PermanentError(controls_error(found))
            acted.answer = view = controls_view(*found)
    until = view["pausedUntil"]
    paused = "not paused" if until is None else f"paused until {until.isoformat(timespec='seconds')}"
    note = f"{business_id} {location_id} on shard {view['shardId']}: {paused}, weight {view['weight']:g}"
    return Answer({"businessId": business_id, "locationId": location_id} | view, [note])
