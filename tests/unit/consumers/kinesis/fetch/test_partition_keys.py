from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from support.aws.kpl_aggregates import aggregate

from simplu_worker.consumers.kinesis.fetch.record_decoder import WARNING_INTERVAL_S, PartitionKeys, RecordDecoder
from simplu_worker.consumers.kinesis.stream.client import Record
from simplu_worker.operations.operation import Operation
from simplu_worker.vocabulary import PartitionKeyRule

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def data(resource_type: str = "class", business_id: str = "a") -> bytes:
    members = {"operation": "delete", "businessId": business_id, "locationId": "x", "resourceType": resource_type}
    return json.dumps(members | {"resourceId": "r", "timestamp": "2026-01-31T09:00:00Z"}).encode()


def put(key: str, content: bytes | None = None) -> list[Operation]:
    decoder = RecordDecoder("stream", "shard-0", operation_max_bytes=10_000, list_result_limit=10)
    records = [Record("1", key, data() if content is None else content, START)]
    return [one for _, _, one in decoder.decode(records) if isinstance(one, Operation)]


@pytest.mark.parametrize(
    ("rule", "key", "content", "count"),
    [
        (PartitionKeyRule.RESOURCE_TYPE, "a-x-class", data(), 0),
        (PartitionKeyRule.RESOURCE_TYPE, "a-x", data(), 1),
        (PartitionKeyRule.RESOURCE_TYPE, "a-x-room", data(), 1),
        (PartitionKeyRule.RESOURCE_TYPE, "A-x-class", data(), 1),
        (PartitionKeyRule.TENANT, "a-x", data(), 0),
        (PartitionKeyRule.TENANT, "a-x-class", data(), 1),
        (PartitionKeyRule.ANY, "0", data(), 0),
        # Longer than Kinesis allows, a key cannot be that of the rule.
        (PartitionKeyRule.RESOURCE_TYPE, "short", data("t" * 127, "b" * 126), 1),
        (PartitionKeyRule.RESOURCE_TYPE, "short", data("t" * 127, "b" * 127), 0),
        # Each part of an aggregate has a key of its own.
        (PartitionKeyRule.RESOURCE_TYPE, "a", aggregate([("a-x-class", None, data()), ("a-x", None, data())]), 1),
    ],
)
def test_key_is_wrong_when_it_is_not_that_of_the_rule(
    rule: PartitionKeyRule, key: str, content: bytes, count: int
) -> None:
    assert PartitionKeys(rule).note(put(key, content)) == count


def test_warning_is_due_at_once_and_then_once_in_a_while() -> None:
    keys = PartitionKeys(PartitionKeyRule.RESOURCE_TYPE)
    keys.note(put("a-x-class"))
    assert keys.take_warning(0.0) is None

    keys.note([*(wrong := put("a-x")), *put("a-x-class")])
    assert keys.take_warning(1.0) == (wrong[0], 1)
    keys.note([*put("a-x"), *(last := put("a-y"))])
    assert keys.take_warning(0.9 + WARNING_INTERVAL_S) is None
    assert keys.take_warning(1.0 + WARNING_INTERVAL_S) == (last[0], 2)
    assert keys.take_warning(2.0 + 2 * WARNING_INTERVAL_S) is None
