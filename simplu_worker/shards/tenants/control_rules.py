"""The effect of a control message on a tenant, by its row (docs/sending.md). Pure.

Messages arrive in any order and more than once. The timestamp of each is compared with the newest that was applied; of
a creation and a destruction of one instant the destruction is newer. So a tenant ends in the same state whatever the
order. The exception: `destroy_all` ends the locations that exist when it is applied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import msgspec

from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.shards.postgres.address import AddressRefusedError
from simplu_worker.shards.postgres.errors import StatementFailedError
from simplu_worker.shards.types import FailedOnShardError, ProvisionRequest, RefusedOnShardError, ShardNotAllowedError
from simplu_worker.vocabulary import TenantState

DEFAULT_ROW: Final = ("settings", "default")  # resource type and id of the row that `add_default_rows` adds
COPY_STATES: Final = frozenset({TenantState.INCOMING, TenantState.READY})


class ControlledTenant(msgspec.Struct, frozen=True):
    """The part of a tenant's row that decides. *is_deletion_begun*: resources of a `destroying` tenant are deleted."""

    business_id: str
    location_id: str
    state: TenantState
    control_at: datetime
    is_deletion_begun: bool = False


def tenant_of(row: Any) -> ControlledTenant:
    """Return the tenant of a row of `lock_tenants_for_control`."""
    return msgspec.convert(dict(row), ControlledTenant)


class ControlStep(StrEnum):
    """The step that applies a control message."""

    MAKE = "make"  # there is no row
    REMAKE = "remake"  # there is the row of a destroyed tenant
    RESTORE = "restore"  # cancel the destruction
    DESTROY = "destroy"  # begin the grace time
    NOTE = "note"  # the tenant is in that state already; store the timestamp
    STALE = "stale"  # a newer message was applied
    TAKEN = "taken"  # the row is of another business and location with the same id
    WAIT_FOR_MOVE = "wait_for_move"
    WAIT_FOR_DELETION = "wait_for_deletion"


def step_of_creation(tenant: ControlledTenant, request: ProvisionRequest) -> ControlStep:
    """Return the step for a `SHARD_CREATION`."""
    requested_at = request.requested_at
    if (tenant.business_id, tenant.location_id) != (request.business_id, request.location_id):
        return ControlStep.TAKEN
    match tenant.state:
        case TenantState.ACTIVE:
            return ControlStep.STALE if requested_at < tenant.control_at else ControlStep.NOTE
        case TenantState.DESTROYING | TenantState.DESTROYED if requested_at <= tenant.control_at:
            return ControlStep.STALE
        case TenantState.DESTROYING:
            return ControlStep.WAIT_FOR_DELETION if tenant.is_deletion_begun else ControlStep.RESTORE
        case TenantState.DESTROYED:
            return ControlStep.REMAKE
        case TenantState.INCOMING | TenantState.READY | TenantState.FENCED | TenantState.MOVED:
            return ControlStep.STALE if requested_at < tenant.control_at else ControlStep.WAIT_FOR_MOVE


def step_of_destruction(
    tenant: ControlledTenant, business_id: str, location_id: str, requested_at: datetime
) -> ControlStep:
    """Return the step for a `SHARD_DESTRUCTION` of *requested_at*."""
    if (tenant.business_id, tenant.location_id) != (business_id, location_id):
        return ControlStep.TAKEN
    if requested_at < tenant.control_at:
        return ControlStep.STALE
    match tenant.state:
        case TenantState.ACTIVE:
            return ControlStep.DESTROY
        case TenantState.DESTROYING | TenantState.DESTROYED:
            return ControlStep.NOTE
        case TenantState.INCOMING | TenantState.READY | TenantState.FENCED | TenantState.MOVED:
            # A change here would be lost in the move, which takes minutes at most.
            return ControlStep.WAIT_FOR_MOVE


def homes_to_destroy(states: Mapping[str, TenantState]) -> list[str]:
    """Return the shards on which a tenant is to be destroyed, by its states on all shards.

    None where it has moved away. No destruction waits for a copy beside the home. Beside a destroyed row an import may
    be under way.
    """
    found = set(states.values())
    has_home = TenantState.ACTIVE in found or (TenantState.DESTROYING in found and TenantState.MOVED not in found)
    ignored = {TenantState.MOVED, *(COPY_STATES if has_home else ())}
    return [shard_id for shard_id, state in states.items() if state not in ignored]


def error_of(step: ControlStep, tenant_id: str) -> WorkerError | None:
    """Return the error of a step that cannot be taken, or not now; None for the others."""
    match step:
        case ControlStep.TAKEN:
            return id_taken_error(tenant_id)
        case ControlStep.WAIT_FOR_MOVE:
            return RetryableError("the tenant is being moved or imported")
        case ControlStep.WAIT_FOR_DELETION:
            return RetryableError("the tenant's rows are being deleted; the tenant is made again after that")
        case _:
            return None


def id_taken_error(tenant_id: str) -> PermanentError:
    """Return the error of the second of two tenants with the same id."""
    return PermanentError(
        f"businessId, locationId: their id {tenant_id!r} is taken by another business and location; "
        "register it under other ids"
    )


def is_row_of(row: Mapping[str, Any], business_id: str, location_id: str) -> bool:
    """Return whether a tenant's row is of this business and location, and not of another pair with its id."""
    return (row["business_id"], row["location_id"]) == (business_id, location_id)


def timestamp_text(requested_at: datetime) -> str:
    """Return a time as text for a query: asyncpg turns the extremes of `datetime` into infinities."""
    return requested_at.isoformat()


def with_shard(error: Exception, *, shard_id: str, tenant_id: str) -> Exception:
    """Return *error* of the work for a tenant on a shard; a failed statement becomes a `RefusedOnShardError`."""
    failed: FailedOnShardError
    if isinstance(error, StatementFailedError) and not error.is_timeout:
        failed = RefusedOnShardError(error.error, shard_id=shard_id, tenant_id=tenant_id)
    elif isinstance(error, WorkerError | FailedOnShardError):
        return error
    else:
        failed = FailedOnShardError(type(error).__name__, shard_id=shard_id, tenant_id=tenant_id)
    failed.__cause__ = error
    return failed


@contextlib.contextmanager
def unforeseen_with_shard(shard_id: str, tenant_id: str) -> Iterator[None]:
    """Turn an unforeseen error of the work for a tenant on a shard into a `FailedOnShardError`."""
    try:
        yield
    except Exception as exc:
        error = with_shard(exc, shard_id=shard_id, tenant_id=tenant_id)
        if error is exc:
            raise
        raise error from exc


@contextlib.contextmanager
def refused_address_as_retryable() -> Iterator[None]:
    """Turn the refusal of a named address into an error that is retried until a person has corrected the address."""
    try:
        yield
    except AddressRefusedError as exc:
        raise ShardNotAllowedError(str(exc)) from exc
