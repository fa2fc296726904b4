"""`shards list`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from rich.text import Text

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output.display import print_json, print_silent, print_table
from simplu_worker.commands.requirements import require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.shards.health.all_shards import InspectedShard, inspect_all_shards
from simplu_worker.shards.health.assessment import Health
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.shard_query import fetch_from_all_shards, fetch_from_shard, query_all_shards
from simplu_worker.status.views import shard_view
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.vocabulary import ShardState

COLUMNS: Final = (
    "shard",
    "place",
    "state",
    "role",
    "response",
    "PostgreSQL",
    "schema",
    "tenants",
    "usage",
    "connections",
    "lag",
    "odd",
)
STYLES: Final = {ShardState.HEALTHY: "green", ShardState.DEGRADED: "yellow", ShardState.LOST: "bold red"}


async def list_shards(settings: Settings, *, as_json: bool) -> int:
    """Inspect every shard that Citrus or the shard map names, and print them. Return 1 if one did not answer."""
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        listed = await inspect_all_shards(shards.locator, shards.pools)
        beyond = await _count_beyond_bounds(listed, shards.pools)
        asked = await fetch_from_all_shards(shards.locator, shards.pools, QUERIES["is_drained"])
        drained = {shard_id for shard_id, row in asked.rows if row["is_drained"]}
    silent = [shard.address.shard_id for shard in listed if shard.is_silent]
    if as_json:
        print_json({"shards": [_members(shard, beyond, drained) for shard in listed], "shardsWithoutAnswer": silent})
    else:
        print_table(COLUMNS, [_row(shard, beyond, drained) for shard in listed])
        print_silent(silent)
    return 1 if silent else 0


async def _count_beyond_bounds(listed: Sequence[InspectedShard], pools: Pools) -> dict[str, int]:
    """Return, by shard, how many documents may not be stored any more; without shards that take too long to count."""

    async def count(address: ShardAddress) -> int:
        rows = await fetch_from_shard(pools.ensure_pool(address), QUERIES["count_beyond_bounds"])
        return rows[0]["count"] if rows else 0

    return await query_all_shards([shard.address for shard in listed if not shard.is_silent], count)


def _members(shard: InspectedShard, beyond: Mapping[str, int], drained: Collection[str]) -> dict[str, Any]:
    """Return the facts of a shard; *beyond* are the counts of documents beyond the bounds, by shard."""
    view = {name: value for name, value in shard_view(shard).items() if value is not None}
    view |= {"odd": [scrub_text(one) for one in view["odd"]]} if "odd" in view else {}
    view |= {"drained": True} if shard.address.shard_id in drained else {}
    count = beyond.get(shard.address.shard_id)
    return view if count is None else view | {"documentsBeyondBounds": count}


def _row(shard: InspectedShard, beyond: Mapping[str, int], drained: Collection[str]) -> tuple[object, ...]:
    view = _members(shard, beyond, drained)
    count = view.get("documentsBeyondBounds")
    odd = [*view.get("odd", ()), *([f"{count} documents beyond the bounds of data"] if count else [])]
    odd += ["drained: takes no tenants"] if "drained" in view else []
    state = shard.health.state
    return (
        view["shardId"],
        view["place"],
        Text(state, STYLES.get(state, "")),
        view.get("role"),
        None if "responseMs" not in view else f"{view['responseMs']:.1f} ms",
        view.get("serverVersion"),
        view.get("schemaVersion"),
        view.get("tenantCount"),
        _format_usage(shard.health),
        _format_connections(view.get("connectionsUsed"), view.get("connectionsMax")),
        _format_lag(view),
        "; ".join(odd),
    )


def _format_usage(health: Health) -> str | None:
    """Return the share of the shard's room for businesses that is used, as Citrus counts them."""
    usage = health.observation.usage
    if usage.ratio is None:
        return None
    return f"{usage.ratio:.0%} of {usage.business_max} businesses"


def _format_connections(used: int | None, most: int | None) -> str | None:
    return None if used is None or most is None else f"{used}/{most}"


def _format_lag(view: dict[str, Any]) -> str | None:
    """Return the lag of a standby, or the number of a primary's standbys."""
    parts = [f"{view['replicationLagSeconds']:.1f} s"] if "replicationLagSeconds" in view else []
    parts += [f"{view['replicationLagBytes']} bytes"] if "replicationLagBytes" in view else []
    if view.get("standbys"):
        parts.append(f"{view['standbys']} standby" + ("s" if view["standbys"] > 1 else ""))
    return ", ".join(parts) or None
