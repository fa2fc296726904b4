"""Why a replica is not ready: a word for all callers, and a text for operators. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class UnreadyReason(StrEnum):
    """Why no work can be done now."""

    STARTING = "starting"
    DRAINING = "draining"
    CREDENTIALS_UNAVAILABLE = "credentials_unavailable"  # those of AWS
    CITRUS_REFUSES_KEY = "citrus_refuses_key"
    STREAM_OPENING = "stream_opening"
    STREAM_UNAVAILABLE = "stream_unavailable"  # or the lease table
    STREAM_UNREADABLE = "stream_unreadable"  # Kinesis refuses reads
    KCL_ASSIGNS_LEASES = "kcl_assigns_leases"  # a KCL 3.x, to its own workers
    SOURCE_FAILING = "source_failing"  # all loops of one source end with errors that nobody foresaw
    QUEUES_UNREACHABLE = "queues_unreachable"


class Unreadiness(NamedTuple):
    """A reason, and what a person should know beside it: *text* may be an error of a dependency."""

    reason: UnreadyReason
    text: str | None = None
