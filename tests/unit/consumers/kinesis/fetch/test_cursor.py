"""The end of a closed stream shard, by the replies of GetRecords."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from typing import Any

import pytest

from simplu_worker.consumers.kinesis.fetch.cursor import Cursor, StreamShardAccess
from simplu_worker.consumers.kinesis.fetch.pacing import ReadBudget
from simplu_worker.consumers.kinesis.fetch.prefetch_memory import PrefetchMemory
from simplu_worker.consumers.kinesis.stream.client import Record, Stream, TrimHorizon
from simplu_worker.timing.clock import loop_time

CHILDREN = [{"ShardId": "shardId-1", "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": "9"}}]
RECORD = Record(sequence_number="7", partition_key="key", data=b"{}", arrived_at=datetime(2026, 3, 1, tzinfo=UTC))


class Kinesis:
    """Answers with a reply for each letter: n goes on, e is an end with children, b a bare one, r one with a record."""

    def __init__(self, replies: str) -> None:
        self._replies = list(replies)

    async def get_shard_iterator(self, **_asked: Any) -> dict[str, Any]:
        """Return the same iterator for any request."""
        return {"ShardIterator": "first"}

    async def get_records(self, **_asked: Any) -> dict[str, Any]:
        """Return the next reply."""
        letter = self._replies.pop(0)
        return {
            "Records": [RECORD] if letter == "r" else [],
            "NextShardIterator": "next" if letter == "n" else None,
            "ChildShards": CHILDREN if letter == "e" else None,
            "MillisBehindLatest": 0,
        }


@pytest.mark.parametrize(
    ("replies", "are_ends"),
    [
        ("ne", [False, True]),
        ("bbnb", [False, False, False, False]),
        ("rbb", [False, False, True]),
        ("bbbb", [False, False, True, True]),
    ],
)
async def test_bare_end_is_accepted_when_it_repeats(replies: str, are_ends: list[bool]) -> None:
    """The Kinesis Client Library rejects an end without children as invalid; some emulators never name children."""
    memory = PrefetchMemory(1024 * 1024).open_quota()
    access = StreamShardAccess(Stream(Kinesis(replies), "stream"), "shardId-0", memory, random.random)
    budget = ReadBudget()
    with budget.open_catch_up(loop_time()) as pacing:
        cursor = Cursor(access, TrimHorizon(), pacing, kind="catch_up")
        found: list[bool] = []
        while len(found) < len(replies):
            if await cursor.read(asyncio.Event()) is not None:
                found.append(cursor.is_at_end)

    assert found == are_ends
