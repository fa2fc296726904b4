"""`operations send` that Ctrl-C ends prints the request ids of what it has put: a repetition would have others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from support.aws.endpoints import client_of
from support.requires import ROOT

from simplu_local.aws_server.account import REGION
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import ProcessGroup
from simplu_local.stack.aws import CREDENTIALS, start_kinesis
from simplu_worker.aws.clients import ThrottledError
from simplu_worker.consumers.kinesis.stream.client import Record, Stream
from simplu_worker.consumers.kinesis.stream.positions import TrimHorizon

pytestmark = [pytest.mark.slow(3), pytest.mark.usefixtures("aws_credentials")]

NAME = "operations"
# The third line has the partition key of the first: it is put after the first two, and so is the fourth after it.
TYPES = ("order", "patient", "order", "order")
LINES = "".join(
    json.dumps({"operation": "delete", "businessId": "b", "locationId": "l", "resourceType": one, "resourceId": "r"})
    + "\n"
    for one in TYPES
)


@pytest.fixture
async def kinesis_url() -> AsyncIterator[str]:
    with ProcessGroup() as group:
        url = await start_kinesis(group)
        async with client_of("kinesis", url) as client:
            await Stream(client, NAME).ensure(create=True, stream_shard_count=1)
        yield url


async def ids_on(url: str) -> list[str]:
    async with client_of("kinesis", url) as client:
        stream = Stream(client, NAME)
        (shard,) = await stream.list_stream_shards()
        records: list[Record] = []

        async def is_read() -> bool:
            with contextlib.suppress(ThrottledError):  # a stream shard takes five calls a second
                iterator = await stream.get_iterator(shard.stream_shard_id, TrimHorizon())
                records[:] = (await stream.get_records(iterator, limit=100)).records
                return True
            return False

        assert await poll_until(is_read, within_s=60)
    return [json.loads(record.data)["requestId"] for record in records]


def _take_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def interrupted(url: str, *, once: Callable[[], Awaitable[bool]]) -> tuple[int, list[dict[str, Any]]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simplu_worker", "operations", "send", "-", "--json"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        | CREDENTIALS
        | {"AWS_REGION": REGION, "KINESIS_STREAM_NAME": NAME, "AWS_ENDPOINT_URL_KINESIS": url},
        preexec_fn=_take_interrupts,
    )
    assert process.stdin is not None
    process.stdin.write(LINES.encode())
    process.stdin.close()
    assert await poll_until(once, within_s=60)
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert b"Traceback" not in err
    assert process.returncode is not None
    return process.returncode, json.loads(out)["operations"]


async def test_send_prints_the_ids_when_interrupted_while_it_puts(kinesis_url: str) -> None:
    hang = {"do": "fault", "action": "PutRecords", "kind": "hang", "applied": True}
    async with aiohttp.ClientSession() as session, session.post(f"{kinesis_url}/_control", json=hang) as answer:
        assert answer.status == 200

    async def is_put() -> bool:
        return bool(await ids_on(kinesis_url))

    status, outcomes = await interrupted(kinesis_url, once=is_put)
    assert status == 130
    assert [(one["line"], one["status"]) for one in outcomes] == [
        (1, "unknown"),
        (2, "unknown"),
        (3, "not sent"),
        (4, "not sent"),
    ]
    assert [one["requestId"] for one in outcomes[:2]] == await ids_on(kinesis_url)
