"""The door to SQS: one queue's calls, as our types and our errors.

A batch call of SQS answers for each entry by itself, so the batch calls here return the entries that did not get
through, and raise only for what concerns the whole call: TryAgainLaterError (network, throttling, trouble of SQS) and
RefusedError (no such queue, no permission, too large).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec

from simplu_worker.consumers.aws import Client, translated
from simplu_worker.consumers.backoff import backoff_s
from simplu_worker.consumers.letters import FifoIds
from simplu_worker.errors import TryAgainLaterError
from simplu_worker.operations.operation import Origin, Source

BATCH_MAX_COUNT: Final = 10  # entries a batch call, and messages a receive: SQS API reference
LONG_POLL_MAX_S: Final = 20  # SQS API reference, ReceiveMessage
POLL_MARGIN_S: Final = 5  # by how much the poll client's read timeout exceeds the poll, so that a dead one is noticed
VISIBILITY_DEFAULT_S: Final = 30  # SQS developer guide
DELETE_TRIES: Final = 5

T = TypeVar("T")


class Message(msgspec.Struct, frozen=True):
    """One message as received. *attributes* are its message attributes that are text; *receive_count* counts from 1."""

    message_id: str
    receipt_handle: str
    body: str
    attributes: dict[str, str]
    sent_at: datetime
    receive_count: int
    group_id: str | None


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
    """A message to send; *fifo* only to a FIFO queue, and always there."""

    body: str
    fifo: FifoIds | None = None


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
        """Return where *message* came from."""
        return Origin(
            source=Source.SQS,
            name=self.name,
            arrived_at=message.sent_at,
            message_id=message.message_id,
            group_id=message.group_id,
        )

    async def attributes(self) -> QueueAttributes:
        """Read the queue's attributes."""
        with translated():
            answer = await self._client.get_queue_attributes(QueueUrl=self.url, AttributeNames=["All"])
        found = answer.get("Attributes", {})
        return QueueAttributes(
            visibility_timeout_s=_number(found, "VisibilityTimeout", VISIBILITY_DEFAULT_S),
            max_message_bytes=_number(found, "MaximumMessageSize", None),
            retention_s=_number(found, "MessageRetentionPeriod", None),
            visible_count=_number(found, "ApproximateNumberOfMessages", 0),
            in_flight_count=_number(found, "ApproximateNumberOfMessagesNotVisible", 0),
            delayed_count=_number(found, "ApproximateNumberOfMessagesDelayed", 0),
            redrive_policy=found.get("RedrivePolicy"),
        )

    async def receive(self, *, wait_s: int, max_messages: int) -> list[Message]:
        """Wait for messages and take up to *max_messages* of them; empty when none came within *wait_s*."""
        with translated():
            answer = await self._poll_client.receive_message(
                QueueUrl=self.url,
                WaitTimeSeconds=min(wait_s, LONG_POLL_MAX_S),
                MaxNumberOfMessages=min(max_messages, BATCH_MAX_COUNT),
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["All"],
            )
        return [_message(item) for item in answer.get("Messages", [])]

    async def send(self, entries: Sequence[Outgoing]) -> list[Unsent]:
        """Send up to BATCH_MAX_COUNT messages; return those that were not taken."""
        batch = [
            {
                "Id": str(index),
                "MessageBody": entry.body,
                **({} if entry.fifo is None else _fifo_members(entry.fifo)),
            }
            for index, entry in enumerate(entries)
        ]
        with translated():
            answer = await self._client.send_message_batch(QueueUrl=self.url, Entries=batch)
        return [Unsent(index=int(item["Id"]), code=item.get("Code", "")) for item in answer.get("Failed", [])]

    async def delete(self, messages: Sequence[Message]) -> list[Message]:
        """Delete *messages*, and again those for which SQS had trouble; return those that are still there.

        The same message twice counts once, by its newest receipt handle.
        """
        left: list[Message] = []
        newest = {message.message_id: message for message in messages}
        for batch in _batches(newest.values()):
            left += await self._delete_batch(batch)
        return left

    async def change_visibility(self, messages: Sequence[Message], visibility_s: int) -> list[Message]:
        """Let *messages* come again *visibility_s* from now, unless deleted; return those not ours to say so any more.

        Raises after the first batch that fails as a whole.
        """
        lost: list[Message] = []
        for batch in _batches(messages):
            entries = [
                {"Id": str(index), "ReceiptHandle": message.receipt_handle, "VisibilityTimeout": visibility_s}
                for index, message in enumerate(batch)
            ]
            with translated():
                answer = await self._client.change_message_visibility_batch(QueueUrl=self.url, Entries=entries)
            lost += [batch[int(item["Id"])] for item in answer.get("Failed", [])]
        return lost

    async def _delete_batch(self, messages: list[Message]) -> list[Message]:
        """Delete at most BATCH_MAX_COUNT messages; give up those whose receipt handle SQS finds at fault."""
        refused: list[Message] = []
        for attempt in range(1, DELETE_TRIES + 1):
            try:
                failed = await self._delete_once(messages)
            except TryAgainLaterError:
                if attempt == DELETE_TRIES:
                    raise
            else:
                refused += [message for message, at_fault in failed if at_fault]
                messages = [message for message, at_fault in failed if not at_fault]
            if not messages:
                break
            if attempt < DELETE_TRIES:
                await asyncio.sleep(backoff_s(attempt, draw=self._draw(), base_s=0.2, most_s=2.0))
        return refused + messages

    async def _delete_once(self, messages: list[Message]) -> list[tuple[Message, bool]]:
        entries = [
            {"Id": str(index), "ReceiptHandle": message.receipt_handle} for index, message in enumerate(messages)
        ]
        with translated():
            answer = await self._client.delete_message_batch(QueueUrl=self.url, Entries=entries)
        return [(messages[int(item["Id"])], bool(item.get("SenderFault"))) for item in answer.get("Failed", [])]


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    remaining = iter(items)
    while batch := list(islice(remaining, BATCH_MAX_COUNT)):
        yield batch


def _fifo_members(ids: FifoIds) -> dict[str, str]:
    return {"MessageGroupId": ids.group_id, "MessageDeduplicationId": ids.deduplication_id}


def _message(item: dict[str, Any]) -> Message:
    system = item.get("Attributes", {})
    texts = {name: value.get("StringValue") for name, value in item.get("MessageAttributes", {}).items()}
    sent_ms = _number(system, "SentTimestamp", None)
    return Message(
        message_id=item["MessageId"],
        receipt_handle=item["ReceiptHandle"],
        body=item.get("Body", ""),
        attributes={name: text for name, text in texts.items() if text is not None},
        sent_at=datetime.now(UTC) if sent_ms is None else datetime.fromtimestamp(sent_ms / 1000, UTC),
        receive_count=_number(system, "ApproximateReceiveCount", 1),
        group_id=system.get("MessageGroupId"),
    )


def _number(found: dict[str, str], name: str, default: T) -> int | T:
    """Read one of SQS's numbers, which come as text; *default* when it is missing or no number."""
    try:
        return int(found[name])
    except (KeyError, ValueError):
        return default
