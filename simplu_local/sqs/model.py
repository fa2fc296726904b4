"""The queues of the local SQS, and moves from one to another: redrive and move tasks. Pure.

Callers pass the time as *now_ms*, which must not go backwards, and the function that makes ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from simplu_local.sqs.errors import SqsError, invalid_parameter, queue_not_found
from simplu_local.sqs.message import StoredMessage
from simplu_local.sqs.queue import LocalQueue
from simplu_local.sqs.queue_settings import FIFO_SUFFIX, parse_settings, settable_attributes

NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")  # API_CreateQueue, QueueName
MOVES_PER_SECOND = 500  # API_StartMessageMoveTask: the maximum
MOVE_STEP_MS = 10
TASKS_SHOWN = 10  # API_ListMessageMoveTasks


class SqsOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Options, to be set at the start and while running."""

    # A poll continues to its end after its client has disconnected, and its messages stay hidden: aws-sdk-js 2350.
    polls_outlive_clients: bool = False


class MoveTask:
    """A task that moves the messages of a dead-letter queue at a limited rate."""

    def __init__(
        self, handle: str, source: LocalQueue, destination: LocalQueue | None, *, rate: int | None, now_ms: int
    ) -> None:
        self.handle = handle
        self.source = source
        self.destination = destination
        self.rate = rate
        self.started_ms = now_ms
        self.moved_count = 0
        self.to_move_count = source.visible_count
        self.status = "RUNNING"

    def __repr__(self) -> str:
        return f"MoveTask({self.source.name}, {self.status}, {self.moved_count} of {self.to_move_count})"

    def allowed_count(self, now_ms: int) -> int:
        """Return how many more messages may be moved now."""
        rate = self.rate or MOVES_PER_SECOND
        return min((now_ms - self.started_ms) * rate // 1000, self.to_move_count) - self.moved_count


class SqsAccount:
    """The queues of the account, by name."""

    def __init__(self, *, new_id: Callable[[], str], options: SqsOptions | None = None) -> None:
        self.options = options or SqsOptions()
        self.queues: dict[str, LocalQueue] = {}
        self.tasks: list[MoveTask] = []
        self._new_id = new_id
        self._made_count = 0

    def __repr__(self) -> str:
        return f"Account({list(self.queues.values())})"

    def apply_due(self, now_ms: int) -> None:
        """Continue the move tasks."""
        for task in self.tasks:
            if task.status == "RUNNING":
                self._move(task, now_ms)

    def next_due_ms(self, queue: LocalQueue, now_ms: int) -> int | None:
        """Return when a message may become visible in *queue* without a request."""
        if any(task.status == "RUNNING" for task in self.tasks):
            return now_ms + MOVE_STEP_MS
        return queue.next_due_ms

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

    def find_by_arn(self, arn: str) -> LocalQueue:
        """Return a queue by its ARN. Raises ResourceNotFoundException."""
        if (queue := self._queue_with_arn(arn)) is not None:
            return queue
        raise SqsError("ResourceNotFoundException", f"The resource that you specified for {arn} doesn't exist.")

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
        self.apply_due(now_ms)
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

    def start_move(self, source_arn: str, destination_arn: str | None, rate: int | None, now_ms: int) -> MoveTask:
        """Begin to move dead letters (API_StartMessageMoveTask), by default back to their source queues."""
        source = self.find_by_arn(source_arn)
        destination = None if destination_arn is None else self.find_by_arn(destination_arn)
        if rate is not None and not 1 <= rate <= MOVES_PER_SECOND:
            reason = f"Must be between 1 and {MOVES_PER_SECOND}."
            raise invalid_parameter("MaxNumberOfMessagesPerSecond", rate, reason)
        policies = [queue.settings.redrive for queue in self.queues.values()]
        if not any(policy is not None and policy.dead_letter_target_arn == source_arn for policy in policies):
            text = "Source queue must be configured as a Dead Letter Queue."
            raise SqsError("InvalidParameterValueException", text)
        if any(task.source is source and task.status == "RUNNING" for task in self.tasks):
            text = "There is already a task running. Only one active task is allowed for a source queue arn."
            raise SqsError("InvalidParameterValueException", text)
        source.apply_due(now_ms)
        task = MoveTask(self._new_id(), source, destination, rate=rate, now_ms=now_ms)
        self.tasks.insert(0, task)
        self.apply_due(now_ms)
        return task

    def list_moves(self, source_arn: str, most: int, now_ms: int) -> list[MoveTask]:
        """Return the move tasks of a dead-letter queue, the newest first (API_ListMessageMoveTasks)."""
        source = self.find_by_arn(source_arn)
        self.apply_due(now_ms)
        return [task for task in self.tasks if task.source is source][: min(most, TASKS_SHOWN)]

    def _queue_with_arn(self, arn: str) -> LocalQueue | None:
        queue = self.queues.get(arn.rpartition(":")[2])
        return queue if queue is not None and queue.arn == arn else None

    def _move(self, task: MoveTask, now_ms: int) -> None:
        """Move as many messages as the rate allows now: as new messages, sent now."""
        allowed_count = task.allowed_count(now_ms)
        messages = task.source.remove_visible(allowed_count, now_ms) if allowed_count > 0 else []
        for message in messages:
            destination = task.destination or self._queue_with_arn(message.source_arn or "")
            if destination is None:
                task.status = "FAILED"
            else:
                destination.add(message.content, now_ms)
                task.moved_count += 1
        if task.status == "RUNNING" and (task.moved_count >= task.to_move_count or len(messages) < allowed_count):
            task.status = "COMPLETED"


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
