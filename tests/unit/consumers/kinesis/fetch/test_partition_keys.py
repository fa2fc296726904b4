"""Wrong partition keys are found, counted by problem, and told once in a while; those of aggregates too."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.aws.kpl_aggregates import aggregate

from simplu_worker.consumers.kinesis.fetch import partition_keys
from simplu_worker.consumers.kinesis.fetch.partition_keys import (
    SHOWN_MAX,
    WARNING_INTERVAL_S,
    PartitionKeys,
    WrongKey,
    shown_key,
)
from simplu_worker.consumers.kinesis.fetch.record_decoder import RecordDecoder
from simplu_worker.consumers.kinesis.stream.aggregation import hash_of
from simplu_worker.consumers.kinesis.stream.client import Record
from simplu_worker.consumers.kinesis.stream.positions import HashRange
from simplu_worker.operations.operation import Operation
from simplu_worker.vocabulary import PartitionKeyProblem, PartitionKeyRule

ANOTHER, EXPLICIT = PartitionKeyProblem.ANOTHER_KEY, PartitionKeyProblem.EXPLICIT_HASH_KEY
WHOLE = HashRange(0, (1 << 128) - 1)
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def data(resource_type: str = "class", business_id: str = "a") -> bytes:
    """Return an operation of the location x."""
    members = {"operation": "delete", "businessId": business_id, "locationId": "x", "resourceType": resource_type}
    return json.dumps(members | {"resourceId": "r", "timestamp": "2026-01-31T09:00:00Z"}).encode()


def decoded(*records: Record) -> list[Operation]:
    """Return the operations of *records*."""
    decoder = RecordDecoder("stream", "shard-0", operation_max_bytes=10_000, list_result_limit=10)
    return [one for _, _, one in decoder.decode(list(records)) if isinstance(one, Operation)]


def put(key: str, content: bytes | None = None) -> list[Operation]:
    """Return the operation of a record with a partition key."""
    return decoded(Record("1", key, data() if content is None else content, START))


@pytest.mark.parametrize(
    ("rule", "key", "content", "problems"),
    [
        (PartitionKeyRule.RESOURCE_TYPE, "a-x-class", data(), {}),
        (PartitionKeyRule.RESOURCE_TYPE, "a-x", data(), {ANOTHER: 1}),
        (PartitionKeyRule.RESOURCE_TYPE, "a-x-room", data(), {ANOTHER: 1}),
        (PartitionKeyRule.RESOURCE_TYPE, "A-x-class", data(), {ANOTHER: 1}),
        (PartitionKeyRule.TENANT, "a-x", data(), {}),
        (PartitionKeyRule.TENANT, "a-x-class", data(), {ANOTHER: 1}),
        (PartitionKeyRule.ANY, "0", data(), {}),
        # Longer than Kinesis allows, a key cannot be that of the rule.
        (PartitionKeyRule.RESOURCE_TYPE, "short", data("t" * 127, "b" * 126), {ANOTHER: 1}),
        (PartitionKeyRule.RESOURCE_TYPE, "short", data("t" * 127, "b" * 127), {}),
    ],
)
def test_partition_key_is_wrong_when_it_is_not_that_of_the_rule(
    rule: PartitionKeyRule, key: str, content: bytes, problems: dict[PartitionKeyProblem, int]
) -> None:
    assert PartitionKeys(rule, WHOLE).note(put(key, content)) == problems


def test_record_put_elsewhere_by_an_explicit_hash_key_is_wrong() -> None:
    own = hash_of("a-x-class")
    for hash_range, problems in (
        (HashRange(own, own), {}),
        (HashRange(0, own - 1), {EXPLICIT: 1}),
        (HashRange(own + 1, WHOLE.last), {EXPLICIT: 1}),
        (None, {}),
    ):
        keys = PartitionKeys(PartitionKeyRule.RESOURCE_TYPE, hash_range)
        assert keys.note(put("a-x-class")) == problems
    assert PartitionKeys(PartitionKeyRule.ANY, HashRange(0, 0)).note(put("a-x-class")) == {}


def test_each_part_of_an_aggregate_has_a_key_of_its_own() -> None:
    whole = aggregate([("a-x-class", None, data()), ("a-x", None, data()), ("a-x", "7", data("room"))])
    keys = PartitionKeys(PartitionKeyRule.RESOURCE_TYPE, WHOLE)

    assert keys.note(decoded(Record("1", "a", whole, START))) == {ANOTHER: 2}


def test_every_operation_with_a_wrong_key_counts() -> None:
    keys = PartitionKeys(PartitionKeyRule.RESOURCE_TYPE, WHOLE)
    assert keys.status() == {"wrongKeys": 0, "lastWrongKey": None}

    problems = keys.note([*put("a-x"), *put("a-x"), *put("a-x-class"), *put("z", data(business_id="b"))])
    keys.note(put("a-x-class"))

    assert problems == {ANOTHER: 3}
    last = {"businessId": "b", "locationId": "x", "partitionKey": "z", "problem": ANOTHER}
    assert keys.status() == {"wrongKeys": 3, "lastWrongKey": last}


def test_keys_are_told_apart_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_keys, "REMEMBERED_MAX", 3)
    keys = PartitionKeys(PartitionKeyRule.RESOURCE_TYPE, WHOLE)
    for _ in range(2):
        for number in range(10):
            own = data(business_id=f"b{number}")
            assert keys.note([*put(f"b{number}-x-class", own), *put("b0-x-class", own)]) == (
                {ANOTHER: 1} if number else {}
            )


def test_warning_is_due_at_once_and_then_once_in_a_while() -> None:
    keys = PartitionKeys(PartitionKeyRule.RESOURCE_TYPE, WHOLE)
    keys.note(put("a-x-class"))
    assert keys.take_warning(0.0) is None

    keys.note(put("a-x"))
    assert keys.take_warning(1.0) == (WrongKey("a", "x", "a-x", ANOTHER), 1)
    keys.note([*put("a-x"), *put("a-y")])
    assert keys.take_warning(0.9 + WARNING_INTERVAL_S) is None
    assert keys.take_warning(1.0 + WARNING_INTERVAL_S) == (WrongKey("a", "x", "a-y", ANOTHER), 2)
    assert keys.take_warning(2.0 + 2 * WARNING_INTERVAL_S) is None


@given(st.text(max_size=300))
def test_shown_key_is_short_and_printable(key: str) -> None:
    shown = shown_key(key)

    assert shown.isprintable()
    assert len(shown) <= SHOWN_MAX + 1
    if key.isprintable() and len(key) <= SHOWN_MAX:
        assert shown == key


@pytest.mark.parametrize(("key", "shown"), [("a\n\x1b[2J", "a\ufffd\ufffd[2J"), ("k" * 65, "k" * 64 + "…")])
def test_shown_key_replaces_what_may_not_be_in_a_log(key: str, shown: str) -> None:
    assert shown_key(key) == shown
