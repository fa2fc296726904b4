from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from simplu_worker.errors import RetryableError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.shard_map import MapChange, MappedShard, ShardMap, change_of, refusals_of
from simplu_worker.shards.routing.shard_query import QueryLimits, query_all_shards

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


SHARDS = [ShardAddress(f"s{number}", "") for number in range(10)]
PATIENT = QueryLimits(answer_s=60.0, all_s=60.0, at_once=64)


class Asked:
    def __init__(self, *, mute: frozenset[str] = frozenset()) -> None:
        self.mute = mute
        self.at_once = 0
        self.at_once_max = 0

    async def __call__(self, shard: ShardAddress) -> str:
        self.at_once += 1
        self.at_once_max = max(self.at_once_max, self.at_once)
        try:
            await (asyncio.Event().wait() if shard.shard_id in self.mute else asyncio.sleep(0))
        finally:
            self.at_once -= 1
        return shard.shard_id


async def test_answers_come_from_all_who_give_one() -> None:
    async def ask(shard: ShardAddress) -> str:
        if shard.shard_id == "s3":
            raise RetryableError("down")
        return shard.shard_id

    answers = await query_all_shards(SHARDS, ask, limits=PATIENT)
    assert answers == {shard.shard_id: shard.shard_id for shard in SHARDS if shard.shard_id != "s3"}


async def test_silent_shard_is_given_up_after_its_deadline() -> None:
    asked = Asked(mute=frozenset({"s0", "s1"}))
    answers = await query_all_shards(SHARDS, asked, limits=QueryLimits(answer_s=0.05, all_s=60.0, at_once=2))
    assert sorted(answers) == [f"s{number}" for number in range(2, 10)]


async def test_shard_gives_no_answer_when_its_query_fails_by_a_defect() -> None:
    async def ask(shard: ShardAddress) -> str:
        if shard is SHARDS[0]:
            raise RuntimeError
        return "here"

    assert await query_all_shards(SHARDS[:2], ask, limits=PATIENT) == {SHARDS[1].shard_id: "here"}
