"""All shards asked the same: many at once, each under a deadline, and all of them under one."""

from __future__ import annotations

import asyncio

from simplu_worker.errors import RetryableError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.shard_query import QueryLimits, query_all_shards

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
