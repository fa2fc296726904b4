"""A safe order in which to follow the log of a shard, and a tenant that moves between shards. Pure.

*Below the horizon.* A batch has the number of its transaction as its id, and transactions do not commit in that order.
So only batches below the oldest running transaction are read.

*A token beside the number.* A standby that is promoted without the last commits uses their numbers again. So each batch
has a token at random. A reader whose last batch is not there any more reads on behind the newest one that is; those
that are not there are undone. A batch is remembered until it is on every server that may be promoted.

*A marker where a tenant leaves.* The mover writes it on the source behind the fence, so its number follows those of all
batches of the tenant. Whoever follows the tenant reads nothing of it on the target before that marker. The target's own
marker tells only that there is one to wait for.

`log_order_model.py` searches all orders of these events, and what breaks where a rule is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import msgspec

ROWS_MAX: Final = 32_767  # of a batch


class BatchRef(msgspec.Struct, frozen=True, order=True):
    """A batch of a log: its number, which a promoted standby may use again, and its token, which no other has."""

    batch_id: int
    token: str


class LogCursor(msgspec.Struct, frozen=True):
    """How far a log is read. *remembered* are the batches that were read and may be undone, oldest first.

    The oldest one may be known to be safe. Of the last one the rows up to *position* are read. Without any, everything
    behind the batch *begins_behind* is to be read.
    """

    begins_behind: int
    remembered: tuple[BatchRef, ...] = ()
    position: int = 0

    @property
    def batch_id(self) -> int:
        return self.remembered[-1].batch_id if self.remembered else self.begins_behind

    def advanced(self, batch: BatchRef, position: int) -> LogCursor:
        """Return the cursor behind the row *position* of *batch*. Raises ValueError for one that was passed before."""
        is_same = bool(self.remembered) and self.remembered[-1] == batch
        if not is_same and batch.batch_id <= self.batch_id:
            raise ValueError(f"expected a batch behind {self.batch_id}, got {batch.batch_id}")
        known = self.remembered if is_same else (*self.remembered, batch)
        return LogCursor(self.begins_behind, known, position)

    def settled(self, safe: Collection[BatchRef]) -> LogCursor:
        """Return the cursor without the batches of *safe*, but for the newest of them and for the last one read.

        Safe is a batch that is on every server that may be promoted.
        """
        newest = max((one for one in self.remembered if one in safe), default=None)
        kept = tuple(one for one in self.remembered if one not in safe or one in (newest, self.remembered[-1]))
        return LogCursor(self.begins_behind, kept, self.position)


class Resumption(msgspec.Struct, frozen=True):
    """Where to read on, and the batches that were read and are not there any more, oldest first."""

    cursor: LogCursor
    undone: tuple[BatchRef, ...] = ()


def readable_below(oldest_running: int, offset: int) -> int:
    """Return the horizon: the id that a batch must be below to be read.

    *oldest_running* is `pg_snapshot_xmin(pg_current_snapshot())`, *offset* that of the shard's ids to its numbers.
    """
    return oldest_running + offset


def resume(cursor: LogCursor, there: Collection[BatchRef]) -> Resumption:
    """Return where to read on, when of the remembered batches those in *there* are in the log, by number and token."""
    kept = tuple(one for one in cursor.remembered if one in there)
    undone = tuple(one for one in cursor.remembered if one not in there)
    is_same = kept[-1:] == cursor.remembered[-1:]
    return Resumption(LogCursor(cursor.begins_behind, kept, cursor.position if is_same else ROWS_MAX), undone)


class TenantEpochs(msgspec.Struct, frozen=True):
    """Of tenants that have moved: the epoch for which each has left a shard last, as read in that shard's log.

    A tenant's epoch is one higher with each move, and both markers of a move have the one that begins with it.
    """

    left: Mapping[str, int] = {}

    def with_left(self, tenant_id: str, epoch: int) -> TenantEpochs:
        """Return these with a marker that the tenant has left a shard for *epoch*, or with where a reader begins."""
        return TenantEpochs({**self.left, tenant_id: max(epoch, self.left.get(tenant_id, 0))})

    def may_read(self, tenant_id: str, epoch: int) -> bool:
        """Return whether what the tenant did in *epoch*, by the marker of its arrival, may be read now."""
        return self.left.get(tenant_id, 0) >= epoch
