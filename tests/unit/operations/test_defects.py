"""A record at which pure code fails alone, twice, is rejected; the others are what they are."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from simplu_worker.operations.defects import decode_or_reject, try_twice
from simplu_worker.operations.operation import DeadLetterReason, Origin, RejectedRecord, Source

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
    """What does not come again is no fault of the record."""
    assert try_twice(raising(1)) == "done"
    assert isinstance(try_twice(raising(2)), ZeroDivisionError)


def test_record_is_rejected_when_its_decoder_raises_twice() -> None:
    """With the type and the place of the error, and without its message."""
    rejected = decode_or_reject(raising(2), ORIGIN)

    assert isinstance(rejected, RejectedRecord)
    assert rejected.reason is DeadLetterReason.INTERNAL_ERROR
    assert "ZeroDivisionError at " in rejected.error
    assert "content" not in rejected.error


def test_lack_of_memory_says_nothing_of_a_record() -> None:
    """It passes."""

    def step() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        try_twice(step)
