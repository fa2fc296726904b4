"""Put records on the stream, and send messages to a queue, in order."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Final, Protocol, TypeAlias, TypeVar

from simplu_worker.aws.clients import open_client
from simplu_worker.aws.sqs_queue import OutgoingMessage, Queue
from simplu_worker.commands.output.progress import CountProgress
from simplu_worker.commands.stream.put_requests import cut_into_puts, cut_into_sends
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.stream.client import NewRecord, Stream
from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.timing.backoff import backoff_s

PUT_TIMEOUT_S: Final = 30.0  # a request of 5 MiB over a slow line
TRIES_MAX: Final = 8  # in a row, without a record taken
RETRY_BASE_S: Final = 0.2
RETRY_MAX_S: Final = 5.0

T = TypeVar("T")

OnFailure: TypeAlias = Callable[[RetryableError], None]


def ignore_failure(_: RetryableError) -> None:
    """Do nothing."""


@contextlib.asynccontextmanager
async def open_stream_for_puts(settings: Settings) -> AsyncIterator[Stream]:
    """Open the stream with time-outs for large requests; no request is made yet."""
    async with open_client("kinesis", region=settings.aws_region, read_timeout_s=PUT_TIMEOUT_S) as client:
        yield Stream(client, settings.kinesis_stream_name or "")


@contextlib.asynccontextmanager
async def open_queue_for_sends(settings: Settings, url: str) -> AsyncIterator[Queue]:
    """Open a queue; no request is made yet."""
    async with open_client("sqs", region=settings.aws_region, read_timeout_s=PUT_TIMEOUT_S) as client:
        yield Queue(client, url)


class Sink(Protocol[T]):
    """The place of records or messages that a command puts."""

    def cut(self, items: Iterable[T]) -> Iterable[list[T]]:
        """Cut *items* into requests, in order."""

    async def put(self, items: Sequence[T]) -> list[T]:
        """Put the items of one request; return the refused ones. Raises the errors of the door."""


class StreamSink:
    """A stream, for records."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __str__(self) -> str:
        return f"stream {self._stream.name}"

    def cut(self, items: Iterable[NewRecord]) -> Iterable[list[NewRecord]]:
        """See `Sink`."""
        return cut_into_puts(items)

    async def put(self, items: Sequence[NewRecord]) -> list[NewRecord]:
        """See `Sink`."""
        return list(await self._stream.put(items))


class QueueSink:
    """A queue, for messages."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def __str__(self) -> str:
        return f"queue {self._queue.name}"

    def cut(self, items: Iterable[OutgoingMessage]) -> Iterable[list[OutgoingMessage]]:
        """See `Sink`."""
        return cut_into_sends(items)

    async def put(self, items: Sequence[OutgoingMessage]) -> list[OutgoingMessage]:
        """See `Sink`."""
        return [items[unsent.index] for unsent in await self._queue.send(items)]


async def put_in_order(
    sink: Sink[T], items: Iterable[T], progress: CountProgress, *, on_failure: OnFailure = ignore_failure
) -> tuple[int, WorkerError | None]:
    """Put *items* in their order, one request at a time. Return how many were put, and the error that stopped it.

    A request without an answer is put again: the log drops the second operation, which has the same request id.
    """
    count = 0
    for request in sink.cut(items):
        try:
            await put_all(sink, request, on_failure=on_failure)
        except WorkerError as exc:
            return count, exc
        count += len(request)
        progress.show(count)
    return count, None


async def put_all(sink: Sink[T], items: Sequence[T], *, on_failure: OnFailure = ignore_failure) -> None:
    """Put all *items* of a request in any order, and refused ones again. Raises the error of the last try.

    *on_failure* gets the error of each failed try.
    """
    failure_count = 0
    while items:
        try:
            refused = await sink.put(items)
            error: RetryableError = RetryableError(f"{sink} takes no more now")
        except RetryableError as exc:
            refused, error = list(items), exc
        if refused:
            on_failure(error)
        failure_count = failure_count + 1 if len(refused) == len(items) else 1
        if refused and failure_count == TRIES_MAX:
            raise error
        items = refused
        if items:
            pause_s = backoff_s(failure_count, draw=random.random(), base_s=RETRY_BASE_S, max_s=RETRY_MAX_S)  # noqa: S311 - spreads retries
            await asyncio.sleep(pause_s)
