"""Hash ranges, and the splits and merges by which UpdateShardCount makes them equal. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

HASH_KEYS = 2**128


class HashRange(NamedTuple):
    """The hash keys from *start* to *end*, both included."""

    start: int
    end: int


@dataclass(frozen=True)
class Split:
    """Split the open stream shard that contains *hash_key*: its upper child starts there (API_SplitShard)."""

    hash_key: int


@dataclass(frozen=True)
class Merge:
    """Merge the open stream shard that starts at *hash_key* with the one below it (API_MergeShards).

    The lower one becomes the child's ParentShardId and the upper one its AdjacentParentShardId; with *upper_first* the
    other way round.
    """

    hash_key: int
    upper_first: bool = False


ReshardStep = Split | Merge


def equal_ranges(count: int) -> list[HashRange]:
    """Return all hash keys in *count* ranges of the same size; the last one takes the remainder (API_CreateStream)."""
    size = HASH_KEYS // count
    starts = [size * number for number in range(count)]
    return [HashRange(start, end - 1) for start, end in zip(starts, [*starts[1:], HASH_KEYS], strict=True)]


def scaling_steps(open_ranges: Sequence[HashRange], target_count: int) -> list[ReshardStep]:
    """Return the splits and merges, in order, that turn *open_ranges* (sorted) into *target_count* equal ranges.

    API_UpdateShardCount: "performs splits or merges on individual shards. This can cause short-lived shards".
    """
    starts = [hash_range.start for hash_range in open_ranges]
    wanted = {_existing_start_near(starts, hash_range) for hash_range in equal_ranges(target_count)}
    splits: list[ReshardStep] = [Split(start) for start in sorted(wanted.difference(starts))]
    merges: list[ReshardStep] = [Merge(start) for start in starts if start not in wanted]
    return splits + merges


def _existing_start_near(starts: Sequence[int], wanted: HashRange) -> int:
    """Return the existing start within a millionth of the *wanted* range, else the wanted start.

    Thirds and sixths, for example, are rounded differently: without the tolerance, scaling would make stream shards of
    one hash key.
    """
    tolerance = (wanted.end - wanted.start) // 1_000_000
    return min((start for start in starts if abs(start - wanted.start) <= tolerance), default=wanted.start)
