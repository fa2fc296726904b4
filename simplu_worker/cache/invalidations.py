"""What the cache has to be told, and when all of it is in doubt. Pure: `cache` does what is decided here.

Why no stale entry is read for long: a key waits here from the commit until Redis has said that it is gone. Whenever one
may have been lost (an overflow, a new process, a Redis that was away and perhaps came back with what it had before)
everything is in doubt: the epoch is moved, and entries of single resources, whose names do not have it, are swept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import islice
from typing import Final, NamedTuple, TypeAlias

from simplu_worker.operations.operation import Disposition, Operation, Outcome

PREFIX: Final = "simplu:"
ENTRY_PREFIX: Final = f"{PREFIX}resource:"
VERSION_PREFIX: Final = f"{PREFIX}version:"
EPOCH_KEY: Final = f"{PREFIX}epoch"

WAITING_MAX_BYTES: Final = 16 * 1024 * 1024
KEY_OVERHEAD_BYTES: Final = 400  # of the tuple, its three texts and the place in the dictionary
BATCH_MAX_KEYS: Final = 500
PAUSE_S: Final = 0.1
PAUSE_MAX_S: Final = 5.0
DOUBLINGS_MAX: Final = 16


class ResourceKey(NamedTuple):
    """One resource of a tenant."""

    tenant_id: str
    resource_type: str
    resource_id: str

    @property
    def entry(self) -> str:
        """The key of its entry in the cache."""
        return f"{ENTRY_PREFIX}{self.tenant_id}:{self.resource_type}:{self.resource_id}"

    @property
    def version(self) -> str:
        """The key of the number that goes into the names of lists that it may be in."""
        return f"{VERSION_PREFIX}{self.tenant_id}:{self.resource_type}"


OnChange: TypeAlias = Callable[[Iterable[ResourceKey]], None]


def ignore_changes(_keys: Iterable[ResourceKey]) -> None:
    """Do nothing: there is no cache."""


class EpochMoveReason(StrEnum):
    """Why the whole cache may be stale."""

    STARTED = "started"  # the process before this one may have been killed between a commit and its invalidation
    TAKEN_OVER = "taken_over"  # another replica ended without giving back its leases, perhaps before it had told all
    RECONNECTED = "reconnected"  # Redis may have lost what it was told last, or have been restored to an earlier time
    OVERFLOWED = "overflowed"  # more was waiting than there is room for
    REFUSED = "refused"  # a version is not a number: lists of that type cannot be invalidated by it

    @property
    def covers_entries(self) -> bool:
        """Whether entries of single resources may be stale too, and not only lists."""
        return self is not EpochMoveReason.REFUSED


def changed_keys(operations: Sequence[Operation], outcomes: Sequence[Outcome]) -> Iterator[ResourceKey]:
    """Yield the resources that *operations* changed, or had changed when they were applied before.

    Duplicates count: a batch is sent again when nobody knows what became of it, and may find all of itself in the log.
    """
    for operation, outcome in zip(operations, outcomes, strict=True):
        if operation.resource_id is None or not operation.kind.writes:
            continue
        is_applied = outcome.disposition is Disposition.APPLIED and outcome.failure is None
        if is_applied or outcome.disposition is Disposition.DUPLICATE:
            yield ResourceKey(operation.tenant_id, operation.resource_type, operation.resource_id)


def versions_of(keys: Iterable[ResourceKey]) -> list[str]:
    """Return the distinct versions to count up for *keys*."""
    return list(dict.fromkeys(key.version for key in keys))


def backoff_s(failure_count: int, *, draw: float) -> float:
    """Return how long to leave Redis alone after the *failure_count*-th failure in a row, counted from 1.

    *draw* (0 ≤ draw < 1) picks within the upper half, so that replicas do not come back all at once.
    """
    span_s = min(PAUSE_MAX_S, PAUSE_S * 2.0 ** min(failure_count - 1, DOUBLINGS_MAX))
    return span_s * (0.5 + draw / 2)


class InvalidationBatch(NamedTuple):
    """What goes to Redis at once: a doubt, when there is one, is settled first."""

    epoch_move: EpochMoveReason | None
    keys: list[ResourceKey]


class InvalidationQueue:
    """The resources whose entries are to be dropped, each once, and what is in doubt; bounded by bytes."""

    def __init__(self, *, max_bytes: int = WAITING_MAX_BYTES) -> None:
        self._waiting: dict[ResourceKey, None] = {}
        self._max_bytes = max_bytes
        self._epoch_move: EpochMoveReason | None = None
        self.size_bytes = 0

    def __repr__(self) -> str:
        return (
            f"InvalidationQueue({len(self._waiting)} waiting, {self.size_bytes} bytes, epoch_move={self._epoch_move})"
        )

    def __len__(self) -> int:
        return len(self._waiting)

    def __bool__(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self._waiting) or self._epoch_move is not None

    def add(self, keys: Iterable[ResourceKey]) -> int:
        """Take *keys* in, those that wait already for nothing.

        Return how many were dropped for want of room: all is in doubt then, which makes up for them.
        """
        dropped = 0
        for key in keys:
            if key not in self._waiting:
                self._waiting[key] = None
                self.size_bytes += _size_bytes(key)
                if self.size_bytes > self._max_bytes:
                    dropped += len(self._waiting)
                    self._waiting.clear()
                    self.size_bytes = 0
                    self.require_epoch_move(EpochMoveReason.OVERFLOWED)
        return dropped

    def require_epoch_move(self, reason: EpochMoveReason) -> None:
        """Note that all may be stale; of several reasons one that covers more stays."""
        if self._epoch_move is None or not self._epoch_move.covers_entries:
            self._epoch_move = reason

    def take(self, max_count: int = BATCH_MAX_KEYS) -> InvalidationBatch:
        """Take out what to send next; what comes in meanwhile waits for a batch after it."""
        keys = list(islice(self._waiting, max_count))
        for key in keys:
            del self._waiting[key]
            self.size_bytes -= _size_bytes(key)
        batch = InvalidationBatch(self._epoch_move, keys)
        self._epoch_move = None
        return batch

    def requeue(self, batch: InvalidationBatch) -> int:
        """Take in again what could not be sent, or of which nobody knows; return as `add`."""
        if batch.epoch_move is not None:
            self.require_epoch_move(batch.epoch_move)
        return self.add(batch.keys)


def _size_bytes(key: ResourceKey) -> int:
    # Four bytes a character is the most that Python needs, and about as much as the key in UTF-8 for Redis.
    return KEY_OVERHEAD_BYTES + 4 * (len(key.tenant_id) + len(key.resource_type) + len(key.resource_id))
