"""A stream and a lease table of their own, which real workers of the KCL and replicas of ours share."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import aiohttp
import asyncpg
from support.peers.kcl_worker import KclWorker
from support.peers.programs import JavaProgram
from support.rows import fetch
from support.streams import reshard, wait_until_active

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess, log_tail
from simplu_local.stack.stack import Stack
from simplu_local.verify.shard_checker import read_tenant_ids, shard_urls
from simplu_local.workload.producer import create_tenants, put_items
from simplu_local.workload.reference_model import Effect, Verdict
from simplu_local.workload.workload import Item, Tenant

TENANT = Tenant("clinic", "main", "dental")
KEYS = 40  # partition keys: enough that each stream shard gets some
FAILOVER_S = 3
STOP_WITHIN_S = 60.0
WITHIN_S = 180.0
REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=30)
DUPLICATES = 'outcome="duplicate"'

_numbers = itertools.count(1)


def number_of_next() -> int:
    return next(_numbers)


class SharedStream:
    """A stream on *stack*, with the lease table *table*, and the workers that share it."""

    def __init__(self, stack: Stack, *, failover_s: int = FAILOVER_S) -> None:
        number = number_of_next()
        self.stack = stack
        self.stream = f"stream-{number}"
        self.table = f"application-{number}"
        self.put_ids: set[str] = set()
        self._failover_s = failover_s

    # Workers

    @contextmanager
    def kcl(self, program: JavaProgram, name: str, **options: str) -> Iterator[KclWorker]:
        """Run a worker of the KCL, which is killed at the end of the context; *options* of `Consumer.java`."""
        urls = (self.stack.kinesis_url, self.stack.aws_url)
        failover = str(self._failover_s * 1000)
        worker = KclWorker(
            self.stack.group,
            program,
            f"{name}-{number_of_next()}",
            urls=urls,
            table=self.table,
            stream=self.stream,
            **({"failover": failover} | options),
        )
        worker.start()
        try:
            yield worker
        finally:
            worker.kill()

    @contextmanager
    def replica(self, **more: str) -> Iterator[WorkerProcess]:
        number = number_of_next()
        log_path = self.stack.group.directory / f"replica-{number}.log"
        worker = WorkerProcess(self.stack.group, self.environment() | more, number=number, log_path=log_path)
        worker.start()
        try:
            yield worker
        finally:
            worker.kill()

    def environment(self) -> dict[str, str]:
        return self.stack.env | {
            "KINESIS_STREAM_NAME": self.stream,
            "KINESIS_APPLICATION_NAME": self.table,
            "KINESIS_LEASE_DURATION_SECONDS": str(self._failover_s),
            "SQS_ORDER_EVENTS_QUEUE_URL": "",
            "SQS_PRIORITY_QUEUE_URL": "",
            "SQS_SHARD_CREATION_QUEUE_URL": "",
        }

    def check(self, **more: str) -> dict[str, tuple[str, str]]:
        """Run `check` as a replica would; return status and text of each of its lines by name."""
        command = [sys.executable, "-m", "simplu_worker", "check", "--json"]
        env = self.environment() | {"PATH": "/usr/bin:/bin"} | more
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        lines = json.loads(done.stdout)["dependencies"]
        return {line["dependency"]: (line["status"], line["result"]) for line in lines}

    # The stream

    async def create(self, stream_shards: int) -> None:
        async with self.stack.aws_client("kinesis") as kinesis:
            await kinesis.create_stream(StreamName=self.stream, ShardCount=stream_shards)
            await wait_until_active(kinesis, self.stream)

    async def reshard(self, stream_shards: int) -> None:
        async with self.stack.aws_client("kinesis") as kinesis:
            await reshard(kinesis, self.stream, stream_shards)

    def new_items(self, count: int) -> list[Item]:
        items: list[Item] = []
        for _ in range(count):
            request_id = f"request-{number_of_next()}"
            operation = {
                "operation": "create",
                "businessId": TENANT.business_id,
                "locationId": TENANT.location_id,
                "resourceType": "note",
                "resourceId": request_id,
                "requestId": request_id,
                "timestamp": "2025-01-31T09:00:00Z",
                "data": {"text": "ä" * 20},
            }
            key = f"key-{len(items) % KEYS}"
            items.append(Item(key, json.dumps(operation).encode(), Verdict(Effect.LOGGED)))
            self.put_ids.add(request_id)
        return items

    async def put(self, count: int) -> list[str]:
        """Put *count* operations; return their ids."""
        items = self.new_items(count)
        async with self.stack.aws_client("kinesis") as kinesis:
            await put_items(kinesis, self.stream, items, on_put=lambda _: None)
        return [str(json.loads(item.record)["requestId"]) for item in items]

    # What became of it

    async def applied_ids(self) -> set[str]:
        return self.put_ids & {row["request_id"] for row in await self.fetch("SELECT request_id FROM operations")}

    async def resource_counts(self) -> Counter[str]:
        rows = await self.fetch("""SELECT "resourceId" AS id FROM resources WHERE "resourceName" = 'note'""")
        return Counter(row["id"] for row in rows if row["id"] in self.put_ids)

    async def fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        return await fetch(next(iter(self.stack.servers.values())).url, query, *arguments)

    async def wait_until_read(self, ids: Sequence[str], *kcl_workers: KclWorker, within_s: float = WITHIN_S) -> None:
        """Wait until each of *ids* is applied by ours, or was given to one of *kcl_workers*."""
        missing: set[str] = set()

        async def are_read() -> bool:
            read = await self.applied_ids()
            for worker in kcl_workers:
                read |= worker.request_ids
            missing.clear()
            missing.update(set(ids) - read)
            return not missing

        if not await poll_until(are_read, within_s=within_s):
            leases = [
                f"{key}: {row.get('leaseOwner')} {row['leaseCounter']} {row['checkpoint']}"
                for key, row in sorted((await self.leases()).items())
            ]
            outputs = [f"{worker!r}:\n{worker.log_tail}" for worker in kcl_workers]
            raise AssertionError("\n".join([f"{len(missing)} of {len(ids)} were not read", *leases, *outputs]))

    # The lease table

    async def rows(self) -> dict[str, dict[str, Any]]:
        """Return the rows of the lease table by key, as DynamoDB gives them; none without the table."""
        async with self.stack.aws_client("dynamodb") as dynamodb:
            try:
                reply = await dynamodb.scan(TableName=self.table, ConsistentRead=True)
            except dynamodb.exceptions.ResourceNotFoundException:
                return {}
        return {row["leaseKey"]["S"]: row for row in reply["Items"]}

    async def leases(self) -> dict[str, dict[str, Any]]:
        rows = await self.rows()
        return {key: row for key, row in rows.items() if row.get("entityType", {"S": "LEASE"}) == {"S": "LEASE"}}

    async def owner_counts(self) -> Counter[str]:
        """Return how many leases of unfinished stream shards each owner has; those without one belong to ''.

        One that is being handed over belongs to its last owner, which reads it until it has drained.
        """
        return Counter(
            row.get("checkpointOwner", row.get("leaseOwner", {"S": ""}))["S"]
            for row in (await self.leases()).values()
            if row["checkpoint"] != {"S": "SHARD_END"}
        )

    async def wait_for_owners(
        self, counts: Sequence[int], *, within_s: float = WITHIN_S, but: str = ""
    ) -> Counter[str]:
        """Wait until the leases are shared in these numbers, in ascending order; return them by owner.

        All must have an owner, other than *but*.
        """
        found: Counter[str] = Counter()

        async def are_shared() -> bool:
            found.clear()
            found.update(await self.owner_counts())
            return not {"", but} & found.keys() and sorted(found.values()) == sorted(counts)

        assert await poll_until(are_shared, within_s=within_s), f"expected owners of {counts} leases, got {found}"
        return found

    async def wait_for_lease_of(self, owner: str, *, within_s: float = WITHIN_S) -> None:
        """Wait until *owner* has a lease, if only of a finished stream shard."""

        async def has_one() -> bool:
            return any(row.get("leaseOwner") == {"S": owner} for row in (await self.leases()).values())

        assert await poll_until(has_one, within_s=within_s), f"{owner} has no lease: {await self.owner_counts()}"


async def stop_replica(worker: WorkerProcess) -> None:
    """Stop a replica in order; it has to end with status 0."""
    await worker.stop(within_s=STOP_WITHIN_S)


async def read_duplicates(worker: WorkerProcess) -> float:
    async with aiohttp.ClientSession(timeout=REQUEST_TIMEOUT) as http, http.get(f"{worker.url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("simplu_operations_total{") and DUPLICATES in line
    )


async def read_readiness(worker: WorkerProcess) -> tuple[int, str]:
    """Return status and text of `/readyz`, as operators see it; 0 while nothing answers."""
    try:
        async with (
            aiohttp.ClientSession(timeout=REQUEST_TIMEOUT, headers=worker.operator) as http,
            http.get(f"{worker.url}/readyz") as answer,
        ):
            return answer.status, await answer.text()
    except aiohttp.ClientError:
        return 0, ""


async def provision_tenant(stack: Stack) -> None:
    async def is_there() -> bool:
        return TENANT.tenant_id in await read_tenant_ids(shard_urls(stack.env))

    worker = WorkerProcess(stack.group, stack.env)
    worker.start()
    try:
        await worker.wait_ready()
        async with stack.aws_client("sqs") as sqs:
            await create_tenants(sqs, stack.env["SQS_SHARD_CREATION_QUEUE_URL"], [TENANT])
        assert await poll_until(is_there, within_s=WITHIN_S), log_tail(worker.log_path)
    finally:
        worker.kill()
