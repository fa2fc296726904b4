"""A stack, a worker, and chains of changes that show the order of applying: the base of fault tests."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import aiohttp
import asyncpg
import pytest
from support.rows import fetch, fetch_value

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import poll_pause_s
from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.stack.stack import Stack
from simplu_local.verify.comparison import StoredDeadLetter
from simplu_local.verify.shard_checker import DeadLetterReader
from simplu_local.workload.producer import Position, create_tenants, open_client, put_items
from simplu_local.workload.reference_model import Effect, Verdict
from simplu_local.workload.workload import Item, Tenant

POLL_S = 0.05
QUERY_TIMEOUT_S = 30.0
WORKER_ENV = {"CITRUS_TIMEOUT": "1000", "DATABASE_ALLOWED_HOSTS": "127.0.0.1", "KINESIS_LEASE_DURATION_SECONDS": "2"}
REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=30)
TENANT_S = 60.0
LOG_SQL = """
SELECT request_id, status, error, (result->'data'->>'n')::int AS n, completed_at,
       extract(epoch FROM completed_at - received_at)::float8 AS latency_s
FROM operations WHERE tenant_id = $1
"""
ROW_SQL = """SELECT (data->>'n')::int FROM resources WHERE id = $1 AND "resourceName" = $2 AND "resourceId" = $3"""

T = TypeVar("T")

_numbers = itertools.count(1)


async def poll_until_true(ask: Callable[[], Awaitable[T]], *, within_s: float) -> T:
    """Poll *ask* until its answer is true, and return the answer; raises TimeoutError."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with asyncio.timeout(within_s):
        while True:
            if answer := await ask():
                return answer
            await asyncio.sleep(max(POLL_S, poll_pause_s(loop.time() - begun)))


def make_record(tenant: Tenant, operation: str, request_id: str | None, **members: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "operation": operation,
        "businessId": tenant.business_id,
        "locationId": tenant.location_id,
        "resourceType": "note",
        "timestamp": "2025-01-31T09:00:00Z",
    }
    return record | ({} if request_id is None else {"requestId": request_id}) | members


def make_item(key: str, record: bytes | dict[str, Any]) -> Item:
    data = record if isinstance(record, bytes) else json.dumps(record).encode()
    return Item(key, data, Verdict(Effect.LOGGED))


def partition_key(stream_shard: int) -> str:
    """Return a new key that falls on the first (0) or second (1) of two stream shards."""
    keys = (f"key-{next(_numbers)}" for _ in itertools.count())
    return next(key for key in keys if hashlib.md5(key.encode()).digest()[0] >> 7 == stream_shard)


@dataclass
class Chain:
    """The changes of one resource, each followed by a read: the reads' results show the order of applying."""

    tenant: Tenant
    key: str = field(default_factory=lambda: partition_key(next(_numbers) % 2))
    resource_id: str = field(default_factory=lambda: f"chain-{next(_numbers)}")
    expected: dict[str, tuple[str, str | None, int | None]] = field(default_factory=dict)  # by request id
    last: int = -1

    def next_items(self, count: int = 10) -> list[Item]:
        return [item for _ in range(count) for item in self._change()]

    def _change(self) -> Iterator[Item]:
        self.last += 1
        kind = "patch" if self.last else "create"
        yield self._item(kind, None, data={"n": self.last})
        yield self._item("read", self.last)

    def _item(self, kind: str, read: int | None, **members: Any) -> Item:
        request_id = f"{self.resource_id}-{len(self.expected)}"
        self.expected[request_id] = ("succeeded", None, read)
        return make_item(self.key, make_record(self.tenant, kind, request_id, resourceId=self.resource_id, **members))


class FullStack:
    """The stack and its worker."""

    def __init__(self, *, env: Mapping[str, str] | None = None, priority_queue: str | None = None) -> None:
        """*env* is for the worker only, and overrides the stack's environment; *priority_queue* is the name of one."""
        self._more_env = dict(env or {})
        self._priority_queue = priority_queue
        self.stack = Stack(shards=3, stream_shards=2, tenants_per_shard=1000)
        self.homes: dict[str, PostgresServer] = {}  # by tenant id
        self.steady: list[Tenant] = []  # one on each shard, known to the worker
        self._spare: list[Tenant] = []
        self._run = secrets.token_hex(3)
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as entered:
            enter = entered.enter_async_context
            await enter(self.stack)
            env = self.stack.env
            self.kinesis = await enter(open_client("kinesis", env))
            self.sqs = await enter(open_client("sqs", env))
            self.dead_letter_reader = DeadLetterReader(self.sqs, env["SQS_DEAD_LETTER_QUEUE_URL"])
            self.http = await enter(aiohttp.ClientSession(timeout=REQUEST_TIMEOUT))
            if self._priority_queue is not None:
                queue = await self.sqs.create_queue(QueueName=self._priority_queue, Attributes={"FifoQueue": "true"})
                env["SQS_PRIORITY_QUEUE_URL"] = queue["QueueUrl"]
            self.worker_env = env | WORKER_ENV | self._more_env
            self.worker = WorkerProcess(self.stack.group, self.worker_env)
            self.worker.start()
            await self.worker.wait_ready()
            self.steady = await self.make_tenants(1)
            chains = [Chain(tenant) for tenant in self.steady]
            await self.put(*chains)
            await self.wait_until_applied(*chains, within_s=TENANT_S)
            self._exit = entered.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exit.aclose()

    @property
    def servers(self) -> list[PostgresServer]:
        return list(self.stack.servers.values())

    @property
    def stream(self) -> str:
        return self.stack.env["KINESIS_STREAM_NAME"]

    # Tenants

    async def make_tenants(self, per_shard: int) -> list[Tenant]:
        """Register tenants, *per_shard* on each shard in turn, and wait until the worker has provisioned them."""
        tenants = [self.new_tenant() for _ in range(per_shard * len(self.servers))]
        await self.register(tenants)
        await self.wait_until_provisioned(tenants, within_s=TENANT_S)
        return tenants

    async def take_fresh_tenants(self) -> list[Tenant]:
        """Return tenants, one on each shard, that the worker has not used since their provisioning: it has no route."""
        if not self._spare:
            self._spare = await self.make_tenants(4)
        taken, self._spare = self._spare[:3], self._spare[3:]
        return taken

    def new_tenant(self) -> Tenant:
        return Tenant(f"clinic-{self._run}-{next(_numbers)}", "main", "dental")

    async def register(self, tenants: Sequence[Tenant]) -> None:
        shards = list(self.stack.citrus.registry.shards.values())
        for number, tenant in enumerate(tenants):
            shard = shards[number % len(shards)]
            self.stack.citrus.registry.place(tenant.tenant_id, shard)
            self.homes[tenant.tenant_id] = self.stack.servers[shard.shard_id]
        await create_tenants(self.sqs, self.stack.env["SQS_SHARD_CREATION_QUEUE_URL"], tenants)

    async def wait_until_provisioned(self, tenants: Iterable[Tenant], *, within_s: float) -> None:
        left = list(tenants)

        async def are_provisioned() -> bool:
            while left and await self._is_provisioned(left[-1]):
                left.pop()
            return not left

        await poll_until_true(are_provisioned, within_s=within_s)

    async def _is_provisioned(self, tenant: Tenant) -> bool:
        """Return whether the shard has the tenant; before its first tenant it has not even the table."""
        try:
            query = "SELECT EXISTS (SELECT FROM tenants WHERE id = $1)"
            return bool(await self.fetchval(tenant, query, tenant.tenant_id))
        except asyncpg.UndefinedTableError:
            return False

    @asynccontextmanager
    async def connect(self, tenant: Tenant) -> AsyncIterator[asyncpg.Connection[Any]]:
        connection = await asyncpg.connect(self.homes[tenant.tenant_id].url, timeout=QUERY_TIMEOUT_S)
        try:
            yield connection
        finally:
            connection.terminate()

    async def fetchval(self, tenant: Tenant, query: str, *arguments: Any) -> Any:
        return await fetch_value(self.homes[tenant.tenant_id].url, query, *arguments)

    # Operations

    async def put(self, *what: Chain | Item) -> list[Position]:
        """Put items, and the next ten changes of chains, on the stream; return their positions."""
        positions: list[Position] = []
        items = [item for one in what for item in (one.next_items() if isinstance(one, Chain) else [one])]
        await put_items(
            self.kinesis, self.stream, items, on_put=lambda pairs: positions.extend(position for position, _ in pairs)
        )
        return positions

    async def read_operations(self, tenant: Tenant) -> dict[str, asyncpg.Record]:
        rows = await fetch(self.homes[tenant.tenant_id].url, LOG_SQL, tenant.tenant_id)
        return {row["request_id"]: row for row in rows}

    async def is_applied(self, chain: Chain) -> bool:
        return chain.expected.keys() <= (await self.read_operations(chain.tenant)).keys()

    async def wait_until_applied(self, *chains: Chain, within_s: float) -> None:
        """Wait until all operations put of *chains* are in the log; check that each read found the preceding change."""
        left = list(chains)

        async def are_applied() -> bool:
            while left and await self.is_applied(left[-1]):
                left.pop()
            return not left

        try:
            await poll_until_true(are_applied, within_s=within_s)
        except TimeoutError:
            self.worker.check_running()
            pytest.fail(f"not applied within {within_s} s; {await self.read_status()}")
        for chain in chains:
            log = await self.read_operations(chain.tenant)
            got = {name: (log[name]["status"], log[name]["error"], log[name]["n"]) for name in chain.expected}
            assert got == chain.expected
            row = await self.fetchval(chain.tenant, ROW_SQL, chain.tenant.tenant_id, "note", chain.resource_id)
            assert row == chain.last

    # State of the worker

    async def is_ready(self) -> bool:
        async with self.http.get(f"{self.worker.url}/readyz", headers=self.worker.operator) as answer:
            return answer.status == 200

    async def read_status(self) -> Any:
        async with self.http.get(f"{self.worker.url}/status", headers=self.worker.operator) as answer:
            return await answer.json()

    async def wait_for_log_event(self, event: str, *, within_s: float, **facts: str | bool) -> dict[str, Any]:
        """Wait until the worker has logged *event* with *facts*; return all of its facts."""

        async def find_line() -> dict[str, Any]:
            lines = self.worker.log_path.read_text(encoding="utf-8").splitlines()
            events = (json.loads(line) for line in lines if line.startswith("{"))
            return next((one for one in events if one["event"] == event and facts.items() <= one.items()), {})

        return await poll_until_true(find_line, within_s=within_s)

    # Dead letters

    async def wait_for_dead_letters(
        self, positions: Iterable[Position], *, within_s: float
    ) -> dict[Position, StoredDeadLetter]:
        """Wait until there are dead letters of the records at *positions*; return them."""
        wanted = set(positions)

        async def are_read() -> bool:
            await self.dead_letter_reader.read_once(wait_s=0)
            return wanted <= self.dead_letter_reader.positions

        await poll_until_true(are_read, within_s=within_s)
        return {letter.position: letter for letter in self.dead_letter_reader.dead_letters if letter.position in wanted}
