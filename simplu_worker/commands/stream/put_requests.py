"""Cut records into requests of PutRecords, and messages into requests of SendMessageBatch. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT, OutgoingMessage
from simplu_worker.consumers.kinesis.stream.client import NewRecord

PUT_MAX_COUNT: Final = 500  # records: Kinesis API reference
PUT_MAX_BYTES: Final = 3_500_000  # below the 5 MiB of PutRecords, which some servers count after base64
SEND_MAX_BYTES: Final = 262_144  # of a queue that was not configured for more

T = TypeVar("T")


def cut_into_puts(records: Iterable[NewRecord]) -> Iterator[list[NewRecord]]:
    """Cut *records* into requests, in order, none with two records of one partition key.

    A request that Kinesis refuses in part may store its records in any order, which must not change the order of a key.
    """

    def size_of(record: NewRecord) -> int:
        return len(record.data) + len(record.partition_key.encode())

    return _cut(records, lambda record: record.partition_key, size_of, PUT_MAX_COUNT, PUT_MAX_BYTES)


def cut_into_sends(messages: Iterable[OutgoingMessage]) -> Iterator[list[OutgoingMessage]]:
    """Cut messages of a queue into requests in the same way, none with two messages of one group."""

    def group_of(message: OutgoingMessage) -> str | None:
        return None if message.fifo is None else message.fifo.group_id

    return _cut(messages, group_of, lambda message: len(message.body.encode()), BATCH_MAX_COUNT, SEND_MAX_BYTES)


def _cut(
    items: Iterable[T], key_of: Callable[[T], str | None], size_of: Callable[[T], int], max_count: int, max_bytes: int
) -> Iterator[list[T]]:
    request: list[T] = []
    keys: set[str] = set()
    size_bytes = 0
    for item in items:
        key, item_bytes = key_of(item), size_of(item)
        is_full = len(request) == max_count or size_bytes + item_bytes > max_bytes
        if request and (is_full or key in keys):
            yield request
            request, keys, size_bytes = [], set(), 0
        request.append(item)
        if key is not None:
            keys.add(key)
        size_bytes += item_bytes
    if request:
        yield request
