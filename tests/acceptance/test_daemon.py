"""The worker as a process: signals, configuration, and what it says when it cannot start."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from support.full_stack import make_record
from support.rows import fetch_value

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import running_processes, with_descendants
from simplu_local.processes.worker_process import WorkerProcess, log_tail
from simplu_local.stack.stack import Stack
from simplu_local.verify.shard_checker import read_tenant_ids, shard_urls
from simplu_local.workload.producer import create_tenants
from simplu_local.workload.workload import Tenant

in_stacks_loop = pytest.mark.asyncio(loop_scope="module")

TENANT = Tenant("clinic", "main", "dental")
STREAM_SHARDS = 2
GRACE_S = 10.0
PATIENCE_S = 60.0
ENDED_WITHIN_S = 60.0  # the exit status tells whether the drain was in time: the rest is for a busy machine

_numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack() -> AsyncIterator[Stack]:
    """Run one stack for this file, with one tenant; at the end no process of it is left, nor of the workers."""
    async with Stack(shards=2, stream_shards=STREAM_SHARDS) as running:
        async with running_worker(running, with_queue=True):
            async with running.aws_client("sqs") as sqs:
                await create_tenants(sqs, running.env["SQS_SHARD_CREATION_QUEUE_URL"], [TENANT])
            await until_so(partial(shard_of_tenant, running))
        yield running
        family = with_descendants(running.group.pids, running_processes())
    assert family & {process.pid for process in running_processes()} == set()


def environment(stack: Stack, *, with_queue: bool = False, **more: str) -> dict[str, str]:
    env = stack.env | {"KINESIS_LEASE_DURATION_SECONDS": "2", "SHUTDOWN_GRACE_SECONDS": str(GRACE_S)}
    orders = {"SQS_ORDER_EVENTS_QUEUE_URL": "", "SQS_PRIORITY_QUEUE_URL": ""}
    return env | orders | ({} if with_queue else {"SQS_SHARD_CREATION_QUEUE_URL": ""}) | more


@asynccontextmanager
async def running_worker(stack: Stack, *, with_queue: bool = False, **more: str) -> AsyncIterator[WorkerProcess]:
    """Run a worker for as long as the context, or until it ends; enter when it is ready.

    Without the control queue it ends sooner: a poll that is under way when the stop comes is waited out.
    """
    number = next(_numbers)
    log_path = stack.group.directory / f"daemon-{number}.log"
    env = environment(stack, with_queue=with_queue, **more)
    worker = WorkerProcess(stack.group, env, number=number, log_path=log_path)
    worker.start()
    try:
        await worker.wait_ready()
        yield worker
    except BaseException:
        print(log_tail(log_path))  # noqa: T201  (only a failure shows it)
        raise
    finally:
        worker.kill()


async def until_so(ask: Any, *, within_s: float = PATIENCE_S) -> None:
    """Wait until *ask* says yes, and fail when it never does."""
    assert await poll_until(ask, within_s=within_s)


async def shard_of_tenant(stack: Stack) -> str:
    """Return the URL of the tenant's shard; empty while it has none."""
    found = [url for url in shard_urls(stack.env) if TENANT.tenant_id in await read_tenant_ids([url])]
    return "".join(found)


async def put_create(stack: Stack, request_id: str) -> None:
    record = make_record(TENANT, "create", request_id, resourceId=request_id, data={"name": "somebody"})
    async with stack.aws_client("kinesis") as kinesis:
        data = json.dumps(record).encode()
        await kinesis.put_record(StreamName=stack.env["KINESIS_STREAM_NAME"], PartitionKey="key", Data=data)


async def applied(stack: Stack, request_id: str) -> None:
    """Wait until an operation is in the log."""
    query = "SELECT count(*) FROM operations WHERE request_id = $1"

    async def is_there() -> bool:
        return bool(await fetch_value(await shard_of_tenant(stack), query, request_id))

    await until_so(is_there)


async def leases(stack: Stack) -> list[dict[str, Any]]:
    """Return the rows of the lease table that stand for stream shards."""
    async with stack.aws_client("dynamodb") as dynamodb:
        reply = await dynamodb.scan(TableName=stack.env["KINESIS_APPLICATION_NAME"], ConsistentRead=True)
    return [row for row in reply["Items"] if row["leaseKey"]["S"].startswith("shardId-")]


async def holds_all(stack: Stack, worker: WorkerProcess) -> None:
    """Wait until *worker* holds every lease: those of one that was killed have to expire first."""

    async def is_so() -> bool:
        owners = [row.get("leaseOwner", {"S": ""})["S"] for row in await leases(stack)]
        return len(owners) == STREAM_SHARDS and all(f":{worker.pid}:" in owner for owner in owners)

    await until_so(is_so)


async def bytes_in_hand(worker: WorkerProcess) -> int:
    async with aiohttp.ClientSession(headers=worker.operator) as http, http.get(f"{worker.url}/status") as answer:
        return int((await answer.json())["prefetch"]["usedBytes"])


async def put_in_frost(stack: Stack, worker: WorkerProcess, request_id: str) -> None:
    """Freeze all shards, put an operation, and wait until *worker* has it in hand: its drain waits for it.

    One before it is applied first: the worker has nothing else in hand then.
    """

    async def has_nothing() -> bool:
        return await bytes_in_hand(worker) == 0

    async def has_it() -> bool:
        return await bytes_in_hand(worker) > 0

    await put_create(stack, f"before-{request_id}")
    await applied(stack, f"before-{request_id}")
    await until_so(has_nothing)
    for server in stack.servers.values():
        server.suspend()
    await put_create(stack, request_id)
    await until_so(has_it)


def thaw(stack: Stack) -> None:
    for server in stack.servers.values():
        server.resume()


async def ended(worker: WorkerProcess, *, within_s: float) -> int:
    """Wait for the end of a worker; return its exit status."""
    process = worker._process
    assert process is not None

    async def is_over() -> bool:
        return process.poll() is not None

    assert await poll_until(is_over, within_s=within_s), log_tail(worker.log_path)
    return int(process.returncode)


@pytest.mark.slow(4)
@in_stacks_loop
async def test_worker_drains_at_sigterm_though_a_shard_is_frozen(stack: Stack) -> None:
    # A fifth of it is for giving the leases back, after the batch was waited for: enough on a busy machine.
    async with running_worker(stack, SHUTDOWN_GRACE_SECONDS="6") as worker:
        await holds_all(stack, worker)
        try:
            await put_in_frost(stack, worker, "in-frost")
            worker.send_signal(signal.SIGTERM)
            assert await ended(worker, within_s=ENDED_WITHIN_S) == 0, log_tail(worker.log_path)
        finally:
            thaw(stack)
    released = await leases(stack)
    assert [row for row in released if "leaseOwner" in row] == []
    assert any(row["checkpoint"]["S"].isdigit() for row in released)
    events = [json.loads(line)["event"] for line in worker.log_path.read_text().splitlines()]
    assert [events.count(event) for event in ("worker.ready", "worker.draining", "worker.stopped")] == [1, 1, 1]
    assert events[-1] == "worker.stopped"

    async with running_worker(stack) as worker:
        await applied(stack, "in-frost")
        await worker.stop(within_s=ENDED_WITHIN_S)


@pytest.mark.slow(4)
@in_stacks_loop
async def test_worker_ends_at_once_when_it_gets_a_second_signal(stack: Stack) -> None:
    async with running_worker(stack, SHUTDOWN_GRACE_SECONDS="60") as worker:
        await holds_all(stack, worker)

        async def drains() -> bool:
            return '"worker.draining"' in worker.log_path.read_text()

        try:
            await put_in_frost(stack, worker, "at-second-signal")
            worker.send_signal(signal.SIGTERM)
            await until_so(drains)
            worker.check_running()
            worker.send_signal(signal.SIGINT)
            assert await ended(worker, within_s=20) == 1  # the drain alone would take 48 s, and end with 0
        finally:
            thaw(stack)
