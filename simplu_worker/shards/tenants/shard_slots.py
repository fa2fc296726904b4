"""Slots for the changes of control messages on each shard, so that neither batches nor other shards wait for them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from simplu_worker.errors import RetryableError

AT_ONCE: Final = 2  # a shard has few connections, and batches need them too
WAIT_S: Final = 5.0  # messages are handled together: one that waits for longer comes again
SAFE_WITHIN_S: Final = 5.0  # after the commit, for the same reason; it finds its change done then


class ShardSlots:
    """The slots of each shard."""

    def __init__(self) -> None:
        self._slots: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(AT_ONCE))

    def __repr__(self) -> str:
        return f"ShardSlots({sorted(shard_id for shard_id, slots in self._slots.items() if slots.locked())} full)"

    @asynccontextmanager
    async def take(self, shard_id: str) -> AsyncIterator[None]:
        """Have a slot of a shard. Raises `RetryableError` while none becomes free."""
        slots = self._slots[shard_id]
        try:
            async with asyncio.timeout(WAIT_S):
                await slots.acquire()
        except TimeoutError:
            raise RetryableError(f"shard {shard_id}: others of its changes take long") from None
        try:
            yield
        finally:
            slots.release()
