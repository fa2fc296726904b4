"""The one producer for streams and queues, of commands and of the feed: requests that keep the order of each key.

Records for a stream are encoded at once: botocore's work for each takes three times as long as the rest, so it encodes
one record in their place, which never leaves this process.
"""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

import msgspec

from simplu_worker.aws.clients import THROTTLING_CODES, Client, address_of, error_code, translate_errors
from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT, SEND_MAX_BYTES, OutgoingMessage, Queue
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.instruments import KINESIS_THROTTLED
from simplu_worker.timing.waits import backoff_s

TRIES_MAX: Final = 8  # in a row, without an item taken
RETRY_BASE_S: Final = 0.2
RETRY_MAX_S: Final = 5.0
PUT_TIMEOUT_S: Final = 30.0  # a request of 5 MiB over a slow line

# The service finds the content of an item at fault: Kinesis API reference, PutRecords; SQS API reference,
# SendMessageBatch. Anything else, such as a missing permission, is no item's fault.
CONTENT_CODES: Final = frozenset(
    {
        "AWS.SimpleQueueService.BatchRequestTooLong",
        "BatchRequestTooLong",
        "InvalidArgumentException",
        "InvalidMessageContents",
        "InvalidParameterValue",
        "InvalidParameterValueException",
        "SerializationException",
        "ValidationException",
    }
)

T = TypeVar("T")
OnFailure: TypeAlias = Callable[[RetryableError], None]


class RequestBounds(NamedTuple):
    """What a request may have."""

    max_count: int
    max_bytes: int


def cut(
    items: Iterable[T], bounds: RequestBounds, *, key_of: Callable[[T], str | None], size_of: Callable[[T], int]
) -> Iterator[list[T]]:
    """Cut *items* into requests, in order, none with two items of one key.

    A service that refuses a part of a request may refuse an earlier item of a key and take the later one.
    """
    request: list[T] = []
    keys: set[str] = set()
    size_bytes = 0
    for item in items:
        key, item_bytes = key_of(item), size_of(item)
        is_full = len(request) == bounds.max_count or size_bytes + item_bytes > bounds.max_bytes
        if request and (is_full or key in keys):
            yield request
            request, keys, size_bytes = [], set(), 0
        request.append(item)
        if key is not None:
            keys.add(key)
        size_bytes += item_bytes
    if request:
        yield request


class Unsent(NamedTuple):
    """Why an item of a request was not taken; *is_at_fault*: its content is, so that it is refused again."""

    error: str
    is_at_fault: bool = False


@dataclass(frozen=True)
class Producer(Generic[T]):
    """Sends items to the stream or queue *name* at *place*: cut into requests, and refused items again.

    *request* makes one request; it returns what was not taken, by index.
    """

    name: str
    place: str
    bounds: RequestBounds
    request: Callable[[Sequence[T]], Awaitable[Mapping[int, Unsent]]]
    key_of: Callable[[T], str | None] = field(kw_only=True)
    size_of: Callable[[T], int] = field(kw_only=True)

    def cut(self, items: Iterable[T]) -> Iterator[list[T]]:
        """Cut *items* into requests that keep the order of each key."""
        return cut(items, self.bounds, key_of=self.key_of, size_of=self.size_of)

    async def send_all(self, items: Iterable[T]) -> None:
        """Send *items*, those of a key in their order. Raises as `send`."""
        for request in self.cut(items):
            await self.send(request)

    async def put(self, items: Sequence[T]) -> Mapping[int, Unsent]:
        """Make a request, and one for each of *items* if their content is at fault; return what was not taken.

        Never raises what the service may cause.
        """
        try:
            return await self.request(items)
        except (RetryableError, PermanentError) as exc:
            cause = exc.__cause__
            is_at_fault = isinstance(cause, Exception) and error_code(cause) in CONTENT_CODES
            if len(items) == 1 or not is_at_fault:
                return dict.fromkeys(range(len(items)), Unsent(str(exc), is_at_fault))
        found = [await self.put([item]) for item in items]  # one is at fault, and must not take the others with it
        return {index: one[0] for index, one in enumerate(found) if one}

    async def send(self, items: Sequence[T], on_failure: OnFailure | None = None) -> None:
        """Send a request until all its *items* are taken. Raises the error of the last try, or PermanentError.

        *on_failure* gets the error of each try. After an error any number of the items may have been taken.
        """
        failure_count = 0
        while items:
            try:
                unsent = await self.request(items)
                error = RetryableError(f"{self.name} takes no more now")
            except RetryableError as exc:
                unsent, error = dict.fromkeys(range(len(items)), Unsent(str(exc))), exc
            if not unsent:
                return
            if refused := [one.error for one in unsent.values() if one.is_at_fault]:
                raise PermanentError(f"{self.name}: expected an item that it accepts, got another: {refused[0]}")
            if on_failure is not None:
                on_failure(error)
            failure_count = failure_count + 1 if len(unsent) == len(items) else 1
            if failure_count == TRIES_MAX:
                raise error
            items = [items[index] for index in sorted(unsent)]
            await asyncio.sleep(backoff_s(failure_count, draw=random.random(), base_s=RETRY_BASE_S, max_s=RETRY_MAX_S))


def queue_producer(queue: Queue) -> Producer[OutgoingMessage]:
    """Return the producer for *queue*."""

    async def put(messages: Sequence[OutgoingMessage]) -> dict[int, Unsent]:
        unsent = await queue.send(messages)
        return {index: Unsent(f"SendMessageBatch: {code}", code in CONTENT_CODES) for index, code in unsent.items()}

    return Producer(
        f"queue {queue.name}",
        queue.name,
        RequestBounds(BATCH_MAX_COUNT, SEND_MAX_BYTES),
        put,
        key_of=lambda message: None if message.fifo is None else message.fifo.group_id,
        size_of=lambda message: len(message.body.encode()),
    )


def stream_producer(client: Client, name_or_arn: str) -> Producer[PutRecord]:
    """Return the producer for a stream; *client* gets hooks by which it encodes these records alone."""
    stream = {"StreamARN" if name_or_arn.startswith("arn:") else "StreamName": name_or_arn}
    name = name_or_arn.rpartition("/")[2]  # arn:aws:kinesis:region:account:stream/name
    client.meta.events.register("provide-client-params.kinesis.PutRecords", _take_records)
    client.meta.events.register("before-call.kinesis.PutRecords", _encode_records)

    async def put(records: Sequence[PutRecord]) -> dict[int, Unsent]:
        with translate_errors():
            reply = await client.put_records(**stream, Records=tuple(records))
        entries = reply["Records"] if reply.get("FailedRecordCount") else []
        errors = {index: entry for index, entry in enumerate(entries) if entry.get("ErrorCode") is not None}
        if any(entry["ErrorCode"] in THROTTLING_CODES for entry in errors.values()):
            KINESIS_THROTTLED.inc()
        return {
            index: Unsent(f"PutRecords: {entry['ErrorCode']}: {entry.get('ErrorMessage')}")
            for index, entry in errors.items()
        }

    return Producer(
        f"stream {name}",
        address_of(client, name),
        RequestBounds(REQUEST_MAX_COUNT, REQUEST_MAX_BYTES),
        put,
        key_of=lambda record: record.partition_key,
        size_of=lambda record: record.size_bytes,
    )


RECORDS: Final = "simplu_worker.records"  # in the context of a call, beside what botocore keeps there
REQUEST_MAX_COUNT: Final = 500  # Kinesis API reference, PutRecords
REQUEST_MAX_BYTES: Final = 3_500_000  # with the keys; below the 5 MiB of PutRecords, which some servers count in base64
BODY_MAX_BYTES: Final = 2**20  # aiohttp warns of larger bytes, which it writes in one step
_IN_PLACE: Final = [{"Data": b"", "PartitionKey": "-"}]


class PutRecord(msgspec.Struct, frozen=True, gc=False, rename={"data": "Data", "partition_key": "PartitionKey"}):
    """A record to put; JSON has its data in base64."""

    data: bytes
    partition_key: str

    @property
    def size_bytes(self) -> int:
        """The size that counts for the limits of a record and of a request; at most, as for text that is no ASCII."""
        key = self.partition_key
        return len(self.data) + (len(key) if key.isascii() else 4 * len(key))


_encode = msgspec.json.Encoder().encode


def _take_records(params: dict[str, Any], context: dict[str, Any], **_: object) -> dict[str, Any]:
    context[RECORDS] = params
    return params | {"Records": _IN_PLACE}


def _encode_records(params: dict[str, Any], context: dict[str, Any], **_: object) -> None:
    body = _encode(context[RECORDS])
    params["body"] = body if len(body) <= BODY_MAX_BYTES else io.BytesIO(body)
