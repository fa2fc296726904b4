"""Put records on the stream, in order, and show how far it is."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from simplu_worker.commands.stream.input_lines import InputLine, cut_into_requests
from simplu_worker.consumers.kinesis.stream.client import NewRecord, Stream
from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.timing.backoff import backoff_s

TRIES_MAX: Final = 8  # in a row, without a record taken
RETRY_BASE_S: Final = 0.2
RETRY_MAX_S: Final = 5.0
LINE_INTERVAL_S: Final = 2.0


class PutProgress:
    """How many of *total* are done, on stderr: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._shown_at = time.monotonic()
        console = Console(stderr=True, highlight=False)
        self._bar = (
            RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )
            if console.is_terminal
            else None
        )
        self._console = console

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._task = self._bar.add_task(self._what, total=self._total)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int) -> None:
        """Show that *done* of all are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif time.monotonic() - self._shown_at >= LINE_INTERVAL_S:
            self._shown_at = time.monotonic()
            self._console.print(f"{self._what}: {done} of {self._total}")


async def put_lines(
    stream: Stream, lines: Sequence[InputLine], progress: PutProgress
) -> tuple[int, WorkerError | None]:
    """Put *lines* in their order, one request at a time; return how many were put, and why not all.

    A request whose answer was lost is put again: the log drops the second record, for it has the same request id.
    """
    count = 0
    for request in cut_into_requests(lines):
        try:
            await put_records(stream, [NewRecord(line.partition_key, line.record) for line in request])
        except WorkerError as exc:
            return count, exc
        count += len(request)
        progress.show(count)
    return count, None


async def put_records(stream: Stream, records: Sequence[NewRecord]) -> None:
    """Put all *records*, those refused again and again; raises what stood in the way at the last try."""
    failure_count = 0
    while records:
        try:
            refused = await stream.put(records)
            error: RetryableError = RetryableError(f"stream {stream.name} takes no more records now")
        except RetryableError as exc:
            refused, error = list(records), exc
        failure_count = failure_count + 1 if len(refused) == len(records) else 1
        if refused and failure_count == TRIES_MAX:
            raise error
        records = refused
        if records:
            pause_s = backoff_s(failure_count, draw=random.random(), base_s=RETRY_BASE_S, max_s=RETRY_MAX_S)  # noqa: S311 - spreads retries
            await asyncio.sleep(pause_s)
