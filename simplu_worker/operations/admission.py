"""Whether a shard takes an operation, as far as its `tenants` row decides that. Pure.

The shard has the last word (architecture, idea 4): whatever a cache or Citrus says, an operation is applied only where
the row of its tenant says `active`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

from simplu_worker.operations.operation import DeadLetterReason, Disposition, Failure, Operation, Outcome, Source


class TenantState(StrEnum):
    """The states of a tenant on one shard (contract §10)."""

    INCOMING = "incoming"
    READY = "ready"
    ACTIVE = "active"
    FENCED = "fenced"
    MOVED = "moved"
    DESTROYING = "destroying"
    DESTROYED = "destroyed"


class TenantRow(msgspec.Struct, frozen=True):
    """What one shard says of one tenant."""

    business_id: str
    location_id: str
    business_type: str
    state: TenantState
    created_at: datetime
    moved_to: str | None = None


ACTIVE = TenantState.ACTIVE
HOLD = Outcome(disposition=Disposition.HOLD)
DESTROYED = Outcome(disposition=Disposition.APPLIED, failure=Failure.TENANT_DESTROYED)


def admit(operation: Operation, tenant: TenantRow | None, *, tenant_wait: timedelta) -> Outcome | None:
    """Return what becomes of *operation* without its being applied, or None when it is to be applied.

    An outcome APPLIED here still leaves its row in the log.
    """
    if tenant is None:
        return HOLD
    if not _belongs_to(tenant, operation):
        # Two pairs with the same id: the second to come is refused, and this row stays, so every reader sees the same.
        return _unknown(f"its id {operation.tenant_id} belongs to another business and location")
    if is_too_late(operation, tenant, tenant_wait=tenant_wait):
        return _unknown(f"it waited longer than {tenant_wait.total_seconds():g} s for its tenant")
    match tenant.state:
        case TenantState.ACTIVE:
            return None
        case TenantState.DESTROYING | TenantState.DESTROYED:
            return DESTROYED
        case TenantState.INCOMING | TenantState.READY | TenantState.FENCED | TenantState.MOVED:
            return HOLD


def admits_all(operations: Sequence[Operation], tenants: Mapping[str, TenantRow], *, tenant_wait: timedelta) -> bool:
    """Tell whether all of *operations*, at least one, are to be applied: `admit` is None for each of them.

    False where that takes a look at each. Nearly every batch is like this, and of few tenants.
    """
    pairs = {*zip([one.tenant_id for one in operations], [one.business_id for one in operations], strict=True)}
    rows = [(business_id, tenants.get(tenant_id)) for tenant_id, business_id in pairs]
    # Of two pairs with the same id, that of the business tells the one from the other.
    if not all(row and row.state is ACTIVE and row.business_id == business_id for business_id, row in rows):
        return False
    last_made_at = max(tenants[tenant_id].created_at for tenant_id, _ in pairs)
    return min({operation.origin.arrived_at for operation in operations}) + tenant_wait > last_made_at


def is_too_late(operation: Operation, tenant: TenantRow | None, *, tenant_wait: timedelta) -> bool:
    """Tell whether *operation* waited longer for its tenant than operations do.

    Another reader may have passed over it before the tenant was made; so nobody may apply it any more (idea 7).
    """
    if tenant is None or not _belongs_to(tenant, operation) or operation.origin.source is not Source.KINESIS:
        return False
    return operation.origin.arrived_at + tenant_wait <= tenant.created_at


def _belongs_to(tenant: TenantRow, operation: Operation) -> bool:
    return (tenant.business_id, tenant.location_id) == (operation.business_id, operation.location_id)


def _unknown(why: str) -> Outcome:
    return Outcome(disposition=Disposition.DEAD_LETTER, reason=DeadLetterReason.UNKNOWN_TENANT, error=why)
