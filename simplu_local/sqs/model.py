"""The queues of the local SQS, and the redrive from one to another. Pure.

Callers pass the time as *now_ms*, which must not go backwards, and the function that makes ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from simplu_local.sqs.errors import SqsError, queue_not_found
from simplu_local.sqs.message import StoredMessage
from simplu_local.sqs.queue import LocalQueue
from simplu_local.sqs.queue_settings import FIFO_SUFFIX, parse_settings, settable_attributes

NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")  # API_CreateQueue, QueueName


class SqsOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Options, to be set at the start and while running."""

    # A poll continues to its end after its client has disconnected, and its messages stay hidden: aws-sdk-js 2350.
    polls_outlive_clients: bool = False


class SqsAccount:
    """The queues of the account, by name."""

    def __init__(self, *, new_id: Callable[[], str], options: SqsOptions | None = None) -> None:
        self.options = options or SqsOptions()
        self.queues: dict[str, LocalQueue] = {}
        self._new_id = new_id
        self._made_count = 0

    def __repr__(self) -> str:
        return f"Account({list(self.queues.values())})"

    def create(self, name: str, attributes: dict[str, str], now_ms: int) -> LocalQueue:
        """Create a queue, or return the existing one if it has these attributes (API_CreateQueue)."""
        if not NAME.fullmatch(name.removesuffix(FIFO_SUFFIX)) or len(name) > 80:
            text = "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length"
            raise SqsError("InvalidParameterValueException", text)
        settings = parse_settings(attributes, name)
        if queue := self.queues.get(name):
            there = settable_attributes(queue.settings)
            if any(there.get(attribute) != value for attribute, value in attributes.items()):
                raise SqsError("QueueNameExists", f"A queue named {name} exists with other attributes.")
            return queue
        self._made_count += 1
        queue = LocalQueue(name, settings, number=self._made_count, now_ms=now_ms, new_id=self._new_id)
        self.queues[name] = queue
        return queue

    def find(self, name: str) -> LocalQueue:
        """Return a queue. Raises QueueDoesNotExist."""
        if queue := self.queues.get(name):
            return queue
        raise queue_not_found()

    def delete(self, name: str) -> None:
        """Delete a queue and its messages at once; in AWS it takes up to a minute (API_DeleteQueue)."""
        del self.queues[self.find(name).name]

    def receive(
        self,
        queue: LocalQueue,
        now_ms: int,
        *,
        limit: int = 1,
        visibility_s: int | None = None,
        attempt_id: str | None = None,
    ) -> list[StoredMessage]:
        """Receive messages; those received too often move to the dead-letter queue instead, if the queue has one.

        "Using dead-letter queues in Amazon SQS": the moved message keeps its id and its time; in a FIFO queue its time
        is new, and its deduplication id is the message's id.
        """
        redrive = queue.settings.redrive
        dead_letter_queue = None if redrive is None else self._queue_with_arn(redrive.dead_letter_target_arn)
        most = redrive.max_receive_count if redrive is not None and dead_letter_queue is not None else None
        received = queue.receive(
            now_ms, limit=limit, visibility_s=visibility_s, max_receive_count=most, attempt_id=attempt_id
        )
        if dead_letter_queue is not None:
            for message in received.exhausted:
                _move_to_dead_letter_queue(message, queue, dead_letter_queue, now_ms)
        return received.messages

    def _queue_with_arn(self, arn: str) -> LocalQueue | None:
        queue = self.queues.get(arn.rpartition(":")[2])
        return queue if queue is not None and queue.arn == arn else None


def _move_to_dead_letter_queue(
    message: StoredMessage, queue: LocalQueue, dead_letter_queue: LocalQueue, now_ms: int
) -> None:
    content = message.content
    if dead_letter_queue.is_fifo:
        content = msgspec.structs.replace(content, deduplication_id=message.message_id)
    dead_letter = dead_letter_queue.add(content, now_ms, message_id=message.message_id)
    dead_letter.sent_ms = now_ms if dead_letter_queue.is_fifo else message.sent_ms
    dead_letter.source_arn = queue.arn
    dead_letter.receive_count, dead_letter.first_received_ms = message.receive_count, message.first_received_ms
