"""Send items to a stream or a queue: cut into requests that keep the order of each key, refused ones again.

Records for a stream are encoded at once: botocore's work for each takes three times as long as the rest, so it encodes
one record in their place, which never leaves this process.
"""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import msgspec

from simplu_worker.aws.clients import DECODERS, Client
from simplu_worker.errors import RetryableError
from simplu_worker.timing.waits import backoff_s

TRIES_MAX: Final = 8  # in a row, without an item taken
RETRY_BASE_S: Final = 0.2
RETRY_MAX_S: Final = 5.0
PUT_TIMEOUT_S: Final = 30.0  # a request of 5 MiB over a slow line

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


async def send_request(
    name: str,
    items: Sequence[T],
    send: Callable[[Sequence[T]], Awaitable[Sequence[T]]],
    on_failure: OnFailure | None = None,
) -> None:
    """Call *send*, which returns refused items, until it has taken all *items*. Raises the error of the last try.

    *on_failure* gets the error of each try. After an error any number of the items may have been taken.
    """
    failure_count = 0
    while items:
        try:
            refused = await send(items)
            error = RetryableError(f"{name} takes no more now")
        except RetryableError as exc:
            refused, error = items, exc
        if not refused:
            return
        if on_failure is not None:
            on_failure(error)
        failure_count = failure_count + 1 if len(refused) == len(items) else 1
        if failure_count == TRIES_MAX:
            raise error
        items = refused
        await asyncio.sleep(backoff_s(failure_count, draw=random.random(), base_s=RETRY_BASE_S, max_s=RETRY_MAX_S))


RECORDS: Final = "simplu_worker.records"  # in the context of a call, beside what botocore keeps there
REQUEST_MAX_COUNT: Final = 500  # Kinesis API reference, PutRecords
REQUEST_MAX_BYTES: Final = 5 * 1024 * 1024  # with the partition keys
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


class PutResult(msgspec.Struct, frozen=True, gc=False, rename={"error": "ErrorCode", "message": "ErrorMessage"}):
    """What became of a record; without *error* the stream has it."""

    error: str | None = None
    message: str | None = None


class _Reply(msgspec.Struct, rename="pascal"):
    records: list[dict[str, str | None]]
    failed_record_count: int | None = None


_reply_decoder = msgspec.json.Decoder(_Reply)
_encode = msgspec.json.Encoder().encode


def speed_up_put_records(client: Client) -> None:
    """Register the hooks of *client*, one of Kinesis, for `put_records` below."""
    events = client.meta.events
    events.register("provide-client-params.kinesis.PutRecords", _take_records)
    events.register("before-call.kinesis.PutRecords", _encode_records)


async def put_records(client: Client, stream: dict[str, str], records: Sequence[PutRecord]) -> list[PutResult]:
    """Put *records* into a stream, by its StreamName or StreamARN, with one request; return what became of each.

    *client* has the hooks. Raises AWS_ERRORS. Of a request with rejected records the others keep no order.
    """
    reply = await client.put_records(**stream, Records=tuple(records))
    if not reply.get("FailedRecordCount"):
        return [PutResult()] * len(records)
    return [PutResult(entry.get("ErrorCode"), entry.get("ErrorMessage")) for entry in reply["Records"]]


def _take_records(params: dict[str, Any], context: dict[str, Any], **_: object) -> dict[str, Any]:
    context[RECORDS] = params
    return params | {"Records": _IN_PLACE}


def _encode_records(params: dict[str, Any], context: dict[str, Any], **_: object) -> None:
    body = _encode(context[RECORDS])
    params["body"] = body if len(body) <= BODY_MAX_BYTES else io.BytesIO(body)


def decode_put_records(body: bytes) -> dict[str, Any]:
    """Return a reply of PutRecords as botocore would. Raises msgspec.DecodeError."""
    reply = _reply_decoder.decode(body)
    return {"FailedRecordCount": reply.failed_record_count, "Records": reply.records}


DECODERS["PutRecords"] = decode_put_records
