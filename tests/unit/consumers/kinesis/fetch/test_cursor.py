from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from simplu_worker import instruments
from simplu_worker.consumers.kinesis.fetch.cursor import Cursor, StreamShardAccess
from simplu_worker.consumers.kinesis.fetch.pacing import RECORD_OVERHEAD_BYTES, PrefetchMemory, ReadBudget
from simplu_worker.consumers.kinesis.stream.client import (
    ExpiredIteratorError,
    Record,
    Stream,
    StreamGoneError,
)
from simplu_worker.consumers.kinesis.stream.positions import AfterSequenceNumber, AtSequenceNumber, Start, TrimHorizon
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import StreamReader

CHILDREN = [{"ShardId": "shardId-1", "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": "9"}}]
RECORD = Record(sequence_number="7", partition_key="key", data=b"{}", arrived_at=datetime(2026, 3, 1, tzinfo=UTC))


class Kinesis:
    """Answers with a reply for each letter: n goes on, e is an end with children, b a bare one, r one with a record."""

    def __init__(self, replies: str) -> None:
        self._replies = list(replies)

    async def get_shard_iterator(self, **_asked: Any) -> dict[str, Any]:
        return {"ShardIterator": "first"}

    async def get_records(self, **_asked: Any) -> dict[str, Any]:
        letter = self._replies.pop(0)
        return {
            "Records": [RECORD] if letter == "r" else [],
            "NextShardIterator": "next" if letter == "n" else None,
            "ChildShards": CHILDREN if letter == "e" else None,
            "MillisBehindLatest": 0,
        }


@pytest.mark.slow
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
    memory = PrefetchMemory(1024 * 1024).open_quota()
    access = StreamShardAccess(Stream(Kinesis(replies), "stream"), "shardId-0", memory, random.random)
    budget = ReadBudget()
    with budget.open_catch_up(loop_time()) as pacing:
        cursor = Cursor(access, TrimHorizon(), pacing, kind=StreamReader.CATCH_UP)
        found: list[bool] = []
        while len(found) < len(replies):
            if await cursor.read(asyncio.Event()) is not None:
                found.append(cursor.is_at_end)

    assert found == are_ends


async def test_reply_holds_memory_for_each_of_its_records_until_it_is_released() -> None:
    quota = PrefetchMemory(1024 * 1024).open_quota()
    access = StreamShardAccess(Stream(Kinesis("rr"), "stream"), "shardId-0", quota, random.random)
    with ReadBudget().open_catch_up(loop_time()) as pacing:
        cursor = Cursor(access, TrimHorizon(), pacing, kind=StreamReader.CATCH_UP)
        assert await cursor.read(asyncio.Event()) is not None
        held_bytes = quota.held_bytes
        cursor.release_memory()

    assert (held_bytes, quota.held_bytes) == (len(b"{}") + len("key") + RECORD_OVERHEAD_BYTES, 0)
    failed = await read_all(TrimHorizon(), ScriptedKinesis(RetryableError("no answer")))
    assert failed._access.memory.held_bytes == 0


class ScriptedKinesis(Kinesis):
    """Answers with the given replies or errors in turn."""

    def __init__(self, *answers: int | Exception | None) -> None:
        super().__init__("")
        self._answers = list(answers)

    async def get_records(self, **_asked: Any) -> dict[str, Any]:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"Records": [], "NextShardIterator": "next", "ChildShards": None, "MillisBehindLatest": answer}


async def read_all(cursor_of: Start, kinesis: ScriptedKinesis, *, retention: timedelta | None = None) -> Cursor:
    memory = PrefetchMemory(1024 * 1024).open_quota()
    access = StreamShardAccess(Stream(kinesis, "stream"), "shardId-0", memory, random.random)
    with ReadBudget().open_catch_up(loop_time()) as pacing:
        cursor = Cursor(access, cursor_of, pacing, kind=StreamReader.CATCH_UP, retention=retention)
        while kinesis._answers:
            await cursor.read(asyncio.Event())
    return cursor


DAY = timedelta(hours=24)
DAY_MS = 24 * 3600 * 1000


@pytest.mark.parametrize(
    ("start", "retention", "millis_behind", "expected"),
    [
        (AtSequenceNumber("5"), DAY, DAY_MS, 1),
        (AtSequenceNumber("5"), DAY, DAY_MS - 60_000, 1),
        (AtSequenceNumber("5"), DAY, DAY_MS - 60_001, 0),
        (AtSequenceNumber("5"), DAY, None, 0),
        (AtSequenceNumber("5"), None, DAY_MS, 0),
        (AfterSequenceNumber("5"), DAY, DAY_MS, 0),
        (TrimHorizon(), DAY, DAY_MS, 0),
    ],
)
async def test_expired_records_are_reported_when_the_first_reply_is_as_old_as_the_retention(
    start: Start, retention: timedelta | None, millis_behind: int | None, expected: int
) -> None:
    before = instruments.KINESIS_EXPIRED._value.get()
    with capture_logs() as logs:
        await read_all(start, ScriptedKinesis(millis_behind), retention=retention)

    reports = [entry for entry in logs if entry["event"] == "stream_shard.records_expired"]
    assert [(one["checkpoint"], one["retention_hours"]) for one in reports] == [("5", 24.0)] * expected
    assert instruments.KINESIS_EXPIRED._value.get() - before == expected


async def test_expired_records_are_reported_once() -> None:
    with capture_logs() as logs:
        await read_all(AtSequenceNumber("5"), ScriptedKinesis(0, DAY_MS), retention=DAY)

    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answers", "trouble", "refusal", "is_gone"),
    [
        ([RetryableError("slow")], "slow", None, False),
        ([PermanentError("denied")], "denied", "denied", False),
        ([StreamGoneError("gone")], "gone", "gone", True),
        ([PermanentError("denied"), RetryableError("slow")], "slow", None, False),
        ([StreamGoneError("gone"), PermanentError("denied")], "denied", "denied", False),
        ([ExpiredIteratorError("expired")], None, None, False),
        ([PermanentError("denied"), 0], None, None, False),
    ],
)
async def test_failed_read_leaves_its_error_until_a_reply(
    answers: list[Exception | int], trouble: str | None, refusal: str | None, *, is_gone: bool
) -> None:
    cursor = await read_all(TrimHorizon(), ScriptedKinesis(*answers))

    assert (cursor.trouble, cursor.refusal, cursor.is_gone) == (trouble, refusal, is_gone)
