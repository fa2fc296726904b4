"""The status of an operation that was sent, as commands print it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

from simplu_worker.shards.postgres.pool import Pools


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
    """Why operations of a tenant are held, else the time before which all are decided, where it is known.

    *target* is what a replica has reported as held since *since*.
    """

    reason: str | None = None
    read_up_to: datetime | None = None
    since: datetime | None = None
    target: str | None = None

    @property
    def hold(self) -> str | None:
        """Why and since when operations are held, for people."""
        if self.reason is None:
            return None
        where = "" if self.target is None else f" ({self.target})"
        return f"{self.reason}{where}" + (
            "" if self.since is None else f" since {self.since.isoformat(timespec='seconds')}"
        )


def pool_errors(pools: Pools) -> dict[str, str]:
    """Return place and error of the shards that cannot be used, by their ids."""
    return {
        shard_id: f"{pool.address.place}: {pool.last_error}"
        for shard_id, pool in pools.by_shard_id().items()
        if pool.last_error
    }
