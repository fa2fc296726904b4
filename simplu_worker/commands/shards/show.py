"""`shards list` and `shards route`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output import Answer, first_rows, table_of
from simplu_worker.config.settings import Settings
from simplu_worker.shards.health.prober import InspectedShard, inspect_all_shards
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.locator import Locator, StaticMap
from simplu_worker.shards.routing.shard_query import fetch_from_all_shards, locate_all
from simplu_worker.status.views import shard_view
from simplu_worker.telemetry.log import scrub_text

COLUMNS: Final = {
    "shardId": "shard",
    "place": "place",
    "state": "state",
    "role": "role",
    "response": "response",
    "serverVersion": "PostgreSQL",
    "schemaVersion": "schema",
    "tenantCount": "tenants",
    "usage": "usage",
    "connections": "connections",
    "lag": "lag",
    "told": "odd",
}


async def list_shards(settings: Settings) -> Answer:
    """Inspect every known shard."""
    async with open_shards(settings) as shards:
        listed = await inspect_all_shards(shards.locator, shards.pools)
        asked = await fetch_from_all_shards(shards.locator, shards.pools, QUERIES["is_drained"])
        drained = {shard_id for shard_id, row in asked.rows if row["is_drained"]}
    silent = [shard.address.shard_id for shard in listed if shard.is_silent]
    views = [_view(shard, drained) for shard in listed]
    rows = [view | _texts(shard, view) for shard, view in zip(listed, views, strict=True)]
    return Answer({"shards": views}, [table_of(COLUMNS, rows)], silent)


def _view(shard: InspectedShard, drained: Collection[str]) -> dict[str, Any]:
    view = {name: value for name, value in shard_view(shard).items() if value is not None}
    view |= {"odd": [scrub_text(one) for one in view["odd"]]} if "odd" in view else {}
    return view | ({"drained": True} if shard.address.shard_id in drained else {})


def _texts(shard: InspectedShard, view: Mapping[str, Any]) -> dict[str, str | None]:
    odd = [*view.get("odd", ()), *(["drained: takes no tenants"] if "drained" in view else [])]
    return {
        "response": f"{view['responseMs']:.1f} ms" if "responseMs" in view else None,
        "usage": _format_usage(shard.address),
        "connections": f"{view['connectionsUsed']}/{view['connectionsMax']}" if "connectionsMax" in view else None,
        "lag": _format_lag(view),
        "told": "; ".join(odd),
    }


def _format_usage(shard: ShardAddress) -> str | None:
    ratio = shard.usage_ratio
    return None if ratio is None else f"{ratio:.0%} of {shard.business_max} businesses"


def _format_lag(view: Mapping[str, Any]) -> str | None:
    parts = [f"{view['replicationLagSeconds']:.1f} s"] if "replicationLagSeconds" in view else []
    if view.get("standbys"):
        parts.append(f"{view['standbys']} standby" + ("s" if view["standbys"] > 1 else ""))
    return ", ".join(parts) or None


class KeyRoute(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The shard of one key."""

    key: str
    shard_id: str | None = None
    pinned: bool = False
    inactive: bool = False
    odd: str | None = None  # why its shard is unknown

    @property
    def explanation(self) -> str:
        """How the key was placed."""
        parts = ["pinned"] if self.pinned else []
        parts += ["inactive: its operations are held"] if self.inactive else []
        return "; ".join([*parts, self.odd] if self.odd else parts)


async def route_keys(settings: Settings, words: Sequence[str]) -> Answer:
    """Return the shards of keys, each once; it fails if the shard of a key is unknown."""
    keys = list(dict.fromkeys(words))
    async with open_shards(settings) as shards:
        locator = shards.locator
        if isinstance(locator, StaticMap):
            pins, shard_of = locator.map.tenants, locator.map.shard_of
            routes = [KeyRoute(key, shard_of(key).shard_id, pinned=key in pins) for key in keys]
        else:
            routes = await _locate_keys(locator, keys)
    rows = [(route.key, route.shard_id, route.explanation) for route in routes]
    is_failed = any(route.shard_id is None for route in routes)
    return Answer({"routes": routes}, first_rows(("key", "shard", "how"), rows), is_failed=is_failed)


async def _locate_keys(locator: Locator, keys: Sequence[str]) -> list[KeyRoute]:
    found, errors = await locate_all(locator, keys)
    routes = []
    for key in keys:
        if (address := found.get(key)) is None:
            routes.append(KeyRoute(key, odd=scrub_text(errors.get(key, "not registered"))))
        else:
            routes.append(KeyRoute(key, shard_id=address.shard_id, inactive=not address.is_active))
    return routes
