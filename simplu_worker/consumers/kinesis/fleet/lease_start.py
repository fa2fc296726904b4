"""Where the reader of a lease starts. Pure."""

from __future__ import annotations

from datetime import datetime

from simplu_worker.consumers.kinesis.holding.unread import HORIZON
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.stream.positions import (
    AT_TIMESTAMP,
    LATEST,
    TRIM_HORIZON,
    AtSequenceNumber,
    AtTimestamp,
    Start,
    TrimHorizon,
)


def pinned_start(lease: Lease, initial_position: str | datetime, *, now: datetime) -> datetime | None:
    """Return the instant from which this application reads a stream shard; None when the row contains one.

    *initial_position* is `KINESIS_INITIAL_POSITION`. A lease with a checkpoint and without this instant comes from a
    Kinesis Client Library, which is responsible for all records before *now*; one that begins at an instant has been
    read by nobody, and the library's configuration alone has the instant.
    """
    if lease.started_at is not None:
        return None
    if lease.checkpoint == TRIM_HORIZON or (is_start_unknown(lease) and initial_position == "TRIM_HORIZON"):
        return HORIZON
    if lease.checkpoint in {LATEST, AT_TIMESTAMP} and isinstance(initial_position, datetime):
        return initial_position
    return now


def is_start_unknown(lease: Lease) -> bool:
    """Return whether a lease begins at an instant that its row does not contain."""
    return lease.checkpoint == AT_TIMESTAMP and lease.started_at is None


def start_of(lease: Lease, now: datetime) -> Start:
    """Return from where to read a stream shard, given its checkpoint.

    LATEST without a pinned instant becomes *now*: an iterator of type LATEST that expires before it returns a record
    would skip the records that came in between. The record at the checkpoint is read again, as the KCL does: it may be
    an aggregate of which only some sub-records are done.
    """
    if lease.checkpoint == TRIM_HORIZON:
        return TrimHorizon()
    if lease.checkpoint in {LATEST, AT_TIMESTAMP}:
        return AtTimestamp(lease.started_at or now)
    return AtSequenceNumber(lease.checkpoint.checkpoint)
