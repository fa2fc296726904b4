from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from support.aws.kpl_aggregates import aggregate

from simplu_worker.consumers.kinesis.fetch.record_decoder import RecordDecoder, with_wrong_keys
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
    assert len(with_wrong_keys(put(key, content), rule)) == count
