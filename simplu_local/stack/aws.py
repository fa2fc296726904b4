"""The AWS side of the embedded stack: our Kinesis and SQS, and moto, as child processes, and their resources."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session

from simplu_local.aws_server.account import ACCOUNT_ID, REGION
from simplu_local.processes.loopback import URL_HOST, StackError, free_port, poll_until, port_is_free
from simplu_local.processes.watchdog import ProcessGroup

ACCESS_KEY_ID = "simplu-local"
SECRET_ACCESS_KEY = "simplu-local-secret"  # noqa: S105  # moto accepts any
CREDENTIALS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY}
STREAM_NAME = "resources-operations"
BUSINESS_INFO_TABLE = "business-info"
RECORD_MAX_KIB = 10 * 1024  # the maximum of a stream; records that the worker itself rejects for their size are larger
VISIBILITY_TIMEOUT_S = 30
RETENTION_MAX_S = 1_209_600  # 14 days: longer than that of the source queues
MAX_RECEIVE_COUNT = 1000  # hours of a dependency's outage must not create dead letters
START_TIMEOUT_S = 120.0  # on a machine that has much other work; one that has ended is noticed at once
PORT_ATTEMPTS = 5
BATCH_MAX = 25  # BatchWriteItem's quota
MOTO_STARTED = b"moto.started"
KINESIS_STARTED = b"kinesis.started"
SQS_STARTED = b"sqs.started"


@dataclass(frozen=True)
class QueueUrls:
    """The URLs of the queues."""

    shard_creation: str
    order_events: str
    priority: str
    dead_letters: str


async def start_moto(group: ProcessGroup) -> str:
    """Start moto in *group*, wait until it listens, and return its endpoint URL."""
    missing = [package for package in ("moto", "flask", "flask_cors") if importlib.util.find_spec(package) is None]
    if missing:
        raise StackError(f"the local AWS requires {', '.join(missing)}: install simplu-worker[local]")
    program = [sys.executable, "-P", "-m", "simplu_local.stack.moto_server", "--port"]
    return await _start_program(group, "moto", program, MOTO_STARTED)


async def start_kinesis(group: ProcessGroup) -> str:
    """Start our Kinesis in *group*, wait until it listens, and return its endpoint URL."""
    program = [sys.executable, "-m", "simplu_local.kinesis.server", "--port"]
    return await _start_program(group, "kinesis", program, KINESIS_STARTED)


async def start_sqs(group: ProcessGroup) -> str:
    """Start our SQS in *group*, wait until it listens, and return its endpoint URL."""
    program = [sys.executable, "-m", "simplu_local.sqs.server", "--port"]
    return await _start_program(group, "sqs", program, SQS_STARTED)


async def _start_program(group: ProcessGroup, name: str, program: Sequence[str], started_event: bytes) -> str:
    """Start *program* with a free port as its last argument; return its URL once *started_event* is in its log."""
    log_path = group.directory / f"{name}.log"
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MOTO_"))}
    env = environ | CREDENTIALS | {"AWS_DEFAULT_REGION": REGION, "MOTO_ACCOUNT_ID": ACCOUNT_ID}
    env["SSL_CERT_FILE"] = os.devnull  # to read the system's certificates takes a tenth of a start, and none is needed
    for _ in range(PORT_ATTEMPTS):
        port = free_port()
        log_path.write_bytes(b"")
        process = group.spawn([*program, str(port)], log_path=log_path, env=env)

        # The log and not a request: another program that took the port first might answer a request.
        async def has_started(process: subprocess.Popen[bytes] = process) -> bool:
            return started_event in log_path.read_bytes() or process.poll() is not None

        if not await poll_until(has_started, within_s=START_TIMEOUT_S):
            raise StackError(f"{name} does not listen after {START_TIMEOUT_S:.0f} s")
        if process.poll() is None:
            return f"http://{URL_HOST}:{port}"
        if port_is_free(port):
            break
    raise StackError(f"{name} ended at its start: {log_path.read_text(errors='replace')[-300:]}")


@functools.cache
def _session() -> AioSession:
    """Return one session for all clients: each new session would read the services' models again."""
    return get_session()


def aws_client(service: str, endpoint_url: str) -> AbstractAsyncContextManager[Any]:
    """Return a client of the local AWS, to be entered; it ignores the user's AWS settings."""
    client: AbstractAsyncContextManager[Any] = _session().create_client(
        service,
        region_name=REGION,
        endpoint_url=endpoint_url,
        aws_access_key_id=ACCESS_KEY_ID,
        aws_secret_access_key=SECRET_ACCESS_KEY,
        config=AioConfig(proxies={}),
    )
    return client


async def create_resources(endpoint_url: str, kinesis_url: str, sqs_url: str, *, stream_shards: int = 4) -> QueueUrls:
    """Create the queues, the stream of *stream_shards* and the business-info table in an empty local AWS."""
    async with asyncio.TaskGroup() as tasks:
        queues = tasks.create_task(_create_queues(sqs_url))
        tasks.create_task(_create_stream(kinesis_url, stream_shards))
        tasks.create_task(_create_table(endpoint_url))
    return queues.result()


async def _create_queues(endpoint_url: str) -> QueueUrls:
    async with aws_client("sqs", endpoint_url) as sqs:

        async def create(name: str, **attributes: str) -> str:
            attributes = {"VisibilityTimeout": str(VISIBILITY_TIMEOUT_S)} | attributes
            return str((await sqs.create_queue(QueueName=name, Attributes=attributes))["QueueUrl"])

        async def create_with_redrive(name: str, redrive_name: str, **attributes: str) -> str:
            redrive_url = await create(redrive_name, MessageRetentionPeriod=str(RETENTION_MAX_S), **attributes)
            answer = await sqs.get_queue_attributes(QueueUrl=redrive_url, AttributeNames=["QueueArn"])
            redrive = {"deadLetterTargetArn": answer["Attributes"]["QueueArn"], "maxReceiveCount": MAX_RECEIVE_COUNT}
            return await create(name, RedrivePolicy=json.dumps(redrive), **attributes)

        fifo = {"FifoQueue": "true", "ContentBasedDeduplication": "true"}
        return QueueUrls(
            shard_creation=await create_with_redrive("shard-creation", "shard-creation-redrive"),
            order_events=await create_with_redrive("order-events.fifo", "order-events-redrive.fifo", **fifo),
            priority=await create_with_redrive("order-events-priority.fifo", "order-events-redrive.fifo", **fifo),
            dead_letters=await create("dead-letters", MessageRetentionPeriod=str(RETENTION_MAX_S)),
        )


async def _create_stream(endpoint_url: str, stream_shards: int) -> None:
    async with aws_client("kinesis", endpoint_url) as kinesis:
        await kinesis.create_stream(StreamName=STREAM_NAME, ShardCount=stream_shards, MaxRecordSizeInKiB=RECORD_MAX_KIB)

        async def is_active() -> bool:
            answer = await kinesis.describe_stream_summary(StreamName=STREAM_NAME)
            return bool(answer["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE")

        if not await poll_until(is_active, within_s=START_TIMEOUT_S):
            raise StackError(f"stream {STREAM_NAME} is not active after {START_TIMEOUT_S:.0f} s")


async def put_businesses(dynamodb: Any, table: str, businesses: Mapping[str, tuple[str, Sequence[str]]]) -> None:
    """Put *businesses*, types and locations by business id, into the business-info table."""
    items = [
        {
            "id": {"S": business_id},
            "name": {"S": f"Business {business_id}"},
            "type": {"S": business_type},
            "locations": {
                "L": [
                    {"M": {"id": {"S": location}, "name": {"S": location}, "active": {"BOOL": True}}}
                    for location in locations
                ]
            },
            "settings": {"M": {}},
            "permissions": {"M": {}},
            "createdAt": {"S": "2026-01-01T00:00:00Z"},
            "updatedAt": {"S": "2026-01-01T00:00:00Z"},
        }
        for business_id, (business_type, locations) in businesses.items()
    ]
    for first in range(0, len(items), BATCH_MAX):
        requests = {table: [{"PutRequest": {"Item": item}} for item in items[first : first + BATCH_MAX]]}
        while requests:
            requests = (await dynamodb.batch_write_item(RequestItems=requests))["UnprocessedItems"]


async def _create_table(endpoint_url: str) -> None:
    async with aws_client("dynamodb", endpoint_url) as dynamodb:
        await dynamodb.create_table(
            TableName=BUSINESS_INFO_TABLE,
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
