"""A record at which its decoder fails, though not at others, is rejected."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from simplu_worker.consumers.sqs.control_messages import SOUND_MESSAGE, decode_control
from simplu_worker.consumers.sqs.order_messages import SOUND_EVENT, OrderRules, decode_order
from simplu_worker.operations.dead_letter import decode_or_reject
from simplu_worker.operations.decode import SOUND_RECORD, decode_operation
from simplu_worker.operations.operation import Operation, Origin, RejectedRecord
from simplu_worker.shards.types import ProvisionRequest
from simplu_worker.vocabulary import DeadLetterReason, Source

ORIGIN = Origin(Source.KINESIS, "operations", datetime(2025, 1, 31, tzinfo=UTC), "shard-0", "1")


def broken() -> None:
    raise ZeroDivisionError("the content of a record")


def test_record_is_rejected_when_its_decoder_raises() -> None:
    rejected = decode_or_reject(broken, ORIGIN, sound=lambda: None)

    assert isinstance(rejected, RejectedRecord)
    assert rejected.reason is DeadLetterReason.INTERNAL_ERROR
    assert "ZeroDivisionError" in rejected.error
    assert "content" not in rejected.error


def test_record_is_not_at_fault_when_a_sound_one_fails_too() -> None:
    with pytest.raises(ZeroDivisionError):
        decode_or_reject(broken, ORIGIN, sound=broken)


def test_lack_of_memory_says_nothing_of_a_record() -> None:
    def decode() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        decode_or_reject(decode, ORIGIN, sound=lambda: None)


def test_sound_records_are_operations_and_messages() -> None:
    assert isinstance(decode_operation(SOUND_RECORD, ORIGIN, 1000, 1), Operation)
    assert isinstance(decode_order(SOUND_EVENT, {}, ORIGIN, OrderRules(1000), deduplication_id="a"), Operation)
    assert isinstance(decode_control(SOUND_MESSAGE, {}, ORIGIN), ProvisionRequest)
