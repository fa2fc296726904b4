"""The changes between two shard maps, and those that are refused, as tenants live where the old map put them. Pure.

A tenant's possible homes follow from the order of the shards (`ShardMap.possible_homes`), so each keeps its place. A
shard is left out only after it was retired in every worker's map: otherwise one worker makes tenants on it that another
worker expects on other shards. And a place that was retired stays marked, as keys went past it.
"""

from __future__ import annotations

import msgspec

from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap, first_problems


class MapChange(msgspec.Struct, frozen=True):
    """The shards that a new map adds, readdresses and removes; the removed ones as the old map has them."""

    added: tuple[MappedShard, ...] = ()
    readdressed: tuple[MappedShard, ...] = ()
    removed: tuple[MappedShard, ...] = ()


def change_of(old: ShardMap, new: ShardMap) -> MapChange:
    """Return the changes from *old* to *new*."""
    before = {shard.shard_id: shard for shard in old.shards}
    after = {shard.shard_id for shard in new.shards}
    return MapChange(
        added=tuple(shard for shard in new.shards if shard.shard_id not in before),
        readdressed=tuple(
            shard
            for shard in new.shards
            if shard.shard_id in before and shard.addresses != before[shard.shard_id].addresses
        ),
        removed=tuple(shard for shard in old.shards if shard.shard_id not in after),
    )


def refusals_of(old: ShardMap, new: ShardMap) -> list[str]:
    """Return why *new* may not replace *old* in a running worker; empty if it may."""
    places = {shard.shard_id: place for place, shard in enumerate(old.shards, start=1)}
    moved = [
        f"shard {shard.shard_id}: expected at place {places[shard.shard_id]} of the list, as before, got {place}; "
        'add shards at the end only, and mark one that is to take no more tenants "retired"'
        for place, shard in enumerate(new.shards, start=1)
        if places.get(shard.shard_id, place) != place
    ]
    left = [
        f'shard {shard.shard_id}: expected, as it was not marked "retired" before; '
        "mark it, reload every worker, move its tenants, and leave it out then"
        for shard in change_of(old, new).removed
        if not shard.retired
    ]
    forgotten = [
        f'shard {after.shard_id}: expected "wasRetired": true, as shard {before.shard_id} was retired in its place; '
        "mark it, as tenants that were created meanwhile may be on other shards"
        for place, (before, after) in enumerate(zip(old.shards, new.shards, strict=False), start=1)
        if places.get(after.shard_id, place) == place and before.has_been_retired and not after.has_been_retired
    ]
    return first_problems(moved) + first_problems(left) + first_problems(forgotten)
