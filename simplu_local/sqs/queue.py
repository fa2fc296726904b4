"""A queue of the local SQS; callers pass the time as *now_ms*, which must not go backwards. Pure.

Delays and visibility timeouts end in `apply_due`: every method that takes the time calls it first.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from simplu_local.aws_server.account import ACCOUNT_ID, REGION
from simplu_local.sqs.delivery_order import DeliveryOrder, FifoOrder, StandardOrder
from simplu_local.sqs.errors import SqsError, invalid_parameter
from simplu_local.sqs.message import MessageContent, MessageState, Receipt, StoredMessage, seal_receipt, unseal_receipt
from simplu_local.sqs.queue_settings import MAX_VISIBILITY_S, QueueSettings

DEDUPLICATION_MS = 300_000  # "Using the message deduplication ID"
ATTEMPT_MS = 300_000  # API_ReceiveMessage, ReceiveRequestAttemptId
PURGE_INTERVAL_MS = 60_000  # API_PurgeQueue

T = TypeVar("T")


class ReceiveResult(NamedTuple):
    """The messages of one receive, and those that were received too often: these are no longer in the queue."""

    messages: list[StoredMessage]
    exhausted: list[StoredMessage]


class SendResult(NamedTuple):
    """The answer to the sender of a message."""

    message_id: str
    sequence_number: str


class RememberedReceive(NamedTuple):
    """The answer to a receive with a ReceiveRequestAttemptId: messages, each with the number of that receive."""

    until_ms: int
    messages: Sequence[tuple[StoredMessage, int]]

    @property
    def holds(self) -> bool:
        """Whether the same answer is still valid: no message of it was deleted, changed, or is visible again."""
        return all(
            message.state is MessageState.IN_FLIGHT and message.receipt == receipt and message.change_count == 0
            for message, receipt in self.messages
        )


class LocalQueue:
    """One queue. *number* is unique, also among deleted queues of the same name."""

    def __init__(
        self, name: str, settings: QueueSettings, *, number: int, now_ms: int, new_id: Callable[[], str]
    ) -> None:
        self.name = name
        self.arn = f"arn:aws:sqs:{REGION}:{ACCOUNT_ID}:{name}"
        self.settings = settings
        self.number = number
        self.created_ms = self.modified_ms = now_ms
        self._new_id = new_id
        self._order: DeliveryOrder = FifoOrder() if settings.fifo_queue else StandardOrder()
        self._messages: dict[int, StoredMessage] = {}
        self._hidden: list[tuple[int, int, StoredMessage]] = []  # by due time; may contain outdated entries
        self._next_number = self._next_receipt = self._next_ticket = 1
        self._sent: dict[str, tuple[int, SendResult]] = {}  # by deduplication id, until when; in order of time
        self._attempts: dict[str, RememberedReceive] = {}
        self._purged_ms: int | None = None
        self.counts = dict.fromkeys(MessageState, 0)

    def __repr__(self) -> str:
        return f"Queue({self.name}, {self.visible_count} visible, {self.in_flight_count} in flight)"

    @property
    def is_fifo(self) -> bool:
        """Whether the queue keeps the order within groups."""
        return self.settings.fifo_queue

    @property
    def visible_count(self) -> int:
        """The number of visible messages, those of locked groups included."""
        return self.counts[MessageState.VISIBLE]

    @property
    def in_flight_count(self) -> int:
        """The number of messages that were received and are neither deleted nor visible again."""
        return self.counts[MessageState.IN_FLIGHT]

    @property
    def delayed_count(self) -> int:
        """The number of messages that cannot be received yet."""
        return self.counts[MessageState.DELAYED]

    @property
    def next_due_ms(self) -> int | None:
        """The time at which the next message becomes visible, or an earlier one."""
        return self._hidden[0][0] if self._hidden else None

    def apply_due(self, now_ms: int) -> None:
        """End the delays, visibility timeouts and remembered ids that are due."""
        while self._hidden and self._hidden[0][0] <= now_ms:
            _, ticket, message = heapq.heappop(self._hidden)
            if message.ticket == ticket:
                self._make_visible(message)
        _drop_expired(self._sent, now_ms, lambda sent: sent[0])
        _drop_expired(self._attempts, now_ms, lambda attempt: attempt.until_ms)

    def send(self, content: MessageContent, now_ms: int, *, delay_s: int | None = None) -> SendResult:
        """Add a message unless it repeats an earlier one, which may be deleted by now (API_SendMessage)."""
        self.apply_due(now_ms)
        repeated = self._sent.get(content.deduplication_id) if self.is_fifo and content.deduplication_id else None
        if repeated is not None:
            return repeated[1]
        message = self.add(content, now_ms, delay_s=delay_s)
        sent = SendResult(message.message_id, message.sequence_number)
        if content.deduplication_id is not None:
            self._sent[content.deduplication_id] = (now_ms + DEDUPLICATION_MS, sent)
        return sent

    def add(
        self, content: MessageContent, now_ms: int, *, delay_s: int | None = None, message_id: str = ""
    ) -> StoredMessage:
        """Add a message without deduplication."""
        message = StoredMessage(
            content, message_id=message_id or self._new_id(), number=self._next_number, sent_ms=now_ms
        )
        self._next_number += 1
        self._messages[message.number] = message
        delay_s = self.settings.delay_seconds if delay_s is None else delay_s
        self.counts[MessageState.VISIBLE] += 1
        if delay_s:
            self._hide(message, MessageState.DELAYED, now_ms + delay_s * 1000)
        else:
            self._order.add(message)
        return message

    def receive(
        self,
        now_ms: int,
        *,
        limit: int,
        visibility_s: int | None,
        max_receive_count: int | None,
        attempt_id: str | None,
    ) -> ReceiveResult:
        """Receive up to *limit* messages (API_ReceiveMessage); the same messages again for the same *attempt_id*."""
        self.apply_due(now_ms)
        visibility_s = self.settings.visibility_timeout if visibility_s is None else visibility_s
        due_ms = now_ms + visibility_s * 1000
        if attempt_id is not None and (attempt := self._attempts.get(attempt_id)) and attempt.holds:
            messages = [message for message, _ in attempt.messages]
            for message in messages:
                self._hide(message, MessageState.IN_FLIGHT, due_ms)
            return ReceiveResult(messages, [])
        taken = ReceiveResult([], [])

        def accept(message: StoredMessage) -> bool:
            if max_receive_count is not None and message.receive_count >= max_receive_count:
                self._remove(message)
                taken.exhausted.append(message)
                return False
            self._receive_one(message, now_ms, due_ms)
            taken.messages.append(message)
            return True

        self._order.take(limit, accept)
        if attempt_id is not None and taken.messages:
            self._attempts.pop(attempt_id, None)
            receipts = [(message, message.receipt) for message in taken.messages]
            self._attempts[attempt_id] = RememberedReceive(now_ms + ATTEMPT_MS, receipts)
        if not visibility_s:
            self.apply_due(now_ms)
        return taken

    def receipt_handle_of(self, message: StoredMessage) -> str:
        """Return the receipt handle of the last receive of *message*."""
        return seal_receipt(Receipt(self.number, message.number, message.receipt))

    def delete(self, handle: str, now_ms: int) -> None:
        """Delete a message (API_DeleteMessage).

        A standard queue accepts an expired handle and ignores one of an earlier receive; a FIFO queue rejects both.
        In either queue the deletion of a deleted message succeeds.
        """
        self.apply_due(now_ms)
        receipt = unseal_receipt(handle, self.number)
        message = self._messages.get(receipt.number)
        if message is None:
            return
        if self.is_fifo and (message.receipt != receipt.receipt or message.state is not MessageState.IN_FLIGHT):
            raise expired_handle(handle)
        if message.receipt == receipt.receipt:
            self._remove(message)

    def change_visibility(self, handle: str, visibility_s: int, now_ms: int) -> None:
        """Make a message visible again *visibility_s* from now (API_ChangeMessageVisibility)."""
        if not 0 <= visibility_s <= MAX_VISIBILITY_S:
            raise invalid_parameter("VisibilityTimeout", visibility_s, f"Must be between 0 and {MAX_VISIBILITY_S}.")
        self.apply_due(now_ms)
        receipt = unseal_receipt(handle, self.number)
        message = self._messages.get(receipt.number)
        if message is None or (message.receipt != receipt.receipt and not self.is_fifo):
            reason = "Message does not exist or is not available for visibility timeout change."
            raise invalid_parameter("ReceiptHandle", handle, reason)
        if message.receipt != receipt.receipt or (self.is_fifo and message.state is not MessageState.IN_FLIGHT):
            raise expired_handle(handle)
        if message.state is not MessageState.IN_FLIGHT:
            raise SqsError("MessageNotInflight", "The specified message isn't in flight.")
        due_ms = now_ms + visibility_s * 1000
        # "The 12-hour limit starts when Amazon SQS receives the ReceiveMessage request"; a longer timeout is rejected.
        if due_ms > message.received_ms + MAX_VISIBILITY_S * 1000:
            reason = f"Total VisibilityTimeout for the message is beyond the limit [{MAX_VISIBILITY_S} seconds]"
            raise invalid_parameter("VisibilityTimeout", visibility_s, reason)
        message.change_count += 1
        self._hide(message, MessageState.IN_FLIGHT, due_ms)
        self.apply_due(now_ms)

    def change_settings(self, settings: QueueSettings, now_ms: int) -> None:
        """Use *settings* for messages that are sent or received from now on (API_SetQueueAttributes)."""
        self.settings, self.modified_ms = settings, now_ms

    def purge(self, now_ms: int) -> None:
        """Delete all messages, those in flight included (API_PurgeQueue)."""
        if self._purged_ms is not None and now_ms - self._purged_ms < PURGE_INTERVAL_MS:
            text = f"Only one PurgeQueue operation on {self.name} is allowed every {PURGE_INTERVAL_MS // 1000} seconds."
            raise SqsError("PurgeQueueInProgress", text)
        self._purged_ms = now_ms
        self._hidden.clear()
        self._order.clear()
        for message in self._messages.values():
            self._count(message, MessageState.GONE)
            message.ticket = 0
        self._messages.clear()

    def expire_receipts(self, now_ms: int) -> int:
        """Let the visibility timeout of every message in flight end now; return their number."""
        self.apply_due(now_ms)
        in_flight = [message for message in self._messages.values() if message.state is MessageState.IN_FLIGHT]
        for message in in_flight:
            self._make_visible(message)
        return len(in_flight)

    def make_visible(self, handle: str) -> None:
        """Make a message visible at once that was just received: its receiver does not notice."""
        message = self._messages.get(unseal_receipt(handle, self.number).number)
        if message is not None and message.state is MessageState.IN_FLIGHT:
            self._make_visible(message)

    def _receive_one(self, message: StoredMessage, now_ms: int, due_ms: int) -> None:
        message.receipt, self._next_receipt = self._next_receipt, self._next_receipt + 1
        message.receive_count += 1
        message.received_ms = now_ms
        message.first_received_ms = message.first_received_ms or now_ms
        message.change_count = 0
        self._hide(message, MessageState.IN_FLIGHT, due_ms)

    def _hide(self, message: StoredMessage, state: MessageState, due_ms: int) -> None:
        self._count(message, state)
        message.due_ms = due_ms
        message.ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        heapq.heappush(self._hidden, (due_ms, message.ticket, message))

    def _make_visible(self, message: StoredMessage) -> None:
        was_in_flight = message.state is MessageState.IN_FLIGHT
        self._count(message, MessageState.VISIBLE)
        message.ticket = 0
        if was_in_flight:
            self._order.release(message)
        self._order.add(message)

    def _remove(self, message: StoredMessage) -> None:
        was_in_flight = message.state is MessageState.IN_FLIGHT
        self._count(message, MessageState.GONE)
        message.ticket = 0
        del self._messages[message.number]
        if was_in_flight:
            self._order.release(message)

    def _count(self, message: StoredMessage, state: MessageState) -> None:
        self.counts[message.state] -= 1
        self.counts[state] += 1
        message.state = state


def _drop_expired(kept: dict[str, T], now_ms: int, until_ms: Callable[[T], int]) -> None:
    """Drop the entries of *kept* that are due; they are in order of time."""
    while kept and until_ms(kept[first := next(iter(kept))]) <= now_ms:
        del kept[first]


def expired_handle(handle: str) -> SqsError:
    """Return the error of a FIFO queue for the handle of a message that is no longer in flight."""
    return invalid_parameter("ReceiptHandle", handle, "The receipt handle has expired.")
