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
    def spans(self) -> Sequence[BatchSpan]:
        """The spans of traced batches."""


class _Span:
    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        return None


class BatchSpan(_Span):
    """The span of a batch; within it `current_batch` returns it."""

    __slots__ = ()

    def note_outcomes(self, outcomes: Iterable[str]) -> None:
        """Note the outcome of each record."""


class TransactionSpan(_Span):
    """The span of a transaction, from `note_begun` on."""

    __slots__ = ()

    def note_begun(self, host: str, port: int | None) -> None:
        """Note that the server has begun."""


class ReceiveSpan(_Span):
    """The span of a request for records; none for an empty reply."""

    __slots__ = ()

    def note_records(self, count: int) -> None:
        """Note the number of records in the reply."""


class Tracer(Protocol):
    """Makes spans."""

    def process(self, batch: TracedBatch) -> BatchSpan:
        """Return the span of *batch*."""

    def transact(self, transaction: TracedTransaction) -> TransactionSpan:
        """Return the span of *transaction*."""

    def receive(self, source: str, name: str, stream_shard_id: str | None) -> ReceiveSpan:
        """Return the span of a request for records."""


class Tracing:
    """The tracer of this process, if it traces."""

    def __init__(self) -> None:
        self.tracer: Tracer | None = None


TRACING: Final = Tracing()  # of the process, as the metrics are
_NO_BATCH: Final = BatchSpan()
_NO_TRANSACTION: Final = TransactionSpan()
_NO_RECEIVE: Final = ReceiveSpan()
CURRENT: Final[ContextVar[BatchSpan | None]] = ContextVar("simplu_batch_span", default=None)


def process_span(describe: Callable[[], TracedBatch]) -> BatchSpan:
    """Return the span of a batch; *describe* is called if this process traces."""
    tracer = TRACING.tracer
    return _NO_BATCH if tracer is None else tracer.process(describe())


def transaction_span(describe: Callable[[], TracedTransaction]) -> TransactionSpan:
    """Return the span of a transaction, as `process_span`."""
    tracer = TRACING.tracer
    return _NO_TRANSACTION if tracer is None else tracer.transact(describe())


def receive_span(source: str, name: str, stream_shard_id: str | None = None) -> ReceiveSpan:
    """Return the span of a request for records."""
    tracer = TRACING.tracer
    return _NO_RECEIVE if tracer is None else tracer.receive(source, name, stream_shard_id)


def current_batch() -> BatchSpan | None:
    """Return the span of the batch within which the caller runs, if any."""
    return CURRENT.get()
