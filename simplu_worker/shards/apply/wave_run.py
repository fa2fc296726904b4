"""Run the waves of a batch in its transaction, in as few round trips as the patches that the worker merges allow.

Those are large and deep patches, each in a wave of its own, and judged ones: what is judged is what is stored.

A server prepares every part of a plan again at each run, so there is a text for each frequent content of a wave
(`applying.sql`).

Apply a batch in one statement, where all is expected to be as usual; otherwise step by step.

Why it is safe: the statement compares what the writer remembers with the shard's rows, which it locks, and applies
nothing where they differ. It fails as a whole at a row of the log that exists.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any, Final

from simplu_worker.operations.operation import Operation
from simplu_worker.operations.waves import TenantRow, admits_all
from simplu_worker.shards.apply.judging import BatchJudges, Found
from simplu_worker.shards.apply.operation_log import PLACES, log_columns_of
from simplu_worker.shards.apply.patch_merging import (
    PATCH,
    ResourceId,
    UnmergeableError,
    find_laborious,
    merge_each,
    resource_of,
    updated_by,
)
from simplu_worker.shards.positions import position_arguments
from simplu_worker.shards.postgres.errors import (
    DuplicateKeyError,
    LockTimeoutError,
    RolledBackError,
    StatementFailedError,
)
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES, pack_columns
from simplu_worker.shards.types import PositionClaim
from simplu_worker.vocabulary import READING_KINDS, Failure, OperationKind

RESULT_MAX_BYTES: Final = 1024 * 1024  # docs/outcomes.md: a list over 1 MiB is result_too_large
LIST: Final = OperationKind.LIST  # looked up once: access to an enum member is slow
READ: Final = OperationKind.READ
OF_LISTS: Final = ("apply_wave", "apply_lists")  # statements that apply a `list`; these take more arguments


def statement_for(
    reading_kinds: Collection[OperationKind], *, has_asked: bool = False, creates_new: bool = False
) -> str:
    """Return the name of the statement for waves with reads of *reading_kinds*.

    *has_asked*: with lists by `ListQuery.asked`. With *creates_new* it fails at a created resource that exists.
    """
    has_reads = READ in reading_kinds
    if LIST in reading_kinds:
        query = "apply_wave" if has_asked or has_reads else "apply_lists"
    else:
        query = "apply_reads" if has_reads else "apply_writes"
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
    has_lists = statement.startswith(OF_LISTS)
    queries = [operation.query for operation in wave if operation.kind in READING_KINDS] if has_lists else []
    separator, *keys, packed_places, requested_at = pack_columns(
        wave_columns(wave, tenants),
        [[PLACES[place] for place in places], [operation.requested_at for operation in wave]],
    )
    columns: list[object] = [packed_places, *keys, pack_documents(wave, separator), requested_at]
    if not has_lists:
        return separator, *columns
    columns += [
        separator.join(column)
        for column in (
            [f"{query.days.first}T00:00:00Z" if query and query.days.first else "" for query in queries],
            [f"{query.days.last}T23:59:59.999999Z" if query and query.days.last else "" for query in queries],
            [str(query.page) if query else "" for query in queries],
            [str(query.limit) if query else "" for query in queries],
            [query.asked if query else "" for query in queries],
            [query.list_id if query else "" for query in queries],
        )
    ]
    *columns, asked, list_ids = columns
    return separator, *columns, RESULT_MAX_BYTES, asked, list_ids


class WaveRun:
    """The waves of one batch, known by their places. At the end, `failures` are the errors of those without effect."""

    def __init__(
        self,
        connection: Connection,
        statement: str,
        tenants: Mapping[str, TenantRow],
        judges: BatchJudges,
    ) -> None:
        self.failures: list[tuple[int, str]] = []
        self.found: dict[int, Found] = {}
        self._judges = judges
        self._refused: list[tuple[str, int, Failure, str | None]] = []  # tenant, place, failure, result
        self._connection = connection
        self._statement = statement
        self._tenants = tenants
        self._waiting: list[tuple[Sequence[int], Sequence[Operation]]] = []  # waves that were not sent yet

    async def add_wave(self, places: Sequence[int], operations: Sequence[Operation], *, is_laborious: bool) -> None:
        """Add a wave of *operations* at *places*, or of one patch that *is_laborious*."""
        merged = [index for index, one in enumerate(operations) if is_laborious or self._judges.judges_patch(one)]
        wave = await self._merge(places, operations, merged) if merged else (places, operations)
        if wave[0]:
            self._waiting.append(wave)

    async def finish(self) -> None:
        """Send the last waves."""
        await self._send()
        if self._refused:
            await self._connection.fetchmany(QUERIES["fail_operation"], self._refused)
            self.failures += [(place, failure) for _, place, failure, _ in self._refused]

    async def _merge(
        self, places: Sequence[int], operations: Sequence[Operation], merged: Sequence[int]
    ) -> tuple[Sequence[int], Sequence[Operation]]:
        await self._send()
        results = await merge_each(self._connection, [operations[index] for index in merged])
        changed: dict[int, Operation | None] = {
            index: self._with_effect_of(places[index], operations[index], one)
            for index, one in zip(merged, results, strict=True)
        }
        wave = [
            (place, one)
            for index, place in enumerate(places)
            if (one := changed.get(index, operations[index])) is not None
        ]
        return [place for place, _ in wave], [operation for _, operation in wave]

    def _with_effect_of(self, place: int, patch: Operation, merged: str | UnmergeableError | None) -> Operation | None:
        if isinstance(merged, str):
            found = self._judges.judge(patch, merged.encode()) if self._judges.judges_patch(patch) else None
            if found is not None:
                self.found[place] = found
            if found is None or not found.judge.refuses:
                return updated_by(patch, merged)
            failure, result = Failure.INVALID_DATA, found.result
        else:
            failure, result = Failure.NOT_FOUND if merged is None else Failure.INVALID_DATA, None
        self._refused.append((patch.tenant_id, place, failure, result))
        return None

    async def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            arguments = (wave_arguments(self._statement, *wave, self._tenants) for wave in waiting)
            rows: list[Any] = await self._connection.fetchmany(QUERIES[self._statement], arguments)
            self.failures += [(row["place"], row["error"]) for row in rows]


async def find_unstorable(pool: ShardPool, texts: Sequence[str | None]) -> list[int]:
    """Return the indexes of the texts that cannot be stored as jsonb in any table.

    None where the statement fails as a whole.
    """
    try:
        async with pool.connection() as connection:
            rows = await connection.fetch(QUERIES["find_unstorable"], texts)
    except StatementFailedError as exc:
        if exc.is_timeout:
            raise
        return []
    return [row["position"] for row in rows]


FAST_MAX_COUNT: Final = 100  # operations; larger batches have several waves in most cases
FAST_MAX_BYTES: Final = 256 * 1024  # of records: the server copies their data twice
TENANTS_MAX_COUNT: Final = 10_000  # rows that a writer remembers
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


class TenantMemory:
    """The rows of a shard's tenants as batches last read them."""

    def __init__(self, max_count: int = TENANTS_MAX_COUNT) -> None:
        self._rows: dict[str, TenantRow] = {}  # oldest first
        self._max_count = max_count

    def rows_of(self, tenant_ids: Iterable[str]) -> dict[str, TenantRow]:
        """Return the remembered rows of tenants, by id."""
        return {tenant_id: row for tenant_id in tenant_ids if (row := self._rows.get(tenant_id)) is not None}

    def remember(self, rows: Mapping[str, TenantRow]) -> None:
        """Add rows, and drop the oldest ones beyond the most that are remembered."""
        self._rows.update(rows)
        for tenant_id in list(islice(self._rows, max(0, len(self._rows) - self._max_count))):
            del self._rows[tenant_id]

    def forget(self, tenant_ids: Iterable[str]) -> None:
        """Drop the rows of tenants."""
        for tenant_id in tenant_ids:
            self._rows.pop(tenant_id, None)


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
    if any(tenant.weight != 1.0 for tenant in tenants.values()):
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
    ]
    separator, *columns = pack_columns([*of_wave, *of_tenants, log.types], plain)
    packed_wave, packed_tenants, types = columns[:5], columns[5:9], columns[9]
    places, requested_at, *of_log, origins, created_at, numbers = columns[10:]
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
    )
