from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from simplu_worker import instruments
from simplu_worker.consumers.kinesis.fetch.cursor import Cursor, StreamShardAccess
from simplu_worker.consumers.kinesis.fetch.pacing import RECORD_OVERHEAD_BYTES, PrefetchMemory
from simplu_worker.consumers.kinesis.fetch.record_decoder import RecordDecoder
from simplu_worker.consumers.kinesis.stream.client import ExpiredIteratorError, Record, Reply, Stream, StreamGoneError
from simplu_worker.consumers.kinesis.stream.positions import AfterSequenceNumber, AtSequenceNumber, Start, TrimHorizon
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.vocabulary import StreamReader

RECORD = Record(sequence_number="7", partition_key="key", data=b"{}", arrived_at=datetime(2026, 3, 1, tzinfo=UTC))


DECODER = RecordDecoder("stream", "shardId-0", operation_max_bytes=1000, list_result_limit=1)


class ScriptedKinesis:
    """Answers in turn with a record, an error, or an empty reply so many milliseconds behind the tip."""

    def __init__(self, *answers: Record | int | Exception | None) -> None:
        self.answers = list(answers)

    async def get_shard_iterator(self, **_asked: Any) -> dict[str, Any]:
        return {"ShardIterator": "first"}

    async def get_records(self, **_asked: Any) -> dict[str, Any]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Record):
            return {"Reply": Reply([answer], next_iterator="next", millis_behind=0)}
        return {"Reply": Reply([], next_iterator="next", millis_behind=answer)}


async def read_all(cursor_of: Start, kinesis: ScriptedKinesis, *, retention: timedelta | None = None) -> Cursor:
    memory = PrefetchMemory(1024 * 1024).open_quota()
    access = StreamShardAccess(Stream(kinesis, "stream"), DECODER, memory, random.random)
    cursor = Cursor(access, cursor_of, kind=StreamReader.CATCH_UP, retention=retention)
    while kinesis.answers:
        await cursor.read(asyncio.Event())
    return cursor


async def test_reply_holds_memory_for_each_of_its_records_until_it_is_released() -> None:
    quota = PrefetchMemory(1024 * 1024).open_quota()
    access = StreamShardAccess(Stream(ScriptedKinesis(RECORD), "stream"), DECODER, quota, random.random)
    cursor = Cursor(access, TrimHorizon(), kind=StreamReader.CATCH_UP)
    assert await cursor.read(asyncio.Event()) is not None
    held_bytes = quota.held_bytes
    cursor.release_memory()

    assert (held_bytes, quota.held_bytes) == (len(b"{}") + len("key") + RECORD_OVERHEAD_BYTES, 0)
    failed = await read_all(TrimHorizon(), ScriptedKinesis(RetryableError("no answer")))
    assert failed._access.memory.held_bytes == 0


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
