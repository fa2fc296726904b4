"""How an operation matches the log's row with its request id. Pure.

The operation of a row with `retries_exhausted` was given up, and its dead letter may be sent again: that replay has a
later position in its source, and replaces the row. The given-up record stays in the stream. A reader that reads it
again compares its position with the row's, and does not apply it behind later operations.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from simplu_worker.operations.operation import Failure, Operation, Origin


class LogMatch(StrEnum):
    """How an operation matches the row with its request id."""

    REDELIVERY = "redelivery"  # the same operation
    REUSE = "reuse"  # another operation under its request id
    REPLAY = "replay"  # the same operation, sent again after it was given up


class LoggedRow(msgspec.Struct, frozen=True, gc=False):
    """The operation of a row of the log."""

    digest: bytes
    error: str | None
    source: str
    stream_shard_id: str | None
    sequence_number: str | None

    @classmethod
    def from_operation(cls, operation: Operation, failure: Failure | None) -> LoggedRow:
        """Return the row that *operation* leaves."""
        origin = operation.origin
        return cls(operation.digest, failure, origin.source, origin.stream_shard_id, origin.sequence_number)


def match_row(operation: Operation, row: LoggedRow) -> LogMatch:
    """Return how *operation* matches *row*, which has its tenant and request id."""
    if operation.digest != row.digest:
        return LogMatch.REUSE
    if row.error == Failure.RETRIES_EXHAUSTED and _is_resent(operation.origin, row):
        return LogMatch.REPLAY
    return LogMatch.REDELIVERY


def _is_resent(origin: Origin, row: LoggedRow) -> bool:
    """Return whether *origin* is in another source than the row's, or later in the same one.

    An earlier position is that of a replay which was given up as well. This holds across stream shards too: a replay
    after a reshard is in a child, and a child's sequence numbers are higher than its parents'.
    """
    return origin.source != row.source or _order_of(origin.sequence_number) > _order_of(row.sequence_number)


def _order_of(sequence_number: str | None) -> tuple[int, str]:
    digits = (sequence_number or "").lstrip("0")
    return len(digits), digits
