"""Split a batch into waves, each one statement, and decide which operations a shard admits. Pure.

Why a wave is safe: its reads see the rows as they were before it, and it writes each resource at most once. So an
operation may share a wave with an earlier one unless it must see that one's effect: a write after a write of its
resource, a `read` after one, a `list` after a write of its type or of the settings, which have its time zone.

The shard's `tenants` row is authoritative (architecture, idea 4), whatever a cache or Citrus contains.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec

from simplu_worker.operations.limits import Limit
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.vocabulary import DeadLetterReason, Failure, OperationKind, Source, TenantState

LIST: Final = OperationKind.LIST  # looked up once: access to an enum member is slow
READ: Final = OperationKind.READ
SETTINGS: Final = "settings"  # the resource type


class Wave(msgspec.Struct, frozen=True, gc=False):
    """The indexes, in the batch, of the operations that are applied together: first the reads, then the writes."""

    reads: list[int]
    writes: list[int]


def plan_waves(operations: Sequence[Operation]) -> list[Wave]:
    """Return the waves in which to apply *operations*; each operation is in exactly one, as early as it can be."""
    reads: list[list[int]] = []
    writes: list[list[int]] = []
    listing = {operation.tenant_id for operation in operations if operation.kind is LIST}
    next_write: dict[tuple[str, str, str | None], int] = {}  # by resource: the first wave that may write it again
    next_list: dict[tuple[str, str], int] = {}  # by type: the first wave with reads that see all writes so far
    listed: dict[tuple[str, str], int] = {}  # by type: the earliest wave of a write that no earlier list may see
    for index, operation in enumerate(operations):
        kind, tenant_id = operation.kind, operation.tenant_id
        if kind is LIST:
            of_type, of_settings = (tenant_id, operation.resource_type), (tenant_id, SETTINGS)
            into, wave = reads, max(next_list.get(of_type, 0), next_list.get(of_settings, 0))
            listed[of_type] = max(listed.get(of_type, 0), wave)
            listed[of_settings] = max(listed.get(of_settings, 0), wave)
        else:
            resource = tenant_id, operation.resource_type, operation.resource_id
            into, wave = reads, next_write.get(resource, 0)
            if kind is not READ:
                into = writes
                if tenant_id in listing:
                    of_type = tenant_id, operation.resource_type
                    wave = max(wave, listed.get(of_type, 0))
                    next_list[of_type] = max(next_list.get(of_type, 0), wave + 1)
                next_write[resource] = wave + 1
        if wave == len(reads):
            reads.append([])
            writes.append([])
        into[wave].append(index)
    return [Wave(*both) for both in zip(reads, writes, strict=True)]


def isolate(waves: Sequence[Sequence[int]], isolated: Collection[int]) -> Sequence[Sequence[int]]:
    """Return *waves* with each of *isolated* in a wave of its own, right behind its former one, which has its reads."""
    if not isolated:
        return waves
    apart: list[Sequence[int]] = []
    for wave in waves:
        rest = [index for index in wave if index not in isolated]
        apart += [rest] if rest else []
        apart += [[index] for index in wave if index in isolated]
    return apart


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
    business_weight: float = 1.0
    operations_per_s: float | None = None
    bytes_per_s: float | None = None
    business_operations_per_s: float | None = None
    business_bytes_per_s: float | None = None

    def limits(self, default: Limit) -> list[tuple[str, Limit]]:
        """Return the buckets that its operations take from, and the limit of each; *default* is that of all tenants."""
        own = Limit(self.operations_per_s, self.bytes_per_s) or default
        of_business = Limit(self.business_operations_per_s, self.business_bytes_per_s)
        named = ((f"t/{self.number}", own), (f"b/{self.business_id}", of_business))
        return [(target, limit) for target, limit in named if limit]

    @property
    def is_limited(self) -> bool:
        """Whether a person has set a limit for it, or for its business."""
        own = self.operations_per_s is not None or self.bytes_per_s is not None
        return own or self.business_operations_per_s is not None or self.business_bytes_per_s is not None


ACTIVE = TenantState.ACTIVE
HOLD = Outcome(disposition=Disposition.HOLD)
DESTROYED = Outcome(disposition=Disposition.APPLIED, failure=Failure.TENANT_DESTROYED)


def admit(operation: Operation, tenant: TenantRow | None, *, tenant_wait: timedelta) -> Outcome | None:
    """Return the outcome of an *operation* that is not to be applied (APPLIED still writes its row); None if it is."""
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
    """Return True only if `admit` returns None for each of *operations*, at least one.

    False where only that can decide.
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
    """Return whether *operation* arrived more than *tenant_wait* before its tenant was made: then it may be skipped."""
    if tenant is None or not _belongs_to(tenant, operation) or operation.origin.source is not Source.KINESIS:
        return False
    return operation.origin.arrived_at + tenant_wait <= tenant.created_at


def _belongs_to(tenant: TenantRow, operation: Operation) -> bool:
    return (tenant.business_id, tenant.location_id) == (operation.business_id, operation.location_id)


def _unknown_tenant(error: str) -> Outcome:
    return Outcome(disposition=Disposition.DEAD_LETTER, reason=DeadLetterReason.UNKNOWN_TENANT, error=error)
