"""Put records on the stream, in order."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Final, TypeAlias

from simplu_worker.aws.clients import open_client
from simplu_worker.commands.output.progress import CountProgress
from simplu_worker.commands.stream.put_requests import cut_into_puts
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.stream.client import NewRecord, Stream
from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.timing.backoff import backoff_s

PUT_TIMEOUT_S: Final = 30.0  # a request of 5 MiB over a slow line
TRIES_MAX: Final = 8  # in a row, without a record taken
RETRY_BASE_S: Final = 0.2
RETRY_MAX_S: Final = 5.0

OnFailure: TypeAlias = Callable[[RetryableError], None]


def ignore_failure(_: RetryableError) -> None:
    """Do nothing."""


@contextlib.asynccontextmanager
async def open_stream_for_puts(settings: Settings) -> AsyncIterator[Stream]:
    """Open the stream with time-outs for large requests; no request is made yet."""
    async with open_client("kinesis", region=settings.aws_region, read_timeout_s=PUT_TIMEOUT_S) as client:
        yield Stream(client, settings.kinesis_stream_name or "")


async def put_in_order(
    stream: Stream,
    records: Iterable[NewRecord],
    progress: CountProgress,
    *,
    on_failure: OnFailure = ignore_failure,
) -> tuple[int, WorkerError | None]:
    """Put *records* in their order, one request at a time. Return how many were put, and the error that stopped it.

    A request without an answer is put again: the log drops the second record, which has the same request id.
    """
    count = 0
    for request in cut_into_puts(records):
        try:
            await put_records(stream, request, on_failure=on_failure)
        except WorkerError as exc:
            return count, exc
        count += len(request)
        progress.show(count)
    return count, None


async def put_records(stream: Stream, records: Sequence[NewRecord], *, on_failure: OnFailure = ignore_failure) -> None:
    """Put all *records* in any order, and refused ones again; *on_failure* gets the error of each failed try.

    Raises the error of the last try.
    """
    failure_count = 0
    while records:
        try:
            refused = await stream.put(records)
            error: RetryableError = RetryableError(f"stream {stream.name} takes no more records now")
        except RetryableError as exc:
            refused, error = list(records), exc
        if refused:
            on_failure(error)
        failure_count = failure_count + 1 if len(refused) == len(records) else 1
        if refused and failure_count == TRIES_MAX:
            raise error
        records = refused
        if records:
            pause_s = backoff_s(failure_count, draw=random.random(), base_s=RETRY_BASE_S, max_s=RETRY_MAX_S)  # noqa: S311 - spreads retries
            await asyncio.sleep(pause_s)
