"""The local Kinesis without its HTTP: streams, quotas, tokens, reshards and faults, at times that the tests set."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simplu_local.kinesis.actions import KinesisActions
from simplu_local.kinesis.errors import KinesisError
from simplu_local.kinesis.model import HOUR_MS, KinesisAccount, KinesisOptions
from simplu_local.kinesis.reshard import HASH_KEYS, HashRange

START_MS = 1_700_000_000_000
NAME = "stream"


class Kinesis:
    def __init__(self, shard_count: int = 1, **options: Any) -> None:
        delays = dict.fromkeys(("create_delay_ms", "update_delay_ms", "delete_delay_ms", "consumer_delay_ms"), 0)
        options = {**delays, "read_throttling": False} | options
        self.account = KinesisAccount(KinesisOptions(**options))
        self.actions = KinesisActions(self.account)
        self.now_ms = START_MS
        self("CreateStream", ShardCount=shard_count)

    def __call__(self, action: str, **request: Any) -> dict[str, Any]:
        if not request.keys() & {"StreamARN", "NextToken", "ShardIterator", "ConsumerARN"} and action != "ListStreams":
            request.setdefault("StreamName", NAME)
        asked = self.actions.decode(action, json.dumps(request).encode())
        answer = json.loads(self.actions.answer(action, asked, self.now_ms) or b"{}")
        assert isinstance(answer, dict)
        return answer

    def put(self, key: str, text: str, **more: Any) -> dict[str, Any]:
        return self("PutRecord", PartitionKey=key, Data=base64.b64encode(text.encode()).decode(), **more)

    def iterator(self, shard: int = 0, kind: str = "TRIM_HORIZON", **more: Any) -> str:
        answer = self("GetShardIterator", ShardId=shard_id(shard), ShardIteratorType=kind, **more)
        return str(answer["ShardIterator"])

    def texts(self, iterator: str) -> list[str]:
        return texts_of(self("GetRecords", ShardIterator=iterator))


def shard_id(index: int) -> str:
    return f"shardId-{index:012d}"


def texts_of(answer: dict[str, Any]) -> list[str]:
    return [base64.b64decode(record["Data"]).decode() for record in answer["Records"]]


def refusal(kinesis: Kinesis, action: str, **request: Any) -> str:
    with pytest.raises(KinesisError) as caught:
        kinesis(action, **request)
    return caught.value.code


def test_records_go_when_their_retention_is_over() -> None:
    kinesis = Kinesis()
    kinesis.put("k", "a")
    iterator = kinesis.iterator()
    kinesis("IncreaseStreamRetentionPeriod", RetentionPeriodHours=48)
    kinesis.now_ms += 25 * HOUR_MS
    kinesis.put("k", "b")
    assert kinesis.texts(kinesis.iterator()) == ["a", "b"]
    kinesis("DecreaseStreamRetentionPeriod", RetentionPeriodHours=24)
    assert kinesis.texts(kinesis.iterator()) == ["b"]
    assert refusal(kinesis, "GetRecords", ShardIterator=iterator) == "ExpiredIteratorException"
    assert refusal(kinesis, "DecreaseStreamRetentionPeriod", RetentionPeriodHours=23) == "InvalidArgumentException"


operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 9)),
        st.tuples(st.just("split"), st.integers(0, 99)),
        st.tuples(st.just("merge"), st.integers(0, 99)),
        st.tuples(st.just("scale"), st.integers(1, 9)),
        st.tuples(st.just("wait"), st.integers(1, 40)),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), operations, st.booleans())
def test_reader_of_parents_before_children_reads_all_in_order(
    shard_count: int,
    steps: list[tuple[str, int]],
    end_with_last_records: bool,  # noqa: FBT001
) -> None:
    kinesis = Kinesis(shard_count, update_delay_ms=30, end_with_last_records=end_with_last_records)
    put: dict[str, list[str]] = defaultdict(list)
    for number, (action, argument) in enumerate(steps):
        if action == "put":
            key = f"key-{argument}"
            kinesis.put(key, str(number))
            put[key].append(str(number))
        elif action == "wait":
            kinesis.now_ms += argument
        else:
            reshard(kinesis, action, argument)
        assert covered(kinesis) == (0, HASH_KEYS - 1)
    kinesis.now_ms += 100
    assert read_tree(kinesis) == put


def reshard(kinesis: Kinesis, action: str, argument: int) -> None:
    stream = kinesis.account.streams[NAME]
    stream.apply_due(kinesis.now_ms)
    if stream.status != "ACTIVE":
        return
    open_shards = list(stream.open_stream_shards)
    at = argument % len(open_shards)
    if action == "scale":
        count = len(open_shards)
        stream.scale(min(max(argument, (count + 1) // 2), count * 2))
    elif action == "split":
        start, end = open_shards[at].hash_range
        if end - start > 100:
            stream.split(open_shards[at].stream_shard_id, start + (end - start) * (argument + 1) // 101)
    elif at:
        stream.merge(open_shards[at].stream_shard_id, open_shards[at - 1].stream_shard_id)


def covered(kinesis: Kinesis) -> tuple[int, int]:
    stream = kinesis.account.streams[NAME]
    stream.apply_due(kinesis.now_ms)
    for parent in stream.stream_shards.values():
        ending = int(parent.ending_sequence_number or 0)
        assert all(int(child.starting_sequence_number) > ending for child in parent.child_shards)
    ranges = [shard.hash_range for shard in stream.open_stream_shards]
    assert [HashRange(*one).end + 1 for one in ranges[:-1]] == [one.start for one in ranges[1:]]
    assert {shard.stream_shard_id for shard in stream.open_stream_shards} == {
        shard.stream_shard_id for shard in stream.stream_shards.values() if shard.is_open
    }
    return ranges[0].start, ranges[-1].end


def read_tree(kinesis: Kinesis) -> dict[str, list[str]]:
    read: dict[str, list[str]] = defaultdict(list)
    last_numbers: dict[str, int] = defaultdict(int)
    first = kinesis("ListShards", ShardFilter={"Type": "AT_TRIM_HORIZON"})["Shards"]
    due = {shard["ShardId"]: set[str]() for shard in first}
    ended: set[str] = set()
    while ready := [one for one, parents in due.items() if parents <= ended]:
        shard = ready[0]
        del due[shard]
        answer: dict[str, Any] = {"NextShardIterator": kinesis.iterator(int(shard[-12:]))}
        while answer.get("NextShardIterator") and not ("Records" in answer and is_drained(kinesis, shard, answer)):
            answer = kinesis("GetRecords", ShardIterator=answer["NextShardIterator"], Limit=3)
            for record in answer["Records"]:
                key, number = record["PartitionKey"], int(record["SequenceNumber"])
                assert last_numbers[key] < number
                last_numbers[key] = number
                read[key].append(base64.b64decode(record["Data"]).decode())
        for child in answer.get("ChildShards", []):
            due[child["ShardId"]] = set(child["ParentShards"])
        ended.add(shard)
    assert due == {}
    return read


def is_drained(kinesis: Kinesis, shard: str, answer: dict[str, Any]) -> bool:
    return kinesis.account.streams[NAME].find(shard).is_open and answer["MillisBehindLatest"] == 0
