"""Find the operations at which a batch failed in pure code: each takes those steps again, alone. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from simplu_worker.operations.admission import TenantRow
from simplu_worker.operations.decode import SOUND_RECORD, decode_operation
from simplu_worker.operations.defects import defect_text, try_twice
from simplu_worker.operations.merge_patch import is_nested
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.operations.waves import plan_waves
from simplu_worker.shards.apply.at_once import at_once_arguments
from simplu_worker.shards.apply.patch_merging import find_laborious
from simplu_worker.shards.apply.wave_statement import statement_for, wave_arguments
from simplu_worker.vocabulary import DeadLetterReason, OperationKind, TenantState


def find_defects(operations: Sequence[Operation]) -> dict[int, Outcome]:
    """Return the outcome, by index, of each operation at which a step of a batch that is pure raises twice.

    None where a sound operation fails too: then no operation is at fault.
    """
    sound = decode_operation(SOUND_RECORD, operations[0].origin, len(SOUND_RECORD), 1) if operations else None
    if isinstance(sound, Operation) and try_twice(partial(_take_pure_steps, sound)) is not None:
        return {}
    tried = [(index, try_twice(partial(_take_pure_steps, operation))) for index, operation in enumerate(operations)]
    return {
        index: Outcome(
            disposition=Disposition.DEAD_LETTER, reason=DeadLetterReason.INTERNAL_ERROR, error=defect_text(raised)
        )
        for index, raised in tried
        if raised is not None
    }


def _take_pure_steps(operation: Operation) -> None:
    """Take the steps of `WriteAttempt.apply` that depend on the operation alone, for a tenant that admits it."""
    row = TenantRow(
        operation.business_id,
        operation.location_id,
        "",
        TenantState.ACTIVE,
        created_at=operation.origin.arrived_at,
        number=0,
    )
    tenants = {operation.tenant_id: row}
    patches = [0] if operation.kind is OperationKind.PATCH else []
    plan_waves([operation])
    find_laborious([operation], patches, ())
    has_nested = any(is_nested(operation.text or "") for _ in patches)
    wave_arguments(statement_for([operation.kind], has_nested=has_nested), [0], [operation], tenants)
    at_once_arguments([operation], tenants)
