"""The rows of a batch in the operation log, written before its effects in the same transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from simplu_worker.operations.operation import Failure, Operation
from simplu_worker.shards.apply.redelivery import LoggedRow, LogMatch, match_row
from simplu_worker.shards.postgres.column_packing import pack_columns
from simplu_worker.shards.postgres.errors import LostRaceError
from simplu_worker.shards.postgres.pool import Connection
from simplu_worker.shards.postgres.queries import QUERIES


class GivenUpReplay(msgspec.Struct, frozen=True):
    """The replay of an operation that was given up; it replaces the row that the transaction *seen_xid* wrote."""

    operation: Operation
    failure: Failure | None
    seen_xid: str


async def write_log(
    connection: Connection, operations: Sequence[Operation], failures: Mapping[int, Failure | None]
) -> dict[int, LogMatch]:
    """Write the rows of *operations*; return, by index, how each that was logged before matches its row.

    *failures*, by index, are failures that are known before the attempt. The row of an operation that was given up is
    replaced by its replay's. Raises `LostRaceError` when another transaction changes a row in between.
    """
    if not operations:
        return {}
    origins = [operation.origin for operation in operations]
    instants = {origin.arrived_at for origin in origins}  # many operations arrive at the same instant
    arrivals = {arrived_at: arrived_at.isoformat() for arrived_at in instants}
    status = await connection.execute(
        QUERIES["log_operations"],
        *pack_columns(
            [
                [operation.tenant_id for operation in operations],
                [operation.request_id for operation in operations],
                [operation.kind for operation in operations],
                [operation.resource_type for operation in operations],
                [operation.resource_id or "" for operation in operations],
            ],
            [
                [failures.get(index) or "" for index in range(len(operations))] if failures else [],
                [origin.source for origin in origins],
                [origin.stream_shard_id or "" for origin in origins],
                [origin.sequence_number or "" for origin in origins],
                [operation.requested_at for operation in operations],
                [arrivals[origin.arrived_at] for origin in origins],
            ],
        ),
        b"".join([operation.digest for operation in operations]),
    )
    if status == f"INSERT 0 {len(operations)}":
        return {}
    rows = await _fetch_logged(connection, operations)
    if len(rows) < len(operations):
        raise LostRaceError("a row of the log was deleted for its age before it was read")
    matches, replays = _match_rows(operations, failures, rows)
    if replays:
        await _replace_given_up(connection, replays)
    return matches


async def _fetch_logged(connection: Connection, operations: Sequence[Operation]) -> list[Any]:
    tenant_ids = [operation.tenant_id for operation in operations]
    request_ids = [operation.request_id for operation in operations]
    rows: list[Any] = await connection.fetch(QUERIES["logged_operations"], tenant_ids, request_ids)
    return rows


async def find_logged(connection: Connection, operations: Sequence[Operation]) -> list[bool]:
    """Return, for each of *operations*, whether the log has it."""
    if not operations:
        return []
    rows = await _fetch_logged(connection, operations)
    digests = {(row["tenant_id"], row["request_id"]): row["digest"] for row in rows}
    return [digests.get((operation.tenant_id, operation.request_id)) == operation.digest for operation in operations]


def _match_rows(
    operations: Sequence[Operation], failures: Mapping[int, Failure | None], rows: Iterable[Any]
) -> tuple[dict[int, LogMatch], list[GivenUpReplay]]:
    """Return, by index, how *operations* match the *rows* that existed before, and the replays among them."""
    by_key = {(row["tenant_id"], row["request_id"]): row for row in rows}
    fresh = {key for key, row in by_key.items() if row["is_fresh"]}
    logged = {key: _logged_row(row) for key, row in by_key.items()}
    matches: dict[int, LogMatch] = {}
    replays: list[GivenUpReplay] = []
    for index, operation in enumerate(operations):
        key = (operation.tenant_id, operation.request_id)
        if key in fresh:
            fresh.discard(key)  # a second one in this batch was not written
            continue
        matches[index] = match_row(operation, logged[key])
        if matches[index] is LogMatch.REPLAY:
            failure = failures.get(index)
            logged[key] = LoggedRow.from_operation(operation, failure)  # a second one in this batch matches the first
            replays.append(GivenUpReplay(operation, failure, by_key[key]["xid"]))
    return matches, replays


def _logged_row(row: Any) -> LoggedRow:
    return LoggedRow(
        digest=row["digest"],
        error=row["error"],
        source=row["source"],
        stream_shard_id=row["stream_shard_id"],
        sequence_number=row["sequence_number"],
    )


async def _replace_given_up(connection: Connection, replays: Sequence[GivenUpReplay]) -> None:
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
        [operation.requested_at for operation in operations],
        [operation.origin.arrived_at.isoformat() for operation in operations],
    )
    if status != f"UPDATE {len(operations)}":
        raise LostRaceError("the row of an operation that was given up was replaced after it was read")
