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
    UNKNOWN = "unknown"  # not in the log in time: waiting, or a dead letter; or the command ended while it was put


class Undecided(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Why operations of a tenant are held; else the time before which all of them are decided, where it is known.

    *since* is about when the first of them came, and *target* what is held: the tenant itself, or its shard; as
    far as a replica has reported them.
    """

    reason: str | None = None
    read_up_to: datetime | None = None
    since: datetime | None = None
    target: str | None = None

    @property
    def hold(self) -> str | None:
        """Why and since when operations are held, for people."""
        return describe_hold(self.reason, self.target, self.since)


def describe_hold(reason: str | None, target: str | None, since: datetime | None) -> str | None:
    """Return why and since when operations are held, for people; None where they are not."""
    if reason is None:
        return None
    where = "" if target is None else f" ({target})"
    return f"{reason}{where}" + ("" if since is None else f" since {since.isoformat(timespec='seconds')}")
