"""How each destination is doing over all shards, as a replica knows it: of its own, and by the rows of others. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec


class ShardView(msgspec.Struct, frozen=True):
    """A destination on one shard."""

    shard_id: str
    destination: str
    behind_since: datetime | None = None
    held_count: int = 0
    stopped: str | None = None
    error: str | None = None


class DestinationView(msgspec.Struct, frozen=True):
    """A destination over all shards. *error* is that of a shard where it has stopped, or else of any."""

    name: str
    lag_s: float = 0.0
    shard_count: int = 0
    held_count: int = 0
    stopped_shards: tuple[str, ...] = ()
    error: str | None = None


def destination_views(names: Sequence[str], shards: Iterable[ShardView], now: datetime) -> list[DestinationView]:
    """Return what *shards* have of the destinations *names*, in their order."""
    found: dict[str, list[ShardView]] = {name: [] for name in names}
    for one in shards:
        if one.destination in found:
            found[one.destination].append(one)
    return [_view(name, sorted(ones, key=lambda one: one.shard_id), now) for name, ones in found.items()]


def _view(name: str, shards: Sequence[ShardView], now: datetime) -> DestinationView:
    since = [one.behind_since for one in shards if one.behind_since is not None]
    stopped = [one for one in shards if one.stopped is not None]
    return DestinationView(
        name=name,
        lag_s=max((now - min(since)).total_seconds(), 0.0) if since else 0.0,
        shard_count=len(shards),
        held_count=sum(one.held_count for one in shards),
        stopped_shards=tuple(one.shard_id for one in stopped),
        error=next((one.error for one in (*stopped, *shards) if one.error is not None), None),
    )
