"""Add up what the shards tell of each destination. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec

from simplu_worker.feed.cloud_events import TYPE_PREFIX
from simplu_worker.feed.steering import REFUSALS_SHOWN, RefusedEvent, ShardDestination
from simplu_worker.vocabulary import FeedStop

BEHIND_S: Final = 10.0  # a killed publisher is replaced within that


class StoppedShard(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A shard that sends the destination nothing any more."""

    shard_id: str
    reason: FeedStop
    error: str | None = None
    refused_event: str | None = None


class WaitingTenant(msgspec.Struct, frozen=True, rename="camel"):
    """A tenant that has moved, and whose events wait on *shard_id* for those of its source."""

    tenant_id: str
    shard_id: str
    source_shard_id: str


class Refusal(msgspec.Struct, frozen=True, rename="camel"):
    """An event that the destination refused for good. It has no data."""

    shard_id: str
    event_id: str
    type: str
    subject: str
    error: str
    since: datetime


class DestinationSummary(msgspec.Struct, frozen=True, rename="camel"):
    """A destination over all shards that answered. One that no publisher has in its file waits for nothing."""

    name: str
    lag_seconds: float  # of the shard that is the furthest behind
    shard_count: int
    shards_behind: tuple[str, ...]
    shards_without_publisher: tuple[str, ...]
    stopped: tuple[StoppedShard, ...]
    waiting_tenants: tuple[WaitingTenant, ...]
    refusal_count: int
    refusals: tuple[Refusal, ...] = ()  # the latest REFUSALS_SHOWN, the newest first
    is_in_file: bool = True

    @property
    def has_problem(self) -> bool:
        """Whether a person has something to look at."""
        return bool(self.shards_behind or self.shards_without_publisher or self.stopped)


def summarise(answers: Mapping[str, Sequence[ShardDestination]]) -> list[DestinationSummary]:
    """Return the destinations by name, of the answers by shard id."""
    found: defaultdict[str, list[tuple[str, ShardDestination]]] = defaultdict(list)
    for shard_id, destinations in sorted(answers.items()):
        for one in destinations:
            found[one.destination].append((shard_id, one))
    return [_summary(name, found[name]) for name in sorted(found)]


def _summary(name: str, found: Sequence[tuple[str, ShardDestination]]) -> DestinationSummary:
    is_in_file = any(one.is_in_file for _, one in found)
    shards = found if is_in_file else ()
    return DestinationSummary(
        name=name,
        lag_seconds=max((one.lag_s or 0.0 for _, one in shards), default=0.0),
        shard_count=len(found),
        shards_behind=tuple(shard_id for shard_id, one in shards if (one.lag_s or 0.0) >= BEHIND_S),
        shards_without_publisher=tuple(shard_id for shard_id, one in shards if one.publisher is None),
        stopped=tuple(
            StoppedShard(shard_id, one.stopped, one.error, one.refused_event)
            for shard_id, one in shards
            if one.stopped is not None
        ),
        waiting_tenants=tuple(
            WaitingTenant(held.tenant_id, shard_id, held.source) for shard_id, one in shards for held in one.held
        ),
        refusal_count=sum(one.refusal_count for _, one in found),
        refusals=tuple(_latest_refusals(found)),
        is_in_file=is_in_file,
    )


def _latest_refusals(shards: Sequence[tuple[str, ShardDestination]]) -> list[Refusal]:
    found = [_refusal(shard_id, refused) for shard_id, one in shards for refused in one.refusals]
    return sorted(found, key=lambda one: one.since, reverse=True)[:REFUSALS_SHOWN]


def _refusal(shard_id: str, refused: RefusedEvent) -> Refusal:
    event = refused.event
    return Refusal(shard_id, event.id, f"{TYPE_PREFIX}{event.kind}", event.subject, refused.error, refused.since)
