"""The rows of a batch in the log, written before its effects in the same transaction (docs/adr/0009-the-log.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from simplu_worker.operations.operation import Operation
from simplu_worker.operations.waves import TenantRow
from simplu_worker.shards.apply.duplicates import LoggedRow, LogMatch, match_row
from simplu_worker.shards.log import KIND_CODES, keys_of_ids
from simplu_worker.shards.postgres.errors import LostRaceError
from simplu_worker.shards.postgres.pool import Connection
from simplu_worker.shards.postgres.queries import QUERIES, affected_count, pack_columns
from simplu_worker.vocabulary import Failure

# Matches of an operation that is applied, and takes the key of the row.
REPLACING: Final = frozenset({LogMatch.REPLAY, LogMatch.ANOTHER_EVENT})
# More than a batch has operations; made once, as the text of a number costs as much as the rest of its place.
PLACES: Final = tuple(map(str, range(32_768)))


class LogColumns(msgspec.Struct, frozen=True):
    """Operations as columns of the log, and the distinct *types* and *origins*, as texts."""

    tenant_numbers: list[str]
    requests: list[str]
    kinds: list[str]
    type_places: list[str]
    resources: list[str]
    origin_places: list[str]
    requested_at: list[str]
    received_at: list[str]
    digests: list[bytes]
    types: list[str]
    origins: list[str]

    def packed(self, indexes: Sequence[int], places: Sequence[str]) -> list[object]:
        """Return the arguments of a statement with `:log_columns`, for the operations at *indexes*."""
        columns = [
            list(places),
            self.tenant_numbers,
            self.requests,
            self.kinds,
            self.type_places,
            self.resources,
            self.origin_places,
            self.requested_at,
            self.received_at,
        ]
        digests = self.digests
        if len(indexes) < len(digests):
            columns[1:] = [[column[index] for index in indexes] for column in columns[1:]]
            digests = [digests[index] for index in indexes]
        separator, types, *rest = pack_columns([self.types], columns)
        return [separator, *rest, b"".join(digests), types]


def log_columns_of(operations: Sequence[Operation], tenants: Mapping[str, TenantRow]) -> LogColumns:
    """Return the columns of *operations* of *tenants*, by id."""
    numbers = {tenant_id: str(row.number) for tenant_id, row in tenants.items()}
    tenant_numbers = [numbers[operation.tenant_id] for operation in operations]
    types = [operation.resource_type for operation in operations]
    origins = [operation.origin for operation in operations]
    sources = [one.stream_shard_id or one.source for one in origins]
    if any(operation.sent_type for operation in operations):
        sources = [f"{name}/{operation.sent_type}" for name, operation in zip(sources, operations, strict=True)]
    type_places, source_places = _places_of(types), _places_of(sources)
    return LogColumns(
        tenant_numbers,
        keys_of_ids([operation.request_id for operation in operations]),
        [KIND_CODES[operation.kind] for operation in operations],
        [type_places[one] for one in types],
        keys_of_ids([operation.resource_id or "" for operation in operations]),
        [source_places[one] for one in sources],
        [operation.requested_at for operation in operations],
        _microseconds_of([one.arrived_at for one in origins]),
        [operation.digest for operation in operations],
        list(type_places),
        [_origin_text(operation) for operation in dict(zip(sources, operations, strict=True)).values()],
    )


def _origin_text(operation: Operation) -> str:
    origin = operation.origin
    parts = (origin.source, origin.stream_shard_id or "", operation.sent_type or "")
    return "/".join(parts).rstrip("/")


def _microseconds_of(times: Iterable[datetime]) -> list[str]:
    texts: list[str] = []
    last, text = None, ""
    for time in times:
        if time is not last:  # a reader has one object for all records of an instant
            last, text = time, str(round(time.timestamp() * 1e6))
        texts.append(text)
    return texts


def _places_of(values: Iterable[Any]) -> dict[Any, str]:
    return {value: PLACES[place] for place, value in enumerate(dict.fromkeys(values), 1)}


class _Replacement(msgspec.Struct, frozen=True):
    number: int
    batch_id: int
    position: int


async def write_log(
    connection: Connection,
    operations: Sequence[Operation],
    places: Sequence[int],
    tenants: Mapping[str, TenantRow],
    failures: Mapping[int, Failure | None],
    results: Mapping[int, str | None],
    *,
    expects_new: bool = False,
) -> dict[int, LogMatch]:
    """Write the batch, and the rows of *operations* at its *places*; return how each that was logged matches its row.

    By index, as *failures*, which are known before the attempt, and their *results*. Raises `LostRaceError` when
    another transaction changes a row in between. With *expects_new* the statement fails at an operation that was logged
    before.
    """
    if not operations:
        return {}
    columns = log_columns_of(operations, tenants)
    texts = [PLACES[place] for place in places]
    separator, *packed = columns.packed(range(len(operations)), texts)
    status = await connection.execute(
        QUERIES["log_operations_new" if expects_new else "log_operations"],
        separator,
        *packed,
        str(separator).join(columns.origins),
        str(separator).join(dict.fromkeys(columns.tenant_numbers)),
    )
    matches: dict[int, LogMatch] = {}
    if affected_count(status) < len(operations):
        rows = await _fetch_logged(connection, columns.tenant_numbers, columns.requests)
        if len(rows) < len(operations):
            raise LostRaceError("a row of the log was deleted for its age before it was read")
        matches, replacements = _match_rows(operations, failures, rows, places)
        if replacements:
            await _replace(connection, columns, texts, replacements)
        elif len(matches) == len(operations):
            await connection.execute(QUERIES["forget_empty_batch"])
    if failures:
        await _write_failures(connection, operations, columns, texts, failures, results)
    return matches


async def _fetch_logged(connection: Connection, numbers: Sequence[str], requests: Sequence[str]) -> list[Any]:
    rows: list[Any] = await connection.fetch(QUERIES["logged_operations"], numbers, requests)
    return rows


async def find_logged(
    connection: Connection, operations: Sequence[Operation], tenants: Mapping[str, TenantRow]
) -> list[bool]:
    """Return, for each of *operations* of *tenants*, whether the log has it."""
    if not operations:
        return []
    columns = log_columns_of(operations, tenants)
    rows = await _fetch_logged(connection, columns.tenant_numbers, columns.requests)
    logged = {row["index"]: _logged_row(row) for row in rows}
    return [
        index in logged and match_row(operation, logged[index]) not in {LogMatch.REUSE, LogMatch.ANOTHER_EVENT}
        for index, operation in enumerate(operations)
    ]


def _match_rows(
    operations: Sequence[Operation], failures: Mapping[int, Failure | None], rows: Iterable[Any], places: Sequence[int]
) -> tuple[dict[int, LogMatch], list[_Replacement]]:
    keys = [(operation.tenant_id, operation.request_id) for operation in operations]
    by_key = {keys[row["index"]]: row for row in rows}
    written = {key for key, row in by_key.items() if row["is_fresh"]}  # by this batch
    logged = {key: _logged_row(row) for key, row in by_key.items()}
    matches: dict[int, LogMatch] = {}
    replacements: list[_Replacement] = []
    for index, (operation, key, place) in enumerate(zip(operations, keys, places, strict=True)):
        row = by_key[key]
        if row["is_fresh"] and row["position"] == place:
            continue
        matches[index] = match_row(operation, logged[key])
        if matches[index] not in REPLACING:
            continue
        if key in written:
            matches[index] = LogMatch.BEHIND_ANOTHER
            continue
        logged[key] = LoggedRow.from_operation(operation, failures.get(index))  # a second one matches the first
        written.add(key)
        replacements.append(_Replacement(index, row["batch_id"], row["position"]))
    return matches, replacements


def _logged_row(row: Any) -> LoggedRow:
    return LoggedRow(
        digest=row["digest"],
        error=row["error"],
        source=row["source"],
        sequence_number=row["sequence_number"],
        requested_at=row["requested_at"],
    )


async def _replace(
    connection: Connection, columns: LogColumns, places: Sequence[str], replacements: Sequence[_Replacement]
) -> None:
    numbers = [one.number for one in replacements]
    status = await connection.execute(
        QUERIES["free_keys"],
        [columns.tenant_numbers[number] for number in numbers],
        [columns.requests[number] for number in numbers],
        [str(one.batch_id) for one in replacements],
        [str(one.position) for one in replacements],
    )
    if affected_count(status) != len(numbers):
        raise LostRaceError("a row of the log was replaced after it was read")
    *packed, _types = columns.packed(numbers, [places[number] for number in numbers])
    await connection.execute(QUERIES["log_replacements"], *packed)


async def _write_failures(
    connection: Connection,
    operations: Sequence[Operation],
    columns: LogColumns,
    places: Sequence[str],
    failures: Mapping[int, Failure | None],
    results: Mapping[int, str | None],
) -> None:
    failed = [(index, failure) for index, failure in failures.items() if failure is not None]
    sequence_numbers = [
        operations[index].origin.sequence_number if failure is Failure.RETRIES_EXHAUSTED else None
        for index, failure in failed
    ]
    await connection.execute(
        QUERIES["log_failures"],
        [columns.tenant_numbers[index] for index, _ in failed],
        [columns.requests[index] for index, _ in failed],
        [places[index] for index, _ in failed],
        [failure for _, failure in failed],
        sequence_numbers,
        [results.get(index) for index, _ in failed],
    )
