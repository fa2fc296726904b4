"""The queue of cache invalidations, and the reasons to invalidate the whole cache. Pure.

Why no stale entry is read for long: a key is queued from the commit until Redis has confirmed its deletion. After a
possible loss the epoch is moved, and entries of single resources, which do not have the epoch in their names, are
swept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import islice
from typing import Final, NamedTuple, TypeAlias

from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.operations.verbs import READING_KINDS

PREFIX: Final = "simplu:"
ENTRY_PREFIX: Final = f"{PREFIX}resource:"
VERSION_PREFIX: Final = f"{PREFIX}version:"
EPOCH_KEY: Final = f"{PREFIX}epoch"

WAITING_MAX_BYTES: Final = 16 * 1024 * 1024
KEY_OVERHEAD_BYTES: Final = 400  # of the tuple, its three strings and the slot in the dictionary
BATCH_MAX_KEYS: Final = 500


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
        """The key of the version in the names of all lists with the resource."""
        return f"{VERSION_PREFIX}{self.tenant_id}:{self.resource_type}"


OnChange: TypeAlias = Callable[[Iterable[ResourceKey]], None]


def ignore_changes(_keys: Iterable[ResourceKey]) -> None:
    """Do nothing, without a cache."""


class EpochMoveReason(StrEnum):
    """Why the whole cache may be stale."""

    STARTED = "started"  # the process before this one may have been killed between a commit and its invalidation
    TAKEN_OVER = "taken_over"  # another replica ended without releasing its leases, perhaps before its invalidations
    RECONNECTED = "reconnected"  # Redis may have lost the last invalidations, or have been restored to an older state
    OVERFLOWED = "overflowed"  # the queue was full


def changed_keys(
    operations: Sequence[Operation], outcomes: Sequence[Outcome], stored_names: Mapping[str, Collection[str]]
) -> Iterator[ResourceKey]:
    """Yield the resources that *operations* changed, now or, for duplicates, before, by all their stored names."""
    for operation, outcome in zip(operations, outcomes, strict=True):
        if operation.resource_id is None or operation.kind in READING_KINDS:
            continue
        is_applied = outcome.disposition is Disposition.APPLIED and outcome.failure is None
        if is_applied or outcome.disposition is Disposition.DUPLICATE:
            for name in (operation.resource_type, *stored_names.get(operation.resource_type, ())):
                yield ResourceKey(operation.tenant_id, name, operation.resource_id)


def versions_of(keys: Iterable[ResourceKey]) -> list[str]:
    """Return the distinct versions to increment for *keys*."""
    return list(dict.fromkeys(key.version for key in keys))


class InvalidationBatch(NamedTuple):
    """The next pipeline to Redis; the epoch is moved first."""

    epoch_move: EpochMoveReason | None
    keys: list[ResourceKey]


class InvalidationQueue:
    """The resources to invalidate, each once, and the reason to move the epoch."""

    def __init__(self, *, max_bytes: int = WAITING_MAX_BYTES) -> None:
        self._waiting: dict[ResourceKey, None] = {}
        self._max_bytes = max_bytes
        self._epoch_move: EpochMoveReason | None = None
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __bool__(self) -> bool:
        """Return whether there is anything to send."""
        return bool(self._waiting) or self._epoch_move is not None

    def add(self, keys: Iterable[ResourceKey]) -> int:
        """Add new *keys*; return how many were dropped by an overflow, which requires a move of the epoch."""
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
        """Require that the epoch is moved first; the first reason stays."""
        self._epoch_move = self._epoch_move or reason

    def take(self, max_count: int = BATCH_MAX_KEYS) -> InvalidationBatch:
        """Remove and return the next batch."""
        keys = list(islice(self._waiting, max_count))
        for key in keys:
            del self._waiting[key]
            self.size_bytes -= _size_bytes(key)
        batch = InvalidationBatch(self._epoch_move, keys)
        self._epoch_move = None
        return batch

    def requeue(self, batch: InvalidationBatch) -> int:
        """Add again a batch with an unknown outcome; return as `add`."""
        if batch.epoch_move is not None:
            self.require_epoch_move(batch.epoch_move)
        return self.add(batch.keys)


def _size_bytes(key: ResourceKey) -> int:
    # Four bytes a character is Python's maximum, and about the size of the key in UTF-8 for Redis.
    return KEY_OVERHEAD_BYTES + 4 * (len(key.tenant_id) + len(key.resource_type) + len(key.resource_id))
