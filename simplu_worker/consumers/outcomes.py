"""Count what became of operations, whichever source they came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from simplu_worker.metrics import instruments
from simplu_worker.operations.operation import Disposition, Operation, Outcome

APPLIED: Final = Disposition.APPLIED  # looked up once: an enum answers slowly


def count_outcomes(operations: Sequence[Operation], outcomes: Sequence[Outcome], *, now: datetime) -> None:
    """Count a batch of one source that was committed, and how long after their arrival that was."""
    if not operations:
        return
    source = operations[0].origin.source
    kinds = [operation.kind for operation in operations]
    by_id = {id(outcome): outcome for outcome in outcomes}  # nearly all are one and the same
    for (kind, key), count in Counter(zip(kinds, map(id, outcomes), strict=True)).items():
        outcome = by_id[key]
        match outcome.disposition:
            case Disposition.HOLD | Disposition.UNEXPECTED:
                continue
            case Disposition.APPLIED:
                result = outcome.failure or "succeeded"
            case Disposition.DUPLICATE | Disposition.DEAD_LETTER:
                result = outcome.disposition
        instruments.OPERATIONS.labels(source, kind, result).inc(count)
    applied = [
        operation.origin.arrived_at
        for operation, outcome in zip(operations, outcomes, strict=True)
        if outcome.disposition is APPLIED
    ]
    latencies = [((now - arrived_at).total_seconds(), count) for arrived_at, count in Counter(applied).items()]
    instruments.OPERATION_LATENCY.observe_many(source, latencies)
