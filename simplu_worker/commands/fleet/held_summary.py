"""The held targets of a whole fleet: which they are, and whether there are none. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from simplu_worker.vocabulary import StreamShardState

NOTHING_IS_HELD: Final = "nothing is held"

Json = Mapping[str, Any]


def named_held(fleet: Json) -> list[Json]:
    """Return the held targets that the replicas of `/fleet` name, each with its replica, the oldest first."""
    held = [{"replica": one["replica"], **target} for one in fleet["replicas"] for target in one["held"]]
    return sorted(held, key=lambda one: -one["ageSeconds"])


def held_lines(fleet: Json, *, lease_duration_s: float) -> list[str]:
    """Return how much is held according to `/fleet`, in lines for people.

    Nothing is held only if the replicas have reported so for every stream shard within *lease_duration_s*.
    """
    return list(_held_lines(fleet, lease_duration_s)) or [NOTHING_IS_HELD]


def _held_lines(fleet: Json, lease_duration_s: float) -> Iterator[str]:
    rows = [one for one in fleet["streamShards"] if one["state"] != StreamShardState.ENDED]
    count = sum(one["heldTargets"] or 0 for one in rows)
    if count:
        yield f"held targets: {count}, each counted in every stream shard that holds it; a replica names its oldest"
    unknown = ", ".join(one["streamShard"] for one in rows if not _is_known(one, lease_duration_s))
    if unknown:
        yield f"held targets are not known of {unknown}: no replica has read it and reported lately; repeat this"
    elif fleet["stream"] is not None and not fleet["streamShards"]:
        yield "held targets are not known: the replica has not found the leases yet; repeat this"


def _is_known(row: Json, lease_duration_s: float) -> bool:
    """Return whether a replica reads the stream shard, and has reported so lately."""
    has_read = row["heldTargets"] is not None and row["lagSeconds"] is not None
    return has_read and row["seenSecondsAgo"] <= lease_duration_s
