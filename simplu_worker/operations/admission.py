"""Admission of an operation by a shard: decided by the shard's `tenants` row. Pure.

The shard is authoritative (architecture, idea 4): whatever a cache or Citrus contains, an operation is applied only on
a shard with an `active` row of its tenant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.vocabulary import DeadLetterReason, Failure, Source, TenantState


class TenantRow(msgspec.Struct, frozen=True):
    """A tenant's row on one shard."""

    business_id: str
    location_id: str
    business_type: str
    state: TenantState
    created_at: datetime
    number: int  # of the tenant in the shard's log
    moved_to: str | None = None
    is_paused: bool = False
    weight: float = 1.0


ACTIVE = TenantState.ACTIVE
HOLD = Outcome(disposition=Disposition.HOLD)
DESTROYED = Outcome(disposition=Disposition.APPLIED, failure=Failure.TENANT_DESTROYED)


def admit(operation: Operation, tenant: TenantRow | None, *, tenant_wait: timedelta) -> Outcome | None:
    """Return the outcome of an *operation* that is not to be applied, or None if it is.

    An outcome APPLIED still writes the operation's row in the log.
    """
    if tenant is None:
        return HOLD
    if not _belongs_to(tenant, operation):
        # Two pairs with the same id: the pair of the row prevails, and the row stays, so every reader decides the same.
        return _unknown_tenant(f"its id {operation.tenant_id} belongs to another business and location")
    if is_too_late(operation, tenant, tenant_wait=tenant_wait):
        return _unknown_tenant(f"it waited longer than {tenant_wait.total_seconds():g} s for its tenant")
    match tenant.state:
        case TenantState.ACTIVE:
            return HOLD if tenant.is_paused else None
        case TenantState.DESTROYING | TenantState.DESTROYED:
            return DESTROYED
        case TenantState.INCOMING | TenantState.READY | TenantState.FENCED | TenantState.MOVED:
            return HOLD


def admits_all(operations: Sequence[Operation], tenants: Mapping[str, TenantRow], *, tenant_wait: timedelta) -> bool:
    """Return True only if all *operations*, at least one, are to be applied, i.e. `admit` returns None for each.

    False also where only `admit` can decide. A fast path: in nearly every batch all are admitted, for few tenants.
    """
    pairs = {*zip([one.tenant_id for one in operations], [one.business_id for one in operations], strict=True)}
    rows = [(business_id, tenants.get(tenant_id)) for tenant_id, business_id in pairs]
    # Two pairs with the same tenant id differ in the business id.
    if not all(
        row and row.state is ACTIVE and not row.is_paused and row.business_id == business_id
        for business_id, row in rows
    ):
        return False
    last_made_at = max(tenants[tenant_id].created_at for tenant_id, _ in pairs)
    return min({operation.origin.arrived_at for operation in operations}) + tenant_wait > last_made_at


def is_too_late(operation: Operation, tenant: TenantRow | None, *, tenant_wait: timedelta) -> bool:
    """Return whether *operation* arrived more than *tenant_wait* before its tenant was made.

    Another reader may have skipped it before the tenant was made; so no reader may apply it any more (idea 7).
    """
    if tenant is None or not _belongs_to(tenant, operation) or operation.origin.source is not Source.KINESIS:
        return False
    return operation.origin.arrived_at + tenant_wait <= tenant.created_at


def _belongs_to(tenant: TenantRow, operation: Operation) -> bool:
    return (tenant.business_id, tenant.location_id) == (operation.business_id, operation.location_id)


def _unknown_tenant(error: str) -> Outcome:
    return Outcome(disposition=Disposition.DEAD_LETTER, reason=DeadLetterReason.UNKNOWN_TENANT, error=error)
