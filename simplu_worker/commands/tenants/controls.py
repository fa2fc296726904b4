"""`tenants pause`, `resume`, `weight` and `limit`."""

from __future__ import annotations

import socket
from typing import Any

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output import Answer
from simplu_worker.commands.running import parse_tenant_id
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError
from simplu_worker.shards.types import TenantControls
from simplu_worker.status.guard import COMMAND, Actor, logged_action
from simplu_worker.status.views import business_controls_view, controls_error, controls_view, limit_text
from simplu_worker.vocabulary import Absence


async def set_controls(
    settings: Settings, business_id: str, location_id: str | None, controls: TenantControls
) -> Answer:
    """Set *controls* for a tenant, or for a business on every shard; return what it has.

    Raises `PermanentError` without the tenant's row, or a tenant of the business.
    """
    parse_tenant_id(business_id, location_id or "all")
    actor = Actor(COMMAND, socket.gethostname())
    asked = {
        "businessId": business_id,
        "locationId": location_id,
        "seconds": controls.pause_s,
        "weight": controls.weight,
        "operationsPerSecond": controls.operations_per_s,
        "bytesPerSecond": controls.bytes_per_s,
    }
    async with open_shards(settings) as shards:
        lookups = shards.gateway.lookups
        with logged_action(controls.action, actor, asked) as acted:
            if location_id is None:
                survey = await lookups.set_business_controls(business_id, controls)
                if not (survey.rows or survey.silent_shard_ids):
                    raise PermanentError(controls_error(Absence.UNREGISTERED))
                acted.answer = view = business_controls_view(survey)
                notes = [f"{business_id} on shard {one['shardId']}: {_text_of(one)}" for one in view["shards"]]
                return Answer({"businessId": business_id} | view, notes, survey.silent_shard_ids)
            found = await lookups.set_controls(business_id, location_id, controls)
            if not isinstance(found, tuple):
                raise PermanentError(controls_error(found))
            acted.answer = view = controls_view(*found)
    note = f"{business_id} {location_id} on shard {view['shardId']}: {_text_of(view)}"
    return Answer({"businessId": business_id, "locationId": location_id} | view, [note])


def _text_of(view: dict[str, Any]) -> str:
    until = view["pausedUntil"]
    paused = "not paused" if until is None else f"paused until {until.isoformat(timespec='seconds')}"
    return f"{paused}, weight {view['weight']:g}, limit {limit_text(view)}"
