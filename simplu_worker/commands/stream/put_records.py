"""Put records on the stream, and send messages to a queue, in order."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from simplu_worker.aws.clients import THROTTLING_CODES, open_client
from simplu_worker.aws.sqs_queue import OutgoingMessage, Queue
from simplu_worker.commands.output import CountProgress
from simplu_worker.commands.stream.input_lines import cut_into_puts, cut_into_sends
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.stream.client import NewRecord, Stream
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
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
    """Open the stream with time-outs for large requests."""
    async with open_client("kinesis", region=settings.aws_region, read_timeout_s=PUT_TIMEOUT_S) as client:
        yield Stream(client, settings.kinesis_stream_name or "")


@contextlib.asynccontextmanager
async def open_queue_for_sends(settings: Settings, url: str) -> AsyncIterator[Queue]:
    """Open a queue with time-outs for large requests."""
    async with open_client("sqs", region=settings.aws_region, read_timeout_s=PUT_TIMEOUT_S) as client:
        yield Queue(client, url)


class Refused(NamedTuple, Generic[T]):
    """A refused item, by the reason's *code* where one is given; *is_final*: it would be refused again."""

    item: T
    code: str | None = None
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class Sink(Generic[T]):
    """A place of items: *cut* makes requests of them, *put* sends one and returns the refused items, or raises."""

    name: str
    cut: Callable[[Iterable[T]], Iterable[list[T]]]
    put: Callable[[Sequence[T]], Awaitable[Sequence[Refused[T]]]]


@dataclass
class PutCount:
    """How many items were put, and how many more are under way."""

    done: int = 0
    under_way: int = 0


def stream_sink(stream: Stream) -> Sink[NewRecord]:
    """Return a stream as the place of records."""

    async def put(records: Sequence[NewRecord]) -> list[Refused[NewRecord]]:
        return [Refused(record) for record in await stream.put(records)]

    return Sink(f"stream {stream.name}", cut_into_puts, put)


def queue_sink(queue: Queue) -> Sink[OutgoingMessage]:
    """Return a queue as the place of messages."""

    async def send(messages: Sequence[OutgoingMessage]) -> list[Refused[OutgoingMessage]]:
        return [
            # SQS calls it the sender's fault, too, that it gets too many requests.
            Refused(messages[one.index], one.code, is_final=one.is_sender_fault and one.code not in THROTTLING_CODES)
            for one in await queue.send(messages)
        ]

    return Sink(f"queue {queue.name}", cut_into_sends, send)


async def put_in_order(
    sink: Sink[T],
    items: Iterable[T],
    progress: CountProgress,
    count: PutCount,
    *,
    on_failure: OnFailure = ignore_failure,
) -> WorkerError | None:
    """Put *items*, one request at a time, and keep *count*. Return the error that stopped it.

    A request without an answer is put again: the log drops the second operation by its request id.
    """
    for request in sink.cut(items):
        count.under_way = len(request)
        try:
            await put_all(sink, request, on_failure=on_failure)
        except WorkerError as exc:
            return exc
        count.done, count.under_way = count.done + len(request), 0
        progress.show(count.done)
    return None


async def put_all(sink: Sink[T], items: Sequence[T], *, on_failure: OnFailure = ignore_failure) -> None:
    """Put all *items* of a request, and refused ones again. Raises the error of the last try.

    *on_failure* gets the error of each failed try. An item that would be refused again ends the tries.
    """
    failure_count = 0
    while items:
        try:
            refused = await sink.put(items)
            error = _error_of(sink.name, refused)
        except RetryableError as exc:
            refused, error = [Refused(item) for item in items], exc
        if refused:
            on_failure(error)
        failure_count = failure_count + 1 if len(refused) == len(items) else 1
        if refused and failure_count == TRIES_MAX:
            raise error
        items = [one.item for one in refused]
        if items:
            pause_s = backoff_s(failure_count, draw=random.random(), base_s=RETRY_BASE_S, max_s=RETRY_MAX_S)
            await asyncio.sleep(pause_s)


def _error_of(name: str, refused: Iterable[Refused[T]]) -> RetryableError:
    codes = []
    for one in refused:
        if one.is_final:
            raise PermanentError(f"{name}: expected an entry that it accepts, got one that it refuses: {one.code}")
        codes.append(one.code)
    code = next(filter(None, codes), None)
    return RetryableError(f"{name} takes no more now" + (f": {code}" if code else ""))
