"""What an operation is whose request id the log has already. Pure.

A row that says `retries_exhausted` was given up, and its dead letter may be sent again: that replay comes at another
place of its source, later, and takes the row's place. The record that was given up stays where it was; whoever reads it
again finds its own position in the row, so nobody applies it after what was applied behind it.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from simplu_worker.operations.operation import Failure, Operation, Origin


class LogMatch(StrEnum):
    """What an operation is to the row that was there before it."""

    REDELIVERY = "redelivery"  # the same operation
    REUSE = "reuse"  # another operation under its request id
    REPLAY = "replay"  # the same operation, sent again after it was given up


class LoggedRow(msgspec.Struct, frozen=True, gc=False):
    """What a row of the log says of the operation that left it."""

    digest: bytes
    error: str | None
    source: str
    stream_shard_id: str | None
    sequence_number: str | None

    @classmethod
    def from_operation(cls, operation: Operation, failure: Failure | None) -> LoggedRow:
        """Return what the row of *operation* says."""
        origin = operation.origin
        return cls(operation.digest, failure, origin.source, origin.stream_shard_id, origin.sequence_number)


def match_row(operation: Operation, row: LoggedRow) -> LogMatch:
    """Return what *operation* is to *row*, which has its tenant and request id."""
    if operation.digest != row.digest:
        return LogMatch.REUSE
    if row.error == Failure.RETRIES_EXHAUSTED and _is_resent(operation.origin, row):
        return LogMatch.REPLAY
    return LogMatch.REDELIVERY


def _is_resent(origin: Origin, row: LoggedRow) -> bool:
    """Tell whether *origin* is another source than the row's, or a later place in it.

    An earlier place is the record of a replay that was given up as well. That goes for other stream shards too: what is
    sent again after a reshard is in a child, whose sequence numbers are higher than its parents'.
    """
    return origin.source != row.source or _order_of(origin.sequence_number) > _order_of(row.sequence_number)


def _order_of(sequence_number: str | None) -> tuple[int, str]:
    digits = (sequence_number or "").lstrip("0")
    return len(digits), digits
