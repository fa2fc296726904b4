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
from simplu_local.kinesis.quotas import MIB, ReadQuota, WriteQuota
from simplu_local.kinesis.reshard import HASH_KEYS, HashRange, Merge, Split, equal_ranges, scaling_steps
from simplu_local.kinesis.tokens import (
    SequenceNumber,
    encode_sequence_number,
    parse_sequence_number,
    unseal_token,
)

START_MS = 1_700_000_000_000
NAME = "stream"


class Kinesis:
    def __init__(self, shard_count: int = 1, **options: Any) -> None:
        options = {"create_delay_ms": 0, "update_delay_ms": 0, "delete_delay_ms": 0, "read_throttling": False} | options
        self.account = KinesisAccount(KinesisOptions(**options))
        self.actions = KinesisActions(self.account)
        self.now_ms = START_MS
        self("CreateStream", ShardCount=shard_count)

    def __call__(self, action: str, **request: Any) -> dict[str, Any]:
        if not request.keys() & {"StreamARN", "NextToken", "ShardIterator"} and action != "ListStreams":
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

    def listed(self, **more: Any) -> list[str]:
        return [shard["ShardId"][-2:] for shard in self("ListShards", **more)["Shards"]]


def shard_id(index: int) -> str:
    return f"shardId-{index:012d}"


def texts_of(answer: dict[str, Any]) -> list[str]:
    return [base64.b64decode(record["Data"]).decode() for record in answer["Records"]]


def refusal(kinesis: Kinesis, action: str, **request: Any) -> str:
    with pytest.raises(KinesisError) as caught:
        kinesis(action, **request)
    return caught.value.code


# Numbers and tokens


@given(st.integers(0, 2**36 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**36 - 1))
def test_sequence_number_says_what_it_was_made_of(made_s: int, index: int, ordinal: int, second: int) -> None:
    parts = SequenceNumber(made_s, index, ordinal, second)
    text = str(encode_sequence_number(parts))
    assert (len(text), parse_sequence_number(text)) == (56, parts)


@given(st.text(max_size=100))
def test_token_is_refused_when_it_is_garbage(text: str) -> None:
    assert unseal_token(text) is None
    assert unseal_token(base64.b64encode(text.encode()).decode()) is None


# Hash ranges


@pytest.mark.parametrize(
    ("before", "after", "splits", "merges"),
    [(1, 2, 1, 0), (2, 4, 2, 0), (4, 2, 0, 2), (3, 6, 3, 0), (6, 3, 0, 3), (2, 3, 2, 1), (3, 2, 1, 2), (4, 4, 0, 0)],
)
def test_scaling_takes_as_few_steps_as_it_can(before: int, after: int, splits: int, merges: int) -> None:
    steps = scaling_steps(equal_ranges(before), after)
    kinds = [type(step) for step in steps]
    assert (kinds.count(Split), kinds.count(Merge)) == (splits, merges)


# Quotas


def test_read_quota_allows_five_reads_a_second() -> None:
    quota = ReadQuota()
    assert [quota.acquire(START_MS) for _ in range(7)] == [True] * 5 + [False] * 2
    paced = ReadQuota()
    assert all(paced.acquire(START_MS + 200 * number) for number in range(50))


@pytest.mark.parametrize(
    ("size_bytes", "was_full", "closed_ms"),
    [(MIB, False, 0), (2 * MIB, False, 1), (4 * MIB, False, 1001), (10 * MIB, True, 5000)],
)
def test_read_quota_closes_for_as_long_as_the_answer_was_large(size_bytes: int, was_full: bool, closed_ms: int) -> None:  # noqa: FBT001
    quota = ReadQuota()
    assert quota.acquire(START_MS)
    quota.count_read(size_bytes, START_MS, was_full=was_full)
    if closed_ms:
        assert not quota.acquire(START_MS + closed_ms - 1)
    assert quota.acquire(START_MS + closed_ms)


def test_write_quota_counts_records_and_bytes() -> None:
    small, large = WriteQuota(), WriteQuota()
    assert [small.acquire(1, START_MS) for _ in range(1001)] == [True] * 1000 + [False]
    assert [large.acquire(3 * MIB, START_MS + at_ms) for at_ms in (0, 1000, 2000, 3000)] == [True, False, False, True]


# Putting and reading


def test_iterator_is_refused_when_its_arguments_make_no_sense() -> None:
    kinesis = Kinesis(2)
    number = kinesis.put("key", "a", ExplicitHashKey="0")["SequenceNumber"]
    at = {"ShardIteratorType": "AT_SEQUENCE_NUMBER"}
    table: list[tuple[str, dict[str, Any]]] = [
        ("ResourceNotFoundException", {"ShardId": shard_id(9), "ShardIteratorType": "LATEST"}),
        ("InvalidArgumentException", {"ShardId": shard_id(1), "StartingSequenceNumber": number, **at}),
        ("InvalidArgumentException", {"ShardId": shard_id(0), "StartingSequenceNumber": "17", **at}),
        ("InvalidArgumentException", {"ShardId": shard_id(0), **at}),
        (
            "InvalidArgumentException",
            {"ShardId": shard_id(0), "ShardIteratorType": "AT_TIMESTAMP", "Timestamp": START_MS / 1000 + 1},
        ),
        ("ValidationException", {"ShardId": shard_id(0), "ShardIteratorType": "MIDDLE"}),
    ]
    assert [refusal(kinesis, "GetShardIterator", **request) for _, request in table] == [code for code, _ in table]


@pytest.mark.parametrize(
    ("code", "action", "request_"),
    [
        ("InvalidArgumentException", "GetRecords", {"ShardIterator": "garbage"}),
        ("InvalidArgumentException", "GetRecords", {"ShardIterator": "garbage", "Limit": 10_001}),
        ("ValidationException", "PutRecords", {"Records": [{"PartitionKey": "k", "Data": ""}] * 501}),
        ("InvalidArgumentException", "PutRecord", {"PartitionKey": "k", "Data": "", "ExplicitHashKey": str(HASH_KEYS)}),
        ("SerializationException", "PutRecord", {"PartitionKey": "k", "Data": "?"}),
        (
            "InvalidArgumentException",
            "PutRecord",
            {"PartitionKey": "k", "Data": base64.b64encode(bytes(MIB)).decode()},
        ),
        (
            "InvalidArgumentException",
            "PutRecords",
            {"Records": [{"PartitionKey": "k", "Data": base64.b64encode(bytes(MIB - 1)).decode()}] * 11},
        ),
        ("ResourceNotFoundException", "DescribeStreamSummary", {"StreamName": "other"}),
        ("ResourceInUseException", "CreateStream", {"ShardCount": 1}),
        ("UnknownOperationException", "PutEverything", {}),
    ],
)
def test_request_is_refused_as_the_api_reference_says(code: str, action: str, request_: dict[str, Any]) -> None:
    assert refusal(Kinesis(), action, **request_) == code


@pytest.mark.slow
def test_reading_goes_by_number_and_by_size() -> None:
    kinesis = Kinesis()
    for number in range(15):
        kinesis.put("k", str(number % 10) * (MIB - 1))
    assert len(kinesis("GetRecords", ShardIterator=kinesis.iterator(), Limit=3)["Records"]) == 3
    first = kinesis("GetRecords", ShardIterator=kinesis.iterator())
    second = kinesis("GetRecords", ShardIterator=first["NextShardIterator"])
    assert [len(first["Records"]), len(second["Records"])] == [10, 5]
    kinesis.account.streams[NAME].find(shard_id(0)).trim(4)
    assert len(kinesis.texts(kinesis.iterator())) == 10


def test_iterator_expires_after_five_minutes_and_on_demand() -> None:
    kinesis = Kinesis()
    iterator = kinesis.iterator()
    kinesis.now_ms += 300_000
    assert kinesis.texts(iterator) == []
    kinesis.now_ms += 1
    assert refusal(kinesis, "GetRecords", ShardIterator=iterator) == "ExpiredIteratorException"
    fresh = kinesis.iterator()
    kinesis.account.expire_iterators()
    assert refusal(kinesis, "GetRecords", ShardIterator=fresh) == "ExpiredIteratorException"


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


def test_memory_is_bounded_by_trimming_the_oldest_records() -> None:
    kinesis = Kinesis(2, memory_max_bytes=100_000)
    for number in range(1000):
        kinesis.now_ms += 1
        kinesis.put("k", str(number), ExplicitHashKey="0" if number < 500 else str(HASH_KEYS - 1))
    stream = kinesis.account.streams[NAME]
    left = kinesis.texts(kinesis.iterator(0)) + kinesis.texts(kinesis.iterator(1))
    assert left == [str(number) for number in range(1000 - len(left), 1000)]
    assert 100 < len(left) == 1000 - stream.trimmed_for_memory
    assert sum(shard.stored_bytes for shard in stream.stream_shards.values()) <= 100_000


# States


def test_stream_goes_through_its_states_in_its_time() -> None:
    delays = {"create_delay_ms": 100, "update_delay_ms": 100, "delete_delay_ms": 100}
    kinesis = Kinesis(2, **delays)

    def status() -> str:
        return str(kinesis("DescribeStreamSummary")["StreamDescriptionSummary"]["StreamStatus"])

    seen = [status()]
    assert refusal(kinesis, "ListShards") == "ResourceInUseException"
    assert refusal(kinesis, "PutRecord", PartitionKey="k", Data="") == "ResourceNotFoundException"
    kinesis.now_ms += 100
    seen.append(status())
    kinesis("MergeShards", ShardToMerge=shard_id(1), AdjacentShardToMerge=shard_id(0))
    seen.append(status())
    assert kinesis.listed() == ["00", "01"]
    assert refusal(kinesis, "UpdateShardCount", TargetShardCount=2, ScalingType="UNIFORM_SCALING") == (
        "ResourceInUseException"
    )
    kinesis.now_ms += 100
    seen.append(status())
    kinesis("DeleteStream")
    seen.append(status())
    kinesis.now_ms += 100
    assert seen == ["CREATING", "ACTIVE", "UPDATING", "ACTIVE", "DELETING"]
    assert refusal(kinesis, "DescribeStreamSummary") == "ResourceNotFoundException"


# Reshards


def test_reshard_is_refused_when_it_is_not_possible() -> None:
    kinesis = Kinesis(3)
    kinesis("SplitShard", ShardToSplit=shard_id(0), NewStartingHashKey="10")
    table: list[tuple[str, str, dict[str, Any]]] = [
        ("InvalidArgumentException", "MergeShards", {"ShardToMerge": shard_id(3), "AdjacentShardToMerge": shard_id(2)}),
        ("ResourceInUseException", "MergeShards", {"ShardToMerge": shard_id(0), "AdjacentShardToMerge": shard_id(1)}),
        ("ResourceInUseException", "SplitShard", {"ShardToSplit": shard_id(0), "NewStartingHashKey": "5"}),
        ("ResourceNotFoundException", "SplitShard", {"ShardToSplit": shard_id(9), "NewStartingHashKey": "5"}),
        ("InvalidArgumentException", "SplitShard", {"ShardToSplit": shard_id(3), "NewStartingHashKey": "10"}),
        ("InvalidArgumentException", "UpdateShardCount", {"TargetShardCount": 9, "ScalingType": "UNIFORM_SCALING"}),
        ("InvalidArgumentException", "UpdateShardCount", {"TargetShardCount": 1, "ScalingType": "UNIFORM_SCALING"}),
    ]
    assert [refusal(kinesis, action, **request) for _, action, request in table] == [code for code, _, _ in table]


def test_end_comes_with_the_last_records_and_as_null_when_that_is_set() -> None:
    kinesis = Kinesis(end_with_last_records=True, null_next_iterator=True)
    kinesis.put("k", "a")
    kinesis("SplitShard", ShardToSplit=shard_id(0), NewStartingHashKey=str(HASH_KEYS // 2))
    answer = kinesis("GetRecords", ShardIterator=kinesis.iterator())
    assert (texts_of(answer), answer["NextShardIterator"], len(answer["ChildShards"])) == (["a"], None, 2)


def test_closed_stream_shards_are_forgotten_after_the_retention() -> None:
    kinesis = Kinesis()
    kinesis("SplitShard", ShardToSplit=shard_id(0), NewStartingHashKey=str(HASH_KEYS // 2))
    kinesis.now_ms += 24 * HOUR_MS + 1
    assert kinesis.listed() == ["01", "02"]
    assert kinesis("ListShards")["Shards"][0]["ParentShardId"] == shard_id(0)
    assert refusal(kinesis, "GetShardIterator", ShardId=shard_id(0), ShardIteratorType="TRIM_HORIZON") == (
        "ResourceNotFoundException"
    )


# ListShards


def test_page_token_is_refused_when_it_is_old_or_not_alone() -> None:
    kinesis = Kinesis(2)
    token = kinesis("ListShards", MaxResults=1)["NextToken"]
    codes = [
        refusal(kinesis, "ListShards", NextToken=token, StreamName=NAME),
        refusal(kinesis, "ListShards", NextToken=token, ShardFilter={"Type": "AT_LATEST"}),
        refusal(kinesis, "ListShards", NextToken="garbage"),
    ]
    assert codes == ["InvalidArgumentException"] * 3
    kinesis.now_ms += 300_001
    assert refusal(kinesis, "ListShards", NextToken=token) == "ExpiredNextTokenException"


# Faults


# All of it at random

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
def test_reader_that_follows_parents_before_children_reads_everything_once_and_in_order(
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
