"""The statements of a batch's transaction: its rows of the log, then its waves; or one statement for all of it.

The rows of the log are written before the effects (docs/adr/0009-the-log.md). Waves go in as few round trips as the
patches that the worker merges allow. These are large and deep patches, each in a wave of its own, and judged ones: what
is judged is what is stored. Their rows stay locked from their read to the end of the transaction.

A server prepares every part of a plan again at each run, so there is a text for each frequent content of a wave
(`applying.sql`).

Where all is expected to be as usual, the batch is one statement. Why that is safe: it compares what the writer
remembers with the shard's rows, which it locks, and applies nothing where they differ. It fails as a whole at a row of
the log that exists.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.errors import PermanentError
from simplu_worker.operations.json_record import BOUNDS_TEXT, exceeds_bounds, is_laborious, is_small_patch, merge_texts
from simplu_worker.operations.operation import Operation, Origin
from simplu_worker.operations.verbs import READING_KINDS, VERBS
from simplu_worker.operations.waves import TenantRow, admits_all
from simplu_worker.shards.apply.duplicates import LoggedRow, LogMatch, match_row
from simplu_worker.shards.apply.judging import PATCH, BatchJudges, Found
from simplu_worker.shards.log import keys_of_ids
from simplu_worker.shards.positions import position_arguments
from simplu_worker.shards.postgres.errors import (
    DuplicateKeyError,
    LockTimeoutError,
    LostRaceError,
    RolledBackError,
    StatementFailedError,
)
from simplu_worker.shards.postgres.pool import Connection
from simplu_worker.shards.postgres.queries import QUERIES, affected_count, pack_columns
from simplu_worker.shards.types import PositionClaim
from simplu_worker.vocabulary import Failure, OperationKind, Source

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
    sizes: list[str]
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
            self.sizes,
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
        [VERBS[operation.kind].code for operation in operations],
        [type_places[one] for one in types],
        keys_of_ids([operation.resource_id or "" for operation in operations]),
        [source_places[one] for one in sources],
        [operation.requested_at for operation in operations],
        _microseconds_of([one.arrived_at for one in origins]),
        [str(operation.size_bytes) for operation in operations],
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
) -> tuple[dict[int, LogMatch], list[tuple[int, Any]]]:
    keys = [(operation.tenant_id, operation.request_id) for operation in operations]
    by_key = {keys[row["index"]]: row for row in rows}
    written = {key for key, row in by_key.items() if row["is_fresh"]}  # by this batch
    logged = {key: _logged_row(row) for key, row in by_key.items()}
    matches: dict[int, LogMatch] = {}
    replacements: list[tuple[int, Any]] = []  # indexes, and the rows of the log there
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
        requested_at = datetime.fromisoformat(operation.requested_at)  # a second one matches the first
        logged[key] = LoggedRow(operation.digest, failures.get(index), operation.origin, requested_at)
        written.add(key)
        replacements.append((index, row))
    return matches, replacements


def _logged_row(row: Any) -> LoggedRow:
    origin = Origin(Source(row["source"]), "", row["received_at"], sequence_number=row["sequence_number"])
    return LoggedRow(row["digest"], row["error"], origin, row["requested_at"])


async def _replace(
    connection: Connection, columns: LogColumns, places: Sequence[str], replacements: Sequence[tuple[int, Any]]
) -> None:
    numbers = [number for number, _ in replacements]
    status = await connection.execute(
        QUERIES["free_keys"],
        [columns.tenant_numbers[number] for number in numbers],
        [columns.requests[number] for number in numbers],
        [str(row["batch_id"]) for _, row in replacements],
        [str(row["position"]) for _, row in replacements],
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


ResourceId: TypeAlias = tuple[str, str, str]  # tenant, type, id

DOCUMENT_MAX_BYTES: Final = 32 * 1024 * 1024  # as Postgres stores it uncompressed; a larger one is never read
TOGETHER_MAX_BYTES: Final = 16 * 1024  # the same, of documents that are in memory together
UNMERGED: Final = "unmerged"  # of a patch, in `applying.sql` too: the worker has to merge it, alone in its wave


class UnmergeableError(PermanentError):
    """The merged data cannot be stored: they exceed the bounds, or Postgres refuses the patch."""


class UnreadDataError(UnmergeableError):
    """The stored data are larger than the merge was to read."""


def find_laborious(
    operations: Sequence[Operation], patches: Iterable[int], large: Container[ResourceId]
) -> frozenset[int]:
    """Return those indexes of *patches* that the worker merges; *large* are resources of which it merges all."""
    return frozenset(
        index
        for index in patches
        if is_laborious(operations[index].text or "") or resource_of(operations[index]) in large
    )


def find_heavy(operations: Sequence[Operation], laborious: Iterable[int], large: Container[ResourceId]) -> list[int]:
    """Return those indexes of *laborious* patches that are merged one a wave, and one of a resource a transaction."""
    return sorted(
        index
        for index in laborious
        if not is_small_patch(operations[index].text or "") or resource_of(operations[index]) in large
    )


def resource_of(operation: Operation) -> ResourceId:
    """Return the tenant, type and id of an operation's resource."""
    return operation.tenant_id, operation.resource_type, operation.resource_id or ""


async def merge_each(
    connection: Connection, patches: Sequence[Operation], max_bytes: int
) -> list[str | UnmergeableError | None]:
    """Lock the rows of resources, and return the data of each changed by its one patch.

    None where there is no row, `UnreadDataError` for data of more than *max_bytes*.
    """
    stored = await _lock(connection, list(map(resource_of, patches)), max_bytes)
    merged: list[str | UnmergeableError | None] = []
    for number, patch in enumerate(patches):
        try:
            result = await _merge(stored.get(number, "{}"), patch.text or "")
            merged.append(result if number in stored else None)
        except UnmergeableError as exc:
            merged.append(exc)
    return merged


async def merge_into_row(connection: Connection, key: ResourceId, patch: str) -> str | None:
    """Lock the row of a resource, and return its data changed by *patch*.

    None without a row. Raises `UnmergeableError`.
    """
    stored = await _lock(connection, [key], DOCUMENT_MAX_BYTES)
    return await _merge(stored[0], patch) if stored else None


async def _lock(connection: Connection, keys: Sequence[ResourceId], max_bytes: int) -> dict[int, str | None]:
    rows = await connection.fetch(QUERIES["lock_targets"], *map(list, zip(*keys, strict=True)), max_bytes)
    return {row["number"]: row["data"] for row in rows}


async def _merge(data: str | None, patch: str) -> str:
    if data is None:  # beyond the bounds, from before it was adopted
        raise UnreadDataError(f"the stored data: expected {BOUNDS_TEXT}, got more; replace them by an update")
    try:
        if len(data) + len(patch) <= TOGETHER_MAX_BYTES:
            merged = merge_texts(data, patch)
        else:
            merged = await asyncio.to_thread(merge_texts, data, patch)
    except ValueError:
        raise UnmergeableError("expected texts without U+0000 and lone surrogates, got others") from None
    if exceeds_bounds(merged):
        raise UnmergeableError(f"the merged data: expected {BOUNDS_TEXT}, got more")
    return merged.decode()


RESULT_MAX_BYTES: Final = 1024 * 1024  # docs/outcomes.md: a list over 1 MiB is result_too_large
LIST: Final = OperationKind.LIST  # looked up once: access to an enum member is slow
READ: Final = OperationKind.READ
OF_LISTS: Final = "apply_lists"  # the statements that apply a `list`, which take more arguments


def statement_for(reading_kinds: Collection[OperationKind], *, creates_new: bool = False) -> str:
    """Return the name of the statement for waves with reads of *reading_kinds*.

    With *creates_new* it fails at a created resource that exists.
    """
    query = OF_LISTS if LIST in reading_kinds else "apply_reads" if READ in reading_kinds else "apply_writes"
    return f"{query}_new" if creates_new else query


def wave_columns(wave: Sequence[Operation], tenants: Mapping[str, TenantRow]) -> list[list[str]]:
    """Return the columns of a wave's statement that each operation has."""
    return [
        [operation.tenant_id for operation in wave],
        [operation.kind for operation in wave],
        [operation.resource_type for operation in wave],
        [operation.resource_id or "" for operation in wave],
        [tenants[operation.tenant_id].business_type for operation in wave],
    ]


def pack_documents(wave: Sequence[Operation], separator: str) -> bytes:
    """Return the JSON text of each operation's data, or of its query's members, joined by *separator*."""
    return separator.encode().join(
        [operation.data or (operation.query.members.encode() if operation.query else b"") for operation in wave]
    )


def wave_arguments(
    statement: str, places: Sequence[int], wave: Sequence[Operation], tenants: Mapping[str, TenantRow]
) -> tuple[object, ...]:
    """Return the arguments of *statement* for a wave, reads first, with these *places* in the batch."""
    separator, *keys, packed_places, requested_at = pack_columns(
        wave_columns(wave, tenants),
        [[PLACES[place] for place in places], [operation.requested_at for operation in wave]],
    )
    columns = (separator, packed_places, *keys, pack_documents(wave, separator), requested_at)
    if not statement.startswith(OF_LISTS):
        return columns
    asked = [operation.query.asked if operation.query else "" for operation in wave if operation.kind in READING_KINDS]
    return *columns, separator.join(asked), RESULT_MAX_BYTES


class WaveRun:
    """The waves of one batch, known by their places. At the end, `failures` are the errors of those without effect."""

    def __init__(
        self, connection: Connection, statement: str, tenants: Mapping[str, TenantRow], judges: BatchJudges
    ) -> None:
        self.failures: list[tuple[int, str]] = []
        self.found: dict[int, Found] = {}
        self._judges = judges
        self._refused: list[tuple[str, int, Failure, str | None]] = []  # tenant, place, failure, result
        self._connection = connection
        self._statement = statement
        self._tenants = tenants
        self._waiting: list[tuple[Sequence[int], Sequence[Operation]]] = []  # waves that were not sent yet

    async def add_wave(
        self, places: Sequence[int], operations: Sequence[Operation], laborious: Container[int], *, is_heavy: bool
    ) -> None:
        """Add a wave of *operations* at *places*, those at *laborious* patches; or of one patch that *is_heavy*."""
        judges_patch = self._judges.judges_patch
        merged = [index for index, one in enumerate(operations) if index in laborious or judges_patch(one)]
        if merged:
            await self._send()
            wave = dict(zip(places, operations, strict=True))
            max_bytes = DOCUMENT_MAX_BYTES if is_heavy else TOGETHER_MAX_BYTES
            results = await merge_each(self._connection, [operations[index] for index in merged], max_bytes)
            for index, result in zip(merged, results, strict=True):
                if isinstance(result, UnreadDataError) and not is_heavy:
                    self.failures.append((places[index], UNMERGED))
                self._take_merged(wave, places[index], result)
            places, operations = list(wave), list(wave.values())
        if places:
            self._waiting.append((places, operations))

    async def finish(self) -> None:
        """Send the last waves."""
        await self._send()

    def _take_merged(self, wave: dict[int, Operation], place: int, merged: str | UnmergeableError | None) -> None:
        patch, failure, result = wave[place], Failure.INVALID_DATA, None
        if isinstance(merged, str):
            found = self._judges.judge(patch, merged.encode()) if self._judges.judges_patch(patch) else None
            if found is not None:
                self.found[place] = found
            if found is None or not found.judge.refuses:
                wave[place] = msgspec.structs.replace(patch, kind=OperationKind.UPDATE, data=msgspec.Raw(merged))
                return
            result = found.result
        elif merged is None:
            failure = Failure.NOT_FOUND
        self._refused.append((patch.tenant_id, place, failure, result))
        del wave[place]

    async def _send(self) -> None:
        """Send the waves; before them what was refused, which histories would take for the cause of a later change."""
        if self._refused:
            await self._connection.fetchmany(QUERIES["fail_operation"], self._refused)
            self.failures += [(place, failure) for _, place, failure, _ in self._refused]
            self._refused = []
        waiting, self._waiting = self._waiting, []
        if waiting:
            arguments = (wave_arguments(self._statement, *wave, self._tenants) for wave in waiting)
            rows: list[Any] = await self._connection.fetchmany(QUERIES[self._statement], arguments)
            self.failures += [(row["place"], row["error"]) for row in rows]


FAST_MAX_COUNT: Final = 100  # operations; larger batches have several waves in most cases
FAST_MAX_BYTES: Final = 256 * 1024  # of records: the server copies their data twice
UNCONFIRMED: Final = "unconfirmed"  # in `applying.sql`


class FastPathError(RolledBackError):
    """A batch is to be applied step by step, which shows the cause. *has_duplicates*: a new row exists."""

    def __init__(self, cause: str, *, is_timeout: bool = False, has_duplicates: bool = False) -> None:
        super().__init__(f"not applied in one statement: {cause}")
        self.is_timeout = is_timeout
        self.has_duplicates = has_duplicates


def fast_path_error(exc: LockTimeoutError | StatementFailedError) -> FastPathError:
    """Return the error for a statement that failed with *exc*."""
    return FastPathError(
        type(exc).__name__,
        is_timeout=isinstance(exc, LockTimeoutError) or exc.is_timeout,
        has_duplicates=isinstance(exc, DuplicateKeyError),
    )


def fits_fast_path(
    operations: Sequence[Operation],
    tenants: Mapping[str, TenantRow],
    *,
    large: Container[ResourceId],
    tenant_wait: timedelta,
) -> bool:
    """Return whether *operations* are one wave of writes that the remembered rows *tenants* admit."""
    if not 0 < len(operations) <= FAST_MAX_COUNT:
        return False
    if sum([operation.size_bytes for operation in operations]) > FAST_MAX_BYTES:
        return False
    if any(operation.kind in READING_KINDS or operation.exceeds_bounds for operation in operations):
        return False
    if any(one.weight != 1.0 or one.business_weight != 1.0 or one.is_limited for one in tenants.values()):
        return False
    patches = [index for index, operation in enumerate(operations) if operation.kind is PATCH]
    if find_laborious(operations, patches, large):
        return False
    if len({resource_of(operation) for operation in operations}) < len(operations):
        return False
    return admits_all(operations, tenants, tenant_wait=tenant_wait)


async def apply_fast(
    connection: Connection,
    operations: Sequence[Operation],
    tenants: Mapping[str, TenantRow],
    claimed: tuple[PositionClaim, str] | None,
) -> list[tuple[int, str]]:
    """Apply *operations*, for which `fits_fast_path`; return the places of those without effect, and why.

    *claimed* is a claim with its new token, and is written too. Raises `FastPathError` if a row is not as it was; the
    statement itself fails at a row that exists.
    """
    arguments = fast_path_arguments(operations, {one.tenant_id: tenants[one.tenant_id] for one in operations})
    rows: list[Any]
    if claimed is None:
        rows = await connection.fetch(QUERIES["fast_path"], *arguments)
    else:
        rows = await connection.fetch(QUERIES["fast_path_claimed"], *arguments, *position_arguments(*claimed))
    if not rows:
        return []
    missed = [(row["place"], row["error"]) for row in rows]
    if UNCONFIRMED in [error for _, error in missed]:
        raise FastPathError("a tenant's row or the position is not as it was")
    return missed


def fast_path_arguments(operations: Sequence[Operation], tenants: Mapping[str, TenantRow]) -> tuple[object, ...]:
    """Return the arguments of the statement, those of the position not included."""
    log = log_columns_of(operations, tenants)
    of_wave = wave_columns(operations, tenants)
    of_tenants = [
        list(tenants),
        [tenant.business_id for tenant in tenants.values()],
        [tenant.location_id for tenant in tenants.values()],
        [tenant.business_type for tenant in tenants.values()],
    ]
    plain = [
        PLACES[: len(operations)],
        log.requested_at,
        log.tenant_numbers,
        log.requests,
        log.type_places,
        log.resources,
        log.origin_places,
        log.received_at,
        log.origins,
        [tenant.created_at.isoformat() for tenant in tenants.values()],
        [str(tenant.number) for tenant in tenants.values()],
        log.sizes,
    ]
    separator, *columns = pack_columns([*of_wave, *of_tenants, log.types], plain)
    packed_wave, packed_tenants, types = columns[:5], columns[5:9], columns[9]
    places, requested_at, *of_log, origins, created_at, numbers, sizes = columns[10:]
    return (
        separator,
        places,
        *packed_wave,
        pack_documents(operations, separator),
        requested_at,
        b"".join(log.digests),
        *of_log,
        types,
        origins,
        *packed_tenants,
        created_at,
        numbers,
        sizes,
    )
