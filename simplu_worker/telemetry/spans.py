"""The spans of the worker, as its parts see them: nothing, unless a tracer is set.

A span is a context manager. While there is no tracer, each is one object that does nothing: a batch costs a few
calls,
and a record nothing. Only the tracer (`exported_spans.py`) imports OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self


class TracedBatch(NamedTuple):
    """A batch of records that are processed together.

    *source* is a `Source`, *name* the stream or the queue. *shard_id* is the Postgres shard, *stream_shard_id* that of
    the stream. *traceparents* returns the texts of the records that have one; it is called if the span is recorded.
    """

    source: str
    name: str
    message_count: int
    traceparents: Callable[[], Iterable[str]]
    shard_id: str | None = None
    stream_shard_id: str | None = None


class TracedTransaction(NamedTuple):
    """A transaction of a Postgres shard; its *work* is read at its end."""

    shard_id: str
    database: str
    work: TracedWork


class TracedWork(Protocol):
    """The work of a transaction: how many operations, and the spans of the batches that they are of."""

    @property
    def operations(self) -> Sequence[object]:
        """The operations."""

    @property
    def spans(self) -> Sequence[BatchSpan]:
        """The spans, without those of batches that are not traced."""


class _Span:
    """A span that does nothing."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        return None


class BatchSpan(_Span):
    """The span of a batch, `process`; within it `current_batch` returns it."""

    __slots__ = ()

    def note_outcomes(self, outcomes: Iterable[str]) -> None:
        """Note the outcome of each record."""


class TransactionSpan(_Span):
    """The span of a transaction; it begins with `note_begun`, and without that there is none."""

    __slots__ = ()

    def note_begun(self, host: str, port: int | None) -> None:
        """Note that the server at *host* has begun the transaction."""


class ReceiveSpan(_Span):
    """The span of one request for records, `receive`; there is none for a reply without records."""

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
        """Return the span of a request to a stream or a queue."""


class Tracing:
    """Whether this process traces: its tracer; None while it does not."""

    def __init__(self) -> None:
        self.tracer: Tracer | None = None

    def __repr__(self) -> str:
        return f"Tracing({self.tracer!r})"


TRACING: Final = Tracing()  # of the process, as the metrics are
_NO_BATCH: Final = BatchSpan()
_NO_TRANSACTION: Final = TransactionSpan()
_NO_RECEIVE: Final = ReceiveSpan()
CURRENT: Final[ContextVar[BatchSpan | None]] = ContextVar("simplu_batch_span", default=None)


def process_span(describe: Callable[[], TracedBatch]) -> BatchSpan:
    """Return the span of the batch that *describe* returns, which is called only by a process that traces."""
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
    """Return the span of the batch within which the caller runs, if it is traced."""
    return CURRENT.get()
