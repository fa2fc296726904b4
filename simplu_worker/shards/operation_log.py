"""The rows that a batch leaves in the operation log, written before any of its effects in the same transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import msgspec

from simplu_worker.operations.operation import Failure, Operation
from simplu_worker.shards.packing import packed
from simplu_worker.shards.pools import Connection
from simplu_worker.shards.queries import QUERIES
from simplu_worker.shards.redelivery import Encounter, LoggedRow, encounter
from simplu_worker.shards.shard_errors import LostRaceError

Entry: TypeAlias = tuple[Operation, Failure | None]  # the failure: what is known of it before it is tried


class Replay(msgspec.Struct, frozen=True):
    """An operation that takes the place of a row that was given up: the one which the transaction *seen_xid* wrote."""

    operation: Operation
    failure: Failure | None
    seen_xid: str


async def write_log(connection: Connection, entries: Sequence[Entry], times: Sequence[str]) -> list[Encounter | None]:
    """Write the rows of *entries*; return what each that is there before is to its row, None for the others.

    *times* are `texts_of_times` of their operations.
    A row that was given up becomes its replay's. Raises `LostRaceError` when a row changes between two looks at it.
    """
    if not entries:
        return []
    operations = [operation for operation, _ in entries]
    tenant_ids = [operation.tenant_id for operation in operations]
    request_ids = [operation.request_id for operation in operations]
    origins = [operation.origin for operation in operations]
    arrivals = {origin.arrived_at for origin in origins}  # many arrive at the same instant
    arrival_texts = {arrived_at: arrived_at.isoformat() for arrived_at in arrivals}
    status = await connection.execute(
        QUERIES["log_operations"],
        *packed(
            tenant_ids,
            request_ids,
            [operation.kind for operation in operations],
            [operation.resource_type for operation in operations],
            [operation.resource_id or "" for operation in operations],
            [failure or "" for _, failure in entries],
            [operation.digest.hex() for operation in operations],
            [origin.source for origin in origins],
            [origin.stream_shard_id or "" for origin in origins],
            [origin.sequence_number or "" for origin in origins],
            times,
            [arrival_texts[origin.arrived_at] for origin in origins],
        ),
    )
    if status == f"INSERT 0 {len(operations)}":
        return [None] * len(operations)
    rows = await connection.fetch(QUERIES["logged_operations"], tenant_ids, request_ids)
    if len(rows) < len(operations):
        raise LostRaceError("a row of the log was deleted for its age between two looks at it")
    encounters, replays = _compared(entries, rows)
    if replays:
        await _replace_given_up(connection, replays)
    return encounters


async def known_in_log(connection: Connection, operations: Sequence[Operation]) -> list[bool]:
    """Tell for each of *operations* whether the log has it."""
    if not operations:
        return []
    rows = await connection.fetch(
        QUERIES["logged_operations"],
        [operation.tenant_id for operation in operations],
        [operation.request_id for operation in operations],
    )
    digests = {(row["tenant_id"], row["request_id"]): row["digest"] for row in rows}
    return [digests.get((operation.tenant_id, operation.request_id)) == operation.digest for operation in operations]


def _compared(entries: Sequence[Entry], rows: Iterable[Any]) -> tuple[list[Encounter | None], list[Replay]]:
    """Return what each of *entries* is to the *rows* of the log, and the replays among them."""
    by_key = {(row["tenant_id"], row["request_id"]): row for row in rows}
    fresh = {key for key, row in by_key.items() if row["is_fresh"]}
    logged = {key: _logged(row) for key, row in by_key.items()}
    encounters: list[Encounter | None] = []
    replays: list[Replay] = []
    for operation, failure in entries:
        key = (operation.tenant_id, operation.request_id)
        if key in fresh:
            fresh.discard(key)  # a second one in this batch is not the one that was written
            encounters.append(None)
            continue
        met = encounter(operation, logged[key])
        if met is Encounter.REPLAY:
            logged[key] = LoggedRow.of(operation, failure)  # a second one in this batch meets the first
            replays.append(Replay(operation, failure, by_key[key]["xid"]))
        encounters.append(met)
    return encounters, replays


def _logged(row: Any) -> LoggedRow:
    return LoggedRow(
        digest=row["digest"],
        error=row["error"],
        source=row["source"],
        stream_shard_id=row["stream_shard_id"],
        sequence_number=row["sequence_number"],
    )


async def _replace_given_up(connection: Connection, replays: Sequence[Replay]) -> None:
    operations = [replay.operation for replay in replays]
    status = await connection.execute(
        QUERIES["replace_given_up"],
        [operation.tenant_id for operation in operations],
        [operation.request_id for operation in operations],
        [replay.seen_xid for replay in replays],
        [replay.failure for replay in replays],
        [operation.origin.source for operation in operations],
        [operation.origin.stream_shard_id for operation in operations],
        [operation.origin.sequence_number for operation in operations],
        texts_of_times(operations),
        [operation.origin.arrived_at for operation in operations],
    )
    if status != f"UPDATE {len(operations)}":
        raise LostRaceError("a row that was given up was replaced between two looks at it")


def texts_of_times(operations: Sequence[Operation]) -> list[str]:
    """Return the operations' times as text: asyncpg takes the first and the last datetime for the infinities."""
    return [operation.requested_at.isoformat() for operation in operations]
