"""The rows of a batch in the operation log, written before its effects in the same transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from simplu_worker.operations.operation import Operation
from simplu_worker.shards.apply.redelivery import LoggedRow, LogMatch, match_row
from simplu_worker.shards.postgres.column_packing import pack_columns
from simplu_worker.shards.postgres.errors import LostRaceError
from simplu_worker.shards.postgres.pool import Connection
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.vocabulary import Failure

# Matches of an operation that is applied, and replaces the row.
REPLACING: Final = frozenset({LogMatch.REPLAY, LogMatch.ANOTHER_EVENT})


class Replacement(msgspec.Struct, frozen=True):
    """An operation that is applied in place of the row that the transaction *seen_xid* wrote."""

    operation: Operation
    failure: Failure | None
    seen_xid: str


async def write_log(
    connection: Connection,
    operations: Sequence[Operation],
    failures: Mapping[int, Failure | None],
    *,
    expects_new: bool = False,
) -> dict[int, LogMatch]:
    """Write the rows of *operations*; return, by index, how each that was logged before matches its row.

    *failures*, by index, are failures that are known before the attempt. The row of an operation that was given up is
    replaced by its replay's, the row of an order event by that of another event. Raises `LostRaceError` when another
    transaction changes a row in between. With *expects_new* the statement fails at an operation that was logged before.
    """
    if not operations:
        return {}
    source, stream_shard_id, sequence_number, received_at = origin_columns(operations)
    status = await connection.execute(
        QUERIES["log_operations_new" if expects_new else "log_operations"],
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
                source,
                stream_shard_id,
                sequence_number,
                [operation.requested_at for operation in operations],
                received_at,
            ],
        ),
        digests_of(operations),
    )
    if status == f"INSERT 0 {len(operations)}":
        return {}
    rows = await _fetch_logged(connection, operations)
    if len(rows) < len(operations):
        raise LostRaceError("a row of the log was deleted for its age before it was read")
    matches, replacements = _match_rows(operations, failures, rows)
    if replacements:
        await _replace_rows(connection, replacements)
    return matches


def origin_columns(operations: Sequence[Operation]) -> list[list[str]]:
    """Return the columns of the origins of *operations*: source, stream shard, sequence number, arrival."""
    origins = [operation.origin for operation in operations]
    instants = {origin.arrived_at for origin in origins}  # many operations arrive at the same instant
    arrivals = {arrived_at: arrived_at.isoformat() for arrived_at in instants}
    return [
        [origin.source for origin in origins],
        [origin.stream_shard_id or "" for origin in origins],
        [origin.sequence_number or "" for origin in origins],
        [arrivals[origin.arrived_at] for origin in origins],
    ]


def digests_of(operations: Sequence[Operation]) -> bytes:
    """Return the digests of *operations*, one behind the other."""
    return b"".join([operation.digest for operation in operations])


async def _fetch_logged(connection: Connection, operations: Sequence[Operation]) -> list[Any]:
    tenant_ids = [operation.tenant_id for operation in operations]
    request_ids = [operation.request_id for operation in operations]
    rows: list[Any] = await connection.fetch(QUERIES["logged_operations"], tenant_ids, request_ids)
    return rows


async def find_logged(connection: Connection, operations: Sequence[Operation]) -> list[bool]:
    """Return, for each of *operations*, whether the log has it."""
    if not operations:
        return []
    logged = {_key_of_row(row): _logged_row(row) for row in await _fetch_logged(connection, operations)}
    rows = [logged.get((operation.tenant_id, operation.request_id)) for operation in operations]
    return [
        row is not None and match_row(operation, row) not in {LogMatch.REUSE, LogMatch.ANOTHER_EVENT}
        for operation, row in zip(operations, rows, strict=True)
    ]


def _match_rows(
    operations: Sequence[Operation], failures: Mapping[int, Failure | None], rows: Iterable[Any]
) -> tuple[dict[int, LogMatch], list[Replacement]]:
    """Return, by index, how *operations* match the *rows* that existed before, and those that replace a row."""
    by_key = {_key_of_row(row): row for row in rows}
    fresh = {key for key, row in by_key.items() if row["is_fresh"]}
    written = set(fresh)  # by this batch
    logged = {key: _logged_row(row) for key, row in by_key.items()}
    matches: dict[int, LogMatch] = {}
    replacements: list[Replacement] = []
    for index, operation in enumerate(operations):
        key = (operation.tenant_id, operation.request_id)
        if key in fresh:
            fresh.discard(key)  # a second one in this batch was not written
            continue
        matches[index] = match_row(operation, logged[key])
        if matches[index] not in REPLACING:
            continue
        if key in written:
            matches[index] = LogMatch.BEHIND_ANOTHER
            continue
        failure = failures.get(index)
        logged[key] = LoggedRow.from_operation(operation, failure)  # a second one in this batch matches the first
        written.add(key)
        replacements.append(Replacement(operation, failure, by_key[key]["xid"]))
    return matches, replacements


def _key_of_row(row: Any) -> tuple[str, str]:
    return row["tenant_id"], row["request_id"]


def _logged_row(row: Any) -> LoggedRow:
    return LoggedRow(
        digest=row["digest"],
        error=row["error"],
        source=row["source"],
        stream_shard_id=row["stream_shard_id"],
        sequence_number=row["sequence_number"],
        requested_at=row["requested_at"],
    )


async def _replace_rows(connection: Connection, replacements: Sequence[Replacement]) -> None:
    operations = [replacement.operation for replacement in replacements]
    status = await connection.execute(
        QUERIES["replace_rows"],
        [operation.tenant_id for operation in operations],
        [operation.request_id for operation in operations],
        [replacement.seen_xid for replacement in replacements],
        [replacement.failure for replacement in replacements],
        [operation.origin.source for operation in operations],
        [operation.origin.stream_shard_id for operation in operations],
        [operation.origin.sequence_number for operation in operations],
        [operation.requested_at for operation in operations],
        [operation.origin.arrived_at.isoformat() for operation in operations],
        [operation.kind for operation in operations],
        [operation.resource_type for operation in operations],
        [operation.resource_id for operation in operations],
        [operation.digest.hex() for operation in operations],
    )
    if status != f"UPDATE {len(operations)}":
        raise LostRaceError("a row of the log was replaced after it was read")
