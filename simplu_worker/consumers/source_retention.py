"""How long the sources keep their records, and therefore how long the log of operations must be kept."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from datetime import timedelta

import structlog

from simplu_worker.aws.sqs_queue import Queue
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.operations.retention_rules import effective_retention

log = structlog.get_logger(__name__)


class EffectiveRetention:
    """The retention of the log: *configured*, or longer where a source keeps its records longer."""

    def __init__(self, configured: timedelta, *, stream: Stream | None, queues: Sequence[Queue]) -> None:
        self._configured = configured
        self._stream = stream
        self._queues = tuple(queues)
        self._logged: timedelta | None = configured

    async def read(self) -> timedelta | None:
        """Ask every source; None while one does not answer."""
        retentions = [await self._ask(_retention_of(queue), stream=None, queue=queue.name) for queue in self._queues]
        if self._stream is not None:
            retentions.append(await self._ask(_retention_of_stream(self._stream), stream=self._stream.name, queue=None))
        effective = effective_retention(self._configured, retentions)
        if effective not in {None, self._logged}:
            self._logged = effective
            log.warning(
                "retention.raised",
                configured_h=_hours(self._configured),
                effective_h=_hours(effective or self._configured),
                advice="set OPERATION_RETENTION_HOURS to effective_h, or shorten the retention of the source",
            )
        return effective

    async def _ask(self, retention: Awaitable[timedelta], *, stream: str | None, queue: str | None) -> timedelta | None:
        try:
            return await retention
        except (RetryableError, PermanentError) as exc:
            log.warning("retention.unknown", stream=stream, queue=queue, error=str(exc))
            return None


async def _retention_of(queue: Queue) -> timedelta:
    retention_s = (await queue.read_attributes()).retention_s
    if retention_s is None:
        raise RetryableError("the queue does not report its retention")
    return timedelta(seconds=retention_s)


async def _retention_of_stream(stream: Stream) -> timedelta:
    return (await stream.describe()).retention


def _hours(retention: timedelta) -> float:
    return round(retention.total_seconds() / 3600, 2)
