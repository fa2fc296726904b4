"""What a control message does to a tenant, as far as the tenant's row decides that (contract §4). Pure.

Messages come in any order and more than once. So each is measured by its own timestamp against the newest that was
applied, and of a creation and a destruction of the same instant the destruction counts as the newer one: whatever the
order they come in, a tenant ends the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.operations.admission import TenantState


class ControlledTenant(msgspec.Struct, frozen=True):
    """A tenant's row, as control messages see it. *is_deletion_begun*: rows of a tenant `destroying` are going."""

    business_id: str
    location_id: str
    state: TenantState
    control_at: datetime
    is_deletion_begun: bool = False

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> ControlledTenant:
        """Return what a row of `lock_tenants_for_control` says."""
        return cls(
            business_id=row["business_id"],
            location_id=row["location_id"],
            state=TenantState(row["state"]),
            control_at=row["control_at"],
            is_deletion_begun=row["is_deletion_begun"],
        )


class ControlStep(StrEnum):
    """What to do about a control message."""

    MAKE = "make"  # there is no row
    REMAKE = "remake"  # there is the row of a tenant that was destroyed
    RESTORE = "restore"  # take the destruction back
    DESTROY = "destroy"  # begin with the grace time
    NOTE = "note"  # it is so already; remember the timestamp
    STALE = "stale"  # a newer one was applied
    TAKEN = "taken"  # the row is of another business and location with the same id
    WAIT_FOR_MOVE = "wait_for_move"
    WAIT_FOR_DELETION = "wait_for_deletion"


def step_of_creation(
    tenant: ControlledTenant | None, business_id: str, location_id: str, requested_at: datetime
) -> ControlStep:
    """Return what a `SHARD_CREATION` of *requested_at* does."""
    if tenant is None:
        return ControlStep.MAKE
    if (tenant.business_id, tenant.location_id) != (business_id, location_id):
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
    """Return what a `SHARD_DESTRUCTION` of *requested_at* does."""
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
            # What is noted here would not be there after the move; and a move takes minutes at most.
            return ControlStep.WAIT_FOR_MOVE


def error_of(step: ControlStep, tenant_id: str) -> WorkerError | None:
    """Return why a message cannot be applied, or cannot be applied now; None when it can."""
    match step:
        case ControlStep.TAKEN:
            return id_taken_error(tenant_id)
        case ControlStep.WAIT_FOR_MOVE:
            return RetryableError("the tenant is being moved")
        case ControlStep.WAIT_FOR_DELETION:
            return RetryableError("the tenant's rows are being deleted; it is made again after that")
        case _:
            return None


def id_taken_error(tenant_id: str) -> PermanentError:
    """Return what to say to the second of two tenants with one id."""
    return PermanentError(
        f"businessId, locationId: their id {tenant_id!r} is taken by another business and location; "
        "register it under other ids"
    )


def is_row_of(row: Mapping[str, Any], business_id: str, location_id: str) -> bool:
    """Tell whether a tenant's row is that of this business and location, and not of another pair with the same id."""
    return (row["business_id"], row["location_id"]) == (business_id, location_id)
