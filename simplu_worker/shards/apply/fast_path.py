"""Apply a batch in one statement, where all is expected to be as usual; otherwise step by step.

Why it is safe: the statement compares what the writer remembers with the shard's rows, which it locks, and applies
nothing where they differ. It fails as a whole at a row of the log that exists.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any, Final

from simplu_worker.operations.merge_patch import is_nested
from simplu_worker.operations.operation import Operation
from simplu_worker.operations.waves import TenantRow, admits_all
from simplu_worker.shards.apply.duplicates import InsertedTable
from simplu_worker.shards.apply.operation_log import PLACES, log_columns_of
from simplu_worker.shards.apply.patch_merging import PATCH, ResourceId, find_laborious, resource_of
from simplu_worker.shards.apply.wave_run import pack_documents, wave_columns
from simplu_worker.shards.positions import position_arguments
from simplu_worker.shards.postgres.errors import (
    DuplicateKeyError,
    LockTimeoutError,
    RolledBackError,
    StatementFailedError,
)
from simplu_worker.shards.postgres.pool import Connection
from simplu_worker.shards.postgres.queries import QUERIES, pack_columns
from simplu_worker.shards.types import PositionClaim
from simplu_worker.vocabulary import READING_KINDS

FAST_MAX_COUNT: Final = 100  # operations; larger batches have several waves in most cases
FAST_MAX_BYTES: Final = 256 * 1024  # of records: the server copies their data twice
TENANTS_MAX_COUNT: Final = 10_000  # rows that a writer remembers
UNCONFIRMED: Final = "unconfirmed"  # in `applying.sql`
INSERTED_TABLES: Final = {"log_rows": InsertedTable.LOG, "resources": InsertedTable.RESOURCES}


class FastPathError(RolledBackError):
    """A batch is to be applied step by step, which shows the cause. *duplicates_in*: a row of that table exists."""

    def __init__(self, cause: str, *, is_timeout: bool = False, duplicates_in: InsertedTable | None = None) -> None:
        super().__init__(f"not applied in one statement: {cause}")
        self.is_timeout = is_timeout
        self.duplicates_in = duplicates_in


def fast_path_error(exc: LockTimeoutError | StatementFailedError) -> FastPathError:
    """Return the error for a statement that failed with *exc*."""
    return FastPathError(
        type(exc).__name__,
        is_timeout=isinstance(exc, LockTimeoutError) or exc.is_timeout,
        duplicates_in=INSERTED_TABLES.get(exc.table or "") if isinstance(exc, DuplicateKeyError) else None,
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
    if claimed is not None:
        arguments += position_arguments(*claimed)
    name = query_for(operations, has_claim=claimed is not None)
    rows: list[Any] = await connection.fetch(QUERIES[name], *arguments)
    if not rows:
        return []
    missed = [(row["place"], row["error"]) for row in rows]
    if UNCONFIRMED in [error for _, error in missed]:
        raise FastPathError("a tenant's row or the position is not as it was")
    return missed


def query_for(operations: Sequence[Operation], *, has_claim: bool) -> str:
    """Return the name of the statement for *operations*."""
    has_nested = any(operation.kind is PATCH and is_nested(operation.text or "") for operation in operations)
    return f"fast_path{'_claimed' * has_claim}{'_nested' * has_nested}"


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
