"""The operation log: its keys, marks of changes by no operation, rejections, and retention.

Old batches are deleted in small statements with long pauses, never on an unhealthy shard; with them old counts,
rejections and refused events of the feed. Safe because no source can still have their records: `window` is that time,
None while it is unknown. Replicas skip batches that another one has locked.

A rejected record's row is written once, beside its dead letter, and decides about no operation.


A key is a byte that says what follows, then a UUID's 16 bytes or an id's UTF-8, as `simplu_key` of migration 0001.
It is sent as hexadecimal text.

Marks are in the transaction of their change, which has the tenants' rows locked.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Final, TypeAlias

import structlog

from simplu_worker.bulkheads import note_trouble
from simplu_worker.errors import RetryableError
from simplu_worker.operations.retention_rules import deletion_pause_s
from simplu_worker.shards.postgres.errors import StatementFailedError, fewer_after
from simplu_worker.shards.postgres.pool import Connection, Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES, affected_count
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.shards.types import Rejection
from simplu_worker.timing.waits import repeat_every, run_at_once
from simplu_worker.vocabulary import TargetKind


async def note_rejections(
    pool: ShardPool, dead_letter_queue: str, rejections: Sequence[Rejection], *, are_homeless: bool = False
) -> dict[str, str]:
    """Write the rows of *rejections* of tenants that live on the shard, or of all if these *are_homeless*.

    Return the businesses of these, by tenant id; nothing where the shard has no room for more without a home.
    """
    last = {(one.tenant_id, one.business_id, one.request_id): one for one in rejections}
    rows = [
        (*key, one.reason, one.error, one.origin.name, one.origin.sequence_number, one.origin.message_id)
        for key, one in last.items()
    ]
    async with pool.connection() as connection:
        if not await has_schema(connection, pool):
            return {}
        columns = map(list, zip(*rows, strict=True))
        own = await connection.fetch(QUERIES["note_rejections"], dead_letter_queue, *columns, are_homeless)
    return {row["id"]: row["business_id"] for row in own}


async def forget_rejections_of_tenant(connection: Connection, tenant_id: str, max_rows: int) -> None:
    """Delete at most *max_rows* rows of a tenant."""
    await connection.execute(QUERIES["forget_rejections_of_tenant"], tenant_id, max_rows)


TURN_S: Final = 60.0
STATEMENT_ROWS: Final = 2000
SHARDS_AT_ONCE: Final = 8
BESIDE: Final = ("forget_old_rejections", "forget_old_refusals")
LATE_TURNS: Final = 10  # with old rows left, until a warning, and between two
EVER: Final = datetime(1, 1, 2, tzinfo=UTC)  # before the time of every row

log = structlog.get_logger(__name__)


async def on_each_shard(pools: Pools, chore: str, work: Callable[[ShardPool], Awaitable[int]]) -> dict[str, int]:
    """Run *work* for all healthy shards at once; return what it returns, by shard.

    An error ends the work for its shard alone.
    """

    async def run(pool: ShardPool) -> tuple[str, int]:
        shard_id = pool.address.shard_id
        try:
            return shard_id, await work(pool)
        except RetryableError as exc:
            log.debug("chore.deferred", chore=chore, shard_id=shard_id, error=str(exc))
        except Exception as exc:  # noqa: BLE001  # of this shard; the others continue
            note_trouble(TargetKind.SHARD, shard_id, chore, exc)
        return shard_id, 0

    healthy = [pool for pool in pools.by_shard_id().values() if pool.is_healthy]
    return dict(await run_at_once(run, healthy, most=max(1, len(healthy))))


class LogRetention:
    """The retention of the logs of all shards of *pools*; every turn reads *window*."""

    def __init__(
        self,
        pools: Pools,
        window: Callable[[], Awaitable[timedelta | None]],
        *,
        turn_s: float = TURN_S,
        statement_rows: int = STATEMENT_ROWS,
    ) -> None:
        self._pools = pools
        self._window = window
        self._turn_s = turn_s
        self._statement_rows = statement_rows
        self._slots = asyncio.Semaphore(SHARDS_AT_ONCE)
        self._late_turns: Counter[str] = Counter()  # in a row that left old rows, by shard id

    async def run(self) -> None:
        """Take turns until cancelled, one at a time; each begins at least `turn_s` after the one before."""
        await repeat_every(self._turn_s, self.take_turn)

    async def take_turn(self) -> dict[str, int]:
        """Delete old rows on every shard, for at most `turn_s`; return the counts by shard id."""
        retention = await self._window() if self._pools.by_shard_id() else None
        if retention is None:
            return {}
        turns = await on_each_shard(self._pools, "retention", partial(self._take_turn_on, retention.total_seconds()))
        counts = {shard_id: count for shard_id, count in turns.items() if count}
        if counts:
            log.info(
                "operations.forgotten",
                operation_count=sum(counts.values()),
                shards=counts,
                retention_h=round(retention.total_seconds() / 3600, 2),
            )
        return counts

    async def _take_turn_on(self, retention_s: float, pool: ShardPool) -> int:
        shard_id = pool.address.shard_id
        self._late_turns[shard_id] += 1
        try:
            return await self._forget_old(retention_s, pool)
        finally:
            if (turn_count := self._late_turns[shard_id]) and turn_count % LATE_TURNS == 0:
                log.warning("retention.late", shard_id=shard_id, turn_count=turn_count)

    async def _forget_old(self, retention_s: float, pool: ShardPool) -> int:
        """Delete old rows until none is left or the turn is over, at the pace of the shard.

        Return how many of the log.
        """
        end = time.monotonic() + self._turn_s
        shard_id, count, after, limit = pool.address.shard_id, 0, EVER, self._statement_rows
        while pool.is_healthy:
            pause_s = 0.0
            try:
                async with self._slots, pool.transaction() as connection:
                    if not await has_schema(connection, pool):
                        self._late_turns[shard_id] = 0
                        break
                    row = await connection.fetchrow(QUERIES["forget_batches"], retention_s, limit, after)
                    started = time.monotonic()
                    beside = [
                        affected_count(await connection.execute(QUERIES[query], retention_s, limit)) for query in BESIDE
                    ]
                    pause_s = deletion_pause_s(row["busy_s"] + time.monotonic() - started)
            except StatementFailedError as exc:
                limit = fewer_after(exc, limit)
            else:
                count += row["row_count"]
                after = row["newest"] or after
                if row["is_last"] and max(beside) < limit:
                    self._late_turns[shard_id] = 0
                    break
            if time.monotonic() >= end:
                break
            await asyncio.sleep(pause_s)
        return count


_is_uuid: Final = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch
_LINE_LENGTH: Final = 37
_KEPT: Final = "03"  # of a key whose place another operation took: then the key, and 10 bytes of its own


def key_of_id(text: str) -> str:
    """Return the key of a request's or a resource's id, as hexadecimal text."""
    return "01" + text.replace("-", "") if _is_uuid(text) else "02" + text.encode().hex()


def keys_of_ids(texts: Sequence[str]) -> list[str]:
    """Return the key of each id; none of an empty text. Where all are UUIDs, in a third of the time."""
    if "" in texts:
        keys_in_turn = iter(keys_of_ids([text for text in texts if text]))
        return [next(keys_in_turn) if text else "" for text in texts]
    lines = "\n".join(texts) + "\n"
    if are_uuids(lines.encode(), len(texts)):
        return ("01" + lines[:-1].replace("-", "").replace("\n", "\n01")).split("\n")
    return [key_of_id(text) for text in texts]


def are_uuids(lines: bytes, count: int) -> bool:
    """Return whether *lines* are *count* UUIDs: by few searches, where a regular expression reads each character."""
    return (
        lines[_LINE_LENGTH - 1 :: _LINE_LENGTH] == b"\n" * count
        and all(lines[place::_LINE_LENGTH] == b"-" * count for place in (8, 13, 18, 23))
        and lines.translate(None, b"0123456789abcdef") == b"----\n" * count
    )


def id_of_key(key: str) -> str:
    """Return the id of a key of the log, in hexadecimal, as `simplu_id` does."""
    if key.startswith(_KEPT):
        key = key[2:-20]
    if key.startswith("01"):
        return f"{key[2:10]}-{key[10:14]}-{key[14:18]}-{key[18:22]}-{key[22:]}"
    return bytes.fromhex(key[2:]).decode()


ChangedResource: TypeAlias = tuple[str, str, str]  # tenant, resource type and id


class MarkOrigin(StrEnum):
    """Why a resource was changed without an operation: the origin of its mark."""

    CONTROL = "control"  # a control message
    RENAME = "rename"  # of the two ids of its batch
    ERASURE = "erasure"
    CREATION = "creation"  # the default row of a tenant that was made


class BulkChange(StrEnum):
    """A change of many of a tenant's resources: the `kind` of a batch without rows."""

    COPIED = "r"  # by a move or a restore
    IMPORTED = "i"
    DESTROYED = "d"


class BulkOrigin(StrEnum):
    """Of a bulk change, what followers of the log cannot tell by its kind."""

    RESTORE = "restore"  # copied, but by no move
    UNREAD = "unread"  # a move or a clean-up has deleted changes here that the feed had not read
    END = "end"  # the last of a destroyed tenant


async def name_change(connection: Connection, origin: MarkOrigin | BulkOrigin) -> None:
    """Say why this transaction changes resources, for their histories."""
    await connection.execute(QUERIES["name_change"], origin)


async def mark_changes(
    connection: Connection, resources: Iterable[ChangedResource], origin: MarkOrigin = MarkOrigin.CONTROL
) -> None:
    """Leave a row in the log for each of *resources*, which this transaction changes."""
    named = list(resources)
    if named:
        await connection.execute(
            QUERIES["mark_changes"],
            [tenant_id for tenant_id, _, _ in named],
            [resource_type for _, resource_type, _ in named],
            [key_of_id(resource_id) for _, _, resource_id in named],
            origin,
        )


async def mark_bulk_change(
    connection: Connection, change: BulkChange, tenant_id: str, origin: BulkOrigin | None = None
) -> None:
    """Leave a batch in the log for what this transaction changes of a tenant's resources."""
    await connection.execute(QUERIES["mark_bulk_change"], change, tenant_id, [] if origin is None else [origin])
