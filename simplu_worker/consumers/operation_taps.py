"""Count the outcomes of operations, and give copies of those that are decided to taps (docs/outcomes.md).

A tap never delays an operation: it keeps a bounded number of events, and drops and counts those that do not fit.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec

from simplu_worker import instruments
from simplu_worker.operations.dead_letter import DeadLetter, tenant_of
from simplu_worker.operations.operation import Disposition, Operation, Outcome

TAPS_MAX: Final = 5
EVENTS_MAX: Final = 1000  # kept for a reader
KEPT_MAX_BYTES: Final = 4 * 1024 * 1024
CONTENT_MAX_LENGTH: Final = 65_536  # characters of one operation's data
SUCCEEDED: Final = "succeeded"


class TapFilter(msgspec.Struct, frozen=True):
    """A filter of decided operations, of which each criterion must be met."""

    business_id: str | None = None
    location_id: str | None = None
    resource_type: str | None = None
    kind: str | None = None
    outcome: str | None = None
    shows_content: bool = False

    def match(self, members: dict[str, Any]) -> bool:
        """Return whether the members of an event meet the filter."""
        return (
            self.business_id in (None, members["businessId"])
            and self.location_id in (None, members["locationId"])
            and self.resource_type in (None, members.get("resourceType"))
            and self.kind in (None, members.get("operation"))
            and self.outcome in (None, members["outcome"])
        )


class Tap:
    """One reader, with the events that it has not taken."""

    def __init__(self, chosen: TapFilter) -> None:
        self.chosen = chosen
        self.has_events = asyncio.Event()
        self.dropped_count = 0
        self._events: deque[bytes] = deque()
        self._size_bytes = 0

    def put(self, event: bytes) -> None:
        """Keep an event, or drop it where there is no room."""
        if len(self._events) >= EVENTS_MAX or self._size_bytes + len(event) > KEPT_MAX_BYTES:
            self.dropped_count += 1
        else:
            self._events.append(event)
            self._size_bytes += len(event)
        self.has_events.set()

    def take(self) -> list[bytes]:
        """Remove and return the events, the first ones first."""
        taken, self._events, self._size_bytes = list(self._events), deque(), 0
        self.has_events.clear()
        return taken


class OperationTaps:
    """The open taps of this process, at most TAPS_MAX."""

    def __init__(self) -> None:
        self.open: tuple[Tap, ...] = ()

    def add(self, chosen: TapFilter) -> Tap:
        """Open a tap; the caller removes it."""
        tap = Tap(chosen)
        self.open = (*self.open, tap)
        return tap

    def remove(self, tap: Tap) -> None:
        """Close a tap. Idempotent."""
        self.open = tuple(one for one in self.open if one is not tap)

    def publish(self, operations: Sequence[Operation], outcomes: Sequence[Outcome], now: datetime) -> None:
        """Give the decided operations of a batch to the taps."""
        for operation, outcome in zip(operations, outcomes, strict=True):
            if outcome.disposition is Disposition.APPLIED:
                result: str = outcome.failure or SUCCEEDED
            elif outcome.disposition is Disposition.DUPLICATE:
                result = outcome.disposition
            else:
                continue
            self._put(operation_members(operation, result, now), operation.data)

    def publish_letters(self, letters: Iterable[DeadLetter]) -> None:
        """Give dead letters to the taps."""
        for letter in letters:
            self._put(letter_members(letter), letter.record)

    def _put(self, members: dict[str, Any], content: bytes | msgspec.Raw | None) -> None:
        for tap in self.open:
            if tap.chosen.match(members):
                shown = {"content": _shown(content)} if tap.chosen.shows_content else {}
                tap.put(msgspec.json.encode(members | shown))


def _shown(content: bytes | msgspec.Raw | None) -> str | None:
    return None if content is None else bytes(content).decode(errors="replace")[:CONTENT_MAX_LENGTH]


def operation_members(operation: Operation, outcome: str, now: datetime) -> dict[str, Any]:
    """Return a decided operation as JSON members, without its content."""
    return _members(operation, now, outcome, operation.size_bytes) | {
        "operation": operation.kind,
        "resourceType": operation.resource_type,
    }


def letter_members(letter: DeadLetter) -> dict[str, Any]:
    """Return a dead letter as JSON members, without its content."""
    members = _members(letter, letter.failed_at, Disposition.DEAD_LETTER, len(letter.record))
    business_id, location_id = tenant_of(letter) or (None, None)
    return members | {"reason": letter.reason, "businessId": business_id, "locationId": location_id}


def _members(one: Operation | DeadLetter, at: datetime, outcome: str, size_bytes: int) -> dict[str, Any]:
    return {
        "at": at,
        "outcome": outcome,
        "businessId": one.business_id,
        "locationId": one.location_id,
        "resourceId": one.resource_id,
        "requestId": one.request_id,
        "source": one.origin.source,
        "position": one.origin.sequence_number or one.origin.message_id,
        "bytes": size_bytes,
    }


TAPS: Final = OperationTaps()  # of the process, as the metrics are


T = TypeVar("T")


def group_by_outcome(items: Sequence[T], outcomes: Sequence[Outcome]) -> Mapping[Outcome, Sequence[T]]:
    """Return the *items* of a batch by their outcomes, in their order."""
    if outcomes and outcomes.count(outcomes[0]) == len(outcomes) == len(items):
        return {outcomes[0]: items}
    groups: defaultdict[Outcome, list[T]] = defaultdict(list)
    for item, outcome in zip(items, outcomes, strict=True):
        groups[outcome].append(item)
    return groups


def count_outcomes(operations: Sequence[Operation], outcomes: Sequence[Outcome], *, now: datetime) -> None:
    """Count a committed batch of one source, and the seconds from arrival to commit; show it to the taps."""
    if TAPS.open:
        TAPS.publish(operations, outcomes, now)
    for outcome, own in group_by_outcome(operations, outcomes).items():
        source = own[0].origin.source
        match outcome.disposition:
            case Disposition.HOLD | Disposition.FAILING | Disposition.LOCKED:
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
