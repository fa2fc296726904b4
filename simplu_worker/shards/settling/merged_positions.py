"""The stream positions of a target once a tenant has come: what the tenant lacks on both shards is read again. Pure.

A row states that everything before its position is applied, for the tenants of its shard. For a tenant that has come
the row of the shard it left counts as well: so the lower of both. Where one of the two shards has no row of a stream
shard, nothing is known of the tenant, and the target has none either (docs/adr/0015-readers-follow-a-move.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final, TypeAlias

import msgspec

PositionKey: TypeAlias = tuple[str, str]  # the stream and the stream shard

_ENDS: Final[Mapping[str, tuple[float, int]]] = {"TRIM_HORIZON": (-1, 0), "SHARD_END": (float("inf"), 0)}


class CarriedPosition(msgspec.Struct, frozen=True):
    """A row of `stream_positions`, without what counts on its own shard alone; *written_at* is that of its content."""

    stream: str
    stream_shard_id: str
    pending_from: str
    pending_since: datetime | None
    parents_done: bool
    token: str = ""
    written_at: datetime | None = None

    @property
    def key(self) -> PositionKey:
        """What identifies the row."""
        return self.stream, self.stream_shard_id


class LoweredPosition(msgspec.Struct, frozen=True):
    """What a row of the target gets, and the tokens that it and the row of the source had."""

    position: CarriedPosition
    former_token: str
    carried_token: str


class MergedPositions(msgspec.Struct, frozen=True):
    """The rows of the target to write with lower positions, and the keys of those to delete."""

    lowered: tuple[LoweredPosition, ...]
    deleted: tuple[PositionKey, ...]


def merge_positions(carried: Iterable[CarriedPosition], own: Iterable[CarriedPosition]) -> MergedPositions:
    """Return what becomes of the rows *own* of a target when a tenant comes with the rows *carried* of its source."""
    by_key = {one.key: one for one in carried}
    lowered = [
        LoweredPosition(_lower(one, other), one.token, other.token)
        for one in own
        if (other := by_key.get(one.key)) is not None
    ]
    kept = {one.position.key for one in lowered}
    return MergedPositions(tuple(lowered), tuple(one.key for one in own if one.key not in kept))


def _lower(one: CarriedPosition, other: CarriedPosition) -> CarriedPosition:
    low = min(one, other, key=lambda position: _order_of(position.pending_from))
    return msgspec.structs.replace(
        low,
        pending_since=None if low.pending_from in _ENDS else _earlier(one.pending_since, other.pending_since),
        parents_done=one.parents_done and other.parents_done,
        written_at=_earlier(one.written_at, other.written_at),
    )


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    """Return the earlier time; None if one is unknown."""
    return None if one is None or other is None else min(one, other)


def _order_of(position: str) -> tuple[float, int]:
    """Return a key that sorts positions as the stream does: `number/sub-number`, or one of the two ends."""
    if position in _ENDS:
        return _ENDS[position]
    number, _, sub_number = position.partition("/")
    return int(number), int(sub_number)
