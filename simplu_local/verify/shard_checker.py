"""Read every shard and the dead-letter queue, and wait until all records are applied."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from botocore.exceptions import ClientError

from simplu_local.verify.comparison import (
    ComparisonReport,
    ShardContent,
    StoredDeadLetter,
    StoredOperation,
    StoredRow,
    StoredTenant,
    StoredVersion,
    compare,
    known_times,
)
from simplu_local.workload.producer import Position
from simplu_local.workload.reference_model import Effect, ReferenceModel
from simplu_local.workload.workload import Item

POLL_INTERVAL_S = 0.5
QUERY_TIMEOUT_S = 60.0
# Long enough that dead letters are not read repeatedly, short enough that the next reader of the queue gets them.
DEAD_LETTER_VISIBILITY_S = 60
READERS = 3
RETRY_PAUSE_S = 0.2
TENANTS_SQL = "SELECT id, business_id, location_id, business_type, state FROM tenants ORDER BY id"
ROWS_SQL = """
SELECT id, "businessType", "resourceName", "resourceId", data::text AS data, date, "lastUpdated" FROM resources
"""
OPERATIONS_SQL = """
SELECT tenant_id, request_id, operation, resource_type, resource_id, status, error, result::text AS result,
       requested_at, extract(epoch FROM completed_at - received_at)::float8 AS latency_s
FROM operations
"""
HISTORIES_SQL = "SELECT business_type, resource_type FROM history_types"
VERSIONS_SQL = """
SELECT tenant_id, resource_type, resource_id, version, change, request_id, document::text AS document
FROM resource_history
WHERE version > 0
"""
COUNT_SQL = """
SELECT (SELECT count(*) FROM operations WHERE tenant_id = ANY ($1)),
       (SELECT count(*) FROM resources WHERE id = ANY ($1))
"""


@dataclass(frozen=True, slots=True)
class ShardCounts:
    """The numbers of rows that one shard has of the requested tenants; `None` when it did not answer."""

    name: str
    operations: int | None
    rows: int | None


@dataclass(frozen=True, slots=True)
class ApplyProgress:
    """The progress of the worker."""

    expected_count: int
    finished_count: int  # records with a row of `operations` or a dead letter
    shards: tuple[ShardCounts, ...]
    dead_letter_count: int

    @property
    def is_done(self) -> bool:
        """Whether every record that must leave a row or a dead letter has left one."""
        return self.finished_count >= self.expected_count

    @property
    def logged_count(self) -> int:
        """The number of rows of `operations`."""
        return self.finished_count - self.dead_letter_count


class DeadLetterReader:
    """Reads dead letters while the worker runs, and leaves them in the queue."""

    def __init__(self, sqs: Any, queue_url: str) -> None:
        self._sqs = sqs
        self._queue_url = queue_url
        self._dead_letters: dict[str, StoredDeadLetter] = {}

    @property
    def dead_letters(self) -> tuple[StoredDeadLetter, ...]:
        """The dead letters read so far."""
        return tuple(self._dead_letters.values())

    @property
    def positions(self) -> set[Position]:
        """The positions of their records."""
        return {letter.position for letter in self._dead_letters.values()}

    async def run(self) -> None:
        """Read until cancelled, with several receives at a time: one alone gets few messages a second from SQS."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(READERS):
                tasks.create_task(self._read(), name=f"dead-letters:{number}")

    async def _read(self) -> None:
        while True:
            try:
                await self.read_once(wait_s=1)
            except ClientError:  # moto's threads race, and one of them fails
                await asyncio.sleep(RETRY_PAUSE_S)

    async def read_once(self, *, wait_s: int) -> int:
        """Read up to ten dead letters, waiting up to *wait_s* for the first; return the number of new ones."""
        answer = await self._sqs.receive_message(
            QueueUrl=self._queue_url,
            MaxNumberOfMessages=10,
            WaitTimeSeconds=wait_s,
            VisibilityTimeout=DEAD_LETTER_VISIBILITY_S,
        )
        before = len(self._dead_letters)
        for message in answer.get("Messages", ()):
            self._dead_letters.setdefault(message["MessageId"], parse_dead_letter(message["Body"]))
        return len(self._dead_letters) - before


def parse_dead_letter(body: str) -> StoredDeadLetter:
    """Parse the body of a dead letter (docs/dead-letters.md)."""
    letter = json.loads(body)
    source = letter.get("source") or {}
    if source.get("kind") == "sqs":
        position = (source.get("queue") or "", source.get("messageId") or "")
    else:
        part = source.get("partIndex")
        place = "" if part is None else f"/{part}"
        position = (source.get("streamShard") or "", (source.get("sequenceNumber") or "") + place)
    record: bytes | None = None
    if letter.get("truncated"):
        record = None
    elif (text := letter.get("record")) is not None:
        record = str(text).encode()
    elif (encoded := letter.get("recordBase64")) is not None:
        record = base64.b64decode(encoded)
    elif (packed := letter.get("recordGzip")) is not None:
        record = gzip.decompress(base64.b64decode(packed))
    return StoredDeadLetter(letter["reason"], position, record)


class ShardChecker:
    """Compares shards and dead letters with *model*. *urls* is called for every query: Citrus may add a shard."""

    def __init__(self, urls: Callable[[], Sequence[str]], model: ReferenceModel, reader: DeadLetterReader) -> None:
        self.put: dict[Position, Item] = {}
        self.windows: dict[datetime, tuple[datetime, datetime]] = {}
        self._urls = urls
        self._model = model
        self._reader = reader

    def record_put(self, pairs: Iterable[tuple[Position, Item]]) -> None:
        """Remember records and their positions, by which dead letters identify them."""
        self.put.update(pairs)

    def record_window(self, moment: datetime, earliest: datetime, latest: datetime) -> None:
        """Remember that the event which has the time *moment* in the model came between *earliest* and *latest*."""
        self.windows[moment] = (earliest, latest)

    def expected_count(self) -> int:
        """Return how many rows of `operations` and dead letters the records put so far must leave."""
        traces = (Effect.LOGGED, Effect.REJECTED)
        return sum(item.verdict.effect in traces for item in self.put.values())

    async def read_progress(self) -> ApplyProgress:
        """Count the rows on every shard and the dead letters; a shard that does not answer counts as empty."""
        tenant_ids = list(self._model.tenants)
        counts = [await count_shard(url, tenant_ids) for url in self._urls()]
        dead_letter_count = len(self._reader.positions & self.put.keys())
        finished_count = sum(count.operations or 0 for count in counts) + dead_letter_count
        return ApplyProgress(self.expected_count(), finished_count, tuple(counts), dead_letter_count)

    async def wait_until_applied(
        self, *, timeout_s: float, idle_s: float, on_progress: Callable[[ApplyProgress], None] | None = None
    ) -> ApplyProgress:
        """Wait until every record put has its row or dead letter, or *timeout_s*, or *idle_s* without progress."""
        clock = asyncio.get_running_loop().time
        start = changed = clock()
        progress = await self.read_progress()
        while not progress.is_done and clock() - start < timeout_s and clock() - changed < idle_s:
            await asyncio.sleep(POLL_INTERVAL_S)
            now = await self.read_progress()
            if now.finished_count != progress.finished_count:
                changed = clock()
            progress = now
            if on_progress is not None:
                on_progress(progress)
        return progress

    async def compare(self, *, foreign: frozenset[str] = frozenset()) -> ComparisonReport:
        """Read all shards and compare them with the model, see `comparison.compare`."""
        contents = [await read_shard(url) for url in self._urls()]
        self._model.replace_times(known_times(self._model, contents, self.windows))
        return compare(self._model, contents, self.put, self._reader.dead_letters, foreign=foreign)


async def read_tenant_ids(urls: Sequence[str]) -> frozenset[str]:
    """Return the ids of all tenants on the shards."""
    contents = [await read_shard(url) for url in urls]
    return frozenset(tenant.tenant_id for content in contents for tenant in content.tenants)


async def count_shard(url: str, tenant_ids: Sequence[str]) -> ShardCounts:
    """Count one shard's rows of *tenant_ids*: 0 without a schema, `None` when it does not answer."""
    name = shard_name(url)
    try:
        connection = await asyncpg.connect(url, timeout=2, command_timeout=5)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return ShardCounts(name, None, None)
    try:
        row = await connection.fetchrow(COUNT_SQL, tenant_ids)
    except asyncpg.UndefinedTableError:
        return ShardCounts(name, 0, 0)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return ShardCounts(name, None, None)
    finally:
        connection.terminate()
    return ShardCounts(name, row[0], row[1]) if row is not None else ShardCounts(name, 0, 0)


async def read_shard(url: str) -> ShardContent:
    """Read the content of one shard in one snapshot; empty without a schema."""
    content = ShardContent(shard_name(url))
    connection = await asyncpg.connect(url, timeout=10, command_timeout=QUERY_TIMEOUT_S)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            if await connection.fetchval("SELECT to_regclass('operations')") is None:
                return content
            content.tenants = [StoredTenant(*row.values()) for row in await connection.fetch(TENANTS_SQL)]
            content.rows = [StoredRow(*row.values()) for row in await connection.fetch(ROWS_SQL)]
            content.operations = [StoredOperation(*row.values()) for row in await connection.fetch(OPERATIONS_SQL)]
            content.histories = {tuple(row.values()) for row in await connection.fetch(HISTORIES_SQL)}
            content.versions = [StoredVersion(*row.values()) for row in await connection.fetch(VERSIONS_SQL)]
    finally:
        await connection.close()
    return content


def shard_name(url: str) -> str:
    """Return a shard's name for reports: its URL without user and password."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}{parts.path}"


def shard_urls(env: Mapping[str, str]) -> list[str]:
    """Return the shards' connection strings in the stack's environment."""
    return env["STACK_POSTGRES_URLS"].split()
