"""Produce a load: tenants through the control queue, and records onto the stream in the order produced."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from simplu_local.workload.packing import PackedItems, as_records
from simplu_local.workload.workload import Item, Tenant

PUT_MAX_RECORDS = 500  # PutRecords' quota
PUT_MAX_BYTES = 3_500_000  # below its 5 MiB, which moto counts after base64
ALONE_BYTES = 700_000  # a larger record is sent alone with PutRecord: some servers have a lower limit in PutRecords
SEND_MAX_MESSAGES = 10  # SendMessageBatch's quota
STREAM_WAIT_S = 30.0
POLL_INTERVAL_S = 0.2

Position = tuple[str, str]
"""A stream shard and a sequence number, with the index of a part behind a slash; or a queue and a message id."""


class OrderLostError(Exception):
    """The stream accepted a later record of a partition key and rejected an earlier one: the model is invalid now."""


@asynccontextmanager
async def open_client(service: str, env: Mapping[str, str], *, attempts: int = 1) -> AsyncIterator[Any]:
    """Open a client for *service* with the region, endpoint and keys in *env*, a worker's environment.

    By default it never retries: a put that was done but not answered would be done twice. More *attempts* are for
    requests whose repetition changes nothing, such as a message to a FIFO queue.
    """
    client = get_session().create_client(
        service,
        region_name=env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION"),
        endpoint_url=env.get(f"AWS_ENDPOINT_URL_{service.upper()}") or env.get("AWS_ENDPOINT_URL"),
        aws_access_key_id=env.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=env.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=env.get("AWS_SESSION_TOKEN"),
        config=AioConfig(retries={"total_max_attempts": attempts}, connect_timeout=5, read_timeout=60),
    )
    async with client as opened:
        yield opened


async def wait_for_stream(kinesis: Any, stream: str) -> None:
    """Wait until *stream* accepts records.

    Raises:
        TimeoutError: it does not within half a minute; the worker or the stack should have created it.

    """
    async with asyncio.timeout(STREAM_WAIT_S):
        while True:
            try:
                answer = await kinesis.describe_stream_summary(StreamName=stream)
            except ClientError as error:
                if error.response["Error"]["Code"] != "ResourceNotFoundException":
                    raise
            else:
                if answer["StreamDescriptionSummary"]["StreamStatus"] in {"ACTIVE", "UPDATING"}:
                    return
            await asyncio.sleep(POLL_INTERVAL_S)


async def put_items(
    kinesis: Any,
    stream: str,
    items: Iterable[Item],
    *,
    on_put: Callable[[Sequence[tuple[Position, Item]]], None],
    rate: float | None = None,
    interval_s: float = POLL_INTERVAL_S,
    late_most_s: float | None = None,
    pack: Callable[[Sequence[Item]], Sequence[PackedItems]] = as_records,
) -> None:
    """Put *items* in order, one request at a time, and call *on_put* with the position of each.

    *pack* makes the records of a request.

    One request at a time keeps the order within each partition key (and moto loses records otherwise). *rate* is the
    maximum of records a second, those of *interval_s* in one request; `None`: as fast as the stream accepts them. After
    a delay requests follow at once until the rate is reached again; a delay beyond *late_most_s* counts as that long.

    Raises:
        OrderLostError: after a partial rejection, records of a partition key are in another order than produced.

    """
    loop = asyncio.get_running_loop()
    due = loop.time()
    max_records = PUT_MAX_RECORDS if rate is None else max(1, min(PUT_MAX_RECORDS, int(rate * interval_s)))
    for request in split_into_requests(items, max_records=max_records):
        left = pack(request)
        while left:
            left = await _put(kinesis, stream, left, on_put)
            if left:
                await asyncio.sleep(POLL_INTERVAL_S)
        if rate is not None:
            due += len(request) / rate
            if late_most_s is not None:
                due = max(due, loop.time() - late_most_s)
            await asyncio.sleep(max(0.0, due - loop.time()))


async def _put(
    kinesis: Any, stream: str, packs: Sequence[PackedItems], on_put: Callable[[Sequence[tuple[Position, Item]]], None]
) -> Sequence[PackedItems]:
    """Put the records of *packs* with one request; return those that the stream rejected, in order."""
    records = [{"Data": pack.record, "PartitionKey": pack.partition_key} for pack in packs]
    if len(records) == 1:
        answers = [await kinesis.put_record(StreamName=stream, **records[0])]
    else:
        answers = (await kinesis.put_records(StreamName=stream, Records=records))["Records"]
    pairs = list(zip(packs, answers, strict=True))
    on_put([one for pack, answer in pairs if "ErrorCode" not in answer for one in _positions(pack, answer)])
    rejected = [pack for pack, answer in pairs if "ErrorCode" in answer]
    overtaken = overtaken_keys((pack.partition_key, "ErrorCode" not in answer) for pack, answer in pairs)
    if overtaken:
        raise OrderLostError(
            "expected the stream to accept all or none of a partition key's records; of "
            f"{len(overtaken)} keys it accepted a later record and rejected an earlier one. "
            "Put fewer records a second, or give the stream more shards"
        )
    return rejected


def _positions(pack: PackedItems, answer: Mapping[str, str]) -> Iterator[tuple[Position, Item]]:
    for index, item in enumerate(pack.items):
        place = f"/{index}" if pack.is_packed else ""
        yield (answer["ShardId"], answer["SequenceNumber"] + place), item


def overtaken_keys(results: Iterable[tuple[str, bool]]) -> set[str]:
    """Return the keys of which a record was accepted after an earlier one was rejected."""
    rejected: set[str] = set()
    overtaken: set[str] = set()
    for key, accepted in results:
        if not accepted:
            rejected.add(key)
        elif key in rejected:
            overtaken.add(key)
    return overtaken


def split_into_requests(items: Iterable[Item], *, max_records: int = PUT_MAX_RECORDS) -> Iterator[list[Item]]:
    """Split *items* into requests within PutRecords' quotas; a large item gets a request of its own."""
    request: list[Item] = []
    size_bytes = 0
    for item in items:
        item_bytes = len(item.record) + len(item.partition_key.encode())
        limit_bytes = PUT_MAX_BYTES if item_bytes <= ALONE_BYTES else 0
        if request and (len(request) == max_records or size_bytes + item_bytes > limit_bytes):
            yield request
            request, size_bytes = [], 0
        request.append(item)
        size_bytes += item_bytes if limit_bytes else PUT_MAX_BYTES
    if request:
        yield request


async def create_tenants(sqs: Any, queue_url: str, tenants: Sequence[Tenant], *, seed: int = 0) -> None:
    """Send `SHARD_CREATION` for *tenants*, with its type in each of the three ways, every third one twice."""
    random = Random(seed)
    messages: list[dict[str, Any]] = []
    for number, tenant in enumerate(tenants):
        message = creation_message(tenant, way=number % 3, now=datetime.now(UTC))
        messages += [message] * (2 if number % 3 == 1 else 1)
    random.shuffle(messages)
    for first in range(0, len(messages), SEND_MAX_MESSAGES):
        entries = [
            {"Id": str(number), **message, **_fifo_members(queue_url, first + number)}
            for number, message in enumerate(messages[first : first + SEND_MAX_MESSAGES])
        ]
        answer = await sqs.send_message_batch(QueueUrl=queue_url, Entries=entries)
        if failed := answer.get("Failed"):
            raise RuntimeError(
                f"expected the control queue to accept all messages, it rejected {len(failed)}: {failed[0]}"
            )


def creation_message(tenant: Tenant, *, way: int, now: datetime) -> dict[str, Any]:
    """Return a `SHARD_CREATION`: *way* 0 has its type in an attribute, 1 in the body, 2 omits it."""
    body = {
        "businessId": tenant.business_id,
        "locationId": tenant.location_id,
        "businessType": tenant.business_type,
        "timestamp": now.isoformat().replace("+00:00", "Z"),
    }
    if way == 0:
        attribute = {"DataType": "String", "StringValue": "SHARD_CREATION"}
        return {"MessageBody": json.dumps(body), "MessageAttributes": {"MessageType": attribute}}
    if way == 1:
        body |= {"messageType": "SHARD_CREATION", "shardId": "", "connectionString": ""}
    return {"MessageBody": json.dumps(body, ensure_ascii=False)}


def _fifo_members(queue_url: str, number: int) -> dict[str, str]:
    if not queue_url.endswith(".fifo"):
        return {}
    return {"MessageGroupId": f"creation-{number % 4}", "MessageDeduplicationId": f"{datetime.now(UTC)}-{number}"}
