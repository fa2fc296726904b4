"""What a lane and the lookup of homes return to the source of the operations: closed sets of results. Pure.

The source deals with a result in the step in which it is returned, without an `await` in between: until then the
operations in it are nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Generic, Protocol, TypeAlias, TypeVar

import msgspec

from simplu_worker.errors import InternalError, WorkerError
from simplu_worker.operations.operation import Operation, Outcome
from simplu_worker.vocabulary import HoldReason


class Entry(Protocol):
    """An operation in memory, with what its source needs to settle it."""

    @property
    def operation(self) -> Operation:
        """The operation."""

    @property
    def chain(self) -> str:
        """The unit of order: entries of one chain take effect in the order in which they were enqueued."""


EntryT = TypeVar("EntryT", bound=Entry)
SentT_contra = TypeVar("SentT_contra", bound=Entry, contravariant=True)


class LaneStopError(WorkerError):
    """What a source raises while it sends a batch, where its shard must get none of its operations now."""


class BatchSender(Protocol[SentT_contra]):
    """How the batches of a source go to a shard."""

    async def send(self, shard_id: str, entries: Sequence[SentT_contra]) -> list[Outcome]:
        """Give a batch to a shard, and return the outcome of each operation; none of an empty batch.

        Raises `RetryableError` where the shard does not take it: whether it was committed is then unknown, and it may
        be sent again. Raises `LaneStopError` where the shard must not get it.
        """

    def is_held(self, shard_id: str) -> bool:
        """Return whether a shard that fails is given nothing more at once."""

    def expect_merge(self, shard_id: str) -> None:
        """Expect that tenants have moved to a shard from another one that has taken batches."""


class BatchDecided(msgspec.Struct, Generic[EntryT], frozen=True):
    """A batch that its shard took, by outcome; its entries stay in the lane until the next batch is asked for.

    - *applied*: in the log of the shard, by this batch or an earlier one; *late* are those of them that repeat an
      operation which was sent long before.
    - *refused*: will never be applied, each with its outcome.
    - *not_here*: by tenant, those of tenants that do not live on the shard now, by its rows.
    - *locked*: by tenant, those of tenants with rows that another transaction keeps locked there.
    - *failing*: failed on the healthy shard, each with the error, at most one of a tenant.

    Later ones of a locked tenant, and of the chain of one that failed, are in *not_here*.
    """

    applied: list[EntryT]
    late: Sequence[EntryT] = ()
    refused: list[tuple[EntryT, Outcome]] = []
    not_here: dict[str, list[EntryT]] = {}
    locked: dict[str, list[EntryT]] = {}
    failing: Sequence[tuple[EntryT, str]] = ()


class LaneEmptied(msgspec.Struct, Generic[EntryT], frozen=True):
    """The shard gets no operations now because of *cause*; *entries* were all of the lane, in order."""

    entries: list[EntryT]
    cause: WorkerError


class BatchCrashed(msgspec.Struct, Generic[EntryT], frozen=True):
    """Sending the batch raised what nobody foresaw; its *entries* are in the lane until the next batch is asked for."""

    entries: list[EntryT]
    error: InternalError


LaneResult: TypeAlias = BatchDecided[EntryT] | LaneEmptied[EntryT] | BatchCrashed[EntryT]


class Waited(msgspec.Struct, Generic[EntryT], frozen=True):
    """A tenant without a home for so long that its *entries* leave memory; lookups of it go on while it is wanted.

    *shard_id* is the shard that did not answer, *cause* what the last lookup raised.
    """

    tenant_id: str
    entries: list[EntryT]
    reason: HoldReason
    shard_id: str | None = None
    cause: Exception | None = None


class Found(msgspec.Struct, Generic[EntryT], frozen=True):
    """A tenant with a home; *entries* were all that waited for it. *has_moved*: another shard has refused them."""

    tenant_id: str
    shard_id: str
    entries: Sequence[EntryT]
    has_moved: bool = False


class Unregistered(msgspec.Struct, frozen=True):
    """A tenant that is wanted, and was not registered at *asked_at*."""

    tenant_id: str
    asked_at: datetime


class Paused(msgspec.Struct, Generic[EntryT], frozen=True):
    """A tenant that is wanted, and paused by a person; *entries* are those that wait in memory."""

    tenant_id: str
    entries: Sequence[EntryT]


class Overdue(msgspec.Struct, Generic[EntryT], frozen=True):
    """Entries that have waited for their tenant's registration for too long; they wait until they are settled."""

    tenant_id: str
    entries: list[EntryT]


LookupResult: TypeAlias = Found[EntryT] | Unregistered | Paused[EntryT] | Overdue[EntryT]
