"""Count what became of operations, whichever source they came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from simplu_worker.metrics import instruments
from simplu_worker.operations.operation import Disposition, Operation, Outcome


def count_outcomes(operations: Sequence[Operation], outcomes: Sequence[Outcome], *, now: datetime) -> None:
    """Count a batch that was committed, and how long after its arrival that was."""
    counts: Counter[tuple[str, str, str]] = Counter()
    latencies: list[float] = []
    for operation, outcome in zip(operations, outcomes, strict=True):
        match outcome.disposition:
            case Disposition.HOLD | Disposition.UNEXPECTED:
                continue
            case Disposition.APPLIED:
                result = outcome.failure or "succeeded"
                latencies.append((now - operation.origin.arrived_at).total_seconds())
            case Disposition.DUPLICATE | Disposition.DEAD_LETTER:
                result = outcome.disposition
        counts[operation.origin.source, operation.kind, result] += 1
    for (source, kind, result), count in counts.items():
        instruments.OPERATIONS.labels(source, kind, result).inc(count)
    if latencies:
        instruments.OPERATION_LATENCY.observe_many(operations[0].origin.source, latencies)
