"""Count how often the operation of each message has failed: on its shard, else in the memory of this process.

The count in memory, while a shard is looked up, is never too high: no message is given up too early.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import structlog

from simplu_worker.errors import RetryableError

REMEMBERED_MAX: Final = 4096  # messages; beyond, the one with the oldest failure is forgotten


class FailureMemory:
    """The counts of at most *max_count* messages."""

    def __init__(self, max_count: int = REMEMBERED_MAX) -> None:
        self._max_count = max_count
        self._counts: dict[str, int] = {}  # by message id, the oldest failure first

    def add(self, message_id: str) -> int:
        """Count one failure more of a message; return their number."""
        count = self._counts.pop(message_id, 0) + 1
        self._counts[message_id] = count
        if len(self._counts) > self._max_count:
            del self._counts[next(iter(self._counts))]
        return count


log = structlog.get_logger(__name__)


class FailureTable(Protocol):
    """The counts on the shards; `shards.gateway.ShardGateway` is one."""

    async def count_failures(self, shard_id: str, failed: Sequence[tuple[str, str]]) -> list[int | None]:
        """Count a failure of each message, by tenant and message id; None if its tenant is elsewhere."""

    async def forget_failures(self, shard_id: str, tenant_id: str, message_id: str) -> None:
        """Forget the failures of a message."""


class FailureCounts:
    """The counts of all queues of this process, and those on the shards."""

    def __init__(self, table: FailureTable) -> None:
        self._table = table
        self._memory = FailureMemory()

    async def add(self, shard_id: str, failed: Sequence[tuple[str, str]]) -> Sequence[int | None]:
        """Count one failure more of each message, by tenant and message id; return their numbers.

        None, and nothing counts, for a tenant that lives on another shard by now. Raises `RetryableError` in an outage.
        """
        return await self._table.count_failures(shard_id, failed)

    def remember(self, message_id: str) -> int:
        """Count a failure of a message without a known shard."""
        return self._memory.add(message_id)

    async def forget(self, shard_id: str, tenant_id: str, message_id: str) -> None:
        """Forget the failures of a message, or leave that to the retention."""
        try:
            await self._table.forget_failures(shard_id, tenant_id, message_id)
        except RetryableError as exc:
            log.debug("message.failures_kept", shard_id=shard_id, message_id=message_id, error=str(exc))
