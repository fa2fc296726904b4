"""Items are cut into requests that keep the order of each key, and those that a service refuses are sent again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.aws.endpoints import REGION, ScriptedAws

from simplu_worker.aws import sending
from simplu_worker.aws.clients import open_client
from simplu_worker.aws.sending import TRIES_MAX, PutRecord, RequestBounds, cut, queue_producer, stream_producer
from simplu_worker.aws.sqs_queue import FifoIds, OutgoingMessage, Queue
from simplu_worker.errors import PermanentError, RetryableError


@given(
    records=st.lists(st.builds(PutRecord, st.binary(max_size=500), st.sampled_from("abcdef")), max_size=60),
    most=st.integers(min_value=1, max_value=10),
    most_bytes=st.integers(min_value=100, max_value=2000),
)
def test_puts_keep_order_within_bounds_and_each_key_once(records: list[PutRecord], most: int, most_bytes: int) -> None:
    bounds = RequestBounds(most, most_bytes)
    puts = list(cut(records, bounds, key_of=lambda one: one.partition_key, size_of=lambda one: len(one.data) + 1))
    assert [record for put in puts for record in put] == records
    for put in puts:
        keys = [record.partition_key for record in put]
        size_bytes = sum(len(record.data) + len(record.partition_key) for record in put)
        assert 1 <= len(put) <= most
        assert len(set(keys)) == len(keys)
        assert size_bytes <= most_bytes or len(put) == 1


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        pytest.param([50, 40], [2], id="exactly as much as a put may have"),
        pytest.param([50, 41], [1, 1], id="one byte more"),
        pytest.param([28, 28, 28, 7], [3, 1], id="all records of a put count"),
        pytest.param([200, 10, 10], [1, 2], id="one that is too large goes alone, and the next put starts empty"),
        pytest.param([200, 50, 40], [1, 2], id="the next put has as much as the first"),
        pytest.param([], [], id="nothing"),
    ],
)
def test_request_is_as_large_as_it_may_be(sizes: list[int], expected: list[int]) -> None:
    requests = cut(sizes, RequestBounds(9, 90), key_of=lambda _: None, size_of=lambda size: size)
    assert [len(request) for request in requests] == expected


def test_sends_keep_the_order_of_groups_within_bounds() -> None:
    def messages(*groups: str | None, size: int = 1) -> list[OutgoingMessage]:
        ids = [None if group is None else FifoIds(group, str(number)) for number, group in enumerate(groups)]
        return [OutgoingMessage("x" * size, fifo) for fifo in ids]

    def counts(sent: list[OutgoingMessage]) -> list[int]:
        requests = list(queue_producer(Queue(None, "http://x/1/q")).cut(sent))
        assert [message for request in requests for message in request] == sent
        return [len(request) for request in requests]

    assert counts(messages(*"abcdefghijklm")) == [10, 3]
    assert counts(messages(*"abacb")) == [2, 3]
    assert counts(messages(*[None] * 12)) == [10, 2]
    assert counts(messages(*"abc", size=131_072)) == [2, 1]


@pytest.mark.usefixtures("aws_credentials")
async def test_put_has_as_many_records_as_it_may() -> None:
    async with open_client("kinesis", region=REGION) as client:
        producer = stream_producer(client, "s")
    records = [PutRecord(b"", str(number)) for number in range(1001)]
    assert [len(put) for put in producer.cut(records)] == [500, 500, 1]
    large = [PutRecord(bytes(1_750_000 - 1), str(number)) for number in range(3)]
    assert [len(put) for put in producer.cut(large)] == [2, 1]


MESSAGES = [OutgoingMessage("a"), OutgoingMessage("b")]


@asynccontextmanager
async def queue_of(aws: ScriptedAws) -> AsyncIterator[Queue]:
    async with aws.running() as url, open_client("sqs", region=REGION, endpoint_url=url) as client:
        yield Queue(client, f"{url}/0/orders")


def refusal(code: str, *, is_sender_fault: bool) -> dict[str, object]:
    failed = {"Id": "1", "Code": code, "SenderFault": is_sender_fault}
    return {"Successful": [{"Id": "0", "MessageId": "m", "MD5OfMessageBody": ""}], "Failed": [failed]}


@pytest.mark.usefixtures("aws_credentials")
async def test_entry_that_sqs_finds_at_fault_is_not_sent_again() -> None:
    aws = ScriptedAws()
    aws.answer(refusal("InvalidMessageContents", is_sender_fault=True))
    async with queue_of(aws) as queue:
        with pytest.raises(PermanentError, match=r"^queue orders: .*: InvalidMessageContents$"):
            await queue_producer(queue).send(MESSAGES)
    assert len(aws.requests) == 1


@pytest.mark.usefixtures("aws_credentials")
@pytest.mark.parametrize(("code", "is_sender_fault"), [("InternalError", False), ("RequestThrottled", True)])
async def test_entry_that_sqs_may_take_later_is_sent_again(
    code: str,
    is_sender_fault: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sending, "RETRY_BASE_S", 0.001)
    aws = ScriptedAws()
    aws.answer(refusal(code, is_sender_fault=is_sender_fault))
    for _ in range(TRIES_MAX):
        aws.answer({"Failed": [{"Id": "0", "Code": code, "SenderFault": is_sender_fault}]})
    errors: list[RetryableError] = []
    async with queue_of(aws) as queue:
        with pytest.raises(RetryableError, match=r"^queue orders takes no more now$"):
            await queue_producer(queue).send(MESSAGES, errors.append)
    assert [len(body["Entries"]) for _, body in aws.requests] == [2, *[1] * (len(aws.requests) - 1)]
    assert len(errors) == len(aws.requests)


@given(sizes=st.lists(st.integers(1, 12)), max_count=st.integers(1, 5))
def test_requests_keep_the_order_and_both_limits(sizes: list[int], max_count: int) -> None:
    bounds = RequestBounds(max_count, 10)
    requests = list(cut(range(len(sizes)), bounds, key_of=lambda _: None, size_of=lambda index: sizes[index]))
    assert [index for request in requests for index in request] == list(range(len(sizes)))
    totals = [sum(sizes[index] for index in request) for request in requests]
    for request, total in zip(requests, totals, strict=True):
        assert len(request) <= max_count
        assert total <= 10 or len(request) == 1
    for request, total, following in zip(requests, totals, requests[1:], strict=False):
        assert len(request) == max_count or total + sizes[following[0]] > 10
