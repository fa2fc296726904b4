"""Whether a shard can be removed, for `shards drain`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from simplu_worker.assembly.shards import Shards
from simplu_worker.commands.output.display import print_note
from simplu_worker.commands.shards.survey import survey_shards
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.locator import StaticMap, read_shard_map
from simplu_worker.transfers.moving.planning.removal import Removal, TenantRows, describe_removal

REQUESTS_AT_ONCE: Final = 16  # to Citrus, one for each tenant


async def find_removal(settings: Settings, shards: Shards, shard_id: str) -> Removal:
    """Return whether a shard can be removed: all shards are asked for all tenants, and the locator for each of these.

    The locator only once no tenant is there. Raises `RetryableError` if a shard does not answer.
    """
    if isinstance(shards.locator, StaticMap) and settings.shard_map_file is not None:  # with the new pins
        shards.locator.replace(read_shard_map(settings.shard_map_file, settings.database_allowed_hosts))
    rows = TenantRows((await survey_shards(shards, QUERIES["list_tenants"])).rows)
    staying = rows.on(shard_id)
    named, errors = await _locate_all(shards, () if staying else rows.elsewhere(shard_id))
    error = next(iter(errors.values()), None)
    return describe_removal(shard_id, staying, rows.led_through(shard_id, named), sorted(errors), error)


async def _locate_all(shards: Shards, tenant_ids: Sequence[str]) -> tuple[dict[str, str | None], dict[str, str]]:
    """Return the shards that the locator names by tenant, and the errors of those for which it names none."""
    named: dict[str, str | None] = {}
    errors: dict[str, str] = {}
    at_once = asyncio.Semaphore(REQUESTS_AT_ONCE)

    async def locate(tenant_id: str) -> None:
        async with at_once:
            try:
                address = await shards.locator.locate(tenant_id)
            except (RetryableError, PermanentError) as exc:
                errors[tenant_id] = str(exc)
            else:
                named[tenant_id] = None if address is None else address.shard_id

    async with asyncio.TaskGroup() as tasks:
        for tenant_id in tenant_ids:
            tasks.create_task(locate(tenant_id), name=f"locate:{tenant_id}")
    return named, errors


def print_removal(removal: Removal) -> None:
    """Print whether a shard can be removed, and why not."""
    for reason in removal.kept_by:
        print_note(f"shard {removal.shard_id}: {reason}")
    if not removal.kept_by:
        print_note(
            f"shard {removal.shard_id}: no tenant is there or is looked for there; "
            "it can be retired in the map or Citrus"
        )
