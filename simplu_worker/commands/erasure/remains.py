"""What an erasure cannot reach, and for how long it stays there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Final

import msgspec

from simplu_worker.assembly.aws import open_stream
from simplu_worker.aws.sqs_queue import Queue
from simplu_worker.commands.dead_letters.desk import QUEUES, open_sqs
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError, RetryableError

ELSEWHERE: Final = (
    "backups of the shards and write-ahead logs, for as long as they are kept: erase again what a restore brings back",
    "copies that readers of the shards and of the cache have made",
)


class SourceRemains(msgspec.Struct, frozen=True, rename="camel"):
    """A stream or a queue, and for how long it keeps its records; None: it did not say so."""

    name: str
    hours: float | None


class Remains(msgspec.Struct, frozen=True, rename="camel"):
    """What stays: records in *sources*, the id in the log for *log_hours*, and *exports*, files of restores.

    *old_tables* are the shards with a table of before their adoption.
    """

    sources: list[SourceRemains]
    log_hours: float
    exports: list[str]
    old_tables: list[str]

    def lines(self) -> Iterator[str]:
        """Yield what stays, for people."""
        for one in self.sources:
            kept = "as long as it keeps them" if one.hours is None else f"up to {one.hours:g} hours"
            yield f"its records in {one.name}, for {kept}"
        yield f"its id, without content, in the log of operations, for {self.log_hours:g} hours"
        for path in self.exports:
            yield f"rows that a restore has overwritten, in the file {path}: delete it"
        for shard_id in self.old_tables:
            yield (
                f"rows of before the adoption of shard {shard_id}, in its table resources_before_adoption, and ids in "
                "its schema simplu_adoption_log: drop both (docs/adopting.md)"
            )
        yield from ELSEWHERE


async def read_remains(settings: Settings, exports: Sequence[str], old_tables: Sequence[str]) -> Remains:
    """Ask the sources how long they keep their records."""
    sources: list[SourceRemains] = []
    async with AsyncExitStack() as stack:
        if settings.kinesis_stream_name is not None:
            stream = await stack.enter_async_context(open_stream(settings))

            async def stream_retention() -> timedelta | None:
                return (await stream.describe()).retention

            sources.append(await _remains_in(f"stream {stream.name}", stream_retention))
        urls = [url for name in QUEUES if (url := getattr(settings, name)) is not None]
        if urls:
            client = await stack.enter_async_context(open_sqs(settings))
            for url in urls:
                queue = Queue(client, url)

                async def queue_retention(queue: Queue = queue) -> timedelta | None:
                    kept_s = (await queue.read_attributes()).retention_s
                    return None if kept_s is None else timedelta(seconds=kept_s)

                sources.append(await _remains_in(f"queue {queue.name}", queue_retention))
    return Remains(sources, settings.operation_retention_hours, list(exports), list(old_tables))


async def _remains_in(name: str, read: Callable[[], Awaitable[timedelta | None]]) -> SourceRemains:
    try:
        retention = await read()
    except (RetryableError, PermanentError):
        retention = None
    return SourceRemains(name, None if retention is None else round(retention.total_seconds() / 3600, 2))
