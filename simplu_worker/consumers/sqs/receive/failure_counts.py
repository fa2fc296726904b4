"""Count how often the operation of each message has failed: on its shard, else in the memory of this process.

The count in memory, while a shard is looked up, is never too high: no message is given up too early.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog

from simplu_worker.errors import RetryableError
from simplu_worker.shards.gateway import ShardGateway

REMEMBERED_MAX: Final = 4096  # messages; beyond, the one with the oldest failure is forgotten

log = structlog.get_logger(__name__)


class FailureCounts:
    """The counts of all queues of this process, and those on the shards."""

    def __init__(self, gateway: ShardGateway, *, remembered_max: int = REMEMBERED_MAX) -> None:
        self._gateway = gateway
        self._remembered_max = remembered_max
        self._remembered: dict[str, int] = {}  # by message id, the oldest failure first

    async def add(self, shard_id: str, failed: Sequence[tuple[str, str]]) -> Sequence[int | None]:
        """Count one failure more of each message, by tenant and message id; return their numbers.

        None, and nothing counts, for a tenant that lives on another shard by now. Raises `RetryableError` in an outage.
        """
        return await self._gateway.count_failures(shard_id, failed)

    def remember(self, message_id: str) -> int:
        """Count one failure more of a message without a known shard; return their number."""
        count = self._remembered[message_id] = self._remembered.pop(message_id, 0) + 1
        if len(self._remembered) > self._remembered_max:
            del self._remembered[next(iter(self._remembered))]
        return count

    async def forget(self, shard_id: str, tenant_id: str, message_id: str) -> None:
        """Forget the failures of a message, or leave that to the retention."""
        try:
            await self._gateway.forget_failures(shard_id, tenant_id, message_id)
        except RetryableError as exc:
            log.debug("message.failures_kept", shard_id=shard_id, message_id=message_id, error=str(exc))
