"""The status of an operation that was sent, as commands print it. Pure."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec


class SendStatus(StrEnum):
    """The status of one line."""

    NOT_SENT = "not sent"
    SENT = "sent"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REJECTED = "rejected"  # no operation, for the worker; where its settings are other than those of the command
    HELD = "held"  # not in the log in time, and its tenant is held
    UNKNOWN = "unknown"  # not in the log in time: waiting, or a dead letter


class Undecided(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Why operations of a tenant are held; else the time before which all of them are decided, where it is known."""

    reason: str | None = None
    read_up_to: datetime | None = None
