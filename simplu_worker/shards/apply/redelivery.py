"""How an operation matches the log's row with its request id. Pure.

The operation of a row with `retries_exhausted` was given up, and its dead letter may be sent again: that replay has a
later position in its source, and replaces the row. The given-up record stays in the stream. A reader that reads it
again compares its position with the row's, and does not apply it behind later operations.

The request id of an order event is its `deduplicationId`, which is one event for a time (ORDER_DEDUPLICATION_SECONDS).
A message sent longer after the row's is another event, and replaces the row. Only the times of sending count: so a
message that is redelivered, however late, and the replay of its dead letter, which carries its time, stay duplicates.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

import msgspec

from simplu_worker.operations.operation import Operation, Origin
from simplu_worker.vocabulary import Failure, Source

# SQS's own window. A repetition within it is a producer that tries again.
LATE_AFTER: Final = timedelta(minutes=5)
SENT_AT_DIGITS: Final = 14  # of a time in milliseconds at most; the numbers of a FIFO queue have about 20


class LogMatch(StrEnum):
    """How an operation matches the row with its request id."""

    REDELIVERY = "redelivery"  # the same operation
    LATE_REPETITION = "late_repetition"  # the same order event in another message, sent long after the first
    REUSE = "reuse"  # another operation under its request id
    REPLAY = "replay"  # the same operation, sent again after it was given up
    ANOTHER_EVENT = "another_event"  # an order event with an id that was used before, longer ago than it counts
    BEHIND_ANOTHER = "behind_another"  # such an event behind another one in the same batch


class LoggedRow(msgspec.Struct, frozen=True, gc=False):
    """The operation of a row of the log."""

    digest: bytes
    error: str | None
    source: str
    sequence_number: str | None
    requested_at: datetime

    @classmethod
    def from_operation(cls, operation: Operation, failure: Failure | None) -> LoggedRow:
        """Return the row that *operation* leaves."""
        origin = operation.origin
        requested_at = datetime.fromisoformat(operation.requested_at)
        return cls(operation.digest, failure, origin.source, origin.sequence_number, requested_at)


def match_row(operation: Operation, row: LoggedRow) -> LogMatch:
    """Return how *operation* matches *row*, which has its tenant and request id."""
    is_order_event = row.source == operation.origin.source == Source.SQS
    if is_order_event and _is_another_event(operation, row):
        return LogMatch.ANOTHER_EVENT
    if operation.digest != row.digest:
        return LogMatch.REUSE
    if row.error == Failure.RETRIES_EXHAUSTED and _is_resent(operation.origin, row):
        return LogMatch.REPLAY
    if is_order_event and datetime.fromisoformat(operation.requested_at) - row.requested_at > LATE_AFTER:
        return LogMatch.LATE_REPETITION
    return LogMatch.REDELIVERY


def _is_another_event(operation: Operation, row: LoggedRow) -> bool:
    return operation.window_start is not None and row.requested_at < datetime.fromisoformat(operation.window_start)


def _is_resent(origin: Origin, row: LoggedRow) -> bool:
    """Return whether *origin* is in another source than the row's, or later in the same one.

    An earlier position is that of a replay which was given up as well. This holds across stream shards too: a replay
    after a reshard is in a child, and a child's sequence numbers are higher than its parents'. A FIFO queue is another
    source than a standard one, whose messages have times for numbers.
    """
    own, before = _order_of(origin.sequence_number), _order_of(row.sequence_number)
    is_of_fifo = [origin.source is Source.SQS and digit_count > SENT_AT_DIGITS for digit_count, _ in (own, before)]
    return origin.source != row.source or is_of_fifo[0] is not is_of_fifo[1] or own > before


def _order_of(sequence_number: str | None) -> tuple[int, str]:
    digits = (sequence_number or "").lstrip("0")
    return len(digits), digits
