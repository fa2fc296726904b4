"""A record at which pure code fails alone, twice, is rejected; the others are what they are."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from simplu_worker.consumers.sqs.control.decode import SOUND_MESSAGE, ShardCreation, decode_control
from simplu_worker.consumers.sqs.orders.decode import SOUND_EVENT, OrderRules, decode_order
from simplu_worker.operations.decode import SOUND_RECORD, decode_operation
from simplu_worker.operations.defects import decode_or_reject, try_twice
from simplu_worker.operations.operation import Operation, Origin, RejectedRecord
from simplu_worker.vocabulary import DeadLetterReason, Source

ORIGIN = Origin(Source.KINESIS, "operations", datetime(2025, 1, 31, tzinfo=UTC), "shard-0", "1")


def raising(times: int) -> Callable[[], str]:
    """Return a step that raises *times* times."""
    left = times

    def step() -> str:
        nonlocal left
        left -= 1
        if left >= 0:
            raise ZeroDivisionError("the content of a record")
        return "done"

    return step


def test_step_that_raises_once_is_taken_again() -> None:
    assert try_twice(raising(1)) == "done"
    assert isinstance(try_twice(raising(2)), ZeroDivisionError)


def test_record_is_rejected_when_its_decoder_raises_twice() -> None:
    rejected = decode_or_reject(raising(2), ORIGIN, sound=raising(0))

    assert isinstance(rejected, RejectedRecord)
    assert rejected.reason is DeadLetterReason.INTERNAL_ERROR
    assert "ZeroDivisionError at " in rejected.error
    assert "content" not in rejected.error


def test_record_is_not_at_fault_when_a_sound_one_fails_too() -> None:
    with pytest.raises(ZeroDivisionError):
        decode_or_reject(raising(2), ORIGIN, sound=raising(1))


def test_sound_records_are_operations_and_messages() -> None:
    assert isinstance(decode_operation(SOUND_RECORD, ORIGIN, 1000, 1), Operation)
    assert isinstance(decode_order(SOUND_EVENT, {}, ORIGIN, OrderRules(1000), deduplication_id="a"), Operation)
    assert isinstance(decode_control(SOUND_MESSAGE, {}, ORIGIN), ShardCreation)


def test_lack_of_memory_says_nothing_of_a_record() -> None:
    def step() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        try_twice(step)
