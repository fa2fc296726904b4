"""Count the outcomes of operations from any source."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from simplu_worker.consumers.operation_taps import TAPS
from simplu_worker.metrics import instruments
from simplu_worker.operations.operation import Disposition, Operation, Outcome

T = TypeVar("T")


def group_by_outcome(items: Sequence[T], outcomes: Sequence[Outcome]) -> Mapping[Outcome, Sequence[T]]:
    """Return the *items* of a batch by their outcomes, in their order; nearly always all have the same outcome."""
    if outcomes and outcomes.count(outcomes[0]) == len(outcomes) == len(items):
        return {outcomes[0]: items}
    groups: defaultdict[Outcome, list[T]] = defaultdict(list)
    for item, outcome in zip(items, outcomes, strict=True):
        groups[outcome].append(item)
    return groups


def count_outcomes(operations: Sequence[Operation], outcomes: Sequence[Outcome], *, now: datetime) -> None:
    """Count a committed batch of one source, and the seconds from arrival to commit; show it to the open taps."""
    if TAPS.open:
        TAPS.publish(operations, outcomes, now)
    for outcome, own in group_by_outcome(operations, outcomes).items():
        source = own[0].origin.source
        match outcome.disposition:
            case Disposition.HOLD | Disposition.UNEXPECTED | Disposition.LOCKED:
                continue
            case Disposition.APPLIED:
                result: str = outcome.failure or "succeeded"
                arrivals = Counter([operation.origin.arrived_at for operation in own])
                latencies = [((now - arrived_at).total_seconds(), count) for arrived_at, count in arrivals.items()]
                instruments.OPERATION_LATENCY.observe_many(source, latencies)
            case Disposition.DUPLICATE | Disposition.DEAD_LETTER:
                result = outcome.disposition
        for kind, count in Counter([operation.kind for operation in own]).items():
            instruments.OPERATIONS.labels(source, kind, result).inc(count)
