"""Find the first record from a position on, for commands."""

from __future__ import annotations

import asyncio
from typing import Final

from simplu_worker.consumers.kinesis.stream.client import Record, Stream
from simplu_worker.consumers.kinesis.stream.positions import Start
from simplu_worker.timing.retrying import retry

POLL_INTERVAL_S: Final = 0.25


async def find_first_record(stream: Stream, stream_shard_id: str, start: Start) -> Record | None:
    """Return the first record of a stream shard from *start* on; None without one. Raises as `Stream` does."""

    async def search() -> Record | None:
        iterator: str | None = await stream.get_iterator(stream_shard_id, start)
        while iterator is not None:
            reply = await stream.get_records(iterator, limit=1)
            if reply.records:
                return reply.records[0]
            if not reply.millis_behind:
                return None
            iterator = reply.next_iterator
            await asyncio.sleep(POLL_INTERVAL_S)
        return None

    return await retry(search)
