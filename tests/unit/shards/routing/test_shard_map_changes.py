"""A map that is read anew: what it changes, and what of that a worker at work may not go along with."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from simplu_worker.shards.routing.shard_map import MapChange, MappedShard, ShardMap, change_of, refusals_of

A, B, C, D = (MappedShard(name, f"postgresql://u:correct-horse@{name}/d") for name in "abcd")
OLD_B = replace(B, retired=True)
OLD_C = replace(C, retired=True)
BACK_B, NEW_D = (replace(one, was_retired=True) for one in (B, D))
MOVED_B = replace(B, connection_string="postgresql://u:correct-horse@elsewhere/d")
BACKED_B = replace(B, replica_connection_string="postgresql://u:correct-horse@replica/d")


def map_of(*shards: MappedShard, **tenants: str) -> ShardMap:
    return ShardMap(shards=shards, tenants=tenants)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (map_of(A, B), map_of(A, B), MapChange()),
        (map_of(A, B), map_of(A, OLD_B, x="a"), MapChange()),
        (map_of(A), map_of(A, B, C), MapChange(added=(B, C))),
        (map_of(A, B), map_of(A, MOVED_B), MapChange(readdressed=(MOVED_B,))),
        (map_of(A, B), map_of(A, BACKED_B), MapChange(readdressed=(BACKED_B,))),
        (map_of(A, BACKED_B), map_of(A, B), MapChange(readdressed=(B,))),
        (map_of(A, OLD_B, OLD_C), map_of(A, D), MapChange(added=(D,), removed=(OLD_B, OLD_C))),
    ],
    ids=["nothing", "retired and pinned", "added", "readdressed", "replica", "no replica", "left"],
)
def test_change_names_shards_that_come_go_or_are_elsewhere(old: ShardMap, new: ShardMap, expected: MapChange) -> None:
    assert change_of(old, new) == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (map_of(A, B), map_of(A, B, C, x="b"), []),
        (map_of(A, B), map_of(A, OLD_B), []),
        (map_of(A, OLD_B), map_of(A, BACK_B), []),
        (map_of(A, OLD_B), map_of(A, B), ['shard b: expected "wasRetired": true']),
        (map_of(A, BACK_B), map_of(A, B), ['shard b: expected "wasRetired": true']),
        (map_of(A, MOVED_B), map_of(A, BACKED_B), []),
        (map_of(A, B, OLD_C), map_of(A, B), []),
        (map_of(A, OLD_B, C), map_of(A, NEW_D, C), []),  # its place is another one's
        (map_of(A, OLD_B, C), map_of(A, D, C), ['shard d: expected "wasRetired": true']),
        (map_of(A, B), map_of(A), ["shard b: "]),
        (map_of(A, B, C), map_of(A, C), ["shard c: expected at place 3", "shard b: "]),
        (map_of(A, OLD_B, C), map_of(A, C), ["shard c: expected at place 3"]),
        (map_of(A, B), map_of(B, A), ["shard b: expected at place 2", "shard a: expected at place 1"]),
        (map_of(A, B), map_of(C, A, B), ["shard a: expected at place 1", "shard b: expected at place 2"]),
    ],
    ids=[
        "grown",
        "retired",
        "taken back",
        "taken back and not said",
        "said no more",
        "readdressed",
        "last left",
        "replaced",
        "replaced and not said",
        "left too early",
        "middle left",
        "retired middle left",
        "turned round",
        "put in front",
    ],
)
def test_map_is_refused_when_it_would_hide_where_tenants_lived(
    old: ShardMap, new: ShardMap, expected: list[str]
) -> None:
    refusals = refusals_of(old, new)

    assert [text for text, start in zip(refusals, expected, strict=True) if not text.startswith(start)] == []
    assert "correct-horse" not in str(refusals)


def test_map_is_refused_in_a_few_lines_when_all_of_it_is_wrong() -> None:
    shards = [MappedShard(f"shard-{number}", "") for number in range(500)]

    assert refusals_of(map_of(*shards), map_of(*reversed(shards)))[-1] == "and 490 more like that"
