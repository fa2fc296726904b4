"""The spans as the worker's parts see them: context managers that do nothing unless a tracer is set.

Only the tracer (`exported_spans.py`) imports OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self


class TracedBatch(NamedTuple):
    """Records that are processed together, of the stream or queue *name*.

    *shard_id* is a Postgres shard. *traceparents* is called if the span is recorded.
    """

    source: str
    name: str
    message_count: int
    traceparents: Callable[[], Iterable[str]]
    shard_id: str | None = None
    stream_shard_id: str | None = None


class TracedTransaction(NamedTuple):
    """A transaction; its *work* is read at its end."""

    shard_id: str
    database: str
    work: TracedWork


class TracedWork(Protocol):
    """The operations, and the spans of their batches."""

    @property
    def operations(self) -> Sequence[object]:
        """The operations."""

    @property
    def spans(self) -> Sequence[Span]:
        """The spans of traced batches."""


class Span:
    """A span from its `with` to its end; this one does nothing."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """End, with the error if any."""

    def note_outcomes(self, outcomes: Iterable[str]) -> None:
        """Note the outcome of each record of a batch."""

    def note_begun(self, host: str, port: int | None) -> None:
        """Note that the server has begun a transaction, the span of which begins here."""

    def note_records(self, count: int) -> None:
        """Note the number of records in a reply; an empty one has no span."""


class Tracer(Protocol):
    """Makes spans."""

    def process(self, batch: TracedBatch) -> Span:
        """Return the span of *batch*."""

    def transact(self, transaction: TracedTransaction) -> Span:
        """Return the span of *transaction*."""

    def receive(self, source: str, name: str, stream_shard_id: str | None) -> Span:
        """Return the span of a request for records."""


class Tracing:
    """The tracer of this process, if it traces."""

    def __init__(self) -> None:
        self.tracer: Tracer | None = None


TRACING: Final = Tracing()  # of the process, as the metrics are
_NOTHING: Final = Span()
CURRENT: Final[ContextVar[Span | None]] = ContextVar("simplu_batch_span", default=None)


def process_span(describe: Callable[[], TracedBatch]) -> Span:
    """Return the span of a batch, for `current_batch` within it; *describe* is called if this process traces."""
    return _NOTHING if TRACING.tracer is None else TRACING.tracer.process(describe())


def transaction_span(describe: Callable[[], TracedTransaction]) -> Span:
    """Return the span of a transaction, as `process_span`."""
    return _NOTHING if TRACING.tracer is None else TRACING.tracer.transact(describe())


def receive_span(source: str, name: str, stream_shard_id: str | None = None) -> Span:
    """Return the span of a request for records."""
    return _NOTHING if TRACING.tracer is None else TRACING.tracer.receive(source, name, stream_shard_id)


def current_batch() -> Span | None:
    """Return the span of the batch within which the caller runs, if any."""
    return CURRENT.get()
