"""The door to SQS: the calls of one queue, with our types and our errors.

Batch calls return the entries that failed, and raise only when the whole call failed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec

from simplu_worker.aws.clients import Client, find, translate_errors
from simplu_worker.operations.operation import Origin
from simplu_worker.telemetry.spans import receive_span
from simplu_worker.timing.waits import retry
from simplu_worker.vocabulary import Source

_MARK: Final = '"Notification"'


def unwrap(body: str, attributes: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return the message in *body* with its attributes, out of an envelope of SNS; else both unchanged."""
    own = dict(attributes)
    if _MARK not in body:  # saves parsing most bodies
        return body, own
    try:
        envelope = json.loads(body)
    except (ValueError, RecursionError):
        return body, own  # the decoder of the message reports the error
    if not isinstance(envelope, dict) or envelope.get("Type") != "Notification":
        return body, own
    message = envelope.get("Message")
    if not isinstance(message, str):
        return body, own
    return message, _attributes_of(envelope.get("MessageAttributes")) | own


def _attributes_of(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    members = {name: member.get("Value") for name, member in value.items() if isinstance(member, dict)}
    return {name: text for name, text in members.items() if isinstance(text, str)}


BATCH_MAX_COUNT: Final = 10  # entries a batch call, and messages a receive: SQS API reference
SEND_MAX_BYTES: Final = 262_144  # of a batch for a queue that was not configured for more
LONG_POLL_MAX_S: Final = 20  # SQS API reference, ReceiveMessage
POLL_MARGIN_S: Final = 5  # by how much the poll client's read timeout exceeds the poll, to notice a dead connection
RETENTION_MAX_S: Final = 14 * 86_400  # SQS API reference, CreateQueue
VISIBILITY_DEFAULT_S: Final = 30  # SQS developer guide
MISSING_QUEUE_CODES: Final = frozenset({"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"})

T = TypeVar("T")


class FifoIds(msgspec.Struct, frozen=True):
    """The ids that a FIFO queue needs with a message."""

    group_id: str
    deduplication_id: str


class Message(msgspec.Struct, frozen=True):
    """One message as received, with those of its attributes that are text.

    *deduplication_id* and *sequence_number* exist in FIFO queues only. *held_count* is how often it was held in flight.
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
        """How often a handler got the message, this time included."""
        return self.receive_count + self.held_count

    @property
    def size_bytes(self) -> int:
        """The size that counts against the limit of bytes in flight."""
        texts = (self.body, *self.attributes, *self.attributes.values())
        return sum(len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass")) for text in texts)


class BatchFailure(msgspec.Struct, frozen=True):
    """A failed entry of a batch call; *is_sender_fault*: SQS finds the entry at fault, not itself."""

    message: Message
    code: str
    is_sender_fault: bool


class QueueAttributes(msgspec.Struct, frozen=True):
    """Attributes of a queue; the counts are SQS's estimates."""

    visibility_timeout_s: int
    max_message_bytes: int | None
    retention_s: int | None
    visible_count: int
    in_flight_count: int
    delayed_count: int
    redrive_policy: str | None


class OutgoingMessage(msgspec.Struct, frozen=True):
    """A message to send; *fifo* is for FIFO queues only."""

    body: str
    fifo: FifoIds | None = None
    attributes: Mapping[str, str] | None = None


class Queue:
    """One SQS queue; *poll_client* is for long polls alone, so that deletes do not wait behind them."""

    def __init__(self, client: Client, url: str, *, poll_client: Client | None = None) -> None:
        self._client = client
        self._poll_client = client if poll_client is None else poll_client
        self.url = url
        self.name = queue_name(url)
        self.retention: timedelta | None = None  # as its attributes were last read

    @property
    def is_fifo(self) -> bool:
        """Whether the queue keeps order within groups."""
        return self.name.endswith(".fifo")

    def origin_of(self, message: Message) -> Origin:
        """Return the origin of *message*; in a standard queue the sent timestamp is its sequence number."""
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
        attributes = _parse_attributes(answer)
        self.retention = None if attributes.retention_s is None else timedelta(seconds=attributes.retention_s)
        return attributes

    async def receive(self, *, wait_s: int, max_messages: int, visibility_s: int | None = None) -> list[Message]:
        """Receive up to *max_messages*; none when none came within *wait_s*.

        They are hidden for *visibility_s*, else for the queue's own timeout.
        """
        options = {} if visibility_s is None else {"VisibilityTimeout": visibility_s}
        with receive_span(Source.SQS, self.name) as span, translate_errors():
            answer = await self._poll_client.receive_message(
                QueueUrl=self.url,
                WaitTimeSeconds=min(wait_s, LONG_POLL_MAX_S),
                MaxNumberOfMessages=min(max_messages, BATCH_MAX_COUNT),
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["All"],
                **options,
            )
            span.note_records(len(answer.get("Messages") or []))
        return [parse_message(item) for item in answer.get("Messages") or []]

    async def send(self, entries: Sequence[OutgoingMessage]) -> dict[int, str]:
        """Send up to BATCH_MAX_COUNT messages; return the error codes of those that SQS did not accept, by index."""
        batch: list[dict[str, Any]] = []
        for index, entry in enumerate(entries):
            batch.append({"Id": str(index), "MessageBody": entry.body})
            if (fifo := entry.fifo) is not None:
                batch[-1] |= {"MessageGroupId": fifo.group_id, "MessageDeduplicationId": fifo.deduplication_id}
            if entry.attributes:
                texts = {name: {"DataType": "String", "StringValue": text} for name, text in entry.attributes.items()}
                batch[-1]["MessageAttributes"] = texts
        with translate_errors():
            answer = await self._client.send_message_batch(QueueUrl=self.url, Entries=batch)
        return {int(item["Id"]): item.get("Code", "") for item in answer.get("Failed", [])}

    async def delete(self, messages: Sequence[Message]) -> list[Message]:
        """Delete *messages*, each once, in calls with retries; return the messages not deleted."""
        left: list[Message] = []
        newest = {message.message_id: message for message in messages}
        for batch in batches(newest.values()):
            left += [failure.message for failure in await retry(self.delete_batch, batch)]
        return left

    async def change_visibility_batch(self, changes: Sequence[tuple[Message, int]]) -> list[BatchFailure]:
        """Make each of a few messages visible after its seconds; return the failures."""
        entries = [
            {"Id": str(index), "ReceiptHandle": message.receipt_handle, "VisibilityTimeout": visibility_s}
            for index, (message, visibility_s) in enumerate(changes)
        ]
        with translate_errors():
            answer = await self._client.change_message_visibility_batch(QueueUrl=self.url, Entries=entries)
        return _failures(answer, [message for message, _ in changes])

    async def delete_batch(self, messages: Sequence[Message]) -> list[BatchFailure]:
        """Delete *messages* in one call of at most BATCH_MAX_COUNT; return the failures."""
        # Indexes as ids: SQS refuses a whole call that contains a message id twice.
        entries = [
            {"Id": str(index), "ReceiptHandle": message.receipt_handle} for index, message in enumerate(messages)
        ]
        with translate_errors():
            answer = await self._client.delete_message_batch(QueueUrl=self.url, Entries=entries)
        return _failures(answer, messages)

    async def purge(self) -> None:
        """Delete all messages, within a minute. Raises ThrottledError if purged in the last one."""
        with translate_errors():
            await self._client.purge_queue(QueueUrl=self.url)


async def find_queue_url(client: Client, name: str) -> str | None:
    """Return the URL of the queue named *name* of the client's account; None when there is none."""
    answer = await find(client.get_queue_url(QueueName=name), MISSING_QUEUE_CODES)
    return None if answer is None else str(answer["QueueUrl"])


async def create_queue(client: Client, name: str, *, retention_s: int) -> str:
    """Create a standard queue, encrypted by SQS's own keys, unless it exists; return its URL."""
    attributes = {"MessageRetentionPeriod": str(retention_s)}
    encrypted = client.create_queue(QueueName=name, Attributes=attributes | {"SqsManagedSseEnabled": "true"})
    with translate_errors():
        answer = await find(encrypted, {"InvalidAttributeName"})
        answer = answer or await client.create_queue(QueueName=name, Attributes=attributes)
    return str(answer["QueueUrl"])


def parse_message(item: Mapping[str, Any]) -> Message:
    """Parse a message of a receive's answer."""
    system = item.get("Attributes", {})
    sent_by_name = item.get("MessageAttributes", {}).items()
    own = {name: value["StringValue"] for name, value in sent_by_name if "StringValue" in value}
    body, attributes = unwrap(item.get("Body", ""), own)
    return Message(
        message_id=item["MessageId"],
        receipt_handle=item["ReceiptHandle"],
        body=body,
        attributes=attributes,
        sent_at=datetime.fromtimestamp(int(system["SentTimestamp"]) / 1000, UTC),
        receive_count=max(int(system.get("ApproximateReceiveCount", 1)), 1),
        group_id=system.get("MessageGroupId"),
        deduplication_id=system.get("MessageDeduplicationId"),
        sequence_number=system.get("SequenceNumber"),
    )


def queue_name(url: str) -> str:
    """Return the name of the queue at *url*."""
    return url.rstrip("/").rsplit("/", 1)[-1]


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Split *items* into batches of at most BATCH_MAX_COUNT, for one call each."""
    remaining = iter(items)
    while batch := list(islice(remaining, BATCH_MAX_COUNT)):
        yield batch


def _parse_attributes(answer: Mapping[str, Any]) -> QueueAttributes:
    found: Mapping[str, str] = answer.get("Attributes", {})
    limit, retention = found.get("MaximumMessageSize"), found.get("MessageRetentionPeriod")
    return QueueAttributes(
        visibility_timeout_s=int(found.get("VisibilityTimeout", VISIBILITY_DEFAULT_S)),
        max_message_bytes=None if limit is None else int(limit),
        retention_s=None if retention is None else int(retention),
        visible_count=int(found.get("ApproximateNumberOfMessages", 0)),
        in_flight_count=int(found.get("ApproximateNumberOfMessagesNotVisible", 0)),
        delayed_count=int(found.get("ApproximateNumberOfMessagesDelayed", 0)),
        redrive_policy=found.get("RedrivePolicy"),
    )


def _failures(answer: Mapping[str, Any], messages: Sequence[Message]) -> list[BatchFailure]:
    by_id = {str(index): message for index, message in enumerate(messages)}
    return [
        BatchFailure(by_id[item["Id"]], str(item.get("Code", "")), bool(item.get("SenderFault")))
        for item in answer.get("Failed") or []
        if item.get("Id") in by_id
    ]
