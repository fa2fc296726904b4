"""The door to SQS: one queue's calls, as our types and our errors.

A batch call of SQS answers for each entry by itself, so the batch calls here return the entries that did not get
through, and raise only for what concerns the whole call: RetryableError (network, throttling, trouble of SQS) and
PermanentError (no such queue, no permission, too large). A message is read field by field: a field that is missing or
of another type has a default, and only a message that could never be deleted is passed over.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec
import structlog

from simplu_worker.aws.clients import Client, translate_errors
from simplu_worker.aws.sns_envelope import unwrap
from simplu_worker.errors import RetryableError
from simplu_worker.operations.operation import Origin, Source
from simplu_worker.timing.backoff import backoff_s

BATCH_MAX_COUNT: Final = 10  # entries a batch call, and messages a receive: SQS API reference
LONG_POLL_MAX_S: Final = 20  # SQS API reference, ReceiveMessage
POLL_MARGIN_S: Final = 5  # by how much the poll client's read timeout exceeds the poll, so that a dead one is noticed
VISIBILITY_DEFAULT_S: Final = 30  # SQS developer guide
DELETE_TRIES: Final = 5

T = TypeVar("T")

log = structlog.get_logger(__name__)


class FifoIds(msgspec.Struct, frozen=True):
    """What a FIFO queue wants to know of a message."""

    group_id: str
    deduplication_id: str


class Message(msgspec.Struct, frozen=True):
    """One message as received. *attributes* are its message attributes that are text; *receive_count* counts from 1.

    *deduplication_id* and *sequence_number* are there in FIFO queues only; *held_count* is how often the message was
    handled since its receive and kept in hand to be handled again.
    """

    message_id: str
    receipt_handle: str
    body: str
    attributes: dict[str, str]
    sent_at: datetime
    receive_count: int
    group_id: str | None
    deduplication_id: str | None = None
    sequence_number: str | None = None
    held_count: int = 0

    @property
    def try_count(self) -> int:
        """How often the message was given to a handler, this time included, as far as SQS and this process know."""
        return self.receive_count + self.held_count

    @property
    def size_bytes(self) -> int:
        """What the message takes of the bytes in hand."""
        texts = (self.body, *self.attributes, *self.attributes.values())
        return sum(len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass")) for text in texts)


class BatchFailure(msgspec.Struct, frozen=True):
    """An entry of a batch call that failed; *is_sender_fault* when SQS finds the entry at fault, and not itself."""

    message: Message
    code: str
    is_sender_fault: bool


class QueueAttributes(msgspec.Struct, frozen=True):
    """What a queue says of itself; the counts are SQS's estimates. `None`: it does not say."""

    visibility_timeout_s: int
    max_message_bytes: int | None
    retention_s: int | None
    visible_count: int
    in_flight_count: int
    delayed_count: int
    redrive_policy: str | None


class Outgoing(msgspec.Struct, frozen=True):
    """A message to send; *fifo* only to a FIFO queue, and always there. *attributes* go as message attributes."""

    body: str
    fifo: FifoIds | None = None
    attributes: Mapping[str, str] | None = None


class Unsent(msgspec.Struct, frozen=True):
    """An entry, by its place in the batch, that SQS did not take."""

    index: int
    code: str


class Queue:
    """One SQS queue.

    *poll_client* is the client for long polls, whose read timeout exceeds the poll's wait and which tries once; with a
    client of their own, deletes and heartbeats never wait behind parked polls.
    """

    def __init__(
        self,
        client: Client,
        url: str,
        *,
        poll_client: Client | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._poll_client = client if poll_client is None else poll_client
        self._draw = draw
        self.url = url
        self.name = url.rstrip("/").rsplit("/", 1)[-1]

    def __repr__(self) -> str:
        return f"Queue({self.name!r})"

    @property
    def is_fifo(self) -> bool:
        """Whether the queue keeps order within groups: SQS has such queues end in `.fifo`, and no others."""
        return self.name.endswith(".fifo")

    def origin_of(self, message: Message) -> Origin:
        """Return where *message* came from.

        In a standard queue the time of sending stands for the sequence number that there is not: a replay, sent later,
        has a higher one.
        """
        return Origin(
            source=Source.SQS,
            name=self.name,
            arrived_at=message.sent_at,
            sequence_number=message.sequence_number or str(int(message.sent_at.timestamp() * 1000)),
            message_id=message.message_id,
            group_id=message.group_id,
        )

    async def read_attributes(self) -> QueueAttributes:
        """Read the queue's attributes."""
        with translate_errors():
            answer = await self._client.get_queue_attributes(QueueUrl=self.url, AttributeNames=["All"])
        found = _mapping(answer.get("Attributes"))
        return QueueAttributes(
            visibility_timeout_s=_number(found, "VisibilityTimeout", VISIBILITY_DEFAULT_S),
            max_message_bytes=_number(found, "MaximumMessageSize", None),
            retention_s=_number(found, "MessageRetentionPeriod", None),
            visible_count=_number(found, "ApproximateNumberOfMessages", 0),
            in_flight_count=_number(found, "ApproximateNumberOfMessagesNotVisible", 0),
            delayed_count=_number(found, "ApproximateNumberOfMessagesDelayed", 0),
            redrive_policy=_text(found, "RedrivePolicy"),
        )

    async def find_queue(self, name: str) -> Queue:
        """Return the queue named *name* of the same account."""
        with translate_errors():
            answer = await self._client.get_queue_url(QueueName=name)
        return Queue(self._client, answer["QueueUrl"], draw=self._draw)

    async def receive(
        self, *, wait_s: int, max_messages: int, visibility_s: int | None = None, attempt_id: str | None = None
    ) -> list[Message]:
        """Wait for messages and take up to *max_messages* of them; empty when none came within *wait_s*.

        They are hidden for *visibility_s*, else for the queue's own timeout. From a FIFO queue, a receive whose answer
        got lost gives the same messages again under the same *attempt_id*.
        """
        options = {
            **({} if visibility_s is None else {"VisibilityTimeout": visibility_s}),
            **({} if attempt_id is None else {"ReceiveRequestAttemptId": attempt_id}),
        }
        with translate_errors():
            answer = await self._poll_client.receive_message(
                QueueUrl=self.url,
                WaitTimeSeconds=min(wait_s, LONG_POLL_MAX_S),
                MaxNumberOfMessages=min(max_messages, BATCH_MAX_COUNT),
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["All"],
                **options,
            )
        messages = [read_message(item) for item in answer.get("Messages") or []]
        if None in messages:
            log.warning("message.malformed", queue=self.name, count=messages.count(None))
        return [message for message in messages if message is not None]

    async def send(self, entries: Sequence[Outgoing]) -> list[Unsent]:
        """Send up to BATCH_MAX_COUNT messages; return those that were not taken."""
        batch = [
            {
                "Id": str(index),
                "MessageBody": entry.body,
                **({} if entry.fifo is None else _fifo_members(entry.fifo)),
                **({} if not entry.attributes else {"MessageAttributes": _text_attributes(entry.attributes)}),
            }
            for index, entry in enumerate(entries)
        ]
        with translate_errors():
            answer = await self._client.send_message_batch(QueueUrl=self.url, Entries=batch)
        return [Unsent(index=int(item["Id"]), code=item.get("Code", "")) for item in answer.get("Failed", [])]

    async def delete(self, messages: Sequence[Message]) -> list[Message]:
        """Delete *messages*, and again those for which SQS had trouble; return those that are still there.

        The same message twice counts once, by its newest receipt handle.
        """
        left: list[Message] = []
        newest = {message.message_id: message for message in messages}
        for batch in batches(newest.values()):
            left += await self._delete_patiently(batch)
        return left

    async def change_visibility(self, messages: Sequence[Message], visibility_s: int) -> list[Message]:
        """Let *messages* come again *visibility_s* from now, unless deleted; return those not ours to say so any more.

        Raises after the first batch that fails as a whole.
        """
        lost: list[Message] = []
        for batch in batches(messages):
            failures = await self.change_visibility_batch([(message, visibility_s) for message in batch])
            lost += [failure.message for failure in failures]
        return lost

    async def change_visibility_batch(self, changes: Sequence[tuple[Message, int]]) -> list[BatchFailure]:
        """Let each message come again after its seconds, in one call of at most BATCH_MAX_COUNT; return what failed."""
        entries = [
            {"Id": str(index), "ReceiptHandle": message.receipt_handle, "VisibilityTimeout": visibility_s}
            for index, (message, visibility_s) in enumerate(changes)
        ]
        with translate_errors():
            answer = await self._client.change_message_visibility_batch(QueueUrl=self.url, Entries=entries)
        return _failures(answer, [message for message, _ in changes])

    async def delete_batch(self, messages: Sequence[Message]) -> list[BatchFailure]:
        """Delete *messages* in one call of at most BATCH_MAX_COUNT; return what failed."""
        # Places as ids: a message id twice in one call would have SQS refuse all of it.
        entries = [
            {"Id": str(index), "ReceiptHandle": message.receipt_handle} for index, message in enumerate(messages)
        ]
        with translate_errors():
            answer = await self._client.delete_message_batch(QueueUrl=self.url, Entries=entries)
        return _failures(answer, messages)

    async def purge(self) -> None:
        """Delete all messages, those in flight too, which takes SQS up to a minute.

        Raises ThrottledError when that was asked for within the last minute.
        """
        with translate_errors():
            await self._client.purge_queue(QueueUrl=self.url)

    async def _delete_patiently(self, messages: list[Message]) -> list[Message]:
        """Delete at most BATCH_MAX_COUNT messages; give up those whose receipt handle SQS finds at fault."""
        refused: list[Message] = []
        for attempt in range(1, DELETE_TRIES + 1):
            try:
                failures = await self.delete_batch(messages)
            except RetryableError:
                if attempt == DELETE_TRIES:
                    raise
            else:
                refused += [failure.message for failure in failures if failure.is_sender_fault]
                messages = [failure.message for failure in failures if not failure.is_sender_fault]
            if not messages:
                break
            if attempt < DELETE_TRIES:
                await asyncio.sleep(backoff_s(attempt, draw=self._draw(), base_s=0.2, max_s=2.0))
        return refused + messages


def read_message(item: Mapping[str, Any]) -> Message | None:
    """Read a message as SQS writes it, out of SNS's envelope if it is in one.

    None when it has no id or no receipt handle: it could neither be told from others nor deleted.
    """
    message_id, receipt_handle = _text(item, "MessageId"), _text(item, "ReceiptHandle")
    if not message_id or not receipt_handle:
        return None
    system = _mapping(item.get("Attributes"))
    texts = {
        name: _text(_mapping(value), "StringValue") for name, value in _mapping(item.get("MessageAttributes")).items()
    }
    own = {name: text for name, text in texts.items() if text is not None}
    body, attributes = unwrap(_text(item, "Body") or "", own)
    return Message(
        message_id=message_id,
        receipt_handle=receipt_handle,
        body=body,
        attributes=attributes,
        sent_at=_time(system, "SentTimestamp"),
        receive_count=max(_number(system, "ApproximateReceiveCount", 1), 1),
        group_id=_text(system, "MessageGroupId"),
        deduplication_id=_text(system, "MessageDeduplicationId"),
        sequence_number=_text(system, "SequenceNumber"),
    )


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Cut *items* into what one batch call takes."""
    remaining = iter(items)
    while batch := list(islice(remaining, BATCH_MAX_COUNT)):
        yield batch


def _failures(answer: Mapping[str, Any], messages: Sequence[Message]) -> list[BatchFailure]:
    by_id = {str(index): message for index, message in enumerate(messages)}
    return [
        BatchFailure(by_id[item["Id"]], str(item.get("Code", "")), bool(item.get("SenderFault")))
        for item in answer.get("Failed") or []
        if item.get("Id") in by_id
    ]


def _fifo_members(ids: FifoIds) -> dict[str, str]:
    return {"MessageGroupId": ids.group_id, "MessageDeduplicationId": ids.deduplication_id}


def _text_attributes(attributes: Mapping[str, str]) -> dict[str, dict[str, str]]:
    return {name: {"DataType": "String", "StringValue": text} for name, text in attributes.items()}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(found: Mapping[str, Any], name: str) -> str | None:
    value = found.get(name)
    return value if isinstance(value, str) else None


def _number(found: Mapping[str, Any], name: str, default: T) -> int | T:
    """Read one of SQS's numbers, which come as text; *default* when it is missing or no number."""
    try:
        return int(found[name])
    except (KeyError, ValueError, TypeError, OverflowError):
        return default


def _time(found: Mapping[str, Any], name: str) -> datetime:
    """Read one of SQS's times, milliseconds as text; now when it is missing or no time."""
    try:
        return datetime.fromtimestamp(int(found[name]) / 1000, UTC)
    except (KeyError, ValueError, TypeError, OverflowError, OSError):
        return datetime.now(UTC)
