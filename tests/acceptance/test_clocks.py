"""A worker on a machine whose clock is days ahead: what both clocks do not agree on waits, and is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.full_stack import poll_until_true
from support.requires import require
from support.stack_tenants import provision

from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.stack.aws import aws_client
from simplu_local.stack.stack import Stack
from simplu_local.workload.workload import Tenant

TENANT = Tenant("shop", "main", "gym")
PATIENCE_S = 60.0
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


@pytest.mark.slow(15)
async def test_worker_gives_up_no_operation_when_its_clock_is_days_ahead() -> None:
    require("libfaketime", found=bool(LIBRARIES), how="apt-get install libfaketime")
    async with Stack(shards=1, stream_shards=1, tenants_per_shard=2) as stack:
        await prepare(stack)
        ahead = {"LD_PRELOAD": str(LIBRARIES[-1]), "FAKETIME": "+20d", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        worker = WorkerProcess(stack.group, stack.env | ahead, number=1)
        worker.start()
        await worker.wait_ready()
        await put_for_unknown_tenant(stack)

        status = await status_with_held(worker)
        apart = await logged(worker, "clock.apart")
        assert [one["reason"] for one in status["held"]] == ["unregistered"]
        assert status["clock"].startswith("the clock of this machine is 17")
        assert status["counters"]["deadLetters"] == {}
        assert abs(apart["ahead_s"] - 20 * 86400) < 60
        peer = WorkerProcess(stack.group, stack.env, number=2)
        peer.start()
        assert await wrong_clocks(peer) == [f"replica {status['replica']}"]
        await peer.stop(within_s=PATIENCE_S)
        odd = [text for one in (await status_with_held(worker))["shards"] for text in one.get("odd", ())]
        assert [text for text in odd if "clock" in text] == []
        await worker.stop(within_s=PATIENCE_S)


async def prepare(stack: Stack) -> None:
    """Have a worker with a right clock make the schema and a tenant."""
    worker = WorkerProcess(stack.group, stack.env)
    worker.start()
    await worker.wait_ready()
    await provision(stack, TENANT, within_s=PATIENCE_S)
    await worker.stop(within_s=PATIENCE_S)


async def put_for_unknown_tenant(stack: Stack) -> None:
    """Put an operation of a tenant that Citrus does not know."""
    operation = {"operation": "list", "businessId": "nobody", "locationId": "main", "resourceType": "note"}
    async with aws_client("kinesis", stack.kinesis_url) as kinesis:
        await kinesis.put_record(
            StreamName=stack.env["KINESIS_STREAM_NAME"],
            PartitionKey="nobody",
            Data=json.dumps(operation | {"requestId": "r", "timestamp": "2025-01-31T09:00:00Z"}).encode(),
        )


async def status_with_held(worker: WorkerProcess) -> dict[str, Any]:
    """Return the status once something is held, or has become a dead letter."""

    async def ask() -> list[dict[str, Any]]:
        async with session.get(f"{worker.url}/status", headers=worker.operator) as answer:
            status = await answer.json()
        return [status] if status["held"] or status["counters"]["deadLetters"] else []

    async with aiohttp.ClientSession() as session:
        return (await poll_until_true(ask, within_s=PATIENCE_S))[0]


async def wrong_clocks(worker: WorkerProcess) -> list[str]:
    """Return whose clocks a replica calls wrong, once it does."""

    async def ask() -> list[str]:
        try:
            async with session.get(f"{worker.url}/fleet", headers=worker.operator) as answer:
                problems = (await answer.json()).get("problems", ())
        except aiohttp.ClientError:  # it starts
            return []
        return [one["subject"] for one in problems if one["cause"] == "clock_apart"]

    async with aiohttp.ClientSession() as session:
        return await poll_until_true(ask, within_s=PATIENCE_S)


async def logged(worker: WorkerProcess, event: str) -> dict[str, Any]:
    """Return the first line of an event in the worker's log, once it is there."""

    async def ask() -> list[dict[str, Any]]:
        lines = [line for line in worker.log_path.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
        return [entry for entry in map(json.loads, lines) if entry.get("event") == event]

    return (await poll_until_true(ask, within_s=PATIENCE_S))[0]
