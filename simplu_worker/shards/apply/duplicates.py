"""Which form of insert the next batch uses, how an operation matches its row in the log, where to cut a batch. Pure.

A plain `INSERT` costs Postgres an eighth less than `ON CONFLICT`. It fails at a row that exists, and the batch is
repeated in the other form; so after redeliveries and repeated creates that form is used for a while.

A replay of an operation that was given up has a later position, and replaces its row. The given-up record, read again
from the stream, has not, and is not applied behind later operations. The id of an order event is one event for a time
(ORDER_DEDUPLICATION_SECONDS); a message sent longer after the row's is another event. Only times of sending count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

import msgspec

from simplu_worker.operations.operation import Operation, Origin
from simplu_worker.vocabulary import Failure, Source

CAREFUL_COUNT: Final = 8  # batches in the form with `ON CONFLICT` from a row that existed on


class DuplicateMemory:
    """When the batches of a shard last had a row that existed; at first such rows are expected."""

    def __init__(self, *, careful_count: int = CAREFUL_COUNT) -> None:
        self._count = self._careful_left = careful_count

    @property
    def is_careful(self) -> bool:
        """Whether the next batch is to use the form with `ON CONFLICT`."""
        return self._careful_left > 0

    def expect_duplicates(self) -> None:
        """Use the form with `ON CONFLICT` for a while: a row existed, or a batch may have been committed."""
        self._careful_left = self._count

    def note_applied(self, *, has_duplicates: bool) -> None:
        """Note a batch that was applied."""
        self._careful_left = self._count if has_duplicates else max(0, self._careful_left - 1)


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
    origin: Origin
    requested_at: datetime


def match_row(operation: Operation, row: LoggedRow) -> LogMatch:
    """Return how *operation* matches *row*, which has its tenant and request id."""
    is_order_event = row.origin.source == operation.origin.source == Source.SQS
    if is_order_event and _is_another_event(operation, row):
        return LogMatch.ANOTHER_EVENT
    if operation.digest != row.digest:
        return LogMatch.REUSE
    if row.error == Failure.RETRIES_EXHAUSTED and _is_resent(operation.origin, row.origin):
        return LogMatch.REPLAY
    if is_order_event and datetime.fromisoformat(operation.requested_at) - row.requested_at > LATE_AFTER:
        return LogMatch.LATE_REPETITION
    return LogMatch.REDELIVERY


def _is_another_event(operation: Operation, row: LoggedRow) -> bool:
    return operation.window_start is not None and row.requested_at < datetime.fromisoformat(operation.window_start)


def _is_resent(origin: Origin, logged: Origin) -> bool:
    """Return whether *origin* is in another source than the *logged* one, or later in the same one.

    Across stream shards too: a replay after a reshard is in a child, with higher numbers. A FIFO queue is another
    source than a standard one, whose messages have times for numbers.
    """
    own, before = _order_of(origin.sequence_number), _order_of(logged.sequence_number)
    is_of_fifo = [origin.source is Source.SQS and digit_count > SENT_AT_DIGITS for digit_count, _ in (own, before)]
    return origin.source != logged.source or is_of_fifo[0] is not is_of_fifo[1] or own > before


def _order_of(sequence_number: str | None) -> tuple[int, str]:
    digits = (sequence_number or "").lstrip("0")
    return len(digits), digits


TIMEOUT_PARTS_MAX: Final = 64  # of a batch that took too long: three such cuts find one operation of any batch


def cut_points(suspects: Sequence[int], *, is_timeout: bool) -> list[int]:
    """Return where to cut a batch, to find the one of several *suspects* that makes it fail.

    In two halves; after a timeout into many parts: a part with the culprit takes its whole time again.
    """
    if not is_timeout:
        return [suspects[len(suspects) // 2]]
    size = -(-len(suspects) // TIMEOUT_PARTS_MAX)
    parts = [suspects[start : start + size] for start in range(0, len(suspects), size)]
    return sorted({point for part in parts for point in (part[0], part[-1] + 1)})


def points_around(indexes: Iterable[int]) -> list[int]:
    """Return where to cut a batch so that each of *indexes* is a part of its own."""
    return sorted({index + offset for index in indexes for offset in (0, 1)})
